"""A trained detector as one file that any program with JAX can run: StableHLO, by jax.export.

    F                  resizing, normalisation, both stages and NMS, for CPU, CUDA and TPU, any batch and image size
    F.safetensors      the parameters, if they are not inside F
    F.json             the names of the labels, and the settings of F

docs/export.md shows how to load it with only jax, flatbuffers and numpy.
"""

import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export
from safetensors.numpy import load_file, save

from jaxdet.data.resizing import is_portrait, original_boxes
from jaxdet.data.synthetic import scenes
from jaxdet.inference.detector import load
from jaxdet.models.faster_rcnn import Detections
from jaxdet.ops.resize import resize, resized_sizes

PLATFORMS = ("cpu", "cuda", "tpu")
# By the model's dtype; for scores, and for boxes relative to the longer side of the image
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}


def export_run(workdir, output, parameters_beside=False):
    """Writes the detector of a workdir (see `jaxdet.load`) to the file `output`, and runs the written file.

    Returns what to print. Raises FileNotFoundError if there is no run. Raises ValueError, and keeps no file, if its
    detections are not the detector's. Raises ValueError also if there is an OUTPUT.safetensors that would not belong to
    OUTPUT.
    """
    output = pathlib.Path(output)
    if output.is_dir():
        raise ValueError(f"{output} is a folder; the output is a file, such as {output / 'detector.jaxdet'}")
    if not parameters_beside and (stale := _beside(output, ".safetensors")).exists():
        raise ValueError(
            f"{stale} exists, from an export with --parameters-beside, and would not belong to the new {output}; "
            "remove it, or choose another output"
        )
    detector = load(workdir)
    output.parent.mkdir(parents=True, exist_ok=True)
    parameters = flatten_dict(jax.device_get(detector.variables), sep="/") if parameters_beside else None
    # written under other names until they are checked
    partial = {".safetensors": _beside(output, ".partial.safetensors")} if parameters_beside else {}
    partial[""] = _beside(output, ".partial")
    try:
        partial[""].write_bytes(export_detector(detector, parameters).serialize())
        if parameters_beside:
            partial[".safetensors"].write_bytes(save(parameters))
        agreement = check(partial[""], detector, partial.get(".safetensors"))
        written = [_beside(output, suffix) for suffix in partial]
        for path, final in zip(partial.values(), written, strict=True):
            os.replace(path, final)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    description = {
        "categories": list(detector.categories),
        "arguments": ["parameters", "images", "sizes"] if parameters_beside else ["images", "sizes"],
        "short_side": detector.resizing.short_side,
        "longest_side": detector.resizing.longest_side,
        "resizing": detector.resizing.kind,
        "platforms": list(PLATFORMS),
        "jax": jax.__version__,
    }
    _beside(output, ".json").write_text(json.dumps(description, indent=1) + "\n")
    sizes = " and ".join(f"{path} ({path.stat().st_size / 2**20:.1f} MiB)" for path in reversed(written))
    return f"{sizes}, labels in {_beside(output, '.json')}\n{agreement}"


def _beside(path, suffix):
    return path.with_name(path.name + suffix)


def export_detector(detector, parameters=None):
    """jax.export.Exported of `detect_images` for PLATFORMS; batch, height and width are symbolic.

    Its arguments are images and sizes; if `parameters` {name: array} are given, they come first, else they are inside.
    """
    batch, height, width = export.symbolic_shape("batch, height, width")
    images = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.uint8)
    sizes = jax.ShapeDtypeStruct((batch, 2), jnp.int32)
    if parameters is None:
        function = functools.partial(detect_images, detector, detector.variables)
        return export.export(jax.jit(function), platforms=PLATFORMS)(images, sizes)

    def function(parameters, images, sizes):
        return detect_images(detector, unflatten_dict(parameters, sep="/"), images, sizes)

    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in parameters.items()}
    return export.export(jax.jit(function), platforms=PLATFORMS)(shapes, images, sizes)


