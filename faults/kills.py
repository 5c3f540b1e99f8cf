"""Kills trainings and evaluations at random moments of every kind, again and again, and compares the end with an
undisturbed run.

    python faults/kills.py --kills 100 --workdir runs/kills

Loop, data, checkpoints, logs and evaluation are the real ones; in place of the network stands one that compiles in no
time and whose state takes a while to write, so that a hundred lives fit into minutes. kill_and_resume.py does the same
to whole trainings by train.py. Every life is a process of its own, ended by SIGKILL:

    start       in the first second, while it looks at data, config and checkpoint
    step        after a random step
    save        while a checkpoint is being written
    evaluation  while validation runs
    results     while eval.py's part writes its files and images, once the training is through
    report      while the report is written over an older one

After each kill every checkpoint under its final name must be whole, every JSON file must parse, and a report that has
an index.html must have all its images; at the end state, metrics.jsonl, eval.json, detections.json and the report's
numbers must be those of the undisturbed run, bit for bit. Exits with 1 otherwise.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import re
import signal
import sys
import time
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "faults")]

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from absl import logging  # noqa: E402
from kill_and_resume import compare, last_step  # noqa: E402
from PIL import Image  # noqa: E402

from jaxdet.models.faster_rcnn import Detections, Stages  # noqa: E402
from jaxdet.pages.report import write_report  # noqa: E402
from jaxdet.runs.checkpoint import Checkpoints  # noqa: E402
from jaxdet.runs.workdir import Workdir  # noqa: E402
from jaxdet.training import loop, validation  # noqa: E402
from tests import tiny  # noqa: E402

SHARES = {"start": 15, "step": 25, "save": 25, "evaluation": 15, "results": 10, "report": 10}
TRIES = 10  # lives that may end before their moment comes
BULK = 2**20  # parameters; with momentum and average 12 MiB a checkpoint


class StandIn(nn.Module):
    """A line through the mean colours with the detector's methods; its noise, too, is a function of the key."""

    two_stage = True

    def setup(self):
        self.scale = self.param("resnet", lambda *_: {"stage5_scale": jnp.ones(3)})
        self.bulk = self.param("pyramid", nn.initializers.normal(1.0), (BULK,))

    def losses(self, batch, key):
        x = jnp.mean(batch["images"].astype(jnp.float32), (1, 2)) / 255
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i)))(batch["image_ids"])
        error = x @ self.scale["stage5_scale"] - noise
        self.sow("metrics", "noise", jnp.sum(noise), reduce_fn=lambda _, new: new, init_fn=lambda: 0)
        return {"fit": jnp.mean(error**2) + 1e-3 * jnp.mean(self.bulk**2)}

    def detect(self, images, image_sizes):
        return self._stages(image_sizes).roi

    def evaluate(self, batch, key):
        return self._stages(batch["image_sizes"]), self.losses(batch, key)

    def _stages(self, image_sizes):
        corners = jax.nn.sigmoid(self.bulk[:40]).reshape(10, 4)
        boxes = jnp.concatenate([corners[:, :2] * 0.5, 0.5 + corners[:, 2:] * 0.5], 1)
        boxes = boxes * jnp.tile(image_sizes[:, None, ::-1], (1, 1, 2))
        shape = boxes.shape[:2]
        scores = jnp.broadcast_to(jnp.linspace(0.9, 0.1, 10), shape)
        found = Detections(boxes, scores, jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool))
        return Stages(found, found, found)


def live(log, run, *arguments):
    """A forked process that runs `run(*arguments)` with the stand-in; its id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        logging.set_verbosity(logging.ERROR)
        with (
            mock.patch.object(loop, "FasterRCNN", lambda **_: StandIn()),
            mock.patch.object(validation, "FasterRCNN", lambda **_: StandIn()),
        ):
            code = int(bool(run(*arguments)))
    except BaseException as error:
        print(f"ended by {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        os._exit(code)


def train(config, workdir):
    loop.train(config, workdir)


def evaluate(config, workdir):
    validation.evaluate_run(config, workdir, 5)


def report(config, workdir):
    write_report(workdir)


AFTERWARDS = {"results": evaluate, "report": report}  # what is killed once the training is through


def check(workdir):
    """True where something half done looks whole."""
    workdir = Workdir(workdir)
    for path in workdir.path.glob("*.json"):
        json.loads(path.read_text())
    lines = workdir.metrics_file.read_text().splitlines() if workdir.metrics_file.exists() else []
    for line in lines[:-1]:
        json.loads(line)
    if (workdir.report / "index.html").exists():
        check_report(workdir.report)
    if not workdir.checkpoints.is_dir():
        return False
    checkpoints = Checkpoints(workdir.checkpoints, read_only=True)
    return any(int(checkpoints.restore_arrays(step)["step"]) != step for step in checkpoints.manager.all_steps())


def check_report(folder):
    """Raises an error where a page lacks its end, its numbers or one of its images."""
    page = (folder / "index.html").read_text()
    pictures = set(re.findall(r"pictures/[\w-]+\.jpg", page))
    if not pictures or not page.rstrip().endswith("</html>"):
        raise ValueError("a page without images or end")
    json.loads((folder / "report.json").read_text())
    for picture in pictures:
        Image.open(folder / picture).load()


def finish(pid, log):
    """Waits for the end; exits where it is none."""
    if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        sys.exit(f"ended with {code}: see {log}")


def kill(pid, moment):
    """SIGKILL when `moment()` says so; returns whether it came before the process ended by itself."""
    while not moment():
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def _changed(folder):
    """When something in a folder was last made or removed; None without it."""
    return folder.stat().st_mtime_ns if folder.exists() else None


def _results(workdir):
    """The file of an evaluation's numbers, whole or still being written."""
    return list(workdir.path.glob(f"{workdir.results_file.name}*"))


