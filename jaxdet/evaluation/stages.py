"""A model over a whole split: detections in the data set's own pixels and ids, then the COCO numbers of each stage."""

import numpy as np

from jaxdet.evaluation.coco import evaluate, proposal_recall, table, to_results

ONE_CATEGORY = ({"id": 1, "name": "object"},)


def collect(batches, source):
    """Gathers what each stage found.

    batches: iterator of pairs, a dict with "image_ids", "image_sizes" and "scales" of a batch (see data.pipeline), and
    the models.Stages of that batch.
    Returns {"roi" (where there is a box head), "rpn", "proposals"}: the first in COCO's result format with the data
    set's ids, the proposals as {image id: (boxes, scores)}. The RPN tells no categories apart: with several, all it finds
    is of one category "object". Also the list of image ids seen and of those that did not decode. Boxes are scaled back
    to the original picture and clipped.
    """
    sizes = dict(zip(source.image_ids.tolist(), source.sizes, strict=True))
    found = {"roi": [], "rpn": [], "proposals": {}}
    seen, unreadable = [], []
    for batch, stages in batches:
        stages = {name: value for name, value in stages._asdict().items() if value is not None}
        stages = {name: type(value)(*map(np.asarray, value)) for name, value in stages.items()}
        for row, image_id in enumerate(batch["image_ids"].tolist()):
            if image_id < 0:
                continue
            seen.append(image_id)
            if not batch["image_sizes"][row, 0]:
                unreadable.append(image_id)
                continue
            for name, detections in stages.items():
                valid = detections.valid[row]
                boxes = original_boxes(detections.boxes[row, valid], batch["scales"][row], sizes[image_id])
                scores, labels = detections.scores[row, valid], detections.labels[row, valid]
                if name == "proposals":
                    found["proposals"][image_id] = boxes, scores
                else:
                    categories = source.categories if name == "roi" else rpn_categories(source.categories)
                    found[name] += to_results(image_id, boxes, scores, labels, categories)
    if "roi" not in stages:
        del found["roi"]
    return found, seen, unreadable


def rpn_categories(categories):
    """Categories of what the RPN alone finds, which tells no two apart."""
    return categories if len(categories) == 1 else ONE_CATEGORY


def as_objects(truth):
    """COCO JSON with the categories that the RPN alone tells apart."""
    categories = list(rpn_categories(truth["categories"]))
    annotations = [{**item, "category_id": categories[0]["id"]} for item in truth["annotations"]]
    return {**truth, "categories": categories, "annotations": annotations}


def original_boxes(boxes, scales, size):
    """Boxes [n, 4] of the resized picture in pixels of the original of `size` (height, width), clipped to it."""
    boxes = np.asarray(boxes, np.float32) / np.asarray(scales, np.float32)[[1, 0, 1, 0]]
    height, width = size
    return np.clip(boxes, 0, np.array([width, height, width, height], np.float32))


def summarize(source, found, seen):
    """The numbers of eval.json: {"roi": twelve, "rpn": twelve, "proposals": recalls, "images": n}.

    Raises RuntimeError unless every image of the source was seen exactly once.
    """
    if sorted(seen) != sorted(source.image_ids.tolist()):
        raise RuntimeError(
            f"evaluation saw {len(seen)} images where the split has {len(source)}: a bug in jaxdet"
        )
    truth = source.ground_truth()
    objects = as_objects(truth)
    summary = {"roi": evaluate(truth, found["roi"])} if "roi" in found else {}
    summary["rpn"] = evaluate(objects, found["rpn"])
    summary["proposals"] = proposal_recall(objects, found["proposals"])
    return summary | {"images": len(seen)}


def results_table(results):
    """The twelve rows with a column for each stage, and the proposals' recall."""
    columns = {"RPN alone": results["rpn"]}
    if "roi" in results:
        columns["with RoI head"] = results["roi"]
    recall = ", ".join(f"{name} {value:.3f}" for name, value in results["proposals"].items())
    return f"{table(columns)}\nproposals: {recall}; {results['images']} images"
