"""A model over the validation split, during training and after: losses, COCO numbers, detections."""

import functools
import time
from typing import NamedTuple

import jax
import numpy as np

from jaxdet.config.checks import check_config, check_same_model
from jaxdet.data import pipeline
from jaxdet.data.coco import summary
from jaxdet.evaluation import stages as evaluation
from jaxdet.inference import drawing
from jaxdet.inference.detector import check_detects
from jaxdet.models import FasterRCNN
from jaxdet.runs.mesh import device_mesh, is_first, put_batch, replicated, wait_for_all
from jaxdet.runs.workdir import Workdir


def evaluate_run(config, workdir, images=0):
    """Evaluates the best checkpoint of a workdir over the whole of `config.data.val`.

    Prints the table and writes W/eval.json and W/detections.json (COCO results with the data set's ids). Draws ground
    truth and detections of the first `images` images of the split into W/pictures/. Returns the dict of eval.json.
    Raises ValueError or FileNotFoundError if config, data and workdir do not fit together.
    """
    workdir = Workdir(workdir)
    validation, found = evaluate_split(config, workdir)
    results, source = found.results, validation.source
    wait_for_all("evaluated")
    if not is_first():
        return results
    print(evaluation.results_table(results))
    print(f"compiled {len(validation.compiled)} shapes for evaluation")
    workdir.write_results(results, found.detections)
    print(f"numbers in {workdir.results_file}, detections in {workdir.detections_file}")
    if images:
        two_stage = validation.model.two_stage
        categories = source.categories if two_stage else evaluation.rpn_categories(source.categories)
        sheet = draw_images(workdir.pictures, source, found.detections, categories, images)
        print(f"images in {sheet}")
    return results


def evaluate_split(config, workdir):
    """The best checkpoint of a workdir over `config.data.val`: the Validation and the Evaluation that it returned.

    Raises ValueError or FileNotFoundError if config, data and workdir do not fit together.
    """
    check_config(config)
    check_same_model(workdir.config(), config, workdir)
    source = pipeline.open_source(config.data.val, config.data.categories or None)
    print(f"val: {summary(source)}")
    check_categories(config, source, workdir.categories())
    mesh = device_mesh()
    variables = workdir.variables()
    check_detects(variables)
    variables = jax.device_put(variables, replicated(mesh))
    validation = Validation(config, FasterRCNN(**config.model), source, pipeline.max_boxes(source), mesh)
    return validation, validation(variables)


