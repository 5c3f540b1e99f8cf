"""What kind of error each detection is, and how much AP each kind costs (TIDE, Bolya et al. 2020, arXiv:2008.08115).

Every false positive is of one kind, by its overlap with the boxes of its picture:

    classification  at least `foreground` with a box of another category
    localisation    between `background` and `foreground` with a box of its own category
    both            between the two with a box of another category
    duplicate       at least `foreground` with a box that a better-scored detection has found
    background      at most `background` with every box

and a box that no detection found is missed, unless a classification or localisation error has it as its target. A kind
costs the AP that is gained where it alone is repaired: errors of class or place are put right (the best-scored one of a
box; the others go), the other false positives go, missed boxes are no longer counted. What the kinds cost does not
add up to what AP lacks: repaired together they give AP 1, alone often less, for one error may hide another.
"""

from typing import NamedTuple

import numpy as np
from pycocotools import mask

from jaxdet.evaluation.coco import check_results, load_ground_truth

FALSE_POSITIVES = ("classification", "localisation", "both", "duplicate", "background")
KINDS = (*FALSE_POSITIVES, "missed")
_RECALLS = np.linspace(0, 1, 101)


class Errors(NamedTuple):
    """What `analyse` found; n detections and m annotations, in the order they were given.

    ap: mean AP at IoU `foreground`, the COCO API's own. kinds: str [n], one of FALSE_POSITIVES, or "correct", or
    "ignored" (in a crowd, of a category without boxes, or beyond the best `detections_per_image`). target: int [n], the
    annotation that a detection found or that the error is about, -1 where there is none. found_by: int [m], the detection
    that found a box, or -1. missed: bool [m]. crowd: bool [m]. cost: {kind: AP gained by repairing it alone}, and
    "false positives" and "false negatives", for all of them. count: {kind: how many}. ap_repaired: with all kinds repaired.
    """

    ap: float
    kinds: np.ndarray
    target: np.ndarray
    found_by: np.ndarray
    missed: np.ndarray
    crowd: np.ndarray
    cost: dict
    count: dict
    ap_repaired: float


def analyse(ground_truth, detections, foreground=0.5, background=0.1, detections_per_image=100):
    """Sorts detections by their kind of error -> Errors.

    ground_truth and detections as in `coco.evaluate`, loaded. foreground, background: IoUs from which on a detection finds a
    box, and up to which it has nothing to do with it. detections_per_image: of each category.

    Where kinds overlap, the order is that of the authors' own toolbox: localisation, classification, duplicate,
    background, both. Unlike it, detections in a crowd are no errors, and categories without boxes do not
    count, as in the COCO API. Raises ValueError as `coco.evaluate`.
    """
    ground_truth = load_ground_truth(ground_truth)
    check_results(detections, ground_truth)
    truths = ground_truth["annotations"]
    crowd = np.array([bool(row["iscrowd"]) for row in truths], bool)
    kinds = np.full(len(detections), "ignored", dtype="<U14")
    target, found_by = np.full(len(detections), -1), np.full(len(truths), -1)
    scores = np.array([row["score"] for row in detections], float)
    category = np.array([row["category_id"] for row in detections], int)
    truth_category = np.array([row["category_id"] for row in truths], int)
    evaluated = set(truth_category[~crowd].tolist())

    of_image = {image["id"]: ([], []) for image in ground_truth["images"]}
    for index, row in enumerate(detections):
        if row["category_id"] in evaluated:
            of_image[row["image_id"]][0].append(index)
    for index, row in enumerate(truths):
        if row["image_id"] in of_image:
            of_image[row["image_id"]][1].append(index)

    order = []  # of all detections, as the COCO API has them before it sorts by score
    for image_id in sorted(of_image):
        rows, columns = (np.array(part, int) for part in of_image[image_id])
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        rows = rows[_rank_in_category(category[rows]) < detections_per_image]
        order.extend(rows.tolist())
        if not len(rows):
            continue
        iou = np.zeros((len(rows), len(columns)))
        if len(columns):
            boxes = [[detections[i]["bbox"] for i in rows], [truths[i]["bbox"] for i in columns]]
            iou = mask.iou(*(np.array(part, float) for part in boxes), crowd[columns].astype(np.uint8))
        same = category[rows][:, None] == truth_category[columns]
        kinds[rows], aims, finders = _one_image(iou, same, crowd[columns], foreground, background)
        target[rows] = np.append(columns, -1)[aims]
        found_by[columns] = np.append(rows, -1)[finders]

    found = (found_by >= 0) & ~crowd
    aimed = np.zeros(len(truths), bool)
    aimed[target[np.isin(kinds, ("classification", "localisation"))]] = True
    inside = np.array([row["image_id"] in of_image for row in truths], bool)
    missed = inside & ~crowd & ~found & ~aimed

    def average_precision(repaired=(), positives_only=False, found_only=False):
        """With some kinds repaired, without false positives, or with only those boxes counted that were found."""
        kept = np.array(order, int)
        correct, labels = kinds == "correct", category.copy()
        for index in _best_of_each_box(kept, kinds, target, scores, found, repaired):
            correct[index], labels[index] = True, truth_category[target[index]]
        gone = ~correct & np.isin(kinds, [*repaired, "ignored"] + list(FALSE_POSITIVES) * positives_only)
        kept = kept[~gone[kept]]
        counted = inside & ~crowd & (found if found_only else ~missed if "missed" in repaired else True)
        return _mean_ap(evaluated, scores[kept], correct[kept], labels[kept], truth_category[counted])

    ap = average_precision()
    cost = {kind: average_precision((kind,)) - ap for kind in KINDS}
    cost["false positives"] = average_precision(positives_only=True) - ap
    cost["false negatives"] = average_precision(found_only=True) - ap
    count = {kind: int(np.sum(kinds == kind)) for kind in ("correct", *FALSE_POSITIVES)}
    count |= {"missed": int(missed.sum()), "ignored": int(np.sum(kinds == "ignored"))}
    return Errors(ap, kinds, target, found_by, missed, crowd, cost, count, average_precision(KINDS))


