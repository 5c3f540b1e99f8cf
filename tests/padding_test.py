"""Garbage in padded rows and pixels changes nothing, bit for bit: every operation, values and gradients.

The whole model's part is in models/faster_rcnn_test.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.faster_rcnn import FasterRCNN, final_stage
from jaxdet.ops import boxes as box_ops
from jaxdet.ops import losses
from jaxdet.ops.matching import match
from jaxdet.ops.nms import class_nms, nms
from jaxdet.ops.roi_align import pyramid_roi_align, roi_align
from jaxdet.ops.sampling import sample
from jaxdet.ops.windows import windows
from tests.models import tiny

ROWS, REAL = 12, 7
VALID = np.arange(ROWS) < REAL
GARBAGE = [0.0, np.nan, np.inf, -np.inf, 1e38, -1e30]
RNG = np.random.default_rng(0)


def draw_boxes(count):
    corners = RNG.uniform(0, 60, (count, 2))
    return np.concatenate([corners, corners + RNG.uniform(2, 40, (count, 2))], 1).astype(np.float32)


BOXES, OTHERS = draw_boxes(ROWS), draw_boxes(20)
SCORES = RNG.uniform(0, 1, (ROWS, 3)).astype(np.float32)
DELTAS = RNG.normal(0, 0.2, (ROWS, 3, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, ROWS)
FEATURES = tuple(RNG.normal(size=(96 // s, 96 // s, 8)).astype(np.float32) for s in (4, 8, 16, 32))


def spoiled(array, garbage):
    """`array` with garbage in its padded rows."""
    if array.dtype.kind != "f":
        garbage = {0.0: 0, 1e38: 2**30}.get(garbage, -(2**30))
    return np.where(VALID.reshape(-1, *[1] * (array.ndim - 1)), array, np.array(garbage, array.dtype))


def rpn(logits, deltas, boxes):
    label = jnp.where(VALID, LABELS % 3 - 1, -1)
    return losses.rpn_losses(logits, deltas, OTHERS[:ROWS], label, boxes, 16.0, 0.1)


def box_head(logits, deltas, proposals, label, boxes):
    return losses.box_losses(logits, deltas, proposals, label, boxes, VALID)


def real_rows(value):
    return value[:REAL]


# name -> (function of arrays with padded rows, those arrays, what of the result is real, where gradients are taken)
CASES = {
    "area": (box_ops.area, [BOXES], real_rows, ()),
    "nonempty": (box_ops.nonempty, [BOXES], real_rows, ()),
    "iou": (lambda b: box_ops.iou(b, OTHERS), [BOXES], real_rows, (0,)),
    "clip": (lambda b: box_ops.clip(b, (50, 40)), [BOXES], real_rows, (0,)),
    "encode": (lambda b: box_ops.encode(b, OTHERS[:ROWS]), [BOXES], real_rows, (0,)),
    "decode": (lambda d, b: box_ops.decode(d[:, 0], b), [DELTAS, BOXES], real_rows, (0,)),
    "match": (lambda b: match(box_ops.iou(b, OTHERS), VALID, 0.3, 0.7, True), [BOXES], None, ()),
    "sample": (lambda label: sample(jax.random.key(3), jnp.where(VALID, label % 2, -1), 8, 0.5), [LABELS], None, ()),
    "windows": (lambda cells: windows(FEATURES, 99 * cells, 3), [LABELS], real_rows, ()),
    "nms": (lambda b, s: nms(b, s[:, 0], VALID, 0.5, 6), [BOXES, SCORES], None, ()),
    "class_nms": (lambda b, s, c: class_nms(b, s[:, 0], c, VALID, 0.5, 6), [BOXES, SCORES, LABELS], None, ()),
    "roi_align": (lambda b: roi_align(FEATURES[0], b, 0.25), [BOXES], real_rows, ()),
    "pyramid_roi_align": (lambda b: pyramid_roi_align(FEATURES, b, (4, 8, 16, 32)), [BOXES], real_rows, ()),
    "rpn_losses": (rpn, [SCORES[:, 0], DELTAS[:, 0], BOXES], None, (0, 1)),
    "box_losses": (box_head, [np.pad(SCORES, ((0, 0), (0, 1))), DELTAS, draw_boxes(ROWS), LABELS, BOXES], None, (0, 1)),
    "final_stage": (
        lambda b, s: final_stage(
            b, s, VALID, (90, 80), score_threshold=0.1, nms_iou=0.5, smallest_side=0.0, detections_per_image=9
        ),
        [np.repeat(BOXES[:, None], 3, 1), SCORES],
        None,
        (),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_padded_rows_change_nothing(name):
    function, arrays, real, differentiated = CASES[name]

    @jax.jit
    def run(*arrays):
        def total(*arrays):
            found = jax.tree.map(real or (lambda value: value), function(*arrays))
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(found)), found

        if not differentiated:
            return total(*arrays)[1], ()
        gradient, found = jax.grad(total, differentiated, has_aux=True)(*arrays)
        return found, jax.tree.map(real_rows, gradient)

    expected = jax.device_get(run(*arrays))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(expected))
    for garbage in GARBAGE:
        found = jax.device_get(run(*(spoiled(array, garbage) for array in arrays)))
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{name}, {garbage}")


def test_features_touch_no_pixel_outside_of_an_image():
    """Real numbers as well as bytes: NaN and infinity in the padding, for an image, a thin one and none."""
    model = FasterRCNN(**tiny.config().model)
    variables = tiny.variables(model)
    pixels = RNG.uniform(0, 255, (3, tiny.HEIGHT, tiny.WIDTH, 3)).astype(np.float32)
    sizes = np.int32([[50, 70], [64, 1], [0, 0]])
    rows, columns = np.arange(tiny.HEIGHT)[:, None], np.arange(tiny.WIDTH)
    height, width = sizes[:, :, None, None].swapaxes(0, 1)
    inside = ((rows < height) & (columns < width))[..., None]
    run = tiny.jit(lambda images: model.apply(variables, images, sizes, method="features"))
    expected = run(np.where(inside, pixels, 0))
    for garbage in GARBAGE:
        for a, b in zip(expected, run(np.where(inside, pixels, np.float32(garbage))), strict=True):
            np.testing.assert_array_equal(a, b)
