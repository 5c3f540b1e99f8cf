"""Curves and tables behind the numbers: precision over recall, recall by size, calibration of scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64

from jaxdet.evaluation.average_precision import AREAS, IOU_THRESHOLDS, RECALL_THRESHOLDS
from jaxdet.evaluation.coco import precision_curves, proposal_recall
from jaxdet.evaluation.types import Json

SIZES = dict(zip(("all", "small", "medium", "large"), AREAS, strict=True))


def precision_recall(ground_truth: Json, detections: Json) -> dict[str, Any]:
    """Precision at 101 recalls, by IoU and by size, interpolated as in the COCO API.

    Returns {"recall": [101], "by_iou": {.5: [101], .., .95: [101]}, "by_size": {"all": [101], "small": ..,
    ..}}. "by_size" is at IoU .5. Values are means over the categories; None if there are no boxes of a size.
    Arguments and errors as in `coco.evaluate`.
    """
    precision = precision_curves(ground_truth, detections)
    return {
        "recall": RECALL_THRESHOLDS,
        "by_iou": {round(float(iou), 2): _mean(precision[i, :, 0]) for i, iou in enumerate(IOU_THRESHOLDS)},
        "by_size": {size: _mean(precision[0, :, i]) for i, size in enumerate(SIZES)},
    }


def _mean(precision: Float64[np.ndarray, "K R"]) -> Float64[np.ndarray, " R"] | None:
    """Mean of [categories, recalls] over the categories that have boxes; None if none has any."""
    present = precision[(precision > -1).all(1)]
    return present.mean(0) if len(present) else None


def recall_by_size(
    ground_truth: Json, proposals: Json, counts: Sequence[int] = (10, 100, 1000)
) -> dict[str, dict[str, float]]:
    """{size: {"AR@10": .., ..}} of proposals for each of SIZES; see `coco.proposal_recall`."""
    return {size: proposal_recall(ground_truth, proposals, counts, areas) for size, areas in SIZES.items()}


def calibration(
    scores: Sequence[float] | Float[np.ndarray, " n"], correct: Sequence[bool] | Bool[np.ndarray, " n"], bins: int = 10
) -> dict[str, Any]:
    """How often detections of a score are correct.

    scores [n] 0..1; correct bool [n]. (Guo et al. 2017, arXiv:1706.04599; for boxes Küppers et al. 2020.)
    Returns a dict:

        edges      [bins + 1]
        count      [bins] detections
        score      [bins] mean score
        precision  [bins] share of correct detections; NaN in empty bins
        error      expected calibration error: mean |score - precision|, weighted by count; 0 if empty
    """
    scores, correct = np.asarray(scores, float), np.asarray(correct, float)
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.digitize(scores, edges) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        score = np.bincount(place, scores, bins) / count
        precision = np.bincount(place, correct, bins) / count
    distance = np.nansum(np.abs(score - precision) * count) / max(len(scores), 1)
    return {"edges": edges, "count": count, "score": score, "precision": precision, "error": float(distance)}
