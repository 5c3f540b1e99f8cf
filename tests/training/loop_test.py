import json
import os
import shutil
import signal
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest

from configs import person_rpn
from jaxdet.runs.checkpoint import Checkpoints
from jaxdet.runs.workdir import Workdir
from jaxdet.training import loop
from tests import tiny


class Killed(Exception):
    pass


# ---- what a run leaves behind ---------------------------------------------------------------------------------------


def test_each_shape_is_compiled_once_and_nothing_later(tiny_run):
    events = tiny_run.events
    training = [i for i, event in enumerate(events) if event == "jit(train_step)"]
    assert len(training) == 2 and max(training) < events.index("step")
    first = events.index("evaluated")
    assert sum(event == "jit(<lambda>)" for event in events[events.index("step") : first]) == 2  # evaluation
    assert set(events[first:]) == {"step", "logged", "evaluated"}
    seen = {tuple(batch["images"].shape[1:3]) for batch in tiny.training_batches(tiny_run.config).read(0, 6, 0)}
    assert seen == {(64, 96), (96, 64)}


def test_compilations_are_printed(tiny_run):
    for purpose in ("training", "evaluation"):
        for shape in ("64x96", "96x64"):
            assert tiny_run.printed.count(f"compiled {purpose} for {shape} in ") == 1
    assert "compiled 2 shapes for training and 2 for evaluation: 4 in all" in tiny_run.printed


def test_data_and_rate_are_printed(tiny_run):
    assert "train: 8 images (0 without a box to train on)" in tiny_run.printed
    assert "val: 5 images (1 without a box to train on)" in tiny_run.printed
    assert "learning rate 0.005 after 3 steps of warmup, for batches of 2" in tiny_run.printed
    assert "% waiting for data" in tiny_run.printed.splitlines()[-2]


