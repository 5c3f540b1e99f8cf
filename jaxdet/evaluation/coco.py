"""Average precision and recall of the COCO API (Lin et al. 2014; pycocotools), from and to its JSON."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int

from jaxdet.evaluation.average_precision import IOU_THRESHOLDS, precision_and_recall, twelve_numbers
from jaxdet.evaluation.matching import box_iou, match_detections
from jaxdet.evaluation.types import Columns, GroundTruth, Json, Results

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")

Wanted = str | int | np.integer | Iterable[str | int | np.integer]  # categories by name or id

_BOX_KEYS = ("image_id", "category_id", "bbox")


def evaluate(ground_truth: Json, detections: Json, categories: Wanted | None = None) -> dict[str, float]:
    """The twelve COCO numbers of a set of detections, over all images of the ground truth.

    ground_truth  COCO JSON: a dict with images, annotations and categories, or the path of such a file.
                  An annotation without `area` has the area of its box; without `iscrowd` it is no crowd.
                  Annotation ids are not used. (The COCO API never matches an annotation with id 0, and
                  keeps only one of several annotations with the same id.)
    detections    COCO results: a list of {"image_id", "category_id", "bbox": x y width height, "score"},
                  or the path of such a file; may be empty.
    categories    names or ids of the categories to evaluate, None for all. Detections of others are not used.

    Returns a dict of floats with the keys METRICS: AP over IoU .50:.95, at .50 and at .75, and by annotated
    area (below 32^2, up to 96^2, above); AR with 1, 10 and 100 detections per image, and by area. A number is
    -1 if there is no such ground truth. The arguments are not changed.

    Raises ValueError for a file that is not JSON, an unknown category name, and the first detection with an
    unknown image or category, a score that is not a number, or a box that is not four finite numbers.
    """
    truth, found, count = to_arrays(ground_truth, detections, categories)
    precision, recall = precision_and_recall(truth, found, count)
    numbers = twelve_numbers(precision, recall)
    return dict(zip(METRICS, numbers, strict=True))


def precision_curves(ground_truth: Json, detections: Json) -> Float64[np.ndarray, "T K areas R"]:
    """Precision float64 [10 IoUs, categories, 4 sizes, 101 recalls], -1 if there are no boxes to find.

    IoUs, sizes and recalls are those of `average_precision`. Arguments and errors as in `evaluate`, for all
    categories.
    """
    truth, found, count = to_arrays(ground_truth, detections)
    return precision_and_recall(truth, found, count)[0]


def to_arrays(ground_truth: Json, detections: Json, categories: Wanted | None = None) -> tuple[Columns, Columns, int]:
    """Annotations and detections as arrays, and the number of categories.

    Arguments and errors as in `evaluate`. Returns (truth, found, categories). truth: dict of arrays of the
    annotations in the given order: image, category (int), row (index in the JSON), box float64 [G, 4] x y
    width height, area float64, iscrowd bool. found: dict of arrays of the detections, best score first:
    image, category, row, box, score, rank (among those of its image and category). Images and categories are
    numbered from 0 in the order of their ids. Rows of other images or categories are left out.
    """
    ground_truth = load_ground_truth(ground_truth)
    wanted = _category_ids(ground_truth["categories"], categories)
    detections = _read_json(detections)
    check_results(detections, ground_truth)
    number = {image_id: i for i, image_id in enumerate(sorted({image["id"] for image in ground_truth["images"]}))}
    place = {category: k for k, category in enumerate(sorted(wanted))}

    def arrays(items: Results, **more: type) -> Columns:
        rows = [i for i, item in enumerate(items) if item["image_id"] in number and item["category_id"] in place]
        kept = [items[i] for i in rows]
        columns: Columns = {name: np.array([item[name] for item in kept], kind) for name, kind in more.items()}
        return columns | {
            "row": np.array(rows, int),
            "image": np.array([number[item["image_id"]] for item in kept], int),
            "category": np.array([place[item["category_id"]] for item in kept], int),
            "box": np.array([item["bbox"] for item in kept], np.float64).reshape(-1, 4),
        }

    truth = arrays(ground_truth["annotations"], area=np.float64, iscrowd=bool)
    found = arrays(detections, score=np.float64)
    # equal scores in the order of the image ids, as in the API
    best_first = np.lexsort((found["image"], -found["score"]))
    found = {name: each[best_first] for name, each in found.items()}
    group = found["image"] * len(place) + found["category"]
    by_group = np.argsort(group, kind="stable")
    found["rank"] = np.empty_like(group)
    found["rank"][by_group] = np.arange(len(group)) - np.searchsorted(group[by_group], group[by_group])
    return truth, found, len(place)


def proposal_recall(
    ground_truth: Json, proposals: Json, counts: Sequence[int] = (100, 1000), areas: tuple[float, float] = (0, math.inf)
) -> dict[str, float]:
    """Average recall of class-agnostic proposals: {"AR@100": ..., "AR@1000": ...}, one entry per count.

    The COCO API's AR with `useCats = 0` and `maxDets = counts`: the share of boxes, without crowds, that the
    best `count` proposals of each image find, averaged over the IoU thresholds .50:.95; -1 without such
    boxes. With a thousand proposals on each of thousands of images, the API takes minutes and gigabytes. The
    matching here gives the same result, but only examines pairs that reach the lowest threshold.

    ground_truth  as in `evaluate`; boxes of all its categories count alike.
    proposals     COCO results as in `evaluate` (category_id may be absent), or, for many of them, a dict from
                  image id to (boxes [n, 4] x1 y1 x2 y2 in pixels of the image, scores [n]).
    areas         smallest and largest annotated area of the boxes to find, in square pixels.

    Raises ValueError for an unknown image id, a score that is not a number, or a box that is not four finite
    numbers.
    """
    ground_truth = load_ground_truth(ground_truth)
    categories = _category_ids(ground_truth["categories"], None)
    targets: dict[int, list[list[float]]] = {image["id"]: [] for image in ground_truth["images"]}
    for row in sorted(ground_truth["annotations"], key=lambda row: row["category_id"]):
        wanted = row["category_id"] in categories and areas[0] <= row["area"] <= areas[1]
        if wanted and row["image_id"] in targets and not row["iscrowd"]:
            targets[row["image_id"]].append(row["bbox"])

    found = np.zeros((len(counts), len(IOU_THRESHOLDS)))
    for image_id, (boxes, scores) in _proposals_by_image(proposals, ground_truth).items():
        gt_boxes = np.asarray(targets[image_id])
        if len(boxes) and len(gt_boxes):
            best_first = np.argsort(-scores, kind="stable")[: max(counts)]
            none = np.zeros(len(gt_boxes), bool)
            match = match_detections(box_iou(boxes[best_first], gt_boxes, none), none, none, IOU_THRESHOLDS)
            found += [np.count_nonzero(match[:, :count] >= 0, axis=1) for count in counts]

    total = sum(map(len, targets.values()))
    recall = (found / total).mean(axis=1) if total else -np.ones(len(counts))
    return {f"AR@{count}": float(value) for count, value in zip(counts, recall, strict=True)}


def to_results(
    image_ids: int | Int[np.ndarray, " n"],
    boxes: Float[np.ndarray, "n 4"],
    scores: Sequence[float] | Float[np.ndarray, " n"],
    labels: Sequence[int] | Int[np.ndarray, " n"],
    categories: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Detections as a list in COCO's result format, in plain Python numbers that `json` can write.

    image_ids   int [n], or one int for all rows
    boxes       [n, 4] x1 y1 x2 y2 in pixels of the original image
    scores      [n]
    labels      int [n], class index 0..K-1
    categories  the K categories of the data set, {"id", "name"} each, in the order of the labels
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    rows = zip(
        np.broadcast_to(np.asarray(image_ids), len(boxes)).tolist(),
        np.asarray(labels).tolist(),
        _xyxy_to_xywh(boxes).tolist(),
        np.asarray(scores, np.float64).tolist(),
        strict=True,
    )
    return [
        {"image_id": image_id, "category_id": categories[label]["id"], "bbox": box, "score": score}
        for image_id, label, box, score in rows
    ]


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """The twelve rows in the wording of the COCO API, with one column per detector.

    results: dict from the title of the column to a result of `evaluate`, e.g. {"RPN alone": ..., "with RoI
    head": ...}
    """
    rows = [("AP", "0.50:0.95", "all", 100), ("AP", "0.50", "all", 100), ("AP", "0.75", "all", 100)]
    rows += [("AP", "0.50:0.95", size, 100) for size in ("small", "medium", "large")]
    rows += [("AR", "0.50:0.95", "all", count) for count in (1, 10, 100)]
    rows += [("AR", "0.50:0.95", size, 100) for size in ("small", "medium", "large")]
    wording = {"AP": "Average Precision", "AR": "Average Recall"}
    width = {name: max(len(name), 6) for name in results}

    heads = [
        f"{wording[kind]:<18} ({kind}) @[ IoU={iou:<9} | area={size:>6} | maxDets={count:>3} ]"
        for kind, iou, size, count in rows
    ]
    lines = ["   ".join([" " * len(heads[0]), *(f"{name:>{width[name]}}" for name in results)])]
    for metric, head in zip(METRICS, heads, strict=True):
        values = (f"{numbers[metric]:{width[name]}.3f}" for name, numbers in results.items())
        lines.append("   ".join([head, *values]))
    return "\n".join(lines)


# --- Reading and checking ---


def _read_json(source: Any) -> Any:
    if not isinstance(source, str | os.PathLike):
        return source
    with open(source, encoding="utf-8") as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f"{os.fspath(source)} is not complete JSON: {error}") from error


def load_ground_truth(source: Json) -> GroundTruth:
    """A copy of the ground truth with the fields that evaluation reads."""
    ground_truth = _read_json(source)
    keys = ("images", "annotations", "categories")
    if not isinstance(ground_truth, dict) or not all(key in ground_truth for key in keys):
        raise ValueError("the ground truth must be COCO JSON, a dict with images, annotations and categories")
    return {
        "images": [{"id": image["id"]} for image in ground_truth["images"]],
        "annotations": [_annotation(row) for row in ground_truth["annotations"]],
        "categories": [{"id": category["id"], "name": category.get("name")} for category in ground_truth["categories"]],
    }


def _annotation(row: dict[str, Any]) -> dict[str, Any]:
    _check_box(row)
    x, y, width, height = map(float, row["bbox"])
    area = row.get("area")
    return {
        "image_id": row["image_id"],
        "category_id": row["category_id"],
        "bbox": [x, y, width, height],
        "area": width * height if area is None else area,
        "iscrowd": int(row.get("iscrowd") or 0),
    }


def _category_ids(categories: Iterable[dict[str, Any]], wanted: Wanted | None) -> set[int]:
    if wanted is None:
        return {category["id"] for category in categories}
    if isinstance(wanted, str | int | np.integer):
        wanted = [wanted]
    ids = set()
    for key in wanted:
        matching = {category["id"] for category in categories if key in (category["name"], category["id"])}
        if not matching:
            names = ", ".join(str(category["name"]) for category in categories)
            raise ValueError(f"category {key!r} is not in the ground truth; it has: {names}")
        ids |= matching
    if not ids:
        raise ValueError("no categories to evaluate")
    return ids


def check_results(results: Json, ground_truth: GroundTruth, keys: Sequence[str] = (*_BOX_KEYS, "score")) -> None:
    if not isinstance(results, list | tuple):
        raise ValueError(f"detections must be a list in COCO's result format, not {type(results).__name__}")
    images = {image["id"] for image in ground_truth["images"]}
    categories = {category["id"] for category in ground_truth["categories"]}
    needed = set(keys)
    for index, row in enumerate(results):
        if not needed.issubset(row):
            missing = next(key for key in keys if key not in row)
            raise ValueError(f"detection {index} has no {missing}: {row}")
        if row["image_id"] not in images:
            raise ValueError(f"detection {index} is of image {row['image_id']!r}, which is not in the ground truth")
        if "category_id" in keys and row["category_id"] not in categories:
            raise ValueError(
                f"detection {index}, of image {row['image_id']!r}, has category {row['category_id']!r}, "
                "which is not in the ground truth"
            )
        if not math.isfinite(row["score"]):
            raise ValueError(f"detection {index}, of image {row['image_id']!r}, has score {row['score']}")
        _check_box(row)


def _check_box(row: dict[str, Any]) -> None:
    box = row.get("bbox")
    if box is None or len(box) != 4 or not all(map(math.isfinite, box)):
        raise ValueError(f"a box of image {row['image_id']!r} is not four finite numbers: {box}")


# --- Proposals ---


def _proposals_by_image(
    proposals: Json, ground_truth: GroundTruth
) -> dict[int, tuple[Float64[np.ndarray, "n 4"], Float64[np.ndarray, " n"]]]:
    """Dict from image id to (boxes float64 [n, 4] x y width height, scores float64 [n])."""
    proposals = _read_json(proposals)
    if not isinstance(proposals, dict):
        check_results(proposals, ground_truth, keys=("image_id", "bbox", "score"))
        rows: dict[int, list[list[float]]] = {}
        for row in proposals:
            rows.setdefault(row["image_id"], []).append([*row["bbox"], row["score"]])
        arrays = {image_id: np.asarray(values, np.float64) for image_id, values in rows.items()}
        return {image_id: (array[:, :4], array[:, 4]) for image_id, array in arrays.items()}

    images = {image["id"] for image in ground_truth["images"]}
    found = {}
    for image_id, (boxes, scores) in proposals.items():
        boxes, scores = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(scores, np.float64)
        if image_id not in images:
            raise ValueError(f"there are proposals of image {image_id!r}, which is not in the ground truth")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError(f"a proposal of image {image_id!r} has a box or a score that is not finite")
        found[image_id] = _xyxy_to_xywh(boxes), scores
    return found


def _xyxy_to_xywh(boxes: Float64[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n 4"]:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
