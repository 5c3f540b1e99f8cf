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

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jaxdet.evaluation.average_precision import precision_at_recalls
from jaxdet.evaluation.coco import to_arrays
from jaxdet.evaluation.matching import match_detections, overlaps
from jaxdet.evaluation.types import Columns, GroundTruth, Results

FALSE_POSITIVES = ("classification", "localisation", "both", "duplicate", "background")
KINDS = (*FALSE_POSITIVES, "missed")


class Errors(NamedTuple):
    """What `analyse` found; n detections and m annotations, in the order they were given.

    ap: mean AP at IoU `foreground`, the COCO API's own. kinds: str [n], one of FALSE_POSITIVES, or "correct", or
    "ignored" (in a crowd, of a category without boxes, or beyond the best `detections_per_image`). target: int [n], the
    annotation that a detection found or that the error is about, -1 where there is none. found_by: int [m], the
    detection that found a box, or -1. missed: bool [m]. crowd: bool [m]. cost: {kind: AP gained by repairing it alone},
    and "false positives" and "false negatives", for all of them. count: {kind: how many}. ap_repaired: with all kinds
    repaired.
    """

    ap: float
    kinds: Shaped[np.ndarray, " n"]
    target: Int[np.ndarray, " n"]
    found_by: Int[np.ndarray, " m"]
    missed: Bool[np.ndarray, " m"]
    crowd: Bool[np.ndarray, " m"]
    cost: dict[str, float]
    count: dict[str, int]  # type: ignore[assignment]  # hides tuple.count
    ap_repaired: float


def analyse(
    ground_truth: GroundTruth,
    detections: Results,
    foreground: float = 0.5,
    background: float = 0.1,
    detections_per_image: int = 100,
) -> Errors:
    """Sorts detections by their kind of error -> Errors.

    ground_truth and detections as in `coco.evaluate`, loaded. foreground, background: IoUs from which on a detection
    finds a box, and up to which it has nothing to do with it. detections_per_image: of each category.

    Where kinds overlap, the order is that of the authors' own toolbox: localisation, classification, duplicate,
    background, both. Unlike it, detections in a crowd are no errors, and categories without boxes do not
    count, as in the COCO API. Raises ValueError as `coco.evaluate`.
    """
    truth, found, _ = to_arrays(ground_truth, detections)
    to_find = ~truth["iscrowd"]
    evaluated = np.unique(truth["category"][to_find])
    kept = np.isin(found["category"], evaluated) & (found["rank"] < detections_per_image)
    found = {name: each[kept] for name, each in found.items()}
    kinds, target, found_by = _assign_kinds(truth, found, foreground, background)
    aimed = np.isin(np.arange(len(to_find)), target[np.isin(kinds, ("classification", "localisation"))])
    missed = to_find & (found_by < 0) & ~aimed

    def average_precision(
        repaired: Collection[str] = (), positives_only: bool = False, found_only: bool = False
    ) -> float:
        """With some kinds repaired, without false positives, or with only those boxes counted that were found."""
        right, labels = kinds == "correct", found["category"].copy()
        for row in _best_of_each_box(kinds, target, found_by, repaired):
            right[row], labels[row] = True, truth["category"][target[row]]
        left = right | ~np.isin(kinds, ["ignored", *(FALSE_POSITIVES if positives_only else repaired)])
        counted = to_find & (found_by >= 0 if found_only else ~missed if "missed" in repaired else True)
        return _mean_ap(evaluated, right[left], labels[left], truth["category"][counted])

    ap = average_precision()
    cost = {kind: average_precision((kind,)) - ap for kind in KINDS}
    cost["false positives"] = average_precision(positives_only=True) - ap
    cost["false negatives"] = average_precision(found_only=True) - ap
    kinds_given = _as_given(kinds, found, detections, "ignored")
    count = {kind: int(np.sum(kinds_given == kind)) for kind in ("correct", *FALSE_POSITIVES)}
    count |= {"missed": int(missed.sum()), "ignored": int(np.sum(kinds_given == "ignored"))}
    annotations = ground_truth["annotations"]
    return Errors(
        ap=ap,
        kinds=kinds_given,
        target=_as_given(np.append(truth["row"], -1)[target], found, detections, -1),
        found_by=_as_given(np.append(found["row"], -1)[found_by], truth, annotations, -1),
        missed=_as_given(missed, truth, annotations, False),
        crowd=np.array([bool(row.get("iscrowd")) for row in annotations], bool),
        cost=cost,
        count=count,
        ap_repaired=average_precision(KINDS),
    )


