"""Runs trained models over the validation split and hands what they found to the report."""

import os

from jaxdet.config.command_line import override
from jaxdet.evaluation.categories import as_objects
from jaxdet.evaluation.stages import final
from jaxdet.pages import gallery, report_page
from jaxdet.pages.anchors import anchor_statistics
from jaxdet.pages.page import check_folder
from jaxdet.runs.workdir import Workdir
from jaxdet.training.validation import evaluate_split

# What of config.data.val says which images there are; the rest says how a model wants them
SPLIT = (
    "source", "images", "annotations", "directory", "split", "scenes", "scenes_seed", "scenes_height",
    "scenes_width", "limit", "keep_empty",
)  # fmt: skip


def write_report(workdir, other=None, output=None, overrides=(), choice=report_page.Choice()):  # noqa: B008
    """Evaluates the best checkpoint of a workdir, and of another one on the same images, and writes the report.

    The data are those of W/config.json with `overrides` (`--config.KEY=VALUE`). output: folder, W/report where none is
    given. Returns the path of its index.html. Raises ValueError or FileNotFoundError if workdirs and data do not go
    together, and, before anything is evaluated, for a wrong choice or folder.
    """
    gallery.check_choice(*choice)
    workdir = Workdir(workdir)
    config = workdir.config()
    override(config, overrides)
    compared = [(workdir, config)]
    if other is not None:
        other = Workdir(other)
        if other.path == workdir.path:
            raise ValueError(f"{other} beside itself shows nothing; name another workdir")
        second = other.config()
        second.data.val.update({key: config.data.val[key] for key in SPLIT})
        second.data.categories = config.data.categories
        compared.append((other, second))
        _check_comparable(*compared)
    output = check_folder(output or workdir.report, "report.json")
    runs = []
    for its_workdir, its_config in compared:
        try:
            validation, found = evaluate_split(its_config, its_workdir)
        except FileNotFoundError as error:
            if _lacks_data(its_config):
                raise FileNotFoundError(f"{error}\n{_where(its_workdir)}") from error
            raise
        name = str(its_workdir)
        source = validation.source
        print(f"{name}: AP {final(found.results)['AP']:.3f} on {len(source)} images")
        truth = source.ground_truth()
        if not validation.model.two_stage:
            truth = as_objects(truth)
        log = its_workdir.metrics()
        runs.append(report_page.Run(name, found.results, truth, found.detections, found.proposals, log))
    places = {int(image_id): i for i, image_id in enumerate(source.image_ids)}
    return report_page.write(
        output,
        runs,
        lambda image_id: source[places[image_id]]["image"],
        anchor_statistics(config, source, config.data.val),
        facts=_facts(config, workdir, len(source), runs[0].truth),
        choice=choice,
    )


def _check_comparable(*runs):
    """Raises ValueError if two runs, (workdir, config) each, do not tell the same categories apart."""
    (first, one), (second, other) = runs
    names, others = ([c["name"] for c in workdir.categories()] for workdir, _ in runs)
    if names != others:
        raise ValueError(
            f"{first} and {second} detect different categories: {', '.join(names)}; {', '.join(others)}. "
            "Make a report of each"
        )
    if len(names) > 1 and (one.model.roi_head is None) != (other.model.roi_head is None):
        alone = first if one.model.roi_head is None else second
        raise ValueError(
            f"of {first} and {second}, {alone} has no RoI head (config.model.roi_head is None) and tells none of "
            f"{', '.join(names)} apart. Make a report of each"
        )


def _lacks_data(config):
    split = config.data.val
    needed = {"coco": (split.images, split.annotations), "tfds": (split.directory,)}
    return not all(map(os.path.exists, needed.get(split.source, ())))


def _where(workdir):
    return (
        f"The images are looked for where {workdir.config_file} says. Run from the folder of the training, or name "
        "them: --config.data.val.images=DIR --config.data.val.annotations=FILE (data.val.directory for TFDS)"
    )


def _facts(config, workdir, images, truth):
    boxes = sum(not row["iscrowd"] for row in truth["annotations"])
    split = config.data.val
    names = ", ".join(category["name"] for category in truth["categories"][:4])
    more = len(truth["categories"]) - 4
    return (
        f"{images} images with {boxes} boxes of {names}" + (f" and {more} more" if more > 0 else ""),
        {"coco": str(split.annotations), "tfds": str(split.directory)}.get(split.source, "drawn scenes"),
        f"ResNet-{config.model.backbone.depth}, short side {max(split.short_sides)}",
        f"checkpoint of step {workdir.best_step()}",
    )
