"""The page that a person opens: one folder with index.html, its images and report.json; no server, no network."""

import json
from typing import Any, NamedTuple

import numpy as np

from jaxdet.evaluation import curves
from jaxdet.evaluation.errors import analyse
from jaxdet.evaluation.stages import columns
from jaxdet.pages import gallery, plots
from jaxdet.pages.page import fresh_folder, render
from jaxdet.runs.files import write_whole

LOSSES = {
    "rpn_objectness": "RPN: objectness loss",
    "rpn_box": "RPN: box loss",
    "roi_classification": "RoI head: classification loss",
    "roi_box": "RoI head: box loss",
}
MEANINGS = {
    "AP": "average over IoU .50 to .95",
    "AP50": "at IoU .50",
    "AP75": "at IoU .75",
    "APs": "small",
    "APm": "medium",
    "APl": "large",
    "AR1": "with 1 detection an image",
    "AR10": "with 10",
    "AR100": "with 100",
    "ARs": "small",
    "ARm": "medium",
    "ARl": "large",
    "classification": "the right place, another category",
    "localisation": "the right category, IoU between .1 and .5",
    "both": "another category, IoU between .1 and .5",
    "duplicate": "of what a better detection has found",
    "background": "nothing of the kind is there",
    "missed": "no detection near enough",
    "false positives": "all of them, whatever their kind",
    "false negatives": "every box that is not found",
}
SECTIONS = (
    ("numbers", "Numbers"),
    ("training", "Training"),
    ("precision", "Precision and recall"),
    ("errors", "Errors"),
    ("gallery", "Images"),
    ("negatives", "Hardest negatives"),
    ("proposals", "Proposals"),
    ("anchors", "Anchors"),
    ("calibration", "Calibration"),
)


class Run(NamedTuple):
    """What one run found on the split.

    name: for people. results: the numbers of eval.json. truth: COCO JSON; detections: COCO results, of the RoI head or,
    where there is none, of the RPN. proposals: {image id: (boxes x1 y1 x2 y2, scores)}. log: lines of metrics.jsonl.
    """

    name: str
    results: dict
    truth: dict
    detections: list
    proposals: dict
    log: list


class Choice(NamedTuple):
    """Which images the gallery has: how many, "random" ones by a seed or the "worst" by error of the first run."""

    count: int = 80
    how: str = "random"
    seed: int = 0


def write(folder, runs, read_image, anchors, facts=(), choice=Choice()):  # noqa: B008
    """Writes the report of one run, or of two side by side, on the same images; returns the path of index.html.

    read_image: image id -> uint8 [H, W, 3], or None if it does not decode; such images are left out of the gallery.
    anchors: what `anchors.anchor_statistics` returns. facts: short texts for the head of the page. Raises ValueError
    for a folder that holds something else, and for runs whose truth is not the same.
    """
    for run in runs[1:]:
        for part in ("images", "categories", "annotations"):
            if run.truth[part] != runs[0].truth[part]:
                raise ValueError(f"{runs[0].name} and {run.name} were evaluated on different {part}")
    folder = fresh_folder(folder, "report.json", "pictures")
    errors = [analyse(run.truth, run.detections) for run in runs]
    letters = ("A", "B") if len(runs) == 2 else ("",)
    views = [_view(folder, letter, *pair, read_image) for letter, *pair in zip(letters, runs, errors, strict=True)]
    first = runs[0]
    ids = gallery.choose(first.truth, first.detections, errors[0], choice.count, choice.how, choice.seed)
    found = [(run.detections, error, run.proposals) for run, error in zip(runs, errors, strict=True)]
    overlays = gallery.overlays(first.truth, ids, found)
    images = []
    for image_id in ids:
        if (image := read_image(image_id)) is not None:
            overlays[image_id]["file"] = f"pictures/{image_id}.jpg"
            gallery.save_image(image, folder / overlays[image_id]["file"])
            images.append(overlays[image_id])

    page = render(
        "report.html",
        title=" and ".join(run.name for run in runs),
        sections=SECTIONS,
        facts=facts,
        runs=views,
        columns=[column for view in views for column, _ in view["columns"]],
        table=_table(views),
        training=training_plots([run.log for run in runs]),
        precision=_precision(letters, runs),
        errors=[
            {
                "kind": kind,
                "meaning": MEANINGS[kind],
                "numbers": [(error.count.get(kind), error.cost[kind]) for error in errors],
            }
            for kind in errors[0].cost
        ],
        largest_cost=max(*(cost for error in errors for cost in error.cost.values()), 1e-9),
        images=images,
        image_count=len(first.truth["images"]),
        chosen={"random": f"drawn by seed {choice.seed}", "worst": "those with the largest error first"}[choice.how],
        threshold=gallery.best_threshold(first.detections, errors[0]),
        shown_proposals=gallery.PROPOSALS,
        what=_what(first.truth),
        recall_columns=list(views[0]["recall"]["all"]),
        sizes=list(curves.SIZES),
        anchors=anchors,
        calibration=plots.calibration(
            "Share of right detections by score",
            [(view["letter"] or "detections", view["calibration"]) for view in views],
        ),
        overlays={"letters": letters, "images": images},
    )
    of_runs = {
        run.name: {
            "results": run.results,
            "AP50": error.ap,
            "error_kinds": error.count,
            "error_cost": error.cost,
            "AP50_repaired": error.ap_repaired,
            "proposal_recall": view["recall"],
            "calibration": {k: np.asarray(v).tolist() for k, v in view["calibration"].items()},
        }
        for run, error, view in zip(runs, errors, views, strict=True)
    }
    numbers = {"runs": of_runs, "anchors": anchors["rows"], "pictures": ids}
    write_whole(folder / "report.json", json.dumps(_without_nan(numbers), indent=1) + "\n")
    write_whole(folder / "index.html", page)  # last: what it shows is there
    return folder / "index.html"