def _as_given(
    values: Shaped[np.ndarray, " N"], part: Columns, given: Sequence[Any], absent: Any
) -> Shaped[np.ndarray, " n"]:
    """Values of the rows of `truth` or `found` in the order of the JSON they are from."""
    full = np.full(len(given), absent, values.dtype)
    full[part["row"]] = values
    return full


def _assign_kinds(
    truth: Columns, found: Columns, foreground: float, background: float
) -> tuple[Shaped[np.ndarray, " N"], Int[np.ndarray, " N"], Int[np.ndarray, " G"]]:
    """Kind [N] and target [N] of each detection and the detection [G] that finds each box, as rows of `truth` and
    `found`.
    """
    kinds = np.full(len(found["row"]), "background", dtype="<U14")
    target, found_by = np.full(len(kinds), -1), np.full(len(truth["row"]), -1)
    for rows, boxes, iou, same in overlaps(truth, found):
        kinds[rows], places = _one_image(iou, same, truth["iscrowd"][boxes], foreground, background)
        target[rows] = np.append(boxes, -1)[places]
    correct = np.flatnonzero(kinds == "correct")
    found_by[target[correct]] = correct
    return kinds, target, found_by


def _one_image(
    iou: Float[np.ndarray, "n m"],
    same: Bool[np.ndarray, "n m"],
    crowd: Bool[np.ndarray, " m"],
    foreground: float,
    background: float,
) -> tuple[Shaped[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Kind and target (-1 for none) of each detection of one picture, best score first.

    iou [n, m], of a crowd over the detection's area alone; same [n, m]: of one category; crowd [m].
    """
    match = match_detections(np.where(same, iou, 0), crowd, crowd, [foreground])[0]
    own, other = np.where(same & ~crowd, iou, 0), np.where(~same & ~crowd, iou, 0)
    nearest, nearest_other, own, other = own.argmax(1), other.argmax(1), own.max(1), other.max(1)
    rules = (  # the first that holds
        ((match >= 0) & crowd[match], "ignored", -1),
        (match >= 0, "correct", match),
        ((own >= background) & (own < foreground), "localisation", nearest),
        (other >= foreground, "classification", nearest_other),
        (own >= foreground, "duplicate", nearest),
        (other > background, "both", nearest_other),
    )
    conditions, kinds, targets = zip(*rules, strict=True)
    return np.select(conditions, kinds, "background"), np.select(conditions, targets, -1)


def _best_of_each_box(
    kinds: Shaped[np.ndarray, " N"],
    target: Int[np.ndarray, " N"],
    found_by: Int[np.ndarray, " G"],
    repaired: Collection[str],
) -> Int[np.ndarray, " n"]:
    """The classification and localisation errors that become correct: the best-scored of each box not found yet."""
    wanted = [kind for kind in ("classification", "localisation") if kind in repaired]
    rows = np.flatnonzero(np.isin(kinds, wanted))
    rows = rows[found_by[target[rows]] < 0]
    return rows[np.unique(target[rows], return_index=True)[1]]


def _mean_ap(
    categories: Int[np.ndarray, " K"],
    right: Bool[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    truth_labels: Int[np.ndarray, " m"],
) -> float:
    """Mean over the categories of AP at one threshold."""
    values = []
    for category in categories:
        hits, total = right[labels == category], int(np.sum(truth_labels == category))
        # no box is left where all of them were repaired away
        values.append(precision_at_recalls(hits, total).mean() if total else float(len(hits) == 0))
    return float(np.mean(values)) if values else -1.0
