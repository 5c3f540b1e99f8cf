"""The four losses of fixed inputs beside those that detectron2 0.6 and torchvision 0.21 gave for the same.

    python -m benchmarks.loss_parity

The inputs and the libraries' answers are those of tests/golden/losses.npz. Exits with 1 where two differ by more than
1e-5.
"""

import pathlib
import sys

import numpy as np

from jaxdet.config import presets
from jaxdet.ops.losses import box_losses, rpn_losses

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "losses.npz"
LIBRARIES = {"d2": presets.DETECTRON2, "tv": presets.TORCHVISION}


def rows(z):
    """(case, loss, library, ours, theirs) of every loss there is."""
    for case in ("rpn", "rpn_no_positive"):
        logits, deltas, anchors, label, boxes = (
            z[f"{case}/{name}"] for name in ("objectness_logits", "deltas", "anchors", "label", "gt_boxes")
        )
        for library, preset in LIBRARIES.items():
            images = int(z[f"{case}/sampled_per_image"]) * len(label)
            count = (label >= 0).sum() if preset["model.rpn.normalize_by_sampled"] else images
            ours = rpn_losses(logits, deltas, anchors, label, boxes, count, preset["model.rpn.box_beta"])
            for name in ("objectness", "box"):
                yield case, name, library, float(getattr(ours, name)), float(z[f"{case}/{library}_{name}"])
    for case in ("box", "box_no_positive", "box_person"):
        logits, deltas, proposals, label, boxes, weights = (
            z[f"{case}/{name}"] for name in ("class_logits", "box_deltas", "proposals", "label", "gt_boxes", "weights")
        )
        for library, preset in LIBRARIES.items():
            valid, beta = np.ones(len(label), bool), preset["model.roi_head.box_beta"]
            ours = box_losses(logits, deltas, proposals, label, boxes, valid, tuple(weights), beta)
            yield case, "class", library, float(ours.classification), float(z[f"{case}/{library}_class"])
            yield case, "box", library, float(ours.box), float(z[f"{case}/{library}_box"])


def main():
    agree = True
    print(f"{'case':16} {'loss':11} {'library':12} {'jaxdet':>12} {'theirs':>12} {'relative':>9}")
    for case, name, library, ours, theirs in rows(np.load(GOLDEN)):
        difference = abs(ours - theirs) / max(abs(theirs), 1e-12) if ours != theirs else 0.0
        agree &= difference <= 1e-5  # false for NaN too
        full = {"d2": "detectron2", "tv": "torchvision"}[library]
        print(f"{case:16} {name:11} {full:12} {ours:12.7f} {theirs:12.7f} {difference:9.1e}")
    sys.exit(not agree)


if __name__ == "__main__":
    main()
