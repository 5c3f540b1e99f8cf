"""The whole model against torchvision's and detectron2's values, from pixels to detections and gradients."""

import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxdet.data.resizing import original_boxes
from tests.models.reference import Reference

DETECTRON2 = pytest.param("d2_resnet50", marks=pytest.mark.slow)
MODELS = ("tv_resnet18", pytest.param("tv_resnet50", marks=pytest.mark.slow), DETECTRON2)


@pytest.fixture(scope="module", params=MODELS)
def reference(request, golden):
    return Reference(golden, request.param)


@pytest.fixture(scope="module")
def result(reference):
    return reference.everything()


def assert_features(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_every_parameter_has_a_place(reference):
    batch = reference.batch()
    shapes = jax.eval_shape(
        functools.partial(reference.model.init, method="detect"),
        jax.random.key(0),
        batch["images"],
        batch["image_sizes"],
    )
    ours = {path: value.shape for path, value in flatten_dict(shapes).items()}
    theirs = {path: value.shape for path, value in flatten_dict(reference.variables).items()}
    assert ours == theirs


def test_input_is_normalised_and_padded_with_zeros(reference, result):
    out = result["input"]
    np.testing.assert_allclose(out[:, ::8, ::8], reference.values["input/sub"], atol=1e-4)
    for image, (height, width) in zip(out, reference.values["image_sizes"], strict=True):
        assert not image[height:].any() and not image[:, width:].any()


@pytest.mark.parametrize("level", ["C2", "C3", "C4", "C5", "P2", "P3", "P4", "P5", "P6"])
def test_features(reference, result, level):
    out, z = result[level[0]][int(level[1]) - 2], reference.values
    rows, columns, channels = z[f"{level}/stride"]
    assert_features(out[:, ::rows, ::columns, ::channels], z[f"{level}/sub"])
    assert_features(out.mean((1, 2)), z[f"{level}/mean"])


@pytest.mark.parametrize("level", [2, 3, 4, 5, 6])
def test_rpn(reference, result, level):
    out, z = result, reference.values
    shape = (2, *out["P"][level - 2].shape[1:3], 3)
    rows, columns = z[f"rpn/stride{level}"]
    logits, deltas = (part[level - 2] for part in out["rpn"])
    assert_features(logits.reshape(shape)[:, ::rows, ::columns], z[f"rpn/logits{level}"])
    assert_features(deltas.reshape(*shape, 4)[:, ::rows, ::columns], z[f"rpn/deltas{level}"])


@pytest.mark.parametrize("image", [0, 1])
def test_proposals(reference, result, image):
    z, proposals = reference.values, result["stages"].proposals
    assert proposals.valid[image].sum() == z[f"proposals{image}/count"]
    scores = z[f"proposals{image}/scores"]
    if reference.name.startswith("d2"):  # logits there, probabilities here
        scores = 1 / (1 + np.exp(-scores.astype(np.float64)))
    np.testing.assert_allclose(proposals.scores[image, :50], scores, atol=1e-4)
    np.testing.assert_allclose(proposals.boxes[image, :50], z[f"proposals{image}/boxes"], atol=1e-2)


def test_box_head(reference, result):
    z = reference.values
    class_logits, box_deltas = (part[:, :50] for part in result["head"])
    expected_logits, expected_deltas = z["head/class_logits"], z["head/box_deltas"]
    if reference.name.startswith("tv"):
        expected_logits, expected_deltas = np.roll(expected_logits, -1, -1), expected_deltas[:, :, 1:]
    np.testing.assert_allclose(class_logits, expected_logits, atol=1e-3)
    np.testing.assert_allclose(box_deltas, expected_deltas, atol=1e-3)


@pytest.mark.parametrize("image", [0, 1])
def test_detections(reference, result, image):
    z, found = reference.values, result["stages"].roi
    count = len(z[f"detections{image}/scores"])
    assert found.valid[image].sum() == count
    np.testing.assert_array_equal(found.labels[image, :count], z[f"detections{image}/labels"])
    np.testing.assert_allclose(found.scores[image, :count], z[f"detections{image}/scores"], atol=1e-4)
    np.testing.assert_allclose(found.boxes[image, :count], z[f"detections{image}/boxes"], atol=1e-2)


@pytest.mark.parametrize("reference", [DETECTRON2], indirect=True)  # torchvision's files have no such boxes
@pytest.mark.parametrize("image", [0, 1])
def test_detections_in_the_original_image(reference, result, image):
    """detectron2 scales boxes to the sizes that it is given; those that come out empty it drops."""
    z, found = reference.values, result["stages"].roi
    size = z["original_sizes"][image]
    boxes = found.boxes[image, found.valid[image]]
    boxes = original_boxes(boxes, z["image_sizes"][image] / size, size)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    np.testing.assert_allclose(boxes[kept], z[f"original{image}/boxes"], atol=2e-2)


def test_losses(reference, result):
    z, out = reference.values, result
    assert out["metrics"]["rpn_positives"] * 2 == z["train/positive_anchors0"] + z["train/positive_anchors1"]
    names = {"rpn_objectness": "objectness", "rpn_box": "rpn_box", "roi_classification": "class", "roi_box": "box"}
    for ours, theirs in names.items():
        np.testing.assert_allclose(out["losses"][ours], z[f"train/loss_{theirs}"], rtol=1e-4, err_msg=ours)


def test_gradients(reference, result):
    z, gradient = reference.values, result["gradient"]
    params, paths = flatten_dict(reference.variables["params"]), reference.gradient_paths()
    for name, norm, dot in zip(z["train/grad_names"], z["train/grad_norm"], z["train/grad_dot"], strict=True):
        ours, value = np.asarray(gradient[paths[name]], np.float64), params[paths[name]]
        np.testing.assert_allclose(np.linalg.norm(ours), norm, rtol=1e-3, err_msg=name)
        # some of these sums cancel to 1/10,000 of their terms, which makes any rounding visible
        atol = 1e-5 * norm * np.linalg.norm(value)
        np.testing.assert_allclose((ours * value).sum(), dot, rtol=5e-3, atol=atol, err_msg=name)
