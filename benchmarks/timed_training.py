"""Trains for a given time on real images, and evaluates the result.

    python -m benchmarks.timed_training --data DIR --seconds 240 --workdir runs/timed [--config.any.key=value]

DIR holds train.json and val.json (COCO) with their images in train/ and val/. train.py gets a signal to end
--evaluation seconds before time is up, and eval.py takes the rest. The number of steps is not known beforehand, so
the learning rate is constant after the warmup, and averaged parameters replace its decay.
"""

import argparse
import json
import pathlib
import signal
import statistics
import subprocess
import sys

from jaxdet.data import pipeline
from jaxdet.runs.workdir import Workdir
from jaxdet.training.preemption import PREEMPTED

# More steps than there will be time for; none of them is evaluated, and only the last is saved.
NEVER = 10**7
RECIPE = {
    "train.steps": NEVER,
    "train.evaluate_every": NEVER,
    "train.checkpoint_every": NEVER,
    "optimizer.schedule": "step",
    "optimizer.ema": 0.999,
}


def data_flags(data):
    """Flags that point a config at a folder of images."""
    places = {"images": "{}", "annotations": "{}.json"}
    return [
        f"--config.data.{split}.{key}={data / place.format(split)}"
        for split in ("train", "val")
        for key, place in places.items()
    ]


def train(command, seconds):
    """Runs train.py and signals it to end after so many seconds. Raises ValueError if it failed or made no step."""
    with subprocess.Popen(command) as process:
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.terminate()
            code = process.wait()
        finally:
            process.kill()
    if code == -signal.SIGTERM:
        raise ValueError(f"{seconds:.0f} s were over before the first step; give more --seconds")
    if code not in (0, PREEMPTED):
        raise ValueError(f"train.py failed with exit code {code}")


def numbers(workdir):
    """Steps, epochs, milliseconds a step and AP of a run after eval.py, as a dict."""
    workdir = Workdir(workdir)
    config = workdir.config()
    lines = [line for line in workdir.metrics() if "step_time" in line]  # others are evaluations
    results = json.loads(workdir.results_file.read_text())
    steps = workdir.best_step()  # the newest, since none was evaluated
    images = len(pipeline.open_source(config.data.train, config.data.categories or None))
    return {
        "steps": steps,
        "epochs": steps * config.train.batch_size / images,
        "step_ms": 1000 * statistics.median(line["step_time"] for line in lines),
        "waiting_for_data_ms": 1000 * statistics.median(line["data_time"] for line in lines),
        "loss": lines[-1]["loss"],
        "AP": results["roi"]["AP"],
        "AP50": results["roi"]["AP50"],
        "rpn_AP": results["rpn"]["AP"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--config", default="configs/person_small.py")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--evaluation", type=float, default=80, help="seconds of them for eval.py (default: 80)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there as well")
    options, overrides = parser.parse_known_args()
    flags = [f"--config={options.config}", f"--workdir={options.workdir}", *data_flags(options.data)]
    flags += [f"--config.{key}={value}" for key, value in RECIPE.items()] + overrides
    train([sys.executable, "train.py", *flags], options.seconds - options.evaluation)
    subprocess.run([sys.executable, "eval.py", "--images=0", *flags], check=True)
    found = numbers(options.workdir)
    print(
        f"{found['steps']} steps, {found['epochs']:.1f} epochs of {found['step_ms']:.1f} ms a step: "
        f"AP {found['AP']:.3f}, "
        f"AP50 {found['AP50']:.3f}, the RPN alone {found['rpn_AP']:.3f}"
    )
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
