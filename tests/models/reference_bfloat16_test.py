"""The whole models in bfloat16 against the float32 values of the libraries: the cost of rounding.

Each limit is about twice the value measured on a CPU. bfloat16 has eight bits: one rounding is .2%, and the
fifty layers of a ResNet with its pyramid come to 1%. The order of nearly equal scores may change, so
proposals and detections are compared as sets.
"""

import numpy as np
import pytest

from jaxdet.ops.boxes import iou
from tests.models.reference import NAMES, Reference

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=NAMES)
def reference(request, golden):
    return Reference(golden, request.param, dtype="bfloat16")


@pytest.fixture(scope="module")
def result(reference):
    return reference.everything()


def error(actual, expected):
    """Root of the mean squared difference, relative to what is expected."""
    difference = np.asarray(actual, np.float64) - expected
    return np.sqrt(np.mean(difference**2) / np.mean(np.asarray(expected, np.float64) ** 2))


@pytest.mark.parametrize("level", ["C2", "C3", "C4", "C5", "P2", "P3", "P4", "P5", "P6"])
def test_features(reference, result, level):
    out, z = result[level[0]][int(level[1]) - 2], reference.values
    rows, columns, channels = z[f"{level}/stride"]
    assert error(out[:, ::rows, ::columns, ::channels], z[f"{level}/sub"]) < 0.03


@pytest.mark.parametrize("level", [2, 3, 4, 5, 6])
def test_rpn(reference, result, level):
    z, shape = reference.values, (2, *result["P"][level - 2].shape[1:3], 3)
    rows, columns = z[f"rpn/stride{level}"]
    logits, deltas = (part[level - 2] for part in result["rpn"])
    assert error(logits.reshape(shape)[:, ::rows, ::columns], z[f"rpn/logits{level}"]) < 0.05
    assert error(deltas.reshape(*shape, 4)[:, ::rows, ::columns], z[f"rpn/deltas{level}"]) < 0.05


@pytest.mark.parametrize("image", [0, 1])
def test_proposals(reference, result, image):
    proposals = result["stages"].proposals
    overlaps = iou(reference.values[f"proposals{image}/boxes"], proposals.boxes[image, proposals.valid[image]])
    assert np.mean(overlaps.max(1) > 0.9) >= 0.94  # of the fifty best


@pytest.mark.parametrize("image", [0, 1])
def test_detections(reference, result, image):
    z, found = reference.values, result["stages"].roi
    boxes, scores, labels = (z[f"detections{image}/{name}"] for name in ("boxes", "scores", "labels"))
    ours = [part[found.valid[image]] for part in (found.boxes[image], found.scores[image], found.labels[image])]
    overlaps = np.asarray(iou(boxes, ours[0])) * (labels[:, None] == ours[2])
    there = overlaps.max(1) > 0.7
    assert there.mean() >= 0.75
    assert np.abs(ours[1][overlaps.argmax(1)] - scores)[there].mean() < 0.03


def test_losses(reference, result):
    z, losses = reference.values, result["losses"]
    np.testing.assert_allclose(losses["rpn_objectness"], z["train/loss_objectness"], rtol=0.02)
    np.testing.assert_allclose(losses["rpn_box"], z["train/loss_rpn_box"], rtol=0.02)
    # which proposals there are to sample is no longer quite the same
    np.testing.assert_allclose(losses["roi_classification"], z["train/loss_class"], rtol=0.2)
    np.testing.assert_allclose(losses["roi_box"], z["train/loss_box"], rtol=0.2)


def test_gradients(reference, result):
    """Their lengths, of kernels; those of biases are sums that cancel, down to a hundredth of their terms."""
    z, paths = reference.values, reference.gradient_paths()
    for name, norm in zip(z["train/grad_names"], z["train/grad_norm"], strict=True):
        if paths[name][-1] == "kernel":
            ours = np.linalg.norm(np.asarray(result["gradient"][paths[name]], np.float64))
            np.testing.assert_allclose(ours, norm, rtol=0.15, err_msg=name)
