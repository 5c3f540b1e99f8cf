import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.runs.checkpoint import Checkpoints
from tests import tiny


def state(step):
    """Leaves of every kind that a run has; {} where it has none."""
    rng = np.random.default_rng(step)
    return {
        "step": jnp.int32(step),
        "trainable": {"fc": {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}},
        "optimizer": ((), (jnp.int32(step), {"trace": jnp.asarray(rng.normal(size=5), jnp.bfloat16)})),
        "average": {},
    }


def steps(workdir):
    return sorted(int(name) for name in os.listdir(workdir / "checkpoints"))


def test_a_state_comes_back_bit_for_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    saved = state(3)
    checkpoints.save(3, saved)
    tiny.assert_equal_trees(checkpoints.restore(3, jax.eval_shape(lambda: saved)), saved)
    tiny.assert_equal_trees(checkpoints.restore(3, saved), saved)
    arrays = Checkpoints(tmp_path / "checkpoints", read_only=True).restore_arrays(3)
    np.testing.assert_array_equal(arrays["trainable"]["fc"]["kernel"], saved["trainable"]["fc"]["kernel"])


def save(checkpoints, step, average_precision=None):
    checkpoints.save(step, state(step))
    if average_precision is not None:
        checkpoints.record(step, average_precision)


def test_without_a_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest_step() is None and checkpoints.best_step() is None


def test_the_last_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", last=2)
    for step, average_precision in [(1, None), (2, 0.3), (3, 0.5), (4, None), (5, 0.4), (6, None), (7, 0.1)]:
        save(checkpoints, step, average_precision)
    assert steps(tmp_path) == [3, 6, 7]
    assert checkpoints.latest_step() == 7 and checkpoints.best_step() == 3
    save(checkpoints, 8, 0.6)
    assert checkpoints.best_step() == 8
    save(checkpoints, 9)
    assert steps(tmp_path) == [8, 9]
    assert checkpoints.is_evaluated(8) and not checkpoints.is_evaluated(9)


def test_the_best_is_known_after_a_restart(tmp_path):
    first = Checkpoints(tmp_path / "checkpoints", last=1)
    for step, average_precision in [(1, 0.5), (2, 0.4), (3, None)]:
        save(first, step, average_precision)
    first.close()
    again = Checkpoints(tmp_path / "checkpoints", last=1)
    assert again.latest_step() == 3 and again.best_step() == 1
    save(again, 4, 0.45)
    save(again, 5)
    assert steps(tmp_path) == [1, 5]


def test_without_an_evaluation_the_newest_is_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, state(step))
    assert checkpoints.best_step() == 2


def test_no_box_at_all_is_worse_than_any_precision(tmp_path):
    """The COCO API says -1 where the split has no boxes."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", last=1)
    save(checkpoints, 1, 0.0)
    save(checkpoints, 2, -1.0)
    assert checkpoints.best_step() == 1


@pytest.mark.parametrize("left_over", ["5.orbax-checkpoint-tmp", "5.orbax-checkpoint-tmp-1234"])
def test_what_a_crash_left_half_written_is_no_checkpoint(tmp_path, left_over):
    Checkpoints(tmp_path / "checkpoints").save(4, state(4))
    (tmp_path / "checkpoints" / left_over / "default").mkdir(parents=True)
    (tmp_path / "checkpoints" / left_over / "default" / "manifest.ocdbt").write_bytes(b"half")
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).latest_step() == 4
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest_step() == 4
    checkpoints.save(5, state(5))
    tiny.assert_equal_trees(checkpoints.restore(5, state(5)), state(5))


def test_reading_leaves_the_folder_as_it_is(tmp_path):
    Checkpoints(tmp_path / "checkpoints").save(4, state(4))
    before = {str(path): path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    reader = Checkpoints(tmp_path / "checkpoints", read_only=True)
    reader.restore_arrays(4)
    reader.close()
    assert {str(path): path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_death_while_old_ones_are_removed_leaves_none_in_half(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints", last=1)
    checkpoints.save(1, state(1))

    def die(folder, **_):
        next(path for path in folder.rglob("*") if path.is_file()).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("jaxdet.runs.checkpoint.shutil.rmtree", die)
        checkpoints.save(2, state(2))
    reader = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert reader.manager.all_steps() == [2] and "deleted" in os.listdir(tmp_path / "checkpoints")
    tiny.assert_equal_trees(reader.restore(2, state(2)), state(2))
    again = Checkpoints(tmp_path / "checkpoints", last=1)
    assert steps(tmp_path) == [2]
    again.save(3, state(3))
    assert steps(tmp_path) == [3]


def test_a_checkpoint_that_is_removed_before_it_is_read(tmp_path):
    trainer = Checkpoints(tmp_path / "checkpoints", last=1)
    trainer.save(1, state(1))
    reader = Checkpoints(tmp_path / "checkpoints", read_only=True)
    trainer.save(2, state(2))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*checkpoints/1; there are those of the steps \[2\]"):
        reader.restore_arrays(1)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"AP": null}'])
def test_a_damaged_metric_is_named(tmp_path, content):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    save(checkpoints, 1, 0.5)
    path = tmp_path / "checkpoints" / "1" / "metrics" / "metrics"
    path.write_text(content)
    with pytest.raises(ValueError, match="1/metrics/metrics is damaged"):
        Checkpoints(tmp_path / "checkpoints", read_only=True)
    path.unlink()
    path.parent.rmdir()
    assert Checkpoints(tmp_path / "checkpoints").best_step() == 1 and not Checkpoints(
        tmp_path / "checkpoints"
    ).is_evaluated(1)


@pytest.mark.parametrize(
    "name",
    ["_METADATA", "manifest.ocdbt", "d/*", "_CHECKPOINT_METADATA", "_sharding", "process_0", "commit_success.txt"],
)
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_damaged_checkpoint_is_named(tmp_path, name, share):
    """Every file of one kind cut: an error that says which checkpoint to use instead, or the state as it was."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (4, 5):
        checkpoints.save(step, state(step))
    checkpoints.close()
    damaged = list((tmp_path / "checkpoints" / "5").rglob(name))
    if name == "commit_success.txt" and not damaged:
        pytest.skip("Orbax before 0.12.3 writes no such file")
    assert damaged
    for path in damaged:
        os.truncate(path, int(path.stat().st_size * share))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for restore in (lambda: checkpoints.restore(5, state(5)), lambda: checkpoints.restore_arrays(5)):
        try:
            found = restore()
        except OSError as error:
            assert "checkpoints/5 cannot be read" in str(error) and "that of step 4 is the newest" in str(error)
        else:
            tiny.assert_equal_trees(jax.tree.leaves(found), jax.tree.leaves(state(5)))
    tiny.assert_equal_trees(checkpoints.restore(4, state(4)), state(4))
