"""Which detection finds which box, as in the COCO API (pycocotools, cocoeval.py). Boxes: x y width height."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Num

from jaxdet.evaluation.types import Columns


def box_iou(
    found: Num[np.ndarray, "D 4"], truth: Num[np.ndarray, "G 4"], crowd: Bool[np.ndarray, " G"]
) -> Float64[np.ndarray, "D G"]:
    """IoU float64 [D, G] of detections [D, 4] with boxes [G, 4].

    For a crowd (bool [G]), the share of the detection that lies inside it.
    """
    (x1, y1, width, height), (gt_x1, gt_y1, gt_width, gt_height) = found.T[:, :, None], truth.T
    wide = np.minimum(x1 + width, gt_x1 + gt_width) - np.maximum(x1, gt_x1)
    high = np.minimum(y1 + height, gt_y1 + gt_height) - np.maximum(y1, gt_y1)
    intersection = np.maximum(wide, 0) * np.maximum(high, 0)
    area = width * height
    union = np.where(crowd, area, area + gt_width * gt_height - intersection)
    return np.divide(intersection, union, out=np.zeros(intersection.shape), where=intersection > 0)


def overlaps(
    truth: Columns, found: Columns
) -> Iterator[tuple[Int[np.ndarray, " D"], Int[np.ndarray, " G"], Float64[np.ndarray, "D G"], Bool[np.ndarray, "D G"]]]:
    """Yields, for each image with both, its rows [D], [G], IoU [D, G] and whether categories agree [D, G].

    truth, found: as returned by `coco.to_arrays`.
    """
    boxes_of = _rows_by_image(truth["image"])
    for image, rows in _rows_by_image(found["image"]).items():
        if image in boxes_of:
            boxes = boxes_of[image]
            iou = box_iou(found["box"][rows], truth["box"][boxes], truth["iscrowd"][boxes])
            yield rows, boxes, iou, found["category"][rows][:, None] == truth["category"][boxes]


def _rows_by_image(images: Int[np.ndarray, " N"]) -> dict[int, Int[np.ndarray, " n"]]:
    """{image: its rows in ascending order}."""
    order = np.argsort(images, kind="stable")
    numbers, starts = np.unique(images[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else {}


def match_detections(
    iou: Float[np.ndarray, "D G"],
    ignored: Bool[np.ndarray, " G"],
    crowd: Bool[np.ndarray, " G"],
    thresholds: Sequence[float] | Float[np.ndarray, " T"],
) -> Int[np.ndarray, "T D"]:
    """The box that each detection takes: int [thresholds, D], -1 for none.

    iou [D, G] of detections, best score first, and boxes. ignored, crowd: bool [G]. thresholds: ascending,
    above 0. At each threshold, a detection takes the free box with the largest IoU, the last one if several
    are equal. It takes an ignored box only if no other is free. Crowds are always free. Only the few pairs
    that reach the lowest threshold are examined.
    """
    order = np.argsort(ignored, kind="stable")
    rows, places = np.nonzero(iou[:, order] >= thresholds[0])
    boxes = order[places]
    candidates: dict[int, list[tuple[int, float]]] = {}
    for row, box, overlap in zip(rows.tolist(), boxes.tolist(), iou[rows, boxes].tolist(), strict=True):
        candidates.setdefault(row, []).append((box, overlap))
    is_ignored, is_crowd = ignored.tolist(), crowd.tolist()
    highest = iou.max(axis=1, initial=0).tolist()
    taken: list[set[int]] = [set() for _ in thresholds]
    match = np.full((len(thresholds), len(iou)), -1)
    for row, overlapped in candidates.items():
        for t, best in enumerate(np.asarray(thresholds).tolist()):
            if highest[row] < best:
                break
            chosen = -1
            for box, overlap in overlapped:
                if box in taken[t]:
                    continue
                if chosen >= 0 and is_ignored[box] and not is_ignored[chosen]:
                    break
                if overlap >= best:
                    best, chosen = overlap, box
            if chosen >= 0:
                match[t, row] = chosen
                if not is_crowd[chosen]:
                    taken[t].add(chosen)
    return match
