"""RoIAlign against a loop over samples in float64, torchvision and detectron2, and itself under vmap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import roi_align as module
from jaxdet.ops.roi_align import box_levels, pyramid_roi_align, roi_align

STRIDES = (4, 8, 16, 32)


# --- The oracle: one sample at a time ---


def sample_corners(y, x, height, width):
    """The four (row, column, weight) of a bilinear sample; none further than one cell outside."""
    if not (-1 <= y <= height and -1 <= x <= width):
        return []
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    return [
        (top, left, (1 - dy) * (1 - dx)),
        (top, right, (1 - dy) * dx),
        (bottom, left, dy * (1 - dx)),
        (bottom, right, dy * dx),
    ]


def box_terms(box, scale, shape, size, ratio, aligned):
    """Every (row of the grid, column of the grid, row, column, weight) of one box."""
    x1, y1, x2, y2 = (float(value) for value in box)
    vertical, horizontal = scale
    offset = 0.5 if aligned else 0.0
    top, left = y1 * vertical - offset, x1 * horizontal - offset
    height, width = (y2 - y1) * vertical, (x2 - x1) * horizontal
    if not aligned:
        height, width = max(height, 1.0), max(width, 1.0)
    terms = []
    for i in range(size):
        for j in range(size):
            for a in range(ratio):
                for b in range(ratio):
                    y = top + (i + (a + 0.5) / ratio) * height / size
                    x = left + (j + (b + 0.5) / ratio) * width / size
                    corners = sample_corners(y, x, *shape)
                    terms += [(i, j, row, column, weight / ratio**2) for row, column, weight in corners]
    return terms


def oracle(features, boxes, scale, size, ratio, aligned):
    features = np.asarray(features, np.float64)
    output = np.zeros((len(boxes), size, size, features.shape[-1]))
    for n, box in enumerate(boxes):
        for i, j, row, column, weight in box_terms(box, scale, features.shape[:2], size, ratio, aligned):
            output[n, i, j] += weight * features[row, column]
    return output


def oracle_gradient(features, boxes, scale, size, ratio, aligned, cotangent):
    gradient = np.zeros(features.shape)
    for n, box in enumerate(boxes):
        for i, j, row, column, weight in box_terms(box, scale, features.shape[:2], size, ratio, aligned):
            gradient[row, column] += weight * np.asarray(cotangent[n, i, j], np.float64)
    return gradient


jitted_levels = jax.jit(box_levels, static_argnames=("lowest", "highest", "level_epsilon"))


@functools.partial(jax.jit, static_argnums=3)
def value_and_gradient(features, boxes, cotangent, settings):
    """roi_align and the gradient of its features; settings = scale, size, sampling_ratio, aligned."""
    value, pullback = jax.vjp(lambda features: roi_align(features, boxes, *settings), features)
    return value, pullback(cotangent)[0]


@functools.partial(jax.jit, static_argnums=3)
def pyramid_value_and_gradient(features, boxes, cotangent, settings):
    """As above for pyramid_roi_align.

    settings: strides, size, sampling_ratio, aligned, lowest_level, level_epsilon.
    """
    value, pullback = jax.vjp(lambda features: pyramid_roi_align(features, boxes, *settings), features)
    return value, pullback(cotangent)[0]


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def drawn_boxes(seed, count, height, width):
    """Boxes of all sizes, some of them partly or wholly outside, some inverted, some of no area."""
    generator = np.random.default_rng(seed)
    corner = generator.uniform(-0.2, 1.0, (count, 2)) * (width, height)
    side = np.exp(generator.uniform(np.log(2), np.log(1.2 * width), (count, 2)))
    boxes = np.concatenate([corner, corner + side], 1).astype(np.float32)
    boxes[0] = (3, 3, 3, 3)
    boxes[1] = (30, 40, 20, 25)
    boxes[2] = (-900, -900, -700, -800)
    boxes[3] = (0, 0, width, height)
    return boxes


# --- One feature map ---


@pytest.mark.parametrize(
    ("shape", "scale", "size", "ratio", "aligned"),
    [
        ((20, 26), 0.25, 7, 2, True),
        ((20, 26), 0.25, 7, 2, False),
        ((37, 45), 0.5, 3, 3, True),  # boxes of several tiles
        ((5, 70), 0.25, 2, 1, False),  # lower than a tile
        ((12, 13), (0.25, 0.125), 4, 2, True),
    ],
)
def test_equals_the_loop_over_samples(shape, scale, size, ratio, aligned):
    pair = scale if isinstance(scale, tuple) else (scale, scale)
    boxes = drawn_boxes(1, 12, shape[0] / pair[0], shape[1] / pair[1])
    features, cotangent = normal(2, *shape, 3), normal(3, 12, size, size, 3)
    value, gradient = value_and_gradient(features, boxes, cotangent, (scale, size, ratio, aligned))
    np.testing.assert_allclose(value, oracle(features, boxes, pair, size, ratio, aligned), atol=2e-5)
    expected = oracle_gradient(features, boxes, pair, size, ratio, aligned, cotangent)
    np.testing.assert_allclose(gradient, expected, atol=5e-5)


@pytest.mark.parametrize("case", ["aligned_r2", "legacy_r2", "aligned_r1", "legacy_r1", "aligned_14", "legacy_14"])
def test_equals_the_libraries(golden, case):
    data = np.load(golden / "roi_align.npz")
    at = {name: data[f"{case}/{name}"] for name in ("features", "boxes", "cotangent", "expected", "features_grad")}
    settings = (
        float(data[f"{case}/scale"]),
        int(data[f"{case}/size"]),
        int(data[f"{case}/sampling_ratio"]),
        bool(data[f"{case}/aligned"]),
    )
    value, gradient = value_and_gradient(at["features"], at["boxes"], at["cotangent"], settings)
    np.testing.assert_allclose(value, at["expected"], atol=1e-4)
    np.testing.assert_allclose(gradient, at["features_grad"], atol=2e-4)


def test_samples_outside_are_zero_and_the_edge_reaches_one_cell():
    features = jnp.ones((4, 4, 1))
    # With one sample a cell, centred at x = -1, -0.5 and -1.25 cells.
    boxes = jnp.array([[-1.5, 1, -0.5, 2], [-1, 1, 0, 2], [-1.75, 1, -0.75, 2]])
    value = jax.jit(lambda boxes: roi_align(features, boxes, 1.0, 1, 1, aligned=False))(boxes)
    np.testing.assert_array_equal(value.ravel(), [1, 1, 0])


def test_boxes_get_no_gradient():
    features, boxes = normal(1, 12, 14, 2), drawn_boxes(2, 6, 48, 56)
    gradient = jax.jit(jax.grad(lambda boxes: roi_align(features, boxes, 0.25).sum()))(boxes)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_garbage_boxes_touch_nothing(garbage):
    features, cotangent = normal(1, 20, 18, 3), normal(2, 9, 7, 7, 3)
    boxes = drawn_boxes(3, 9, 80, 72)
    spoilt = boxes.copy()
    spoilt[4] = garbage
    spoilt[7, 2] = garbage
    real = np.setdiff1d(np.arange(9), [4, 7])
    settings = (0.25, 7, 2, True)
    value, gradient = value_and_gradient(features, spoilt, cotangent, settings)
    cotangent[[4, 7]] = 0
    expected, expected_gradient = value_and_gradient(features, boxes, cotangent, settings)
    np.testing.assert_array_equal(value[real], expected[real])
    np.testing.assert_array_equal(value[np.array([4, 7])], 0)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


def test_absurd_boxes_stay_finite():
    features, cotangent = normal(1, 20, 18, 3), normal(2, 9, 7, 7, 3)
    boxes = drawn_boxes(3, 9, 80, 72)
    boxes[4], boxes[5], boxes[6] = 3e38, (-3e38, -3e38, 3e38, 3e38), (3e38, 3e38, -3e38, -3e38)
    value, gradient = value_and_gradient(features, boxes, cotangent, (0.25, 7, 2, True))
    assert np.isfinite(value).all() and np.isfinite(gradient).all()


def test_bfloat16_is_summed_in_float32():
    features = jnp.asarray(normal(1, 20, 18, 3), jnp.bfloat16)
    boxes, cotangent = drawn_boxes(2, 9, 80, 72), jnp.asarray(normal(3, 9, 7, 7, 3), jnp.bfloat16)
    settings = (0.25, 7, 2, True)
    value, gradient = value_and_gradient(features, boxes, cotangent, settings)
    wide = features.astype(jnp.float32), boxes, cotangent.astype(jnp.float32)
    exact, exact_gradient = value_and_gradient(*wide, settings)
    assert value.dtype == gradient.dtype == jnp.bfloat16
    # Half a unit in the last of eight bits: rounded once, at the end.
    np.testing.assert_allclose(value.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)
    np.testing.assert_allclose(gradient.astype(jnp.float32), exact_gradient, rtol=2**-8, atol=1e-5)


# --- The pyramid ---


def pyramid(seed, height, width, channels, batch=()):
    shapes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    return tuple(normal(seed + i, *batch, *shape, channels) for i, shape in enumerate(shapes))


@pytest.mark.parametrize(("library", "level_epsilon"), [("d2", 0.0), ("tv", 1e-6)])
def test_pyramid_equals_the_libraries(golden, library, level_epsilon):
    data = np.load(golden / "pyramid_roi_align.npz")
    boxes, strides = data["boxes"], tuple(int(stride) for stride in data["strides"])
    ratio, aligned = int(data[f"{library}/sampling_ratio"]), bool(data[f"{library}/aligned"])
    np.testing.assert_array_equal(jitted_levels(boxes, level_epsilon=level_epsilon), data[f"{library}/level"])
    features = tuple(data[f"features/P{level}"] for level in (2, 3, 4, 5))
    settings = (strides, int(data["size"]), ratio, aligned, 2, level_epsilon)
    value, gradient = pyramid_value_and_gradient(features, boxes, data["cotangent"], settings)
    np.testing.assert_allclose(value, data[f"{library}/expected"], atol=1e-4)
    for level, level_gradient in zip((2, 3, 4, 5), gradient, strict=True):
        np.testing.assert_allclose(level_gradient, data[f"{library}/grad_P{level}"], atol=2e-4)


def test_a_box_is_sampled_at_its_own_level_only():
    features, boxes = pyramid(1, 300, 420, 2), drawn_boxes(2, 24, 300, 420)
    # The vertical scale of padded sizes that the stride does not divide differs from the horizontal one.
    strides = tuple((300 / level.shape[0], 420 / level.shape[1]) for level in features)
    cotangent = normal(3, 24, 7, 7, 2)
    value, gradient = pyramid_value_and_gradient(features, boxes, cotangent, (strides,))
    levels = np.asarray(jitted_levels(boxes))
    assert set(levels) >= {2, 3, 4}
    for level, stride in enumerate(strides):
        rows = levels == level + 2
        arguments = (features[level], boxes[rows], (1 / stride[0], 1 / stride[1]), 7, 2, True)
        np.testing.assert_allclose(value[rows], oracle(*arguments), atol=2e-5)
        np.testing.assert_allclose(gradient[level], oracle_gradient(*arguments, cotangent[rows]), atol=1e-4)


def test_levels():
    side = np.array([0, 1, 111.9, 112, 223.9, 224, 447.9, 448, 5000], np.float32)
    boxes = np.stack([side * 0, side * 0, side, side], -1)
    np.testing.assert_array_equal(jitted_levels(boxes), [2, 2, 2, 3, 3, 4, 4, 5, 5])
    np.testing.assert_array_equal(jitted_levels(boxes, lowest=3, highest=4), [3, 3, 3, 3, 3, 4, 4, 4, 4])
    just_under = np.array([0, 0, 112 * (1 - 3e-7), 112 * (1 - 3e-7)], np.float32)
    assert jitted_levels(just_under) == 2 and jitted_levels(just_under, level_epsilon=1e-6) == 3
    unreal = np.array([[9, 9, 1, 1], [0, 0, np.nan, 5], [0, 0, np.inf, 0], [np.nan] * 4], np.float32)
    np.testing.assert_array_equal(jitted_levels(unreal), 2)


# --- Under transformations, and on the other platforms ---


def test_vmap_equals_one_image_at_a_time():
    features, cotangent = pyramid(1, 128, 160, 3, (2, 2))[:2], normal(2, 2, 2, 8, 7, 7, 3)
    boxes = np.stack([drawn_boxes(seed, 8, 128, 160) for seed in range(4)]).reshape(2, 2, 8, 4)
    boxes[1, 1, 5] = np.nan
    align = functools.partial(pyramid_value_and_gradient, settings=(STRIDES[:2],))
    batched = jax.vmap(jax.vmap(align))(features, boxes, cotangent)
    for i in np.ndindex(2, 2):
        image = jax.tree.map(lambda array: array[i], (features, boxes, cotangent))  # noqa: B023
        actual = jax.tree.map(lambda array: array[i], batched)  # noqa: B023
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), actual, align(*image))


def test_gradient_of_a_batched_loss_and_of_shared_features():
    features = pyramid(1, 96, 96, 2)[:2]
    boxes = np.stack([drawn_boxes(seed, 6, 96, 96) for seed in (3, 4)])

    def loss(features, in_axes):
        crops = jax.vmap(lambda f, b: pyramid_roi_align(f, b, STRIDES[:2]), in_axes)(features, boxes)
        return (crops**2).sum()

    twice = jax.tree.map(lambda level: np.stack([level, level]), features)
    separate = jax.jit(jax.grad(lambda features: loss(features, (0, 0))))(twice)
    shared = jax.jit(jax.grad(jax.checkpoint(lambda features: loss(features, (None, 0)))))(features)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b.sum(0), atol=1e-4), shared, separate)


def test_both_forms_of_the_gradient_agree():
    boxes, cotangent = drawn_boxes(2, 20, 96, 128), normal(3, 20, 7, 7, 4)
    shapes, scales = ((24, 32), (12, 16)), (1 / 4, 1 / 8)
    box_taps = jax.jit(module._box_taps, static_argnums=(0, 4, 5, 6))
    taps = box_taps(shapes, boxes, jitted_levels(boxes, highest=3) - 2, scales, 7, 2, True)
    rows = jax.jit(module._spread_rows, static_argnums=0)(shapes, taps, cotangent)
    tiles = jax.jit(module._spread_tiles, static_argnums=0)(shapes, taps, cotangent)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), rows, tiles)


def test_lowers_for_every_platform():
    features, boxes = pyramid(1, 64, 64, 2, (2,))[:2], np.zeros((2, 4, 4), np.float32)

    def loss(features):
        return jax.vmap(lambda f, b: pyramid_roi_align(f, b, STRIDES[:2]))(features, boxes).sum()

    exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=["cpu", "cuda", "tpu"])(features)
    assert exported.platforms == ("cpu", "cuda", "tpu")