def training_plots(logs):
    """SVGs of losses, rate, AP, and times over the steps, of one log or two; what no log has is left out."""
    panels = []

    def panel(title, wanted, **more):
        """wanted: (name, key, marker)."""
        lines = []
        for series, log in enumerate(logs):
            letter = f"{'AB'[series]}: " if len(logs) > 1 else ""
            for name, key, marker in wanted:
                rows = [line for line in log if isinstance(line.get(key), int | float)]
                if rows:
                    values = [line[key] for line in rows]
                    lines.append((letter + name, [line["step"] for line in rows], values, series, marker))
        if lines:
            panels.append(plots.over_steps(title, lines, **more))

    for key, title in LOSSES.items():
        panel(title, [("training", key, ""), ("validation", f"val/{key}", "o")])
    panel("AP", [("with RoI head", "val/AP", "o"), ("RPN alone", "val/rpn_AP", "^")])
    panel("learning rate", [("learning rate", "learning_rate", "")])
    panel("step time", [("step", "step_time", "")], unit="seconds")
    panel("of it, waiting for data", [("waiting", "data_time", "")], unit="seconds")
    return panels


def _view(folder, letter, run, errors, read_image):
    """What the page says about one run."""
    counted = errors.kinds != "ignored"
    scores = np.array([row["score"] for row in run.detections], float)[counted]
    stages = list(columns(run.results).items())
    prefix = f"{letter}: " if letter else ""
    best, alone = stages[-1], stages[0][1]["AP"]
    figures = [
        ("AP", best[1]["AP"], best[0]),
        ("AP50", best[1]["AP50"], "IoU .50"),
        ("AP of the RPN alone", alone, "first stage as the detector"),
        ("AR of proposals", run.results["proposals"].get("AR@1000", -1), "1000 an image"),
    ]
    negatives = []
    for number, row in enumerate(gallery.hardest_negatives(run.detections, errors)):
        detection = run.detections[row]
        if (image := read_image(detection["image_id"])) is not None:
            name = f"pictures/negative{letter}-{number:02d}.jpg"
            box = gallery.save_crop(image, detection["bbox"], folder / name)
            negatives.append({"file": name, "box": box, "id": detection["image_id"], "score": detection["score"]})
    return {
        "letter": letter,
        "prefix": prefix,
        "name": run.name,
        "figures": figures if len(stages) == 2 else figures[:2] + figures[3:],
        "columns": [(prefix + name, numbers) for name, numbers in stages],
        "errors": errors,
        "six": sum(errors.cost[kind] for kind, *_ in gallery.counts_by_kind(errors)),
        "negatives": negatives,
        "recall": curves.recall_by_size(run.truth, run.proposals),
        "calibration": curves.calibration(scores, errors.kinds[counted] == "correct"),
    }


def _table(views):
    columns: list[Any] = [numbers for view in views for _, numbers in view["columns"]]
    return [(name, MEANINGS[name], [numbers[name] for numbers in columns]) for name in columns[0]]


def _precision(letters, runs):
    panels = []
    for letter, run in zip(letters, runs, strict=True):
        prefix = f"{letter}: " if letter else ""
        found = curves.precision_recall(run.truth, run.detections)
        panels.append(plots.precision_by_iou(f"{prefix}by IoU", found))
        panels.append(plots.precision_by_size(f"{prefix}by size, at IoU .5", found))
    return panels


def _what(truth):
    names = [category["name"] for category in truth["categories"]]
    return f"a {names[0]}" if len(names) == 1 else "an object"


def _without_nan(value):
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value
