import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdet.ops import boxes as ops

NAN, INF = np.nan, np.inf
USELESS = np.array(
    [
        [NAN, NAN, NAN, NAN],
        [1, 2, NAN, 4],
        [-INF, 0, INF, 10],
        [0, 0, INF, INF],
        [5, 5, 5, 5],
        [5, 5, 5, 9],
        [9, 9, 5, 5],
        [9, 0, 5, 5],
    ],
    np.float32,
)
GOOD = np.array([[0, 0, 10, 20], [5, 5, 9, 9], [2.5, 3.5, 40, 7]], np.float32)

# Compiled whole: one operation after the other takes longer to compile.
area, iou, encode, decode = map(jax.jit, (ops.area, ops.iou, ops.encode, ops.decode))

coordinates = st.floats(0, 800, width=32)
settings = hypothesis.settings(max_examples=25, deadline=None)


def random_boxes(rng, *shape):
    corner = rng.uniform(-50, 400, (*shape, 2))
    return np.concatenate([corner, corner + rng.uniform(1, 200, (*shape, 2))], -1).astype(np.float32)


def iou_of_two(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if not (width > 0 and height > 0):
        return 0.0
    sides = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (sides - width * height)


def test_golden_iou_and_clip(golden):
    z = np.load(golden / "boxes.npz")
    np.testing.assert_allclose(iou(z["iou/a"], z["iou/b"]), z["iou/expected"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(ops.clip(z["clip/boxes"], z["clip/size"]), z["clip/expected"])
    np.testing.assert_array_equal(ops.xyxy_to_xywh(z["xywh/xyxy"]), z["xywh/xywh"])
    np.testing.assert_allclose(ops.xywh_to_xyxy(z["xywh/xywh"]), z["xywh/xyxy"], rtol=1e-6)


@pytest.mark.parametrize("case", ["code_ones", "code_roi"])
def test_golden_coder(golden, case):
    z = {name.split("/")[1]: value for name, value in np.load(golden / "boxes.npz").items() if case in name}
    weights, anchors = z["weights"], z["anchors"]
    encoded = encode(z["boxes"], anchors, weights)
    np.testing.assert_allclose(encoded / weights, z["encoded"] / weights, rtol=0, atol=1e-5)
    np.testing.assert_allclose(decode(z["deltas"], anchors, weights), z["decoded"], rtol=1e-5, atol=2e-3)
    np.testing.assert_allclose(
        decode(z["deltas_per_class"], anchors[:, None], weights), z["decoded_per_class"], rtol=1e-5, atol=2e-3
    )


def test_iou_is_that_of_every_pair():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 13), random_boxes(rng, 7)
    expected = [[iou_of_two(p, q) for q in b.astype(np.float64)] for p in a.astype(np.float64)]
    np.testing.assert_allclose(iou(a, b), expected, atol=1e-6)
    assert (np.asarray(expected) > 0).sum() > 10
    batched = jax.jit(jax.vmap(ops.iou))(np.stack([a, a[::-1]]), np.stack([b, b]))
    np.testing.assert_allclose(batched, [expected, expected[::-1]], atol=1e-6)


def test_useless_boxes_have_no_iou_and_no_gradient():
    both = np.concatenate([GOOD, USELESS])
    value = np.asarray(iou(both, both))
    assert (value[len(GOOD) :] == 0).all() and (value[:, len(GOOD) :] == 0).all()
    np.testing.assert_allclose(value[: len(GOOD), : len(GOOD)], iou(GOOD, GOOD))
    gradient = jax.jit(jax.grad(lambda x: iou(x, both).sum()))(both)
    assert np.isfinite(gradient).all()
    clean = jax.jit(jax.grad(lambda x: iou(x, GOOD).sum()))(GOOD)
    np.testing.assert_allclose(gradient[: len(GOOD)], clean, atol=1e-6)


@settings
@hypothesis.given(hypothesis.extra.numpy.arrays(np.float32, (6, 4), elements=coordinates))
def test_iou_properties(boxes):
    value = np.asarray(iou(boxes, boxes))
    assert ((value >= 0) & (value <= 1)).all()
    np.testing.assert_allclose(value, value.T, rtol=1e-6)  # a fused multiply-add rounds one of the areas only
    real = (np.asarray(area(boxes)) > 1e-30) & np.asarray(ops.nonempty(boxes))
    np.testing.assert_allclose(np.diag(value)[real], 1, rtol=1e-6)
    assert (value[~np.asarray(ops.nonempty(boxes))] == 0).all()


def test_area_and_nonempty():
    np.testing.assert_array_equal(area(GOOD), [200, 16, 131.25])
    np.testing.assert_array_equal(area(USELESS[4:]), [0, 0, 0, 0])
    assert np.asarray(ops.nonempty(GOOD)).all()
    assert not np.asarray(ops.nonempty(USELESS[[0, 1, 4, 5, 6, 7]])).any()
    sides = np.array([[0, 0, 0.5, 9], [0, 0, 1, 9], [0, 0, 2, 9]], np.float32)
    np.testing.assert_array_equal(ops.nonempty(sides, 1.0), [False, True, True])
    np.testing.assert_array_equal(ops.nonempty(sides), [True, True, True])


def test_clip_with_a_traced_size():
    boxes = random_boxes(np.random.default_rng(1), 2, 9)
    sizes = jnp.array([[100, 300], [250, 80]], jnp.int32)
    clipped = np.asarray(jax.jit(jax.vmap(ops.clip))(boxes, sizes))
    for image, (height, width) in enumerate(np.asarray(sizes)):
        expected = np.clip(boxes[image], 0, [width, height, width, height])
        np.testing.assert_array_equal(clipped[image], expected)
    assert not np.asarray(ops.nonempty(clipped)).all(), "a box outside the image must come out empty"


@settings
@hypothesis.given(
    hypothesis.extra.numpy.arrays(np.float32, (5, 2), elements=coordinates),
    hypothesis.extra.numpy.arrays(np.float32, (5, 2), elements=st.floats(4, 200, width=32)),
    st.sampled_from([(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]),
)
def test_decoding_undoes_encoding(corner, sides, weights):
    boxes = np.concatenate([corner, corner + sides], -1)
    anchors = random_boxes(np.random.default_rng(2), 5)
    decoded = decode(encode(boxes, anchors, weights), anchors, weights)
    np.testing.assert_allclose(decoded, boxes, rtol=1e-4, atol=2e-2)


def test_decoding_limits_growth_but_not_shrinking():
    anchor = np.array([0, 0, 10, 10], np.float32)
    grown = np.asarray(decode(np.float32([0, 0, 50, 4]), anchor))
    np.testing.assert_allclose(grown[2:] - grown[:2], [625, 10 * np.exp(4)], rtol=1e-5)
    shrunk = np.asarray(decode(np.float32([0, 0, -20, -4]), anchor))
    np.testing.assert_allclose(shrunk[3] - shrunk[1], 10 * np.exp(-4), rtol=1e-4)
    assert shrunk[2] - shrunk[0] < 1e-5


def test_encoding_a_useless_row_gives_zero_and_no_gradient():
    anchors = np.broadcast_to(GOOD[0], USELESS.shape)
    for function in (lambda x: encode(x, anchors), lambda x: encode(anchors, x)):
        np.testing.assert_array_equal(function(USELESS), 0)
        np.testing.assert_array_equal(jax.jit(jax.grad(lambda x, f=function: f(x).sum()))(USELESS), 0)


def test_coder_gradients():
    rng = np.random.default_rng(3)
    boxes, anchors = jnp.asarray(random_boxes(rng, 4)), jnp.asarray(random_boxes(rng, 4))
    deltas = jnp.asarray(rng.normal(0, 0.3, (4, 4)), jnp.float32)
    check_grads(jax.jit(lambda b, a: encode(b / 100, a / 100)), (boxes, anchors), 1, ["rev"], 3e-2, 3e-2, 0.1)
    check_grads(jax.jit(lambda d: decode(d, anchors / 100)), (deltas,), 1, ["rev"], 1e-2, 1e-2)
    capped = jax.grad(lambda d: decode(d, anchors[0]).sum())(jnp.array([0.0, 0, 9, 9]))
    np.testing.assert_array_equal(capped[2:], 0)


@pytest.mark.parametrize("dtype", [np.float64, jnp.bfloat16, np.int32])
def test_everything_is_float32(dtype):
    boxes = np.array([[0, 0, 8, 16], [4, 4, 12, 8]]).astype(dtype)

    @jax.jit
    def everything(x):
        coded = encode(x, x), decode(x, x), ops.xywh_to_xyxy(x), ops.xyxy_to_xywh(x)
        return area(x), iou(x, x), ops.clip(x, (8, 8)), *coded

    results = everything(boxes)
    assert all(result.dtype == jnp.float32 for result in results)
    np.testing.assert_array_equal(results[-2], [[0, 0, 8, 16], [4, 4, 16, 12]])
    np.testing.assert_array_equal(results[-1], [[0, 0, 8, 16], [4, 4, 8, 4]])


def test_a_wrong_shape_or_type_is_refused():
    """By the import hook of conftest.py."""
    for a, b in ((np.zeros((3, 5)), GOOD), (GOOD[0], GOOD), (GOOD, GOOD.tolist())):
        with pytest.raises(jaxtyping.TypeCheckError):
            ops.iou(a, b)
