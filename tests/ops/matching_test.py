import functools

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from jaxdet.ops.boxes import iou
from jaxdet.ops.matching import match, match_boxes

CASES = [
    *("rpn_ties", "rpn_smooth", "rpn_weak", "roi_ties", "roi_smooth"),
    *("rpn_smooth_padded", "roi_smooth_padded", "rpn_no_gt", "roi_no_gt"),
]


@functools.partial(jax.jit, static_argnames="allow_low_quality")
def jitted(iou, gt_valid, low, high, allow_low_quality):
    return match(iou, gt_valid, low, high, allow_low_quality)


def slow_match(iou, gt_valid, low, high, allow_low_quality):
    real = np.flatnonzero(gt_valid)
    gt_index, label = np.zeros(iou.shape[1], int), np.zeros(iou.shape[1], int)
    for anchor in range(iou.shape[1]):
        best = -1.0
        for row in real:
            if iou[row, anchor] > best:
                best, gt_index[anchor] = iou[row, anchor], row
        label[anchor] = 1 if best >= high else 0 if best < low else -1
    if allow_low_quality:
        for row in real:
            largest = max(iou[row])
            for anchor in range(iou.shape[1]):
                if largest > 0 and iou[row, anchor] == largest:
                    label[anchor] = 1
    return gt_index, label


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("garbage", [0, np.nan, np.inf, 0.99])
def test_golden(golden, case, garbage):
    z = {name.split("/")[1]: v for name, v in np.load(golden / "matcher.npz").items() if name.startswith(case + "/")}
    iou = np.where(z["gt_valid"][:, None], z["iou"], np.float32(garbage))
    matches = jitted(iou, z["gt_valid"], z["low"], z["high"], bool(z["allow_low_quality"]))
    assert matches.gt_index.dtype == np.int32 and matches.label.dtype == np.int32
    np.testing.assert_array_equal(matches.label, z["label"])
    positive = z["label"] == 1
    np.testing.assert_array_equal(np.asarray(matches.gt_index)[positive], z["gt_index"][positive])


def test_a_box_that_no_anchor_meets_matches_nothing(golden):
    z = np.load(golden / "matcher.npz")
    iou, low, high = (z[f"peer_lonely_gt/{name}"] for name in ("iou", "low", "high"))
    lonely = iou.max(axis=1) == 0
    assert lonely.any() and (z["peer_lonely_gt/label"] == 1).all()
    matches = jitted(iou, np.ones(len(iou), bool), low, high, True)
    without = jitted(iou, ~lonely, low, high, True)
    np.testing.assert_array_equal(matches.label, without.label)
    assert 0 < (np.asarray(matches.label) == 1).sum() < iou.shape[1]
    assert not np.isin(np.asarray(matches.gt_index)[np.asarray(matches.label) == 1], np.flatnonzero(lonely)).any()


def test_a_low_quality_anchor_keeps_the_box_of_its_own_largest_iou():
    # Anchor 0 is the best of box 1, yet meets box 0 more.
    iou = np.array([[0.6, 0.8, 0.0], [0.4, 0.1, 0.0]], np.float32)
    matches = jitted(iou, np.array([True, True]), 0.3, 0.7, True)
    np.testing.assert_array_equal(matches.label, [1, 1, 0])
    np.testing.assert_array_equal(matches.gt_index[:2], [0, 0])
    np.testing.assert_array_equal(jitted(iou, np.array([True, True]), 0.3, 0.7, False).label, [-1, 1, 0])


def test_thresholds_are_inclusive_and_ties_go_to_the_first_box():
    iou = np.array([[0.7, 0.3, 0.29, 0.5], [0.7, 0.3, 0.1, 0.5]], np.float32)
    matches = jitted(iou, np.array([True, True]), 0.3, 0.7, False)
    np.testing.assert_array_equal(matches.label, [1, -1, 0, -1])
    np.testing.assert_array_equal(matches.gt_index, [0, 0, 0, 0])
    np.testing.assert_array_equal(jitted(iou, np.array([False, True]), 0.3, 0.7, False).gt_index, [1, 1, 1, 1])


@pytest.mark.parametrize("boxes", [0, 3])
def test_without_real_boxes_every_anchor_is_negative(boxes):
    matches = jitted(np.full((boxes, 5), np.nan, np.float32), np.zeros(boxes, bool), 0.3, 0.7, True)
    np.testing.assert_array_equal(matches.label, np.zeros(5))
    assert matches.gt_index.shape == (5,)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    # Tenths, so that ties and values equal to a threshold are common.
    hypothesis.extra.numpy.arrays(np.int32, (2, 5, 12), elements=st.integers(0, 10)),
    hypothesis.extra.numpy.arrays(bool, (2, 5)),
    st.sampled_from([(0.3, 0.7), (0.5, 0.5)]),
    st.booleans(),
)
def test_against_loops_under_vmap(tenths, gt_valid, thresholds, allow_low_quality):
    iou = tenths.astype(np.float32) / np.float32(10)
    low, high = (np.float32(threshold) for threshold in thresholds)
    matches = jax.vmap(jitted, in_axes=(0, 0, None, None, None))(
        np.where(gt_valid[..., None], iou, np.nan), gt_valid, low, high, allow_low_quality
    )
    for image in range(2):
        gt_index, label = slow_match(iou[image], gt_valid[image], low, high, allow_low_quality)
        np.testing.assert_array_equal(matches.label[image], label)
        real = label == 1
        np.testing.assert_array_equal(np.asarray(matches.gt_index)[image][real], gt_index[real])


@pytest.mark.parametrize("allow_low_quality", [True, False])
@pytest.mark.parametrize("count", [1, 32, 33, 100])
def test_boxes_by_blocks_match_as_all_at_once(count, allow_low_quality):
    """Whole coordinates, whose IoU has one value however it is computed, and so many equal ones."""
    rng = np.random.default_rng(count)
    corners = rng.integers(0, 40, (count + 3000, 2))
    rows = np.concatenate([corners, corners + rng.integers(1, 30, (count + 3000, 2))], 1).astype(np.float32)
    gt_boxes, anchors = rows[:count], rows[count:]
    gt_boxes[count // 2] = 900, 900, 950, 950  # meets none
    gt_boxes[count * 2 // 3 :: 2] = gt_boxes[: len(gt_boxes[count * 2 // 3 :: 2])]  # equal boxes in different blocks
    gt_valid = rng.random(count) < 0.8
    gt_valid[count // 2] = True
    gt_boxes[~gt_valid] = np.nan
    overlap = jax.jit(iou)(gt_boxes, anchors)
    expected = jitted(overlap, gt_valid, 0.3, 0.7, allow_low_quality)
    by_blocks = jax.jit(match_boxes, static_argnums=(3, 4, 5))
    matches, meets = by_blocks(gt_boxes, gt_valid, anchors, 0.3, 0.7, allow_low_quality)
    for ours, one in zip(matches, expected, strict=True):
        assert ours.dtype == one.dtype
        np.testing.assert_array_equal(ours, one)
    np.testing.assert_array_equal(meets, gt_valid & (np.asarray(overlap) > 0).any(1))
    assert not meets[count // 2]


def test_memory_does_not_grow_with_the_boxes():
    def needed(count):
        shapes = [((count, 4), np.float32), (count, bool), ((50_000, 4), np.float32)]
        arguments = [jax.ShapeDtypeStruct(np.atleast_1d(shape), dtype) for shape, dtype in shapes]
        run = jax.jit(lambda *arrays: match_boxes(*arrays, 0.3, 0.7, True))
        return run.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    assert needed(512) < 1.2 * needed(64) < 512 * 50_000
