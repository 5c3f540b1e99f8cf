"""The boxes of a data set as a few flat arrays, checked on the way in: what coco.py and tfds.py share."""

import array
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float64, Int, Int32, Int64

from jaxdet.data.types import Category, Source, Targets

# A box that leaves the image by less is rounding (TFDS stores float32 fractions) and not counted as clipped.
_ROUNDING = 1e-3  # pixels


class Columns:
    """Annotations gathered one at a time, before they are checked; compact, for there may be a million."""

    def __init__(self) -> None:
        self.images = array.array("q")  # row in the list of images
        self.ids = array.array("q")  # 0 where the annotation has no usable id
        self.labels = array.array("q")
        self.boxes = array.array("d")  # x y w h in pixels, four entries a row
        self.areas = array.array("d")  # NaN where the annotation has no usable area
        self.crowds = array.array("b")

    def add(self, image: int, annotation_id: Any, label: int, box: Iterable[float], area: Any, crowd: object) -> None:
        """One annotation; `box` is four floats x y w h in pixels, the other values are taken as they come."""
        self.images.append(image)
        usable = type(annotation_id) is int and 1 <= annotation_id < 2**62
        self.ids.append(annotation_id if usable else 0)
        self.labels.append(label)
        self.boxes.extend(box)
        self.areas.append(area if type(area) in (int, float) and 0 <= area < 1e300 else math.nan)
        self.crowds.append(bool(crowd))


class Annotations:
    """Checked annotations of N images, sorted by image.

    Attributes:
      offsets: int64 [N + 1]; image i has the rows offsets[i] to offsets[i + 1].
      boxes: float32 [n, 4], x1 y1 x2 y2 in pixels, clipped to the image, never empty.
      labels: int32 [n].
      crowd: bool [n].
      area: float64 [n], the annotation's own, else the area of its box.
      original: float64 [n, 4], x y w h as the data set has them.
      ids: int64 [n], at least 1: the COCO API never matches an annotation whose id is 0.
      box_counts, crowd_counts: int32 [N], boxes that are not crowds, and those that are.
      clipped_counts: int32 [N], boxes that reached over the image's edge.
    """

    def __init__(self, columns: Columns, sizes: Int[np.ndarray, "N 2"]) -> None:
        """Checks and sorts.

        Args:
          columns: a filled `Columns`.
          sizes: int [N, 2], height and width of every image.

        `self.faults` is a list of (reason, image row, annotation id) of the annotations that were left out.
        """
        rows = np.array(columns.images, np.int64)
        ids = np.array(columns.ids, np.int64)
        original = np.array(columns.boxes, np.float64).reshape(-1, 4)
        boxes, reasons = _check(original, np.asarray(sizes).reshape(-1, 2)[rows])
        self.faults = [(reasons[i], int(rows[i]), int(ids[i])) for i in np.flatnonzero(reasons != "")]

        order = np.flatnonzero(reasons == "")
        order = order[np.argsort(rows[order], kind="stable")]
        self.original, self.boxes, self.ids = original[order], boxes[order].astype(np.float32), ids[order]
        self.labels = np.array(columns.labels, np.int32)[order]
        self.crowd = np.array(columns.crowds, bool)[order]
        areas = np.array(columns.areas, np.float64)[order]
        with np.errstate(over="ignore"):
            self.area = np.where(np.isnan(areas), self.original[:, 2] * self.original[:, 3], areas)
        self.offsets = np.searchsorted(rows[order], np.arange(len(sizes) + 1))
        left_by = np.abs(boxes[order] - _corners(self.original)).max(axis=1, initial=0)
        self.box_counts, self.crowd_counts, self.clipped_counts = (
            np.bincount(rows[order][counted], minlength=len(sizes)).astype(np.int32)
            for counted in (~self.crowd, self.crowd, left_by > _ROUNDING)
        )
        without_id = np.flatnonzero(self.ids == 0)
        self.ids[without_id] = self.ids.max(initial=0) + 1 + np.arange(len(without_id))

    def record(self, i: int) -> Targets:
        """boxes float32 [n, 4] x1 y1 x2 y2, labels int32 [n], crowd bool [n] and area float32 [n] of image i."""
        rows = slice(self.offsets[i], self.offsets[i + 1])
        return {
            "boxes": self.boxes[rows].copy(),
            "labels": self.labels[rows].copy(),
            "crowd": self.crowd[rows].copy(),
            "area": self.area[rows].astype(np.float32),
        }

    def ground_truth(
        self,
        categories: Iterable[Category],
        image_ids: Int64[np.ndarray, " N"],
        sizes: Int32[np.ndarray, "N 2"],
        file_names: Iterable[str],
    ) -> dict[str, Any]:
        """COCO JSON form of everything here: the data set's own category ids, unclipped boxes x y w h, own areas."""
        images = [
            {"id": int(i), "height": int(height), "width": int(width), "file_name": name}
            for i, (height, width), name in zip(image_ids, sizes, file_names, strict=True)
        ]
        category_ids = [category["id"] for category in categories]
        owners = np.repeat(np.asarray(image_ids), np.diff(self.offsets))
        keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
        columns = (
            self.ids.tolist(),
            owners.tolist(),
            [category_ids[label] for label in self.labels],
            self.original.tolist(),
            self.area.tolist(),
            self.crowd.astype(int).tolist(),
        )
        annotations = [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]
        return {"images": images, "annotations": annotations, "categories": [dict(c) for c in categories]}


