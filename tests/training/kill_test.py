import subprocess
import sys
import time

import pytest

from tests import tiny

TRAIN = [sys.executable, "train.py"]


def lines(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_a_killed_run_ends_as_the_undisturbed_one(tiny_run, tiny_data, tmp_path):
    """SIGKILL after step 3's line, wherever the process then is; another process goes on."""
    workdir = tmp_path / "run"
    command = [*TRAIN, f"--config=tests/tiny.py:{tiny_data}", f"--workdir={workdir}"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tiny.ROOT, env=tiny.ENVIRONMENT, stdout=log, stderr=log)
        try:
            while process.poll() is None and lines(workdir) < 4:
                time.sleep(0.002)
        finally:
            process.kill()
            process.wait()
    printed = (tmp_path / "log").read_text()
    assert process.returncode == -9, printed[-3000:]
    assert lines(workdir) >= 3
    assert "WARNING" not in printed and "Traceback" not in printed
    state, printed = tiny.train(tiny_run.config, workdir)
    assert "resuming from step " in printed
    tiny.assert_equal_trees(state, tiny_run.state)
    assert tiny.metrics(workdir) == tiny.metrics(tiny_run.workdir)
    assert tiny.checkpoint_steps(workdir) == tiny.checkpoint_steps(tiny_run.workdir)


@pytest.mark.slow
def test_five_random_kills(tiny_data, tmp_path):
    """The script that does it for any config."""
    script = [sys.executable, "faults/kill_and_resume.py", f"--config=tests/tiny.py:{tiny_data}"]
    options = [f"--workdir={tmp_path / 'runs'}", "--kills=5", "--config.train.steps=30"]
    options += ["--config.train.checkpoint_every=4", "--config.train.evaluate_every=10"]
    done = subprocess.run(
        [*script, *options], cwd=tiny.ROOT, env=tiny.ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("killed at step") == 5
    assert "metrics.jsonl: 33 lines, equal" in done.stdout
