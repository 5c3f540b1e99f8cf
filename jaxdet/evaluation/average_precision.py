"""The averages of the COCO API (pycocotools, cocoeval.py), on arrays: the same numbers, much faster."""

import numpy as np
from jaxtyping import Bool, Float64

from jaxdet.evaluation.matching import match_detections, overlaps
from jaxdet.evaluation.types import Columns

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0, 1, 101)
AREAS = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))  # all, small, medium, large; bounds included
COUNTS = (1, 10, 100)  # detections per image, best first


def precision_and_recall(
    truth: Columns, found: Columns, categories: int
) -> tuple[Float64[np.ndarray, "T K areas R"], Float64[np.ndarray, "T K areas counts"]]:
    """Precision [T, K, areas, R] and recall [T, K, areas, counts]; -1 if there are no boxes to find.

    truth, found, categories: as returned by `coco.to_arrays`.
    """
    shape = len(IOU_THRESHOLDS), categories, len(AREAS)
    precision = -np.ones((*shape, len(RECALL_THRESHOLDS)))
    recall = -np.ones((*shape, len(COUNTS)))
    found = {name: each[found["rank"] < COUNTS[-1]] for name, each in found.items()}
    images = [(rows, boxes, np.where(same, iou, 0)) for rows, boxes, iou, same in overlaps(truth, found)]
    rows_of = [np.flatnonzero(found["category"] == k) for k in range(categories)]
    sides = found["box"][:, 2] * found["box"][:, 3]
    for a, (low, high) in enumerate(AREAS):
        ignored = truth["iscrowd"] | (truth["area"] < low) | (truth["area"] > high)
        positives = np.bincount(truth["category"][~ignored], minlength=categories).tolist()
        if not any(positives):
            continue
        match = np.full((len(sides), len(IOU_THRESHOLDS)), -1, np.int32)
        for rows, boxes, iou in images:
            places = match_detections(iou, ignored[boxes], truth["iscrowd"][boxes], IOU_THRESHOLDS)
            match[rows] = np.append(boxes, -1)[places.T]
        matched = match >= 0
        judged = np.repeat((sides >= low) & (sides <= high), len(IOU_THRESHOLDS)).reshape(match.shape)
        judged[matched] = ~ignored[match[matched]]
        for k in np.flatnonzero(positives):
            for t in range(len(IOU_THRESHOLDS)):
                rows = rows_of[k][judged[rows_of[k], t]]
                right, rank = matched[rows, t], found["rank"][rows]
                precision[t, k, a] = precision_at_recalls(right, positives[k])
                recall[t, k, a] = [np.count_nonzero(right[rank < count]) / positives[k] for count in COUNTS]
    return precision, recall


def precision_at_recalls(right: Bool[np.ndarray, " N"], positives: int) -> Float64[np.ndarray, " R"]:
    """Precision [R] at RECALL_THRESHOLDS: the largest at that recall or higher, 0 beyond the last.

    right: which detections find a box, best score first, bool [N]. positives: number of boxes to find.
    """
    true = np.cumsum(right)
    precision = true / np.arange(1, len(right) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return envelope[np.searchsorted(true / positives, RECALL_THRESHOLDS, side="left")]


def twelve_numbers(
    precision: Float64[np.ndarray, "T K areas R"], recall: Float64[np.ndarray, "T K areas counts"]
) -> list[float]:
    """The numbers in the order of coco.METRICS, from the arrays of `precision_and_recall`."""
    every, fifty, seventy_five = slice(None), 0, 5
    chosen = [precision[every, :, 0], precision[fifty, :, 0], precision[seventy_five, :, 0]]
    chosen += [precision[:, :, area] for area in (1, 2, 3)]
    chosen += [recall[:, :, 0, count] for count in (0, 1, 2)]
    chosen += [recall[:, :, area, 2] for area in (1, 2, 3)]
    return [float(part[part > -1].mean()) if (part > -1).any() else -1.0 for part in chosen]