def test_metrics_of_every_step(tiny_run):
    lines = [line for line in tiny.metrics(tiny_run.workdir) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    losses = "rpn_objectness", "rpn_box", "roi_classification", "roi_box"
    for step, line in enumerate(lines):
        assert sum(line[name] for name in losses) == pytest.approx(line["loss"], rel=1e-5)
        warmup = min(0.001 + 0.999 * step / 3, 1)
        assert line["learning_rate"] == pytest.approx(0.005 * warmup * (1 + np.cos(np.pi * step / 6)) / 2, rel=1e-4)
        assert line["gradient_norm"] > 0
        assert {"rpn_positives", "roi_positives", "boxes_no_anchor_meets"} <= line.keys()
    timed = json.loads((tiny_run.workdir / "metrics.jsonl").read_text().splitlines()[0])
    assert timed["step_time"] > 0 and timed["data_time"] >= 0


def test_validation_every_third_step(tiny_run):
    lines = [line for line in tiny.metrics(tiny_run.workdir) if "val/AP" in line]
    assert [line["step"] for line in lines] == [3, 6]
    for line in lines:
        assert {"val/rpn_AP", "val/AR100", "val/proposals_AR@1000", "val/rpn_box", "val/roi_box"} <= line.keys()
        losses = ("rpn_objectness", "rpn_box", "roi_classification", "roi_box")
        assert sum(line[f"val/{name}"] for name in losses) == pytest.approx(line["val/loss"], rel=1e-5)
    assert tiny_run.printed.count("with RoI head") == 2


def test_files_of_the_workdir(tiny_run):
    names = {path.name for path in tiny_run.workdir.iterdir() if "tfevents" not in path.name}
    assert names == {*("config.json", "categories.json", "skipped.jsonl", "metrics.jsonl", "checkpoints", "lock")}
    assert any("tfevents" in path.name for path in tiny_run.workdir.iterdir())
    assert json.loads((tiny_run.workdir / "categories.json").read_text()) == tiny.CATEGORIES
    steps = tiny.checkpoint_steps(tiny_run.workdir)
    assert steps[-2:] == [4, 6] and set(steps) <= {3, 4, 6}


def test_every_part_of_the_state_is_there_and_moves(tiny_run):
    state = tiny_run.state
    assert int(state.step) == 6
    for part in ("trainable", "frozen", "constants", "batch_stats", "optimizer", "average"):
        leaves = jax.tree.leaves(getattr(state, part))
        assert leaves and all(np.isfinite(leaf).all() for leaf in leaves), part
    assert not np.array_equal(state.average["box_head"]["fc0"]["kernel"], state.trainable["box_head"]["fc0"]["kernel"])
    assert not {"stem_conv", "stage3_block0"} & state.trainable["resnet"].keys()


# ---- going on -------------------------------------------------------------------------------------------------------


def stopping(owner, method, count):
    """Patch that raises Killed in place of the call number `count` of a method."""
    original, calls = getattr(owner, method), []

    def wrapped(self, *arguments):
        calls.append(arguments)
        if len(calls) == count:
            raise Killed
        return original(self, *arguments)

    return mock.patch.object(owner, method, wrapped)


@pytest.mark.parametrize(
    "owner, method, count, left, lines",
    [
        (loop.Progress, "lap", 1, [], 0),  # before the first checkpoint
        (Checkpoints, "save", 2, [2], 3),
        (Checkpoints, "record", 1, [2, 3], 4),  # after an evaluation that its checkpoint does not know of
        (loop.Progress, "lap", 6, [3, 4], 6),
    ],
)
def test_a_stopped_run_ends_as_the_undisturbed_one(tiny_run, tmp_path, owner, method, count, left, lines):
    with stopping(owner, method, count), pytest.raises(Killed):
        tiny.train(tiny_run.config, tmp_path)
    assert tiny.checkpoint_steps(tmp_path) == left
    assert len(tiny.metrics(tmp_path)) == lines
    state, printed = tiny.train(tiny_run.config, tmp_path)
    assert (f"resuming from step {max(left)}" in printed) if left else ("resuming" not in printed)
    tiny.assert_equal_trees(state, tiny_run.state)
    assert tiny.metrics(tmp_path) == tiny.metrics(tiny_run.workdir)
    assert tiny.checkpoint_steps(tmp_path) == tiny.checkpoint_steps(tiny_run.workdir)
    assert "config changed" not in printed and "config.train" not in printed


@pytest.mark.parametrize(
    "question, saved",
    [
        (1, 1),
        (3, 3),  # before the evaluation
        (5, 3),  # its second batch
        (7, 4),
        (10, 6),  # the first batch of the last evaluation
    ],
)
def test_sigterm_saves_the_step_in_hand_in_an_evaluation_too(tiny_run, tmp_path, question, saved):
    asked = loop.Preemption.__call__

    def told(preempted):
        preempted.questions = getattr(preempted, "questions", 0) + 1
        if preempted.questions == question:
            os.kill(os.getpid(), signal.SIGTERM)
        return asked(preempted)

    with mock.patch.object(loop.Preemption, "__call__", told), pytest.raises(SystemExit) as stopped:
        tiny.train(tiny_run.config, tmp_path)
    assert stopped.value.code == 75 and max(tiny.checkpoint_steps(tmp_path)) == saved
    state, printed = tiny.train(tiny_run.config, tmp_path)
    assert f"resuming from step {saved}" in printed
    tiny.assert_equal_trees(state, tiny_run.state)
    assert tiny.metrics(tmp_path) == tiny.metrics(tiny_run.workdir)
    assert tiny.checkpoint_steps(tmp_path) == tiny.checkpoint_steps(tiny_run.workdir)


@pytest.fixture
def copied_run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run.workdir, tmp_path / "run")


