import functools

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import boxes as box_ops
from jaxdet.ops.nms import class_nms, nms

jitted = jax.jit(nms, static_argnums=4)
jitted_class = jax.jit(class_nms, static_argnums=5)


def greedy(boxes, scores, iou_threshold, classes=None):
    """The sequential algorithm, one box after the other; returns the rows kept, best score first."""
    boxes, kept = boxes.astype(np.float32), []
    classes = np.zeros(len(boxes)) if classes is None else classes
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for row in np.argsort(-scores, kind="stable"):
        for other in kept:
            width = max(min(boxes[row, 2], boxes[other, 2]) - max(boxes[row, 0], boxes[other, 0]), 0)
            height = max(min(boxes[row, 3], boxes[other, 3]) - max(boxes[row, 1], boxes[other, 1]), 0)
            meet = np.float32(width * height)
            union = area[row] + area[other] - meet
            if classes[row] == classes[other] and meet > 0 and meet / union > np.float32(iou_threshold):
                break
        else:
            kept.append(row)
    return kept


def crowded_boxes(rng, n):
    """Whole-pixel boxes around a few places, so that chains of suppression are long and IoU is exact."""
    place = rng.integers(0, 200, (4, 2))[rng.integers(0, 4, n)]
    corner = place + rng.integers(0, 20, (n, 2))
    return np.concatenate([corner, corner + rng.integers(20, 50, (n, 2))], -1).astype(np.float32)


def kept(result):
    return np.asarray(result[0])[np.asarray(result[1])]


@pytest.mark.parametrize("case", ["50_0.5", "200_0.3", "200_0.7", "1000_0.7", "1500_0.5", "exact", "batched"])
def test_golden(golden, case):
    z = {name.split("/")[1]: v for name, v in np.load(golden / "nms.npz").items() if name.startswith(case + "/")}
    n = len(z["scores"])
    classes = z.get("classes", np.zeros(n, np.int32))
    index, valid = jitted_class(z["boxes"], z["scores"], classes, np.ones(n, bool), z["iou_threshold"], n)
    assert index.dtype == np.int32 and valid.dtype == bool
    np.testing.assert_array_equal(kept((index, valid)), z["keep"])
    np.testing.assert_array_equal(valid, np.arange(n) < len(z["keep"]))


def test_padded_rows_change_nothing(golden):
    z = np.load(golden / "nms.npz")
    boxes, scores = z["200_0.7/boxes"], z["200_0.7/scores"]
    rng = np.random.default_rng(0)
    place = np.sort(rng.choice(260, 200, replace=False))
    for box, score in ((np.nan, np.nan), (np.inf, np.inf), (0, 1e9), (np.nan, 2)):
        all_boxes, all_scores = np.full((260, 4), box, np.float32), np.full(260, score, np.float32)
        all_boxes[place], all_scores[place] = boxes, scores
        if box == 0:
            all_boxes[:, 2:] = np.where(np.isin(np.arange(260), place)[:, None], all_boxes[:, 2:], 1e4)
        valid = np.isin(np.arange(260), place)
        result = jitted(all_boxes, all_scores, valid, 0.7, 260)
        np.testing.assert_array_equal(kept(result), place[z["200_0.7/keep"]])


@pytest.mark.parametrize("count", [1, 10, 90])
def test_count_may_be_smaller_or_larger_than_the_boxes(count):
    rng = np.random.default_rng(1)
    boxes, scores = crowded_boxes(rng, 60), rng.permutation(60).astype(np.float32)
    expected = greedy(boxes, scores, 0.5)
    index, valid = jitted(boxes, scores, np.ones(60, bool), 0.5, count)
    assert index.shape == valid.shape == (count,)
    assert 10 < len(expected) < 60
    np.testing.assert_array_equal(kept((index, valid)), expected[:count])
    assert (np.asarray(index)[~np.asarray(valid)] == 0).all()


@pytest.mark.parametrize("threshold, suppressed", [(0.6, True), (0.1, True), (0.5, False), (0.7, False)])
def test_the_threshold_is_in_double_precision(threshold, suppressed):
    """The float32 next to .6 is above .6, and so is an IoU of that value in torchvision's comparison."""
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10 * threshold]], np.float32)
    run = jax.jit(functools.partial(nms, iou_threshold=threshold, count=2))
    _, valid = run(boxes, np.array([2.0, 1.0]), np.ones(2, bool))
    assert valid.tolist() == [True, not suppressed]


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    hypothesis.extra.numpy.arrays(np.int32, (24, 2), elements=st.integers(0, 12)),
    hypothesis.extra.numpy.arrays(np.int32, (24, 2), elements=st.integers(0, 8)),
    hypothesis.extra.numpy.arrays(np.int32, 24, elements=st.integers(0, 9)),
    hypothesis.extra.numpy.arrays(np.int32, 24, elements=st.integers(0, 1)),
    hypothesis.extra.numpy.arrays(bool, 24),
    st.sampled_from([0.25, 0.5, 0.75]),
)
def test_against_the_sequential_algorithm(corner, sides, scores, classes, valid, iou_threshold):
    # Small whole numbers: equal scores, equal boxes, empty boxes and IoUs equal to the threshold all occur.
    boxes, scores = np.concatenate([corner, corner + sides], -1).astype(np.float32), scores.astype(np.float32)
    real = np.flatnonzero(valid)
    garbage = np.where(valid[:, None], boxes, np.nan)
    expected = real[greedy(boxes[real], scores[real], iou_threshold)]
    np.testing.assert_array_equal(kept(jitted(garbage, scores, valid, iou_threshold, 24)), expected)
    expected = real[greedy(boxes[real], scores[real], iou_threshold, classes[real])]
    result = jitted_class(garbage, scores, classes, valid, iou_threshold, 24)
    np.testing.assert_array_equal(kept(result), expected)


