"""Runs of three images, for reports of tests."""

import numpy as np

from jaxdet.evaluation.coco import evaluate, proposal_recall
from jaxdet.pages import report_page
from tests.evaluation.errors_test import BOX, FAR, HALF, found, truth

ANCHORS = {
    "count": 99,
    "shape": [64, 96],
    "positive_iou": 0.7,
    "ious": [0.3, 0.7],
    "rows": [{"size": "all", "boxes": 3, "shares": [0.9, 0.5], "median": 0.6}],
    "panels": [],
}
LOG = [{"step": i, "learning_rate": 1e-3, "loss": 2.0} | dict.fromkeys(report_page.LOSSES, 1 / i) for i in range(1, 90)]
LOG += [{"step": 50, "val/AP": 0.1, "val/rpn_AP": 0.05, "val/rpn_box": 0.4}]


def one_run(name, shift=0.0):
    """Three images: one right and one duplicate, a badly placed box, and nothing but a background error."""
    boxes = truth((1, 1, BOX), (2, 1, BOX), (2, 1, (100, 100, 60, 60)), crowd=(2,), images=(1, 2, 30))
    boxes["categories"] = boxes["categories"][:1]
    for image in boxes["images"]:
        image |= {"width": 300, "height": 240}
    rows = found((1, 1, BOX, 0.9 - shift), (1, 1, BOX, 0.3), (2, 1, HALF, 0.8), (30, 1, FAR, 0.7))
    rows += found((2, 1, (110, 110, 20, 20), 0.6))
    proposals = {
        i: (np.array([[12, 8, 60, 55], [0, 0, 299, 239]], np.float32), np.array([0.9, 0.2])) for i in (1, 2, 30)
    }
    results = {
        "roi": evaluate(boxes, rows),
        "rpn": evaluate(boxes, []),
        "proposals": proposal_recall(boxes, proposals),
        "images": 3,
    }
    return report_page.Run(name, results, boxes, rows, proposals, LOG)


def read_image(image_id):
    return np.full((240, 300, 3), 40 + image_id, np.uint8)