def test_a_finished_run_has_nothing_to_do(tiny_run, copied_run):
    state, printed = tiny.train(tiny_run.config, copied_run)
    assert "resuming from step 6" in printed and "nothing to do: config.train.steps is 6" in printed
    assert "compiled" not in printed
    tiny.assert_equal_trees(state, tiny_run.state)
    assert tiny.metrics(copied_run) == tiny.metrics(tiny_run.workdir)


def test_a_changed_config_is_named_when_going_on(tiny_run, copied_run):
    config = tiny_run.config.copy_and_resolve_references()
    config.optimizer.clip_norm = 0.0
    config.train.log_every = 3
    _, printed = tiny.train(config, copied_run)
    assert "config.optimizer.clip_norm: 10.0 -> 0.0" in printed and "config.train.log_every: 1 -> 3" in printed
    assert json.loads((copied_run / "config.json").read_text())["train"]["log_every"] == 3


def test_a_fresh_start_compares_nothing(tiny_run, tmp_path):
    """A run that died before its first checkpoint may start anew with another model."""
    Workdir(tmp_path).write_config(person_rpn.get_config())
    _, printed = tiny.train(tiny_run.config, tmp_path)
    assert "config changed" not in printed and " -> " not in printed


def test_a_workdir_of_another_model_is_refused_and_left_alone(tiny_run, copied_run):
    config = tiny_run.config.copy_and_resolve_references()
    config.model.fpn.channels = 32

    def times():
        files = [path for path in copied_run.rglob("*") if path.is_file() and path.name != "lock"]
        return {path: path.stat().st_mtime_ns for path in files}

    before = times()
    with pytest.raises(ValueError, match=r"holds another model(.|\n)*config\.model\.fpn\.channels: 16 -> 32"):
        tiny.train(config, copied_run)
    assert times() == before


def test_the_device_has_the_next_step_while_a_step_is_looked_at(tiny_run, tmp_path):
    """Each step once, and in its order; a step that is saved before anything comes after it."""
    config, events = tiny_run.config.copy_and_resolve_references(), []
    config.train.log_every = 100
    look = loop.Watch.__call__

    def compile_shapes(*arguments, **how):
        def noting(executable):
            def run(state, batch):
                events.append(f"run {int(state.step) + 1}")
                return executable(state, batch)

            return run

        return {shape: noting(executable) for shape, executable in shared(*arguments, **how).items()}

    def looking(watch, number, *more):
        events.append(f"look at {number}")
        return look(watch, number, *more)

    with tiny.shared_executables(config), mock.patch.object(loop.Watch, "__call__", looking):
        shared = loop.compile_shapes
        with mock.patch.object(loop, "compile_shapes", compile_shapes):
            loop.train(config, tmp_path)
    assert events == [  # saved are 2, 3, 4 and 6
        *("run 1", "run 2", "look at 1", "look at 2", "run 3", "look at 3", "run 4", "look at 4"),
        *("run 5", "run 6", "look at 5", "look at 6"),
    ]


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def poisoned_at(step):
    """Patch of the executables: at `step` the parameters are NaN."""
    shared = loop.compile_shapes

    def compile_shapes(*arguments, **how):
        def poison(executable):
            def run(state, batch):
                if int(state.step) == step - 1:
                    state = state.replace(trainable=jax.tree.map(tiny.nan_like, state.trainable))
                return executable(state, batch)

            return run

        return {shape: poison(executable) for shape, executable in shared(*arguments, **how).items()}

    return mock.patch.object(loop, "compile_shapes", compile_shapes)