def draw_images(folder, source, detections, categories, count):
    """Draws the first `count` images of a source, ground truth dashed, and one image of all of them; returns its path.

    categories: those of the detections; a single one is not named. Small images are enlarged, so that scores hide less
    of them.
    """
    folder.mkdir(exist_ok=True)
    names = [category["name"] for category in categories] if len(categories) > 1 else None
    labels = {category["id"]: label for label, category in enumerate(categories)}
    found = {}
    for row in detections:
        found.setdefault(row["image_id"], []).append(row)
    drawn = []
    for record in (source[i] for i in range(min(count, len(source)))):
        if record["image"] is None:
            continue
        rows = found.get(record["image_id"], [])
        boxes = np.array([row["bbox"] for row in rows], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        times = -(-480 // max(record["image"].shape))
        image = drawing.draw(
            record["image"].repeat(times, axis=0).repeat(times, axis=1),
            times * boxes,
            np.array([row["score"] for row in rows]),
            np.array([labels[row["category_id"]] for row in rows], int),
            names,
            times * record["boxes"][~record["crowd"]],
        )
        image.save(folder / f"{record['image_id']:012d}.png")
        drawn.append(image)
    if drawn:
        drawing.contact_sheet(drawn, columns=4).save(folder / "all.png")
    return folder / "all.png"


class Evaluation(NamedTuple):
    """What an evaluation found.

    results: the numbers of eval.json. detections: COCO results of the RoI head, or of the RPN without one.
    proposals: {image id: (boxes x1 y1 x2 y2, scores)}. losses: {name: mean over the images}, with their sum as "loss".
    """

    results: dict
    detections: list
    proposals: dict
    losses: dict


class Interrupted(Exception):
    """An evaluation was told to end early."""


class Validation:
    """`validation(variables)` -> Evaluation over the whole validation split. Each shape is compiled once, on first use.

    `interrupted()` is called before each batch; if it returns True, Interrupted is raised.
    """

    def __init__(self, config, model, source, boxes, mesh):
        size = config.evaluation.batch_size
        size = -(-size // mesh.size) * mesh.size
        self.batches = pipeline.EvaluationBatches(source, config.data.val, size, boxes)
        self.config, self.model, self.source, self.mesh = config, model, source, mesh
        self.compiled = {}

    def __call__(self, variables, interrupted=lambda: False):
        if not self.compiled:
            evaluate = functools.partial(self.model.apply, method="evaluate")
            key = jax.random.key(self.config.seed)
            self.compiled = compile_shapes(
                lambda variables, batch: (*evaluate(variables, batch, key), batch["image_sizes"], batch["scales"]),
                variables,
                self.batches.examples(jax.process_count()),
                self.mesh,
                purpose="evaluation",
                out_shardings=replicated(self.mesh),  # every process gets the results of all
            )
        losses = []

        def stages_of(read):
            for image_ids, batch in zip(self.batches.image_ids(), read, strict=True):
                if interrupted():
                    raise Interrupted
                arrays = put_batch(batch, self.mesh)
                stages, part, sizes, scales = self.compiled[batch["images"].shape[1:3]](variables, arrays)
                rows = {"image_ids": image_ids, "image_sizes": np.asarray(sizes), "scales": np.asarray(scales)}
                losses.append((np.count_nonzero(rows["image_sizes"][:, 0]), part))
                yield rows, stages

        read = self.batches.read(self.config.data.workers, jax.process_index(), jax.process_count())
        try:
            found, seen, unreadable = evaluation.collect(stages_of(read), self.source)
        finally:
            read.close()
        if unreadable:
            print(f"{len(unreadable)} images do not decode: image ids {unreadable[:10]}")
        images = max(sum(count for count, _ in losses), 1)
        means = {name: sum(count * float(part[name]) for count, part in losses) / images for name in losses[0][1]}
        results = evaluation.summarize(self.source, found, seen)
        losses = means | {"loss": sum(means.values())}
        return Evaluation(results, evaluation.final(found), found["proposals"], losses)


def compile_shapes(function, first, batches, mesh, *, purpose, out_shardings, donate=(), options=None):
    """One executable for each shape of batch: {(H, W): compiled(first, batch)}. They can never compile again.

    batches: one of each shape, this process's part of it (NumPy). purpose: a word for the printed line. donate: name of
    the argument of `function` whose buffers a call may overwrite. options: of the compiler; see remat_options.
    """
    jitted, compiled = jax.jit(function, donate_argnames=donate, out_shardings=out_shardings), {}
    for batch in batches:
        started, shape = time.perf_counter(), batch["images"].shape[1:3]
        example = put_batch(batch, mesh)
        with jax.set_mesh(mesh):
            compiled[shape] = jitted.lower(first, example).compile(options)
        print(f"compiled {purpose} for {shape[0]}x{shape[1]} in {time.perf_counter() - started:.1f} s")
    return compiled


def remat_options(config):
    """Compiler options for a training with `model.backbone.remat`, which XLA's CPU compiler would otherwise undo."""
    if jax.default_backend() == "cpu" and config.model.backbone.get("remat"):
        return {"xla_disable_hlo_passes": "cse_barrier_expander"}
    return None


def check_categories(config, source, trained):
    """Raises ValueError unless a source has the training's categories, in their order, and the model as many classes.

    trained: the categories of the training's source; label i is the i-th of them.
    """
    check_class_count(config, source)
    check_same_categories(source, trained)


def check_class_count(config, source):
    """Raises ValueError unless the model has as many classes as a source has categories."""
    if len(source.categories) != config.model.num_classes:
        names = ", ".join(category["name"] for category in source.categories)
        raise ValueError(
            f"model.num_classes is {config.model.num_classes}, but config.data.categories choose "
            f"{len(source.categories)} categories ({names})"
        )


def check_same_categories(source, trained):
    """Raises ValueError unless a source has the training's categories, in their order."""
    here, there = ([category["name"] for category in categories] for categories in (source.categories, trained))
    if here != there:
        raise ValueError(
            f"the categories in the order of their ids are {', '.join(here)}, but in training {', '.join(there)}: the "
            "labels would have another meaning; use the same order, or choose them with config.data.categories"
        )
