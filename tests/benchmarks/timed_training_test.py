import json
import shutil
import sys

import pytest

from benchmarks import timed_training
from jaxdet.training.preemption import PREEMPTED


def test_numbers_of_a_run(tiny_run, tmp_path):
    workdir = shutil.copytree(tiny_run.workdir, tmp_path / "run")
    results = {"roi": {"AP": 0.25, "AP50": 0.5}, "rpn": {"AP": 0.125}}
    (workdir / "eval.json").write_text(json.dumps(results))
    found = timed_training.numbers(workdir)
    assert (found["AP"], found["AP50"], found["rpn_AP"]) == (0.25, 0.5, 0.125)
    assert 1 <= found["steps"] <= tiny_run.config.train.steps
    assert found["epochs"] > 0 and found["step_ms"] > 0 and found["loss"] > 0


def test_the_training_is_told_to_end(capfd):
    """It may be so far that it saves, over before, too early in its life, or in error."""
    saves = f"import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit({PREEMPTED})); time.sleep(99)"
    timed_training.train([sys.executable, "-c", saves], 2)
    timed_training.train([sys.executable, "-c", "0"], 50)
    with pytest.raises(ValueError, match="before the first step; give more --seconds"):
        timed_training.train([sys.executable, "-c", "import time; time.sleep(99)"], 0.5)
    with pytest.raises(ValueError, match="failed with exit code 3"):
        timed_training.train([sys.executable, "-c", "raise SystemExit(3)"], 50)


def test_flags_of_the_data(tmp_path):
    assert timed_training.data_flags(tmp_path) == [
        f"--config.data.train.images={tmp_path}/train",
        f"--config.data.train.annotations={tmp_path}/train.json",
        f"--config.data.val.images={tmp_path}/val",
        f"--config.data.val.annotations={tmp_path}/val.json",
    ]
