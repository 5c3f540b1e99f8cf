"""Evaluates a model on a split: detections in the data set's pixels and ids, COCO numbers of each stage."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxdet.data.resizing import original_boxes
from jaxdet.data.types import Source
from jaxdet.evaluation.categories import as_objects, rpn_categories
from jaxdet.evaluation.coco import evaluate, proposal_recall, table, to_results


def collect(
    batches: Iterable[tuple[Mapping[str, np.ndarray], Any]], source: Source
) -> tuple[dict[str, Any], list[int], list[int]]:
    """Collects the detections of each stage.

    batches: pairs of a batch (of which "image_ids", "image_sizes" and "scales" are used, see data.types) and
    its models.Stages.

    Returns a dict with "roi" (if there is a box head), "rpn" and "proposals", the ids of the images seen, and
    the ids of those that did not decode. "roi" and "rpn" are in COCO's result format with the ids of the data
    set; proposals are {image id: (boxes, scores)}. The RPN does not tell categories apart: if there are
    several, its detections are of one category "object". Boxes are in pixels of the original image, clipped
    to it.
    """
    sizes = dict(zip(source.image_ids.tolist(), source.sizes, strict=True))
    found: dict[str, Any] = {"roi": [], "rpn": [], "proposals": {}}
    categories = {"roi": source.categories, "rpn": rpn_categories(source.categories)}
    seen, unreadable = [], []
    for batch, stages in batches:
        stages = {name: value for name, value in stages._asdict().items() if value is not None}
        stages = {name: value._make(map(np.asarray, value)) for name, value in stages.items()}
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


def final(by_stage: Mapping[str, Any]) -> Any:
    """The result of the whole model, from {"roi", "rpn", ..}: the RoI head's, or the RPN's without one."""
    return by_stage.get("roi", by_stage["rpn"])


def summarize(source: Source, found: Mapping[str, Any], seen: list[int]) -> dict[str, Any]:
    """The numbers for eval.json: {"roi": twelve, "rpn": twelve, "proposals": recalls, "images": n}.

    Raises RuntimeError unless each image of the source was seen exactly once.
    """
    if sorted(seen) != sorted(source.image_ids.tolist()):
        raise RuntimeError(f"evaluation saw {len(seen)} images, but the split has {len(source)}: a bug in jaxdet")
    truth = {"roi": source.ground_truth()}
    truth["rpn"] = as_objects(truth["roi"])
    summary = {name: evaluate(truth[name], found[name]) for name in ("roi", "rpn") if name in found}
    summary["proposals"] = proposal_recall(truth["rpn"], found["proposals"])
    return summary | {"images": len(seen)}


def columns(results: Mapping[str, Any]) -> dict[str, Any]:
    """The twelve numbers of each stage under its title, from those of eval.json; `final` comes last."""
    titles = {"rpn": "RPN alone", "roi": "with RoI head"}
    return {title: results[name] for name, title in titles.items() if name in results}


def results_table(results: Mapping[str, Any]) -> str:
    """The twelve rows with one column per stage, and the recall of the proposals."""
    recall = ", ".join(f"{name} {value:.3f}" for name, value in results["proposals"].items())
    return f"{table(columns(results))}\nproposals: {recall}; {results['images']} images"
