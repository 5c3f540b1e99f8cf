"""`config.init_from`: what is taken over, what is initialised again, what is refused."""

from unittest import mock

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxdet.models import FasterRCNN
from jaxdet.runs.checkpoint import Checkpoints
from jaxdet.training import loop
from jaxdet.training.optimizer import optimizer
from jaxdet.training.start import start_from
from jaxdet.training.step import create_state
from tests import tiny


def fresh(config):
    """A state of the config's shapes, filled with -1."""
    create = lambda: create_state(FasterRCNN(**config.model), optimizer(config), config)  # noqa: E731
    return jax.tree.map(lambda leaf: np.full(leaf.shape, -1, leaf.dtype), jax.eval_shape(create))


def leaves(state):
    parts = (state.trainable, state.frozen, state.constants, state.batch_stats)
    return {path: leaf for part in parts for path, leaf in flatten_dict(part).items()}


def test_everything_of_the_same_model(tiny_run):
    state, report = start_from(tiny_run.workdir, fresh(tiny_run.config), tiny_run.config, tiny.CATEGORIES)
    expected = leaves(tiny_run.state.replace(trainable=tiny_run.state.average))  # what the detector uses
    assert leaves(state).keys() == expected.keys()
    for path, leaf in leaves(state).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=str(path))
    np.testing.assert_array_equal(*(jax.tree.leaves(x)[0] for x in (state.average, state.trainable)))
    assert state.step == -1  # a new training begins at its own step
    assert report == f"{len(expected)} arrays loaded from {tiny_run.workdir}"


def test_other_classes_keep_all_but_their_rows(tiny_run):
    config = tiny_run.config.copy_and_resolve_references()
    config.model.num_classes = 2
    state, report = start_from(tiny_run.workdir, fresh(config), config, tiny.CATEGORIES[:2])
    made, classes, differs = report.splitlines()
    assert made.endswith("; newly initialised: box_head/box_deltas, box_head/class_logits")
    assert classes == "  classes differ: bicycle, person, dog there, bicycle, person here"
    assert differs == "  config.model.num_classes differs: 3 there, 2 here"
    anew = {path[1] for path, leaf in leaves(state).items() if (np.asarray(leaf) == -1).all()}
    assert anew == {"box_deltas", "class_logits"}


def test_as_many_classes_of_other_names_keep_all_but_their_rows(tiny_run):
    config = tiny_run.config
    renamed = [category | {"name": "cat"} for category in tiny.CATEGORIES[:1]] + tiny.CATEGORIES[1:]
    state, report = start_from(tiny_run.workdir, fresh(config), config, renamed)
    assert "classes differ: bicycle, person, dog there, cat, person, dog here" in report
    anew = {path[1] for path, leaf in leaves(state).items() if (np.asarray(leaf) == -1).all()}
    assert anew == {"box_deltas", "class_logits"}


def test_the_second_stage_is_ignored_or_made_anew(tiny_run, tmp_path):
    config = tiny_run.config.copy_and_resolve_references()
    config.model.roi_head = None
    _, report = start_from(tiny_run.workdir, fresh(config), config, tiny.CATEGORIES)
    assert report.splitlines()[0].endswith("; ignored: box_head")


def test_batch_norms_take_each_others_place(tiny_run):
    config = tiny_run.config.copy_and_resolve_references()
    config.model.backbone.norm = "frozen_batch_norm"
    state, _ = start_from(tiny_run.workdir, fresh(config), config, tiny.CATEGORIES)
    ours = flatten_dict(state.constants)[("resnet", "stem_norm", "frozen_batch_norm", "var")]
    theirs = flatten_dict(tiny_run.state.batch_stats)[("resnet", "stem_norm", "batch_norm", "var")]
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "change, answer",
    [
        (
            lambda model: model.backbone.update(norm="group_norm"),
            r"config\.model\.backbone\.norm: batch_norm there, group_norm here",
        ),
        (
            lambda model: model.fpn.update(channels=32),
            r"pyramid/lateral2/kernel: \[1, 1, 8, 16\] there, \[1, 1, 8, 32\]",
        ),
        (lambda model: model.backbone.update(depth=34), r"resnet/stage\d_block\d/.*: absent there"),
        (lambda model: model.update(bgr=True), r"config\.model\.bgr: False there, True here"),
        (lambda model: model.roi_head.update(hidden=32), r"box_head/fc0/bias: \[16\] there, \[32\] here"),
    ],
)
def test_a_mismatch_is_refused_by_name(tiny_run, change, answer):
    config = tiny_run.config.copy_and_resolve_references()
    change(config.model)
    with pytest.raises(ValueError, match=f"does not fit\n(.*\n)*.*{answer}"):
        start_from(tiny_run.workdir, fresh(config), config, tiny.CATEGORIES)


def test_a_training_starts_there(tiny_run, tmp_path, capsys):
    config = tiny_run.config.copy_and_resolve_references()
    config.init_from = str(tiny_run.workdir)
    stop = mock.patch.object(loop.Preemption, "__call__", return_value=True)  # after its first step
    with tiny.shared_executables(config), stop, pytest.raises(SystemExit):
        loop.train(config, tmp_path / "run")
    assert f"arrays loaded from {tiny_run.workdir}" in capsys.readouterr().out
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True)
    assert checkpoints.latest_step() == 1
    before, after = (
        trainable["rpn_head"]["conv0"]["kernel"]
        for trainable in (tiny_run.state.trainable, checkpoints.restore_arrays(1)["trainable"])
    )
    assert np.abs(after - before).max() < 0.1 * np.abs(before).max()


def test_no_such_run(tiny_run, tmp_path):
    config = tiny_run.config.copy_and_resolve_references()
    config.init_from = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere holds no run"):
        tiny.train(config, tmp_path / "run")
