"""What evaluation costs the host: time and memory for a split of COCO's size.

    python -m benchmarks.evaluation                                  5,000 images, 100 detections, 1,000 proposals each
    python -m benchmarks.evaluation evaluate --images 1000           one row, fewer images

Detections lie around generated boxes of people as a detector's do, so most of the work of matching is there. Each row
runs in a process of its own. `memory` is what the row needs beside its input, which `held` tells.

    collect      a model's output, batch by batch, to detections in COCO's result format (of both stages) and proposals
    write        detections.json
    evaluate     the twelve numbers
    coco_api     the same by pycocotools itself
    recall       the recall of the proposals
"""

import argparse
import contextlib
import io
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import types

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxdet.evaluation import coco, stages
from jaxdet.models.faster_rcnn import Detections, Stages

ROWS = ("collect", "write", "evaluate", "coco_api", "recall")
BATCH = 8
SIZE = (480, 640)
CATEGORIES = ({"id": 1, "name": "person"},)


def true_boxes(rng):
    """The boxes of one image, float [n, 4] x1 y1 x2 y2: as many and as large as people are in COCO."""
    count = min(rng.geometric(1 / 5) - 1, 20)
    sides = np.exp(rng.uniform(np.log(10), np.log(400), (count, 1)) + rng.normal(0, 0.3, (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * (SIZE[1], SIZE[0])
    return np.clip(np.concatenate([corner, corner + sides], 1), 0, [SIZE[1], SIZE[0]] * 2)


def found(rng, boxes, count):
    """`count` boxes of one image, two thirds around true ones, and their scores, best first."""
    sides = np.exp(rng.uniform(np.log(10), np.log(400), (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * (SIZE[1], SIZE[0])
    drawn = np.concatenate([corner, corner + sides], 1)
    if len(boxes):
        near = boxes[rng.integers(0, len(boxes), count * 2 // 3)]
        spread = np.tile(near[:, 2:] - near[:, :2], 2) * rng.uniform(0.02, 0.4, (len(near), 1))
        drawn[: len(near)] = near + rng.normal(0, 1, near.shape) * spread
    drawn = np.clip(drawn, 0, [SIZE[1], SIZE[0]] * 2)
    drawn[:, 2:] = np.maximum(drawn[:, 2:], drawn[:, :2] + 1)
    return drawn.astype(np.float32), np.sort(rng.beta(0.4, 2, count).astype(np.float32))[::-1]


def split(images):
    """The ground truth as a source gives it, and the boxes of each image."""
    rng = np.random.default_rng(0)
    boxes = [true_boxes(rng) for _ in range(images)]
    rows = [(i, box) for i, each in enumerate(boxes, start=1) for box in each.round(2).tolist()]
    annotations = [
        {"id": n, "image_id": i, "category_id": 1, "iscrowd": int(n % 60 == 0)}
        | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": 0.7 * (x2 - x1) * (y2 - y1)}
        for n, (i, (x1, y1, x2, y2)) in enumerate(rows, start=1)
    ]
    entries = [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(1, images + 1)]
    return {"images": entries, "annotations": annotations, "categories": list(CATEGORIES)}, boxes


def model_output(boxes, detections, proposals):
    """What a model says of the images, batch by batch, as `collect` takes it."""
    rng = np.random.default_rng(1)
    for start in range(0, len(boxes), BATCH):
        part = boxes[start : start + BATCH]
        stages = []
        for count in (proposals, detections, detections):
            arrays = [np.stack(each) for each in zip(*(found(rng, b, count) for b in part), strict=True)]
            shape = arrays[1].shape
            stages.append(Detections(*arrays, np.zeros(shape, np.int32), np.ones(shape, bool)))
        ids = np.arange(start + 1, start + 1 + len(part))
        sizes = np.tile(np.array([SIZE], np.int32), (len(part), 1))
        batch = {"image_ids": ids, "image_sizes": sizes, "scales": np.ones((len(part), 2), np.float32)}
        yield batch, Stages(*stages)


def measure(row, images, detections, proposals):
    """One row as a dict: seconds the processor worked, and memory in MiB."""
    truth, boxes = split(images)
    source = types.SimpleNamespace(
        image_ids=np.arange(1, images + 1), sizes=np.tile(SIZE, (images, 1)), categories=CATEGORIES
    )
    output = model_output(boxes, detections, proposals)
    if row == "collect":
        output = list(output)
        work = lambda: stages.collect(output, source)  # noqa: E731
    else:
        found, _, _ = stages.collect(output, source)
        target = found["proposals" if row == "recall" else "roi"]
        del found
        work = {
            "write": lambda: write(target),
            "evaluate": lambda: coco.evaluate(truth, target),
            "coco_api": lambda: coco_api(truth, target),
            "recall": lambda: coco.proposal_recall(truth, target),
        }[row]
    held, started = memory("VmRSS"), time.process_time()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    work()
    seconds, peak = time.process_time() - started, memory("VmHWM")
    return {"row": row, "seconds": seconds, "held_mib": held, "memory_mib": peak - held}


def write(detections):
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(json.dumps(detections) + "\n")


def coco_api(truth, detections):
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = truth
        gt.createIndex()
        evaluator = COCOeval(gt, gt.loadRes(detections), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()


def memory(name):
    """MiB of this process, as Linux counts them."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all where none is given")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--proposals", type=int, default=1000)
    parser.add_argument("--measure", choices=ROWS, help=argparse.SUPPRESS)  # in the process of one row
    options = parser.parse_args()
    sizes = options.images, options.detections, options.proposals
    if options.measure:
        print(json.dumps(measure(options.measure, *sizes)))
        return
    unknown = [row for row in options.rows if row not in ROWS]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    print("{} images, {} detections and {} proposals each".format(*sizes))
    flags = [f"--{name}={value}" for name, value in zip(("images", "detections", "proposals"), sizes, strict=True)]
    for row in options.rows or ROWS:
        command = [sys.executable, "-m", "benchmarks.evaluation", "--measure", row, *flags]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{row} failed with exit code {done.returncode}")
        result = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{row:10} {result['seconds']:6.1f} s, memory {result['memory_mib']:5.0f} MiB "
            f"beside {result['held_mib']:.0f} held",
            flush=True,
        )


if __name__ == "__main__":
    main()
