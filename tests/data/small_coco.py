"""A sound COCO data set of three images, for tests to spoil."""

import copy
import json

import numpy as np
from PIL import Image

from jaxdet.data.coco import CocoSource

SIZES = {3: (40, 60), 8: (50, 30), 21: (32, 32)}  # image id -> height, width


def annotation(annotation_id, image_id, bbox, category_id=17, **more):
    return {"id": annotation_id, "image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": 0} | more


def content():
    """A sound data set: ids with gaps, three categories out of order, a crowd, an image without boxes."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIZES[i][0], "width": SIZES[i][1]} for i in (21, 3, 8)],
        "annotations": [
            annotation(5, 8, [1, 2, 10, 20.5], area=150.5, segmentation=[[1, 2, 3, 4, 5, 6]]),
            annotation(6, 3, [0, 0, 30, 30], category_id=90),
            annotation(7, 3, [10, 10, 20, 10], area=99.0),
            annotation(9, 3, [5, 5, 50, 30], iscrowd=1, area=1000),
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 17, "name": "person"}, {"id": 4, "name": "cat"}],
    }


def write_pictures(folder):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, (height, width) in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{i}.png")


def write(folder, data):
    path = folder.parent / "annotations.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def open_source(folder, data, categories=("person",)):
    return CocoSource(folder, write(folder, data), categories)


def reasons(source):
    return [item["reason"] for item in source.skipped]


def broken(*keys, value="drop"):
    data = copy.deepcopy(content())
    place = data
    for key in keys[:-1]:
        place = place[key]
    if value == "drop":
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return data