def moments(kind, workdir, config, rng):
    """Function that tells when the moment of a kind has come, a random while after what starts it."""
    started, run = last_step(workdir), Workdir(workdir)
    pictures = _changed(run.report / "pictures")
    target, begun = started + rng.randint(1, 5), []
    after = {"start": 1.5, "step": 0.05, "save": 0.08, "evaluation": 0.15, "results": 0.4, "report": 1}[
        kind
    ] * rng.random()

    def has_begun():
        if kind == "start":
            return True
        if kind == "report":
            return _changed(run.report / "pictures") != pictures
        if kind == "results":
            return any(_results(run))
        step = last_step(workdir)
        if kind == "save":
            return step >= target and any(run.checkpoints.glob("*tmp*"))
        if kind == "evaluation":
            return step >= target and step % config.train.evaluate_every == 0
        return step >= target

    def moment():
        if not begun and has_begun():
            begun.append(time.monotonic() + after)
        return begun and time.monotonic() >= begun[0]

    return moment


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="an empty folder, or none yet")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None, help="of the moments (default: others each time)")
    options = parser.parse_args()
    root = options.workdir.resolve()
    if root.exists() and any(root.iterdir()):
        sys.exit(f"{root} is not empty")
    tiny.write_data(root / "data", portrait=False)
    config = tiny.get_config(root / "data")
    config.model.backbone.freeze_at = 0
    config.data.workers = 0
    config.train.update(steps=5 * options.kills, checkpoint_every=2, evaluate_every=8, log_every=1)
    undisturbed, killed = root / "undisturbed", root / "killed"
    log, rng = root / "log", random.Random(options.seed)
    finish(live(log, train, config, undisturbed), log)
    for run in AFTERWARDS.values():
        finish(live(log, run, config, undisturbed), log)

    kinds = rng.choices(list(SHARES), SHARES.values(), k=options.kills)
    kinds.sort(key=AFTERWARDS.__contains__)
    done, ended = collections.Counter(), 0
    for number, kind in enumerate(kinds, 1):
        if kind in AFTERWARDS and not done.keys() & AFTERWARDS.keys():
            finish(live(log, train, config, killed), log)
        for _ in range(TRIES):
            if kind == "results":
                for path in _results(Workdir(killed)):
                    path.unlink()
            if kind == "report":
                finish(live(log, report, config, killed), log)
            pid = live(log, AFTERWARDS.get(kind, train), config, killed)
            dead = kill(pid, moments(kind, killed, config, rng))
            finish(live(log, check, killed), log)
            if dead:
                done[kind] += 1
                break
            ended += 1
        print(f"{number}: {kind}, step {last_step(killed)}", flush=True)
    for run in (train, *AFTERWARDS.values()):
        finish(live(log, run, config, killed), log)
    print(f"killed {sum(done.values())} times: {dict(done)}; {ended} had ended before")
    finish(live(root / "comparison", compare, undisturbed, killed), root / "comparison")
    print((root / "comparison").read_text().strip())
    one, other = Workdir(undisturbed), Workdir(killed)
    for ours, theirs in ((one.results_file, other.results_file), (one.detections_file, other.detections_file)):
        if ours.read_bytes() != theirs.read_bytes():
            sys.exit(f"{ours.name} differs")
    numbers = [json.loads((run.report / "report.json").read_text()) for run in (one, other)]
    # whose runs go by the names of their workdirs
    ours, theirs = (found | {"runs": list(found["runs"].values())} for found in numbers)
    if ours != theirs:
        sys.exit("the report's numbers differ")
    print("eval.json, detections.json and the report's numbers: equal")


if __name__ == "__main__":
    main()
