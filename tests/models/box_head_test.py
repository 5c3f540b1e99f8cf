import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.box_head import BoxHead
from jaxdet.ops.roi_align import pyramid_roi_align
from tests.models import tiny


def box_head(num_classes=3, **settings):
    return BoxHead(num_classes, **(tiny.config().model.roi_head.to_dict() | settings))


def pyramid(channels=4):
    rng = np.random.default_rng(0)
    shapes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    return tuple(rng.standard_normal((2, *shape, channels)).astype(np.float32) for shape in shapes)


BOXES = np.array([[[4, 6, 40, 60], [0, 0, 96, 64]], [[8, 8, 9, 9], [50, 10, 90, 30]]], np.float32)


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_shapes(num_classes, class_agnostic):
    head = box_head(num_classes, class_agnostic=class_agnostic)
    (logits, deltas), variables = jax.eval_shape(head.init_with_output, jax.random.key(0), pyramid(), BOXES)
    sets = 1 if class_agnostic else num_classes
    assert logits.shape == (2, 2, num_classes + 1) and deltas.shape == (2, 2, sets, 4)
    assert set(variables["params"]) == {"fc0", "fc1", "class_logits", "box_deltas"}
    assert variables["params"]["fc0"]["kernel"].shape == (7 * 7 * 4, 16)


def test_layers_as_configured():
    head = box_head(num_convs=2, conv_norm="group_norm", num_fcs=1, pool_size=5, dtype=jnp.bfloat16)
    out, variables = jax.eval_shape(head.init_with_output, jax.random.key(0), pyramid(), BOXES)
    params = variables["params"]
    assert set(params) == {"conv0", "conv0_norm", "conv1", "conv1_norm", "fc0", "class_logits", "box_deltas"}
    assert set(params["conv0"]) == {"kernel"} and params["fc0"]["kernel"].shape == (5 * 5 * 4, 16)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((out, variables)))
    plain = jax.eval_shape(box_head(num_convs=1).init, jax.random.key(0), pyramid(), BOXES)["params"]
    assert set(plain["conv0"]) == {"kernel", "bias"} and "conv0_norm" not in plain


def test_values_against_plain_numpy():
    head, maps = box_head(), pyramid()
    shapes = jax.eval_shape(head.init, jax.random.key(0), maps, BOXES)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape).astype(np.float32), shapes)
    logits, deltas = tiny.jit(head.apply)({"params": params}, maps, BOXES)
    align = tiny.jit(lambda maps, boxes: pyramid_roi_align(maps, boxes, (4, 8, 16, 32)))
    for i in range(2):
        crops = align([x[i] for x in maps[:4]], BOXES[i])
        x = np.asarray(crops).reshape(2, -1)
        for name in ("fc0", "fc1"):
            x = np.maximum(x @ params[name]["kernel"] + params[name]["bias"], 0)
        expected = x @ params["class_logits"]["kernel"] + params["class_logits"]["bias"]
        np.testing.assert_allclose(logits[i], expected, rtol=1e-4, atol=1e-4)
        expected = (x @ params["box_deltas"]["kernel"] + params["box_deltas"]["bias"]).reshape(2, 3, 4)
        np.testing.assert_allclose(deltas[i], expected, rtol=1e-4, atol=1e-4)


def shifted(box, iou):
    """`box` moved right until it overlaps itself by so much."""
    width = box[2] - box[0]
    return np.array(box, np.float32) + np.float32(width * (1 - iou) / (1 + iou)) * np.array([1, 0, 1, 0])


GT = np.array([[[10, 10, 30, 40], [50, 20, 90, 60], [np.nan] * 4]], np.float32)
TRUTH = {"gt_boxes": GT, "gt_labels": np.array([[2, 1, 77]], np.int32), "gt_valid": np.array([[True, True, False]])}


def draw(head, boxes, valid, truth=TRUTH, seed=0):
    run = tiny.jit(lambda *x: head.sample(*x[:2], truth, x[2]))
    keys = jax.random.split(jax.random.key(seed), 1)
    return [np.asarray(x[0]) for x in run(np.array([boxes], np.float32), np.array([valid]), keys)]


