"""Categories of the RPN's detections: the RPN alone does not tell categories apart."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxdet.evaluation.types import GroundTruth

Categories = Sequence[Mapping[str, Any]]  # {"id", "name"} each

ONE_CATEGORY: Categories = ({"id": 1, "name": "object"},)


def rpn_categories(categories: Categories) -> Categories:
    """Categories of the RPN's detections: the only category of the data set, or a common one."""
    return categories if len(categories) == 1 else ONE_CATEGORY


def as_objects(truth: GroundTruth) -> GroundTruth:
    """COCO JSON with the categories of the RPN's detections."""
    categories = list(rpn_categories(truth["categories"]))
    annotations = [{**item, "category_id": categories[0]["id"]} for item in truth["annotations"]]
    return {**truth, "categories": categories, "annotations": annotations}
