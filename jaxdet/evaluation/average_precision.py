"""The COCO API's matching and its averages (pycocotools, cocoeval.py), on arrays: the same numbers in a fraction of the time."""

import numpy as np
from pycocotools import mask

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0, 1, 101)
AREAS = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))  # all, small, medium, large; bounds included
COUNTS = (1, 10, 100)  # best detections of an image


def precision_and_recall(truth, found, categories):
    """Precision [T, categories, areas, R] and recall [T, categories, areas, counts]; -1 where there is nothing to find.

    truth: dict of arrays of G annotations: image, category (int), box float64 [G, 4] x y width height, area, iscrowd (bool).
    found: dict of arrays of N detections: image, category, box, score. categories: how many, numbered from 0.
    Images are numbered in the order in which equal scores count: the API's is that of the image ids.
    """
    shape = len(IOU_THRESHOLDS), categories, len(AREAS)
    precision = -np.ones((*shape, len(RECALL_THRESHOLDS)))
    recall = -np.ones((*shape, len(COUNTS)))
    for k in range(categories):
        precision[:, k], recall[:, k] = _one_category(
            *({name: each[part["category"] == k] for name, each in part.items()} for part in (truth, found))
        )
    return precision, recall


def twelve_numbers(precision, recall):
    """The numbers in the order of coco.METRICS, as a list of floats, of `precision_and_recall`."""
    every, fifty, seventy_five = slice(None), 0, 5
    chosen = [precision[every, :, 0], precision[fifty, :, 0], precision[seventy_five, :, 0]]
    chosen += [precision[:, :, area] for area in (1, 2, 3)]
    chosen += [recall[:, :, 0, count] for count in (0, 1, 2)]
    chosen += [recall[:, :, area, 2] for area in (1, 2, 3)]
    return [float(part[part > -1].mean()) if (part > -1).any() else -1.0 for part in chosen]


def _one_category(truth, found):
    """Precision [T, areas, R] and recall [T, areas, counts]."""
    precision = -np.ones((len(IOU_THRESHOLDS), len(AREAS), len(RECALL_THRESHOLDS)))
    recall = -np.ones((len(IOU_THRESHOLDS), len(AREAS), len(COUNTS)))
    truth, _ = _by_image(truth, np.arange(len(truth["image"])))
    found, rank = _by_image(found, -found["score"])
    found, rank = {name: each[rank < COUNTS[-1]] for name, each in found.items()}, rank[rank < COUNTS[-1]]
    overlaps = list(_overlaps(truth, found))
    sides = found["box"][:, 2] * found["box"][:, 3]
    best_first = np.argsort(-found["score"], kind="stable")
    for a, (low, high) in enumerate(AREAS):
        ignored = truth["iscrowd"] | (truth["area"] < low) | (truth["area"] > high)
        positives = np.count_nonzero(~ignored)
        if not positives:
            continue
        matched = np.zeros((len(IOU_THRESHOLDS), len(sides)), bool)
        judged = np.tile((sides >= low) & (sides <= high), (len(IOU_THRESHOLDS), 1))
        for rows, boxes, iou in overlaps:
            match = greedy_matches(iou, ignored[boxes], truth["iscrowd"][boxes])
            matched[:, rows] = match >= 0
            judged[:, rows] = np.where(match >= 0, ~ignored[boxes][match], judged[:, rows])
        for t in range(len(IOU_THRESHOLDS)):
            right = (matched[t] & judged[t])[best_first].cumsum()
            wrong = (~matched[t] & judged[t])[best_first].cumsum()
            precision[t, a] = _interpolated(right / positives, right / (wrong + right + np.spacing(1)))
            recall[t, a] = [np.count_nonzero((matched[t] & judged[t])[rank < m]) / positives for m in COUNTS]
    return precision, recall


def _by_image(rows, key):
    """Rows sorted by image, then by key (stable), and the place of each within its image."""
    order = np.lexsort((key, rows["image"]))
    image = rows["image"][order]
    rank = np.arange(len(image)) - np.searchsorted(image, image)
    return {name: each[order] for name, each in rows.items()}, rank


def _overlaps(truth, found):
    """For each image with both: rows of its detections and of its boxes (slices), and their IoU [D, G]."""
    for image in np.intersect1d(truth["image"], found["image"]):
        rows, boxes = (
            slice(*(int(np.searchsorted(part["image"], image, side)) for side in ("left", "right")))
            for part in (found, truth)
        )
        yield rows, boxes, mask.iou(found["box"][rows], truth["box"][boxes], truth["iscrowd"][boxes])


def _interpolated(recall, precision):
    """Precision at RECALL_THRESHOLDS: the largest at that recall or a higher one, 0 beyond the last."""
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return envelope[np.searchsorted(recall, RECALL_THRESHOLDS, side="left")]


def greedy_matches(iou, ignored, crowd):
    """Which box each detection takes: int [thresholds, D], -1 for none.

    iou [D, G] of detections, best first, and boxes; ignored, crowd bool [G]. At each threshold for itself, a detection takes
    the free box that it overlaps most, the last one of equals, and one to be ignored only where no other is to be had.
    Crowds are always free. Only pairs that reach the lowest threshold are looked at, which are few.
    """
    order = np.argsort(ignored, kind="stable")
    rows, places = np.nonzero(iou[:, order] >= IOU_THRESHOLDS[0])
    boxes = order[places]
    candidates = {}
    for row, box, overlap in zip(rows.tolist(), boxes.tolist(), iou[rows, boxes].tolist(), strict=True):
        candidates.setdefault(row, []).append((box, overlap))
    ignored, crowd = ignored.tolist(), crowd.tolist()
    thresholds = IOU_THRESHOLDS.tolist()
    taken = [set() for _ in thresholds]
    match = np.full((len(thresholds), len(iou)), -1)
    for row, boxes in candidates.items():
        highest = max(overlap for _, overlap in boxes)
        for t, best in enumerate(thresholds):
            if highest < best:
                break
            chosen = -1
            for box, overlap in boxes:
                if box in taken[t]:
                    continue
                if chosen >= 0 and ignored[box] and not ignored[chosen]:
                    break
                if overlap >= best:
                    best, chosen = overlap, box
            if chosen >= 0:
                match[t, row] = chosen
                if not crowd[chosen]:
                    taken[t].add(chosen)
    return match