def test_a_long_chain_takes_as_many_rounds_as_it_needs():
    # Each box suppresses the next one only: every second box stays.
    x = 10.0 * np.arange(101)
    boxes = np.stack([x, 0 * x, x + 30, 0 * x + 30], -1).astype(np.float32)
    result = jitted(boxes, -x, np.ones(101, bool), 0.4, 101)
    np.testing.assert_array_equal(kept(result), np.arange(0, 101, 2))


def test_images_of_a_batch_are_independent():
    rng = np.random.default_rng(2)
    boxes = np.stack([crowded_boxes(rng, 60) for _ in range(4)])
    scores = np.stack([rng.permutation(60) for _ in range(4)]).astype(np.float32)
    valid = np.arange(60) < np.array([60, 31, 1, 0])[:, None]
    boxes[~valid] = np.nan
    index, filled = jax.jit(jax.vmap(functools.partial(nms, iou_threshold=0.4, count=40)))(boxes, scores, valid)
    for image in range(4):
        real = valid[image]
        expected = greedy(boxes[image][real], scores[image][real], 0.4)
        np.testing.assert_array_equal(kept((index[image], filled[image])), expected[:40])


def test_scores_that_are_not_finite_are_not_valid():
    boxes = np.float32([[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9], [60, 0, 69, 9], [80, 0, 89, 9]])
    scores = np.float32([0.1, np.nan, np.inf, -np.inf, -5.0])
    result = jitted(boxes, scores, np.ones(5, bool), 0.5, 5)
    np.testing.assert_array_equal(kept(result), [0, 4])


def test_a_nan_box_among_the_valid_harms_no_other():
    boxes = np.float32([[np.nan, 0, 9, 9], [0, 0, 9, 9], [1, 0, 9, 9], [40, 0, 49, 9]])
    result = kept(jitted(boxes, np.float32([9, 3, 2, 1]), np.ones(4, bool), 0.5, 4))
    np.testing.assert_array_equal(result[np.isin(result, [1, 2, 3])], [1, 3])


@pytest.mark.parametrize("library", ["d2", "tv"])
def test_golden_last_stage(golden, library):
    """Class scores and deltas of the box head to final detections, with operations alone."""
    z = np.load(golden / "inference.npz")
    classes, count = z["box_deltas"].shape[1], int(z["count"])

    @jax.jit
    def detect(proposals, logits, deltas):
        boxes = box_ops.clip(box_ops.decode(deltas, proposals[:, None], z["weights"]), z["image_size"])
        scores = jax.nn.softmax(logits)[:, :classes]
        valid = scores > z["score_threshold"]
        if library == "tv":  # detectron2 lets empty boxes take places and drops them later
            valid &= box_ops.nonempty(boxes, 1e-2)
        labels = jnp.broadcast_to(jnp.arange(classes), scores.shape)
        rows = boxes.reshape(-1, 4), scores.reshape(-1), labels.reshape(-1)
        index, filled = class_nms(*rows, valid.reshape(-1), z["nms_threshold"], count)
        return *(row[index] for row in rows), filled

    boxes, scores, labels, filled = map(np.asarray, detect(z["proposals"], z["class_logits"], z["box_deltas"]))
    assert filled.sum() == len(z[f"{library}/labels"])
    np.testing.assert_array_equal(labels[filled], z[f"{library}/labels"])
    np.testing.assert_allclose(boxes[filled], z[f"{library}/boxes"], rtol=0, atol=1e-2)
    np.testing.assert_allclose(scores[filled], z[f"{library}/scores"], rtol=0, atol=1e-5)

    height, width = z["original_size"] / z["image_size"]
    scaled = boxes[filled] * np.float32([width, height, width, height])
    if library == "tv":
        np.testing.assert_allclose(scaled, z["tv/boxes_original"], rtol=0, atol=2e-2)
    else:
        scaled = np.asarray(box_ops.clip(scaled, z["original_size"]))
        real = np.asarray(box_ops.nonempty(scaled))
        np.testing.assert_allclose(scaled[real], z["d2_original/boxes"], rtol=0, atol=1e-2)
        np.testing.assert_array_equal(labels[filled][real], z["d2_original/labels"])
        np.testing.assert_allclose(scores[filled][real], z["d2_original/scores"], rtol=0, atol=1e-5)