def test_labels_of_the_sample():
    proposals = [shifted(GT[0, 0], 0.8), shifted(GT[0, 1], 0.51), shifted(GT[0, 1], 0.49), [0, 0, 5, 5], [np.nan] * 4]
    head = box_head(add_ground_truth=False, positive_fraction=1.0)
    boxes, labels, gt_boxes, valid = draw(head, proposals, [True] * 4 + [False])
    assert len(valid) == 16 and valid.sum() == 4 and valid[:4].all()
    found = {tuple(box): (label, tuple(gt)) for box, label, gt in zip(boxes[:4], labels, gt_boxes, strict=False)}
    assert found[tuple(np.float32(proposals[0]))] == (2, tuple(GT[0, 0]))
    assert found[tuple(np.float32(proposals[1]))] == (1, tuple(GT[0, 1]))
    assert found[tuple(np.float32(proposals[2]))][0] == 3  # background, whatever it overlaps most
    assert found[tuple(np.float32(proposals[3]))][0] == 3
    assert not boxes[4:].any() and np.isfinite(boxes).all()


def test_ground_truth_joins_where_it_should():
    proposals, valid = np.tile([0, 0, 5, 5], (20, 1)), [True] * 20
    _, labels, _, drawn = draw(box_head(add_ground_truth=True), proposals, valid)
    assert drawn.all() and sorted(labels[labels < 3]) == [1, 2]
    _, labels, _, drawn = draw(box_head(add_ground_truth=False), proposals, valid)
    assert drawn.all() and (labels == 3).all()


def test_at_most_a_quarter_is_positive():
    proposals = [shifted(GT[0, 0], 0.7)] * 20 + [[0, 0, 5, 5]] * 20
    _, labels, _, valid = draw(box_head(), proposals, [True] * 40)
    assert valid.all() and (labels == 2).sum() == 4 and (labels == 3).sum() == 12


def test_without_boxes_all_is_background():
    empty = TRUTH | {"gt_valid": np.zeros((1, 3), bool), "gt_boxes": np.full((1, 3, 4), np.nan, np.float32)}
    boxes, labels, _, valid = draw(box_head(), [[0, 0, 5, 5], [4, 4, 20, 20]], [True, True], empty)
    assert valid.sum() == 2 and (labels[:2] == 3).all() and np.isfinite(boxes).all()


def test_boxes_without_area_are_never_drawn():
    truth = TRUTH | {"gt_boxes": np.array([[[10, 10, 30, 40], [50, 20, 50, 60], [np.nan] * 4]], np.float32)}
    boxes, _, _, valid = draw(box_head(), [[0, 7, 0, 30], [0, 0, 9, 9]], [True, True], truth)
    assert valid.sum() == 2  # the proposal with an area and the true box with one
    assert (boxes[valid][:, 2:] > boxes[valid][:, :2]).all()


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_decode(class_agnostic):
    head = box_head(class_agnostic=class_agnostic)
    logits = np.array([[[1, 2, 3, 4]]], np.float32)
    deltas = np.zeros((1, 1, 1 if class_agnostic else 3, 4), np.float32)
    deltas[0, 0, -1] = [5, 0, 5 * np.log(2), 0]  # half a width to the right, twice as wide
    scores, boxes = head.decode(logits, deltas, np.array([[[10, 10, 30, 40]]], np.float32))
    np.testing.assert_allclose(scores[0, 0], np.exp([1, 2, 3]) / np.exp([1, 2, 3, 4]).sum(), rtol=1e-5)
    assert boxes.shape == (1, 1, 3, 4)
    np.testing.assert_allclose(boxes[0, 0, -1], [10, 10, 50, 40], rtol=1e-5)
    same = boxes[0, 0, 0] if class_agnostic else [10, 10, 50, 40]
    np.testing.assert_allclose(boxes[0, 0, -1], same, rtol=1e-5)
    if not class_agnostic:
        np.testing.assert_allclose(boxes[0, 0, 0], [10, 10, 30, 40], rtol=1e-5)