@pytest.mark.parametrize("step, last_good", [(5, 4), (2, None)])
def test_nan_stops_with_step_and_images_and_keeps_the_last_checkpoint(tiny_run, tmp_path, step, last_good):
    batch = list(tiny.training_batches(tiny_run.config).read(0, 6, 0))[step - 1]
    with pytest.raises(FloatingPointError) as error, tiny.shared_executables(tiny_run.config), poisoned_at(step):
        loop.train(tiny_run.config, tmp_path)
    assert f"step {step}: loss nan" in str(error.value)
    assert f"image ids {batch['image_ids'].tolist()}" in str(error.value)
    assert [line["step"] for line in tiny.metrics(tmp_path) if "loss" in line] == list(range(1, step))
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert checkpoints.latest_step() == last_good
    if last_good:
        reference = Checkpoints(tiny_run.workdir / "checkpoints", read_only=True).restore_arrays(last_good)
        tiny.assert_equal_trees(checkpoints.restore_arrays(last_good), reference)
    if step == 5:
        state, _ = tiny.train(tiny_run.config, tmp_path)
        tiny.assert_equal_trees(state, tiny_run.state)


def test_images_that_do_not_decode_are_named_counted_and_passed_over(tiny_run, tmp_path):
    tiny.write_data(tmp_path / "data")
    for name in ("train/17.png", "val/503.png"):  # whole to look at, so that only decoding finds out
        path = tmp_path / "data" / name
        content = bytearray(path.read_bytes())
        content[60:-20] = bytes(len(content) - 80)
        path.write_bytes(content)
    config = tiny.get_config(tmp_path / "data")
    state, printed = tiny.train(config, tmp_path / "run")
    assert "1 images do not decode: image ids [503]" in printed
    assert printed.count("image 17 does not decode, its slot stays empty (1 so far)") == 1
    listed = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert {"split": "train", "reason": "image does not decode", "image_id": 17} in listed
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert all(np.isfinite(line.get("loss", 0)) for line in tiny.metrics(tmp_path / "run"))


def test_what_was_left_out_is_written_down(tiny_run, tmp_path):
    tiny.write_data(tmp_path / "data")
    (tmp_path / "data" / "val" / "503.png").unlink()
    content = json.loads((tmp_path / "data" / "train.json").read_text())
    content["annotations"][0]["bbox"] = [1, 2, -3, 4]
    (tmp_path / "data" / "train.json").write_text(json.dumps(content))
    with stopping(loop.Progress, "lap", 1), pytest.raises(Killed):
        tiny.train(tiny.get_config(tmp_path / "data"), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert [line["split"] for line in lines] == ["train", "val"]
    assert lines[0]["annotation_id"] == content["annotations"][0]["id"] and lines[0]["reason"]
    assert lines[1]["image_id"] == 503 and lines[1]["reason"] == "image file missing"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.model.update(num_classes=1), "model.num_classes is 1, but .* 3 categories .bicycle, person, dog."),
        (lambda c: c.data.update(categories=("cat",)), "no category named 'cat'"),
        (lambda c: c.data.train.update(annotations="/nowhere.json"), "no annotation file at /nowhere.json"),
        (lambda c: c.data.val.update(images="/nowhere"), "no image folder at /nowhere"),
        (lambda c: c.optimizer.update(learning_rate=-1.0), "config.optimizer.learning_rate is -1.0"),
    ],
)
def test_nothing_is_written_where_config_and_data_do_not_fit(tiny_data, tmp_path, change, message):
    config = tiny.get_config(tiny_data)
    change(config)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_devices_give_the_losses_of_one(tiny_run, tiny_data, tmp_path):
    """Half of each batch on each of two devices; BatchNorm's statistics and the losses' normalizers are of both."""
    # one image to evaluate on: a shape less to compile
    flags = f"--config=tests/tiny.py:{tiny_data}", f"--workdir={tmp_path}", "--config.data.val.limit=1"
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "train.py", *flags],
        cwd=tiny.ROOT,
        env=tiny.ENVIRONMENT | devices,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for ours, one in zip(tiny.metrics(tmp_path), tiny.metrics(tiny_run.workdir), strict=True):
        assert ours.keys() == one.keys()
        for name in ("loss", "rpn_box", "roi_classification", "gradient_norm"):
            if name in one:
                np.testing.assert_allclose(ours[name], one[name], rtol=1e-3)
