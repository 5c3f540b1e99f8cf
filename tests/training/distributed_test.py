"""Several processes and devices on this machine: one curve, one result, and ends that leave a checkpoint.

The device counts are those of 1x1, 1x4, 2x2 and 4x1 processes x devices.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import tiny

pytestmark = pytest.mark.slow
STEPS = 30


class Processes:
    """train.py in several processes, each with some devices of its own."""

    def __init__(self, data, workdir, processes, devices, *flags):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        environment = tiny.ENVIRONMENT | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
        }
        self.workdir, self.running = workdir, []
        for process in range(processes):
            cluster = [f"--coordinator=localhost:{port}", f"--processes={processes}", f"--process={process}"]
            command = [sys.executable, "train.py", f"--config=tests/tiny.py:{data}", f"--workdir={workdir}"]
            command += [*cluster, "--heartbeat_seconds=20"] if processes > 1 else []
            command += [
                "--config.train.batch_size=4",
                "--config.evaluation.batch_size=4",
                "--config.data.workers=0",
            ]
            command += [f"--config.train.steps={STEPS}", f"--config.train.evaluate_every={STEPS}", *flags]
            self.running.append(
                subprocess.Popen(
                    command,
                    cwd=tiny.ROOT,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )

    def wait(self):
        """Exit codes and what each printed."""
        printed = [process.communicate(timeout=600)[0] for process in self.running]
        return [process.returncode for process in self.running], printed

    def wait_for_step(self, step):
        """Returns when that step stands in the log."""
        path = self.workdir / "metrics.jsonl"
        for _ in range(6000):
            if path.exists() and len(path.read_text().splitlines()) >= step:
                return
            assert any(process.poll() is None for process in self.running), self.wait()[1]
            time.sleep(0.1)
        raise AssertionError(f"step {step} never came")


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
    """The curve of one process with one device."""
    workdir = tmp_path_factory.mktemp("distributed") / "one"
    codes, printed = Processes(tiny_data, workdir, 1, 1).wait()
    assert codes == [0], printed
    return curve(workdir)


@pytest.mark.parametrize(
    "processes, devices, flags",
    [(1, 4, ()), (1, 4, ("--config.train.shard_parameters=2",)), (2, 2, ()), (4, 1, ())],
)
def test_the_curve_does_not_depend_on_who_computes(tiny_data, tmp_path, reference, processes, devices, flags):
    codes, printed = Processes(tiny_data, tmp_path / "run", processes, devices, *flags).wait()
    assert codes == [0] * processes, printed
    assert_same_curve(tmp_path / "run", reference)


def test_told_to_end_it_saves_the_step_in_hand_and_goes_on_with_other_devices(tiny_data, tmp_path, reference):
    """SIGTERM reaches one of two processes; then one process with four devices goes on, is told too, and two finish."""
    workdir, rarely = tmp_path / "run", "--config.train.checkpoint_every=1000"
    saved = 0
    for processes, devices in ((2, 1), (1, 4)):
        run = Processes(tiny_data, workdir, processes, devices, rarely)
        run.wait_for_step(saved + 4)
        os.kill(run.running[-1].pid, signal.SIGTERM)
        codes, printed = run.wait()
        assert codes == [75] * processes, printed
        last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        saved = max(tiny.checkpoint_steps(workdir))
        assert saved == last and f"with step {saved} saved" in printed[0]
    codes, printed = Processes(tiny_data, workdir, 2, 1, rarely).wait()
    assert codes == [0, 0], printed
    assert_same_curve(workdir, reference)


def test_the_loss_of_one_process_ends_the_other(tiny_data, tmp_path, reference):
    run = Processes(tiny_data, tmp_path / "run", 2, 1, "--config.train.checkpoint_every=3")
    run.wait_for_step(5)
    os.kill(run.running[1].pid, signal.SIGKILL)
    killed = time.monotonic()
    codes, printed = run.wait()
    assert codes == [1, -signal.SIGKILL] and time.monotonic() - killed < 60
    assert "they go on from the last checkpoint" in printed[0]
    codes, printed = Processes(tiny_data, tmp_path / "run", 2, 1).wait()
    assert codes == [0, 0] and "going on from step" in printed[0]
    assert_same_curve(tmp_path / "run", reference)
