"""How TFDS lays out COCO, and which category id each of its labels has.

image (encoded bytes), image/filename, image/id,
objects: bbox (ymin xmin ymax xmax, fractions of the height and width), label, area (an integer), id, is_crowd
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdet.data.types import Category

FEATURES = ("image", "image/filename", "image/id", "objects")
OBJECT_FEATURES = ("area", "bbox", "id", "is_crowd", "label")
CATEGORIES_FILE = "categories.json"  # the data set's own category ids, for which TFDS has no place

# COCO's 80 names in the order of TFDS's labels; official ids are these positions in 1..90 with ten gaps.
_NAMES = """
    person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|stop sign|parking meter|bench
    |bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|backpack|umbrella|handbag|tie|suitcase|frisbee|skis
    |snowboard|sports ball|kite|baseball bat|baseball glove|skateboard|surfboard|tennis racket|bottle|wine glass|cup
    |fork|knife|spoon|bowl|banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch
    |potted plant|bed|dining table|toilet|tv|laptop|mouse|remote|keyboard|cell phone|microwave|oven|toaster|sink
    |refrigerator|book|clock|vase|scissors|teddy bear|hair drier|toothbrush"""
COCO_NAMES = tuple(name.strip() for name in _NAMES.split("|"))
COCO_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))


def import_tfds() -> Any:
    """The module tensorflow_datasets, which takes half a second to import: only what needs it does."""
    try:
        import tensorflow_datasets
    except ModuleNotFoundError as error:
        message = "TFDS data sets need tensorflow-datasets and array_record: pip install 'jaxdet[tfds]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    return tensorflow_datasets


def coco_features(names: Sequence[str]) -> Any:
    """The features of TFDS's `coco/2017`, with these names as the labels."""
    kinds = import_tfds().features
    objects = {
        "area": np.int64,
        "bbox": kinds.BBoxFeature(),
        "id": np.int64,
        "is_crowd": np.bool_,
        "label": kinds.ClassLabel(names=names),
    }
    image = kinds.Image(encoding_format="jpeg")
    top = {"image": image, "image/filename": kinds.Text(), "image/id": np.int64}
    return kinds.FeaturesDict(top | {"objects": kinds.Sequence(objects)})


def category_list(directory: str, names: Sequence[str]) -> list[Category]:
    """{"id", "name"} for each TFDS label."""
    path = os.path.join(directory, CATEGORIES_FILE)
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            categories: list[Category] = json.load(file)
        if [category["name"] for category in categories] != list(names):
            raise ValueError(f"{path}: its names are not those of the labels of the data set beside it")
        return categories
    ids = COCO_IDS if tuple(names) == COCO_NAMES else range(1, len(names) + 1)
    return [Category(id=i, name=name) for i, name in zip(ids, names, strict=True)]