def _rank_in_category(categories):
    """How many rows of the same category stand before each: int [n]."""
    rank, seen = np.empty(len(categories), int), {}
    for row, category in enumerate(categories.tolist()):
        rank[row] = seen[category] = seen.get(category, -1) + 1
    return rank


def _one_image(iou, same, crowd, foreground, background):
    """Kinds and targets of the detections of one picture, best score first, and which of them finds each box.

    iou [n, m], of a crowd over the detection's area alone; same [n, m]: of one category; crowd [m].
    """
    n, m = iou.shape
    kinds, aims, finders = np.full(n, "background", dtype="<U14"), np.full(n, -1), np.full(m, -1)
    own = np.where(same & ~crowd, iou, 0.0)
    other = np.where(~same & ~crowd, iou, 0.0)
    for row in range(n if m else 0):
        free = np.where(finders < 0, own[row], -1.0)
        best = m - 1 - free[::-1].argmax()  # the last one of equals, as the COCO API
        if free[best] >= foreground:
            kinds[row], aims[row], finders[best] = "correct", best, row
        elif np.any(same[row] & crowd & (iou[row] >= foreground)):
            kinds[row] = "ignored"
        elif background <= own[row].max() < foreground:
            kinds[row], aims[row] = "localisation", own[row].argmax()
        elif other[row].max() >= foreground:
            kinds[row], aims[row] = "classification", other[row].argmax()
        elif own[row].max() >= foreground:
            kinds[row], aims[row] = "duplicate", own[row].argmax()
        elif other[row].max() > background:
            kinds[row], aims[row] = "both", other[row].argmax()
    return kinds, aims, finders


def _best_of_each_box(order, kinds, target, scores, found, repaired):
    """The classification and localisation errors that become correct: the best-scored of each box not found yet."""
    wanted = [kind for kind in ("classification", "localisation") if kind in repaired]
    rows = order[np.isin(kinds[order], wanted)]
    rows = rows[~found[target[rows]]]
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    return rows[np.unique(target[rows], return_index=True)[1]]


def _mean_ap(categories, scores, correct, labels, truth_labels):
    """Mean over the categories of AP at one threshold: precision at 101 recalls, as the COCO API interpolates it."""
    values = []
    for category in categories:
        of_category, total = labels == category, int(np.sum(truth_labels == category))
        hits = correct[of_category][np.argsort(-scores[of_category], kind="stable")]
        if not total:  # all of them repaired away
            values.append(float(len(hits) == 0))
            continue
        true = np.cumsum(hits)
        precision = true / np.arange(1, len(hits) + 1)
        precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        values.append(precision[np.searchsorted(true / total, _RECALLS, side="left")].mean())
    return float(np.mean(values)) if values else -1.0
