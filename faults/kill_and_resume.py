"""Kills a training at random steps, starts it again each time, and compares the end with an undisturbed run.

    python faults/kill_and_resume.py --config configs/person_demo.py --workdir runs/killed --kills 5 \
        --config.train.steps=60 --config.train.checkpoint_every=10 --config.train.log_every=1

Two runs of train.py: W/undisturbed, and W/killed, whose process gets SIGKILL as soon as its log shows the next of the
random steps. Every leaf of the last state and every line of metrics.jsonl (but the times) must be equal, bit for bit.
Exits with 1 where they are not. Other flags go to train.py.
"""

import argparse
import pathlib
import random
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from absl import logging  # noqa: E402

from jaxdet.runs.checkpoint import Checkpoints  # noqa: E402
from jaxdet.runs.workdir import Workdir  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="an empty folder, or none yet")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=None, help="of the moments (default: others each time)")
    options, overrides = parser.parse_known_args()
    if options.workdir.exists() and any(options.workdir.iterdir()):
        sys.exit(f"{options.workdir} is not empty")
    undisturbed, killed = options.workdir / "undisturbed", options.workdir / "killed"
    command = [sys.executable, "train.py", f"--config={options.config}", *overrides]

    finish(start(command, undisturbed))
    steps = last_step(undisturbed)
    moments = random.Random(options.seed)
    targets = sorted(moments.randrange(1, steps) for _ in range(options.kills))
    print(f"undisturbed: {steps} steps; to be killed at {', '.join(map(str, targets))}")
    for target in targets:
        print(f"killed at step {kill_at(start(command, killed), killed, target, moments.uniform(0, 0.2))}", flush=True)
    finish(start(command, killed))
    sys.exit(compare(undisturbed, killed))


def start(command, workdir):
    """train.py as a process of its own, which writes to W.log."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with workdir.with_suffix(".log").open("a") as log:
        return subprocess.Popen([*command, f"--workdir={workdir.resolve()}"], cwd=ROOT, stdout=log, stderr=log)


def finish(process):
    """Waits for the end; exits where it is none."""
    if process.wait():
        sys.exit(f"train.py failed with {process.returncode}: see the .log files")


def kill_at(process, workdir, target, delay):
    """SIGKILL `delay` seconds after the log shows step `target`; returns the step that the log shows then."""
    while process.poll() is None and last_step(workdir) < target:
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.wait()
    return last_step(workdir)


def last_step(workdir):
    """Last step in the log of a run, 0 without one."""
    return max((line["step"] for line in Workdir(workdir).metrics()), default=0)


def metrics(workdir):
    """Lines of the log without what a clock measured."""
    lines = Workdir(workdir).metrics()
    return [{k: v for k, v in line.items() if k not in ("step_time", "data_time")} for line in lines]


def compare(undisturbed, killed):
    """Prints what differs between two finished runs; returns whether anything does."""
    logging.set_verbosity(logging.ERROR)
    states = []
    for workdir in (undisturbed, killed):
        checkpoints = Checkpoints(Workdir(workdir).checkpoints, read_only=True)
        states.append(checkpoints.restore_arrays(checkpoints.latest_step()))
    leaves = [jax.tree_util.tree_leaves_with_path(state) for state in states]
    differ = [
        jax.tree_util.keystr(path)
        for (path, a), (_, b) in zip(*leaves, strict=True)
        if np.asarray(a).tobytes() != np.asarray(b).tobytes()
    ]
    logs = metrics(undisturbed), metrics(killed)
    print(f"state: {len(leaves[0]) - len(differ)} of {len(leaves[0])} leaves are equal bit for bit {differ[:5] or ''}")
    print(f"metrics.jsonl: {len(logs[0])} lines, " + ("equal" if logs[0] == logs[1] else "NOT equal"))
    return bool(differ) or logs[0] != logs[1]


if __name__ == "__main__":
    main()
