import contextlib
import json
import os
import pathlib
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest

from jaxdet.runs.checkpoint import Checkpoints
from jaxdet.runs.files import only_one, write_whole
from jaxdet.training import loop
from tests import tiny

HOLD = "import pathlib, sys, time; from jaxdet.runs.files import only_one\n" + (
    "with only_one(pathlib.Path(sys.argv[1], 'lock')): print('held', flush=True); time.sleep(60)"
)


def test_the_second_is_refused_and_told_who_holds_it(tmp_path):
    with only_one(tmp_path / "lock"):
        with (
            pytest.raises(ValueError, match=rf"{tmp_path} is in use by process {os.getpid()} on .*, since 20"),
            only_one(tmp_path / "lock"),
        ):
            pytest.fail("it was let in")
        with only_one(tmp_path / "lock", active=False):  # another process of the same run
            pass
    with only_one(tmp_path / "lock"):
        pass


def test_the_lock_dies_with_its_process(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=tiny.ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"in use by process {holder.pid} on "), only_one(tmp_path / "lock"):
            pytest.fail("it was let in")
    finally:
        holder.kill()
        holder.wait()
    with only_one(tmp_path / "lock"):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()


def test_a_second_training_is_refused_and_leaves_the_first_alone(tiny_run, tmp_path):
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir(parents=True)  # what the first is writing
    with only_one(tmp_path / "lock"), pytest.raises(ValueError, match="is in use by process"):
        tiny.train(tiny_run.config, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "lock"]
    assert (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp").exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_whole(path, "old")
    (tmp_path / "a.json.partial").mkdir()
    with pytest.raises(OSError, match=str(path)):
        write_whole(path, "new")
    assert path.read_text() == "old"
    write_whole(tmp_path / "b.html", "é \udce9")
    assert (tmp_path / "b.html").read_bytes() == b"\xc3\xa9 \\udce9"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MiB; skipped where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def state(step, megabytes):
    rng = np.random.default_rng(step)
    return {"step": jax.numpy.int32(step), "kernel": jax.numpy.asarray(rng.normal(size=megabytes * 2**18), "float32")}


def test_a_full_disk_says_so_and_leaves_the_older_checkpoint(small_disk):
    checkpoints = Checkpoints(small_disk / "checkpoints")
    good = state(1, 1)
    checkpoints.save(1, good)
    with pytest.raises(
        OSError, match=r"checkpoint of step 2 \(16 MiB\) cannot be written to .*that of step 1 is whole"
    ):
        checkpoints.save(2, state(2, 16))
    checkpoints.close()
    again = Checkpoints(small_disk / "checkpoints")
    assert again.latest_step() == 1
    tiny.assert_equal_trees(again.restore(1, good), good)
    with pytest.raises(OSError, match=r"No space left on device.*config\.json"):
        write_whole(pathlib.Path(small_disk) / "config.json", json.dumps("x" * 2**24))
    assert not list(small_disk.glob("*.partial"))


def test_a_training_on_a_full_disk_goes_on_once_there_is_room(tiny_run, small_disk):
    """The disk is filled in the middle; what was saved before is whole, and the end is that of an undisturbed run."""
    workdir, filler = small_disk / "run", small_disk / "filler"
    original, laps = loop.Progress.lap, []

    def lap(self, waited):
        original(self, waited)
        laps.append(waited)
        if len(laps) == 3:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass

    with mock.patch.object(loop.Progress, "lap", lap), pytest.raises(OSError) as error:
        tiny.train(tiny_run.config, workdir)
    assert str(workdir) in str(error.value) and "space" in str(error.value)
    assert Checkpoints(workdir / "checkpoints", read_only=True).latest_step() == 2
    filler.unlink()
    state, printed = tiny.train(tiny_run.config, workdir)
    assert "resuming from step 2" in printed
    tiny.assert_equal_trees(state, tiny_run.state)
    assert tiny.metrics(workdir) == tiny.metrics(tiny_run.workdir)
