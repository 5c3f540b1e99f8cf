"""The images of a report: which ones, their files, and what is drawn over them by the page."""

import numpy as np
from PIL import Image

from jaxdet.evaluation.errors import KINDS

LONGEST_SIDE, QUALITY = 640, 80  # of the JPEG files; 80 of them stay below 10 MB
PROPOSALS = 100  # best ones of an image that can be shown


def check_choice(count, choice, seed=0):
    """Raises ValueError if `choose` cannot take these."""
    if count < 0:
        raise ValueError(f"{count} images for the gallery: 0 or more")
    if choice not in ("random", "worst"):
        raise ValueError(f"no choice of images {choice!r}: random or worst")
    if seed < 0:
        raise ValueError(f"{seed} as the seed of the gallery: 0 or more")


def choose(truth, detections, errors, count, choice, seed=0):
    """Image ids of a gallery: "random" ones by `seed`, in rising order, or the "worst" by error, worst first.

    The error of an image is the sum of the scores of its false positives, and 1 less the score that found it for each
    box. truth: COCO JSON; detections: COCO results; errors: of `errors.analyse`. Raises ValueError for another choice.
    """
    check_choice(count, choice, seed)
    ids = [image["id"] for image in truth["images"]]
    if choice == "random":
        chosen = np.random.default_rng(seed).permutation(len(ids))[:count]
        return sorted(ids[i] for i in chosen)
    error = dict.fromkeys(ids, 0.0)
    for row, kind in zip(detections, errors.kinds, strict=True):
        if kind not in ("correct", "ignored"):
            error[row["image_id"]] += row["score"]
    for row, found_by, crowd in zip(truth["annotations"], errors.found_by, errors.crowd, strict=True):
        if not crowd and row["image_id"] in error:
            error[row["image_id"]] += 1 - (detections[found_by]["score"] if found_by >= 0 else 0)
    return sorted(ids, key=lambda i: (-error[i], i))[:count]


def overlays(truth, image_ids, runs):
    """What the page draws over each image, in JSON's types, by image id.

    runs: (detections, errors of `analyse`, proposals as {image id: (boxes x1 y1 x2 y2, scores)}) each; all boxes in the
    result are x y width height in pixels of the original image.
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
    names = {category["id"]: category["name"] for category in truth["categories"]}
    truth_rows = _by_image(truth["annotations"])
    found_rows = [_by_image(detections) for detections, *_ in runs]
    result = {}
    for image_id in image_ids:
        rows = truth_rows.get(image_id, [])
        annotations = [truth["annotations"][i] for i in rows]
        boxes = [_box(row, names) | {"crowd": bool(row.get("iscrowd"))} for row in annotations]
        found = [
            _of_run(image_id, rows, by_image.get(image_id, []), names, *run)
            for by_image, run in zip(found_rows, runs, strict=True)
        ]
        width, height = sizes[image_id]
        # ids as text: JavaScript's numbers have 53 bits
        result[image_id] = {"id": str(image_id), "width": width, "height": height, "truth": boxes, "runs": found}
    return result


def _by_image(rows):
    """{image id: positions in the list}."""
    positions = {}
    for i, row in enumerate(rows):
        positions.setdefault(row["image_id"], []).append(i)
    return positions


def _of_run(image_id, truth_rows, rows, names, detections, errors, proposals):
    boxes = [
        _box(detections[i], names) | {"score": round(detections[i]["score"], 4), "kind": str(errors.kinds[i])}
        for i in sorted(rows, key=lambda i: -detections[i]["score"])
    ]
    finders = errors.found_by[truth_rows].tolist()
    corners, scores = proposals.get(image_id, (np.zeros((0, 4)), np.zeros(0)))
    best = np.argsort(-np.asarray(scores), kind="stable")[:PROPOSALS]
    corners = np.asarray(corners, float)[best]
    corners[:, 2:] -= corners[:, :2]
    rounded = zip(corners.round(1).tolist(), np.asarray(scores, float)[best].round(4).tolist(), strict=True)
    return {
        "detections": boxes,
        # the score that each box of the truth is found with, 0 where it is not
        "found": [round(detections[i]["score"], 4) if i >= 0 else 0 for i in finders],
        "proposals": [[*box, score] for box, score in rounded],
    }


def _box(row, names):
    """Box and, if there are several categories, its name."""
    box = {"box": [round(float(side), 1) for side in row["bbox"]]}
    return box | {"name": names[row["category_id"]]} if len(names) > 1 else box


def best_threshold(detections, errors):
    """The score from which on F1, the harmonic mean of precision and recall, is best, rounded down to hundredths; .5
    without any.
    """
    rows = np.flatnonzero(errors.kinds != "ignored")
    scores = np.array([detections[i]["score"] for i in rows], float)
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(errors.kinds[rows][order] == "correct")
    if not len(rows) or not right[-1]:
        return 0.5
    f1 = 2 * right / (np.arange(1, len(rows) + 1) + np.sum(~errors.crowd))
    return int(100 * scores[order][f1.argmax()]) / 100


def save_image(image, path):
    """Writes uint8 [H, W, 3] as a JPEG of at most LONGEST_SIDE pixels."""
    image = Image.fromarray(image)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    image.save(path, quality=QUALITY)


def hardest_negatives(detections, errors, count=24):
    """Rows of the background errors, those most sure of themselves first."""
    rows = np.flatnonzero(errors.kinds == "background")
    scores = np.array([detections[i]["score"] for i in rows])
    return rows[np.argsort(-scores, kind="stable")][:count].tolist()


def save_crop(image, bbox, path, side=240):
    """Writes the part of an image around a box x y width height; returns the box in percent of that part."""
    x, y, width, height = bbox
    half = 0.5 * max(width, height) * 1.6 + 2
    left, top = max(0, int(x + width / 2 - half)), max(0, int(y + height / 2 - half))
    right = min(image.shape[1], int(np.ceil(x + width / 2 + half)))
    bottom = min(image.shape[0], int(np.ceil(y + height / 2 + half)))
    crop = Image.fromarray(image[top:bottom, left:right])
    scale = side / max(crop.size)
    crop.resize([max(1, round(n * scale)) for n in crop.size]).save(path, quality=QUALITY)
    wide, tall = (right - left) / 100, (bottom - top) / 100
    return [round(v, 2) for v in ((x - left) / wide, (y - top) / tall, width / wide, height / tall)]


def counts_by_kind(errors):
    """[(kind, how many, AP gained by repairing it)] in the order of KINDS."""
    return [(kind, errors.count[kind], errors.cost[kind]) for kind in KINDS]
