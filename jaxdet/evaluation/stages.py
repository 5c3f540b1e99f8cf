"""A model over a whole split: detections in the data set's own pixels and ids, then the COCO numbers of each stage."""

import numpy as np

from jaxdet.data.resizing import original_boxes
from jaxdet.evaluation.categories import as_objects, rpn_categories
from jaxdet.evaluation.coco import evaluate, proposal_recall, table, to_results


def collect(batches, source):
    """Gathers what each stage found.

    batches: iterator of pairs, a dict with "image_ids", "image_sizes" and "scales" of a batch (see data.pipeline), and
    the models.Stages of that batch. Returns {"roi" (where there is a box head), "rpn", "proposals"}: the first in
    COCO's result format with the data set's ids, the proposals as {image id: (boxes, scores)}. The RPN tells no
    categories apart: with several, all it finds is of one category "object". Also the list of image ids seen and of
    those that did not decode. Boxes are scaled back to the original picture and clipped.
    """
    sizes = dict(zip(source.image_ids.tolist(), source.sizes, strict=True))
    found = {"roi": [], "rpn": [], "proposals": {}}
    categories = {"roi": source.categories, "rpn": rpn_categories(source.categories)}
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
                    found[name] += to_results(image_id, boxes, scores, labels, categories[name])
    return {name: found[name] for name in found if name in stages}, seen, unreadable


def final(by_stage):
    """What a model is judged by, of a dict {"roi", "rpn", ..}: its RoI head's, or the RPN's where there is no head."""
    return by_stage.get("roi", by_stage["rpn"])


def summarize(source, found, seen):
    """The numbers of eval.json: {"roi": twelve, "rpn": twelve, "proposals": recalls, "images": n}.

    Raises RuntimeError unless every image of the source was seen exactly once.
    """
    if sorted(seen) != sorted(source.image_ids.tolist()):
        raise RuntimeError(f"evaluation saw {len(seen)} images where the split has {len(source)}: a bug in jaxdet")
    truth = {"roi": source.ground_truth()}
    truth["rpn"] = as_objects(truth["roi"])
    summary = {name: evaluate(truth[name], found[name]) for name in ("roi", "rpn") if name in found}
    summary["proposals"] = proposal_recall(truth["rpn"], found["proposals"])
    return summary | {"images": len(seen)}


def columns(results):
    """The twelve numbers of each stage under its title, from the numbers of eval.json; `final` ones last."""
    titles = {"rpn": "RPN alone", "roi": "with RoI head"}
    return {title: results[name] for name, title in titles.items() if name in results}


def results_table(results):
    """The twelve rows with a column for each stage, and the proposals' recall."""
    recall = ", ".join(f"{name} {value:.3f}" for name, value in results["proposals"].items())
    return f"{table(columns(results))}\nproposals: {recall}; {results['images']} images"
