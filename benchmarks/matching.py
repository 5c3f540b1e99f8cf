"""Matching many boxes to the anchors of a large image: the whole IoU matrix beside blocks of boxes, memory and time.

python -m benchmarks.matching --boxes 64 500
"""

import argparse
import statistics
import time

import jax
import numpy as np

from benchmarks import inputs
from configs import person
from jaxdet.ops.anchors import pyramid_anchors
from jaxdet.ops.boxes import iou
from jaxdet.ops.matching import match, match_boxes

IMAGES, HEIGHT, WIDTH = 2, 800, 1344
STRIDES = (4, 8, 16, 32, 64)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, nargs="+", default=[64, 500], help="an image")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rpn = person.get_config().model.rpn
    shapes = [(-(-HEIGHT // stride), -(-WIDTH // stride)) for stride in STRIDES]
    strides = [(stride, stride) for stride in STRIDES]
    anchors = np.concatenate(pyramid_anchors(shapes, strides, rpn.anchor_sizes, rpn.anchor_ratios))
    settings = rpn.negative_iou, rpn.positive_iou, True
    ways = {
        "whole": lambda boxes, valid: match(iou(boxes, anchors), valid, *settings),
        "blocks": lambda boxes, valid: match_boxes(boxes, valid, anchors, *settings)[0],
    }
    print(f"{IMAGES} images of {HEIGHT}x{WIDTH}, {len(anchors)} anchors each")
    for count in options.boxes:
        arguments = inputs.true_boxes(IMAGES, count, HEIGHT, WIDTH), np.ones((IMAGES, count), bool)
        compiled = {name: jax.jit(jax.vmap(way)).lower(*arguments).compile() for name, way in ways.items()}
        seconds = {name: [] for name in ways}
        for _ in range(options.repeats):  # by turns
            for name, run in compiled.items():
                started = time.perf_counter()
                jax.block_until_ready(run(*arguments))
                seconds[name].append(time.perf_counter() - started)
        for name, run in compiled.items():
            memory = run.memory_analysis().temp_size_in_bytes / 2**20
            print(f"{count:4} boxes, {name:7} {memory:6.0f} MiB {1000 * statistics.median(seconds[name]):7.0f} ms")


if __name__ == "__main__":
    main()