def detect_images(detector, variables, images, sizes):
    """What `detector(image)` does, for a batch, on the device.

    images uint8 [B, H, W, 3], RGB, each in the upper left corner of its row; sizes int32 [B, 2], the height and width
    of each image, zeros for none. Returns {"boxes" [B, D, 4] x1 y1 x2 y2 in pixels of the image, "scores" [B, D] best
    first, "labels" [B, D], "valid" [B, D]}; rows that are not valid are 0. Landscape and portrait images have padded
    shapes of their own, so a batch of both takes two passes through the network.
    """
    resizing = detector.resizing
    resized = resized_sizes(sizes, resizing.short_side, resizing.longest_side, resizing.kind)
    portrait = is_portrait(*resized.T)
    arguments = variables, images, sizes
    found = []
    for shape, chosen in zip(resizing.shapes, (~portrait, portrait), strict=True):
        chosen &= (sizes > 0).all(1)
        network = functools.partial(_detect_shape, detector, shape, jnp.where(chosen[:, None], resized, 0))
        nothing = jax.eval_shape(network, arguments)
        empty = functools.partial(jax.tree.map, lambda part: jnp.zeros(part.shape, part.dtype), nothing)
        found.append(jax.lax.cond(chosen.any(), network, lambda _, empty=empty: empty(), arguments))
    boxes, scores, labels, valid = (
        jnp.where(portrait.reshape(-1, *(1,) * (a.ndim - 1)), b, a) for a, b in zip(*found, strict=True)
    )
    scales = jnp.where(sizes > 0, resized / sizes, 1.0)
    boxes = original_boxes(boxes, scales, sizes)
    return {"boxes": boxes, "scores": scores, "labels": labels, "valid": valid}


def _detect_shape(detector, shape, resized, arguments):
    """Detections for the images of one padded shape; `resized` is 0 for the others."""
    variables, images, sizes = arguments
    images = resize(images, sizes, resized, shape, detector.resizing.kind)
    found = detector.model.apply(variables, images, resized, method="detect")
    return Detections(*found)


def check(path, detector, parameters_path=None):
    """Loads a written file, runs it on drawn scenes of several sizes, and says how well it agrees with the detector.

    Raises ValueError if a detection differs by more than TOLERANCES, or has no partner. A detection may lack a partner
    if its score is so close to the threshold, or to the last of a full list, that rounding decides.
    """
    run = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    parameters = [load_file(parameters_path)] if parameters_path else []
    sizes = [(240, 320), (300, 200), (431, 640), (0, 0)]  # the last row is padding
    images = np.zeros((len(sizes), 448, 640, 3), np.uint8)
    for row, (height, width) in enumerate(sizes[:-1]):
        images[row, :height, :width] = scenes.draw_scene(0, row, height, width)[0]
    found = jax.device_get(run(*parameters, images, np.array(sizes, np.int32)))
    if found["valid"][-1].any():
        raise ValueError(f"{path} detects something in a row without an image")
    model = detector.config.model
    tolerance = TOLERANCES[model.dtype]
    count, worst = 0, 0.0
    for row, (height, width) in enumerate(sizes[:-1]):
        expected = detector(images[row, :height, :width])
        valid = found["valid"][row]
        ours = {name: found[name][row, valid] for name in expected}
        full = [x["scores"][-1] for x in (expected, ours) if len(x["scores"]) == model.test.detections_per_image]
        least = max([model.test.score_threshold, *full]) + tolerance
        worst = max(worst, difference(expected, ours, max(height, width), least))
        count += len(expected["scores"])
    allowed = f"{tolerance:g} allowed in {model.dtype}"
    if not worst <= tolerance:
        raise ValueError(f"the exported file differs from the detector by {worst:.2g} on drawn scenes, with {allowed}")
    return (
        f"run again from the file: {count} detections on {len(sizes) - 1} drawn scenes differ by at most {worst:.1e} "
        f"({allowed})"
    )


def difference(a, b, side, least=0.0):
    """The largest difference between two lists of detections of one image: of scores, or of boxes relative to `side`
    pixels.

    Since equal scores have no order, each detection with a score of at least `least` is compared with the nearest one
    of its label in the other list. Infinite if the other list lacks its label.
    """
    if len(a["scores"]) == len(b["scores"]) == 0:
        return 0.0
    apart = np.abs(a["boxes"][:, None] - b["boxes"][None]).max(-1) / side
    apart = np.maximum(apart, np.abs(a["scores"][:, None] - b["scores"][None]))
    apart = np.where(a["labels"][:, None] == b["labels"][None], apart, np.inf)
    nearest = [apart.min(axis, initial=np.inf)[x["scores"] >= least] for axis, x in ((1, a), (0, b))]
    return float(max(part.max(initial=0.0) for part in nearest))