def summary(source: Source) -> str:
    """A few lines about a data source for the start of a run: images, boxes, crowds, and what was skipped and why."""
    boxes, empty = int(source.box_counts.sum()), int((source.box_counts == 0).sum())
    names = [category["name"] for category in source.categories]
    first = (
        f"{len(source)} images ({empty} without a box to train on), {boxes} boxes, {source.crowd_counts.sum()} crowd "
        f"regions, {source.clipped_counts.sum()} boxes clipped to the image"
    )
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    lines = [first + "; categories: " + ", ".join(names[:5]) + more]
    by_reason: dict[str, list[dict[str, Any]]] = {}
    for item in source.skipped:
        by_reason.setdefault(item["reason"], []).append(item)
    for reason, items in sorted(by_reason.items(), key=lambda pair: -len(pair[1])):
        examples = [
            ", ".join(f"{key} {value!s:.60}" for key, value in item.items() if key not in ("reason", "detail"))
            for item in items[:3]
        ]
        lines.append(f"skipped {len(items)}: {reason} ({'; '.join(examples)}{'; ...' if len(items) > 3 else ''})")
    # a name may hold what no terminal takes
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


def _corners(xywh: Float64[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n 4"]:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


def _check(
    xywh: Float64[np.ndarray, "n 4"], sizes: Int[np.ndarray, "n 2"]
) -> tuple[Float64[np.ndarray, "n 4"], np.ndarray]:
    """Clips boxes x y w h [n, 4] to images of `sizes` [n, 2]; float64 x1 y1 x2 y2 [n, 4] and a reason or "" each."""
    corners = _corners(xywh)
    limits = sizes[:, [1, 0, 1, 0]]
    boxes = np.clip(corners, 0, limits)
    outside = ((corners[:, 2:] <= 0) | (corners[:, :2] >= limits[:, :2])).any(axis=1)
    rounded = boxes.astype(np.float32)  # what is trained on: a sliver may be empty in this precision only
    reasons = np.select(
        [
            ~np.isfinite(xywh).all(axis=1),
            (xywh[:, 2:] <= 0).any(axis=1),
            outside,
            (rounded[:, 2:] <= rounded[:, :2]).any(axis=1),
        ],
        ["bbox holds NaN or infinity", "bbox empty or negative", "bbox outside the image", "bbox empty once clipped"],
        default="",
    )
    return boxes, reasons
