"""Categories of what the RPN alone finds: it tells none apart."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxdet.evaluation.types import GroundTruth

Categories = Sequence[Mapping[str, Any]]  # {"id", "name"} each

ONE_CATEGORY: Categories = ({"id": 1, "name": "object"},)


def rpn_categories(categories: Categories) -> Categories:
    """Categories of what the RPN alone finds, which tells no two apart."""
    return categories if len(categories) == 1 else ONE_CATEGORY


def as_objects(truth: GroundTruth) -> GroundTruth:
    """COCO JSON with the categories that the RPN alone tells apart."""
    categories = list(rpn_categories(truth["categories"]))
    annotations = [{**item, "category_id": categories[0]["id"]} for item in truth["annotations"]]
    return {**truth, "categories": categories, "annotations": annotations}
