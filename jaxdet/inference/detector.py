"""A trained detector in three lines: `jaxdet.load`."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from jaxdet.data import transforms
from jaxdet.data.resizing import Resizing, original_boxes
from jaxdet.evaluation.categories import rpn_categories
from jaxdet.models import FasterRCNN
from jaxdet.runs.workdir import Workdir


def load(directory: str | os.PathLike[str], step: int | None = None) -> "Detector":
    """The detector of a workdir: its best checkpoint by AP (the newest if none was evaluated), or that of `step`.

    Raises FileNotFoundError, saying what is missing, if the folder holds no run; ValueError if its files are damaged or
    contradict each other.
    """
    workdir = Workdir(directory)
    config, categories = workdir.config(), workdir.categories()
    if len(categories) != config.model.num_classes:
        raise ValueError(
            f"{workdir.categories_file} names {len(categories)} categories, but model.num_classes in "
            f"{workdir.config_file.name} is {config.model.num_classes}"
        )
    return Detector(config, workdir.variables(step), categories)


def check_detects(variables: dict[str, Any]) -> None:
    """Raises ValueError if `variables` are only those of a converted backbone."""
    if "pyramid" not in variables["params"]:
        raise ValueError("a backbone alone cannot detect; start a training from it with config.init_from")


class Detector:
    """`detector(image)` -> detections. `categories` are those of the data set, in the order of the labels."""

    def __init__(self, config: ConfigDict, variables: dict[str, Any], categories: Sequence[dict[str, Any]]) -> None:
        check_detects(variables)
        self.config, self.variables = config, variables
        self.model = model = FasterRCNN(**config.model)
        self.categories = tuple(categories if model.two_stage else rpn_categories(categories))
        # compiles once for landscape and once for portrait images
        self.detect = jax.jit(lambda variables, *image: model.apply(variables, *image, method="detect"))
        self.resizing = Resizing.of(config.data.val)

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> dict[str, np.ndarray]:
        """Detections of one image, best first.

        image: uint8 [H, W, 3], RGB. Returns {"boxes": float32 [n, 4] x1 y1 x2 y2 in pixels of the image, "scores":
        float32 [n], "labels": int32 [n]}, those above `config.model.test.score_threshold`. Raises ValueError for any
        other array.
        """
        image = np.asarray(image)
        padded, size, scales = self.prepare(image)
        found = self.detect(self.variables, padded[None], np.array([size], np.int32))
        return self.finish((part[0] for part in found), scales, image.shape[:2])

    def prepare(self, image: UInt8[np.ndarray, "H W 3"]) -> tuple[np.ndarray, tuple[int, int], Float[np.ndarray, "2"]]:
        """The network's input for one image: padded [H, W, 3], size before padding, scales. Raises like a call."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"an image must be uint8 [H, W, 3] in RGB, not {image.dtype} {list(image.shape)}")
        size = self.resizing.size(image.shape[:2])
        resized, _, scales = transforms.resize(image, np.zeros((0, 4), np.float32), size, self.resizing.kind)
        return transforms.pad(resized, self.resizing.shape(size)), size, scales

    def finish(
        self, found: Iterable[Array], scales: Float[np.ndarray, "2"], size: tuple[int, ...]
    ) -> dict[str, np.ndarray]:
        """The result of a call, from the Detections of one image, its scales and its original size (height, width)."""
        boxes, scores, labels, valid = map(np.asarray, found)
        boxes = original_boxes(boxes[valid], scales, size)
        return {"boxes": boxes, "scores": scores[valid], "labels": labels[valid]}


def as_json(found: dict[str, np.ndarray], names: Sequence[str]) -> list[dict[str, Any]]:
    """Detections of one image as [{"box": [x1, y1, x2, y2], "score", "label": name}], best first."""
    columns = (found[name].tolist() for name in ("boxes", "scores", "labels"))
    return [{"box": box, "score": score, "label": names[label]} for box, score, label in zip(*columns, strict=True)]
