"""Categories of what the RPN alone finds: it tells none apart."""

ONE_CATEGORY = ({"id": 1, "name": "object"},)


def rpn_categories(categories):
    """Categories of what the RPN alone finds, which tells no two apart."""
    return categories if len(categories) == 1 else ONE_CATEGORY


def as_objects(truth):
    """COCO JSON with the categories that the RPN alone tells apart."""
    categories = list(rpn_categories(truth["categories"]))
    annotations = [{**item, "category_id": categories[0]["id"]} for item in truth["annotations"]]
    return {**truth, "categories": categories, "annotations": annotations}
