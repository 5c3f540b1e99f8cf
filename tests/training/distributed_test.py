"""Several processes and devices on this machine: one curve, one result, and ends that leave a checkpoint.

The device counts are those of 1x1, 1x4, 2x2 and 4x1 processes x devices.
"""

import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest

from faults.lose_processes import Processes
from tests import tiny

pytestmark = pytest.mark.slow
STEPS = 30


def start(script, data, workdir, processes, devices, *flags):
    """train.py or eval.py in several processes, each with some devices of its own."""
    command = [sys.executable, script, f"--config=tests/tiny.py:{data}", f"--workdir={workdir}"]
    command += ["--config.train.batch_size=4", "--config.evaluation.batch_size=4", "--config.data.workers=0"]
    command += [f"--config.train.steps={STEPS}", f"--config.train.evaluate_every={STEPS}", *flags]
    return Processes(command, processes, devices, tiny.ENVIRONMENT)


def curve(workdir):
    """Loss of every step, and the last evaluation."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert list(losses) == list(range(1, STEPS + 1))
    return np.array(list(losses.values())), [line["val/rpn_AP"] for line in lines if "val/rpn_AP" in line]


def assert_same_curve(workdir, reference):
    losses, evaluations = curve(workdir)
    np.testing.assert_allclose(losses, reference[0], rtol=1e-4)
    np.testing.assert_allclose(evaluations, reference[1], atol=1e-3)


@pytest.fixture(scope="module")
def reference(tiny_data, tmp_path_factory):
    """The evaluated run of one process with one device, and its curve."""
    workdir = tmp_path_factory.mktemp("distributed") / "one"
    codes, printed = start("train.py", tiny_data, workdir, 1, 1).wait()
    assert codes == [0], printed
    codes, printed = start("eval.py", tiny_data, workdir, 1, 1).wait()
    assert codes == [0], printed
    return workdir, curve(workdir)


@pytest.mark.parametrize(
    "processes, devices, flags", [(1, 4, ()), (1, 4, ("--config.train.shard_parameters=2",)), (2, 2, ()), (4, 1, ())]
)
def test_the_curve_does_not_depend_on_who_computes(tiny_data, tmp_path, reference, processes, devices, flags):
    codes, printed = start("train.py", tiny_data, tmp_path / "run", processes, devices, *flags).wait()
    assert codes == [0] * processes, printed
    assert_same_curve(tmp_path / "run", reference[1])


@pytest.mark.parametrize("processes, devices", [(1, 4), (2, 2), (4, 1)])
def test_the_detections_do_not_depend_on_who_computes(tiny_data, tmp_path, reference, processes, devices):
    """Five images in batches of four: the last batch is mostly padding, and each image is there once."""
    run = shutil.copytree(reference[0], tmp_path / "run")
    (run / "detections.json").unlink()
    codes, printed = start("eval.py", tiny_data, run, processes, devices).wait()
    assert codes == [0] * processes, printed
    expected, found = (json.loads((folder / "detections.json").read_text()) for folder in (reference[0], run))
    assert len(expected) > 100
    for name in ("image_id", "category_id"):
        assert [row[name] for row in found] == [row[name] for row in expected]
    for name, tolerance in (("score", 1e-5), ("bbox", 1e-2)):
        np.testing.assert_allclose([row[name] for row in found], [row[name] for row in expected], atol=tolerance)
    numbers = [json.loads((folder / "eval.json").read_text()) for folder in (reference[0], run)]
    assert numbers[0]["images"] == numbers[1]["images"] == 5
    for stage in ("roi", "rpn"):
        assert numbers[1][stage] == pytest.approx(numbers[0][stage], abs=1e-3)


def test_told_to_end_it_saves_the_step_in_hand_and_goes_on_with_other_devices(tiny_data, tmp_path, reference):
    """SIGTERM reaches one of four processes; then one of one with four devices, of two; another layout finishes."""
    workdir, rarely = tmp_path / "run", "--config.train.checkpoint_every=1000"
    saved = 0
    for processes, devices in ((4, 1), (1, 4), (2, 1)):
        run = start("train.py", tiny_data, workdir, processes, devices, rarely)
        assert run.wait_for_step(workdir, saved + 4)
        os.kill(run.running[-1].pid, signal.SIGTERM)
        codes, printed = run.wait()
        assert codes == [75] * processes, printed
        last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        saved = max(tiny.checkpoint_steps(workdir))
        assert saved == last and f"with step {saved} saved" in printed[0]
    codes, printed = start("train.py", tiny_data, workdir, 1, 1, rarely).wait()
    assert codes == [0], printed
    assert_same_curve(workdir, reference[1])


def test_a_resumed_run_hears_sigterm_beside_a_save_after_every_step(tiny_data, tmp_path, reference):
    """After a start in the middle and an evaluation, steps and questions have other numbers; only one set counts."""
    workdir, flags = (tmp_path / "run", ("--config.train.checkpoint_every=1", "--config.train.evaluate_every=10"))
    for step in (8, 14):
        run = start("train.py", tiny_data, workdir, 2, 1, *flags)
        assert run.wait_for_step(workdir, step)
        os.kill(run.running[0].pid, signal.SIGTERM)
        codes, printed = run.wait()
        assert codes == [75, 75], printed
    codes, printed = start("train.py", tiny_data, workdir, 1, 1, *flags).wait()
    assert codes == [0], printed
    np.testing.assert_allclose(curve(workdir)[0], reference[1][0], rtol=1e-4)


def test_the_loss_of_one_process_ends_the_other(tiny_data, tmp_path, reference):
    run = start("train.py", tiny_data, tmp_path / "run", 2, 1, "--config.train.checkpoint_every=3")
    assert run.wait_for_step(tmp_path / "run", 5)
    os.kill(run.running[1].pid, signal.SIGKILL)
    codes, printed = run.wait()
    assert codes == [1, -signal.SIGKILL]
    assert "they resume from the last checkpoint" in printed[0]
    codes, printed = start("train.py", tiny_data, tmp_path / "run", 2, 1).wait()
    assert codes == [0, 0] and "resuming from step" in printed[0]
    assert_same_curve(tmp_path / "run", reference[1])
