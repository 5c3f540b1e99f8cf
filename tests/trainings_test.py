"""Trainings that show that the whole works: minutes each, so `make test-slow`."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def run(script, config, workdir, *overrides):
    """One command of the README, as a user calls it; returns what it prints."""
    command = [sys.executable, script, f"--config=configs/{config}", f"--workdir={workdir}"]
    command += [f"--config.{override}" for override in overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_demo_reaches_its_average_precision(tmp_path):
    run("train.py", "person_demo.py", tmp_path)
    printed = run("eval.py", "person_demo.py", tmp_path)
    results = json.loads((tmp_path / "eval.json").read_text())
    assert "with RoI head" in printed
    assert results["images"] >= 200
    assert results["roi"]["AP"] >= 0.60
    assert results["roi"]["AP"] >= results["rpn"]["AP"] + 0.05
    assert (tmp_path / "pictures" / "all.png").exists()


def test_sixteen_real_pictures_are_learnt_by_heart(tmp_path, shared):
    people = shared / "data" / "coco_person"
    overrides = ["train.steps=400", "train.evaluate_every=400", "optimizer.learning_rate=1e-3"]
    for split in ("train", "val"):
        overrides += [
            f"data.{split}.images={people / 'train'}",
            f"data.{split}.annotations={people / 'train.json'}",
            f"data.{split}.limit=16",
            f"data.{split}.keep_empty=False",
        ]
    run("train.py", "person_small.py", tmp_path, *overrides)
    run("eval.py", "person_small.py", tmp_path, *overrides)
    results = json.loads((tmp_path / "eval.json").read_text())
    assert results["images"] == 16
    assert results["roi"]["AP"] >= 0.90
    assert results["roi"]["AP"] > results["rpn"]["AP"]
