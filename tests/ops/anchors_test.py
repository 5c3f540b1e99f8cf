import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.anchors import pyramid_anchors


def slow_anchors(shape, stride, size, ratios, rounded):
    rows = []
    for y in range(shape[0]):
        for x in range(shape[1]):
            for ratio in ratios:
                height, width = size * math.sqrt(ratio), size / math.sqrt(ratio)
                corners = [-width / 2, -height / 2, width / 2, height / 2]
                if rounded:
                    corners = [round(corner) for corner in corners]  # half to even
                centre = [x * stride[1], y * stride[0]] * 2
                rows.append([c + corner for c, corner in zip(centre, corners, strict=True)])
    return np.array(rows)


@pytest.mark.parametrize("library", ["d2", "tv"])
@pytest.mark.parametrize("case", range(3))
def test_golden(golden, library, case):
    z = np.load(golden / f"anchors_{library}.npz")
    settings = [z[f"{case}/{name}"].tolist() for name in ("feature_shapes", "strides", "sizes", "ratios")]
    levels = jax.jit(lambda: pyramid_anchors(*settings, rounded=library == "tv"))()
    assert len(levels) == 5
    tolerance = 0 if library == "tv" else 2e-4
    for level, anchors in enumerate(levels, start=2):
        anchors = np.asarray(anchors)
        key = f"{case}/P{level}/"
        assert anchors.dtype == np.float32 and anchors.shape == (z[key + "count"], 4)
        np.testing.assert_allclose(anchors[:50], z[key + "first"], rtol=0, atol=tolerance)
        np.testing.assert_allclose(anchors[-50:], z[key + "last"], rtol=0, atol=tolerance)
        np.testing.assert_allclose(anchors.sum(0, dtype=np.float64), z[key + "sum"], rtol=1e-6)


@pytest.mark.parametrize("rounded", [False, True])
def test_order_and_two_strides(rounded):
    shapes, strides, sizes, ratios = [(3, 5), (2, 1)], [(4, 6), (61, 64)], [33, 50.5], [0.5, 1, 2, 3]
    levels = jax.jit(lambda: pyramid_anchors(shapes, strides, sizes, ratios, rounded))()
    for anchors, *settings in zip(levels, shapes, strides, sizes, strict=True):
        expected = slow_anchors(*settings, ratios, rounded)
        np.testing.assert_allclose(anchors, expected, rtol=1e-6, atol=1e-4)


def test_a_compiled_program_holds_no_large_constants():
    shapes = [(200, 272), (100, 136), (50, 68), (25, 34), (13, 17)]
    strides = [(2**i, 2**i) for i in range(2, 7)]

    def moved(x):
        return jnp.concatenate(pyramid_anchors(shapes, strides, [32, 64, 128, 256, 512], [0.5, 1, 2])) + x

    text = jax.jit(moved).lower(1.0).compile().as_text()
    constants = re.findall(r"= \w+\[([\d,]*)\]\S* constant\(", text)
    assert constants
    assert max(math.prod(map(int, filter(None, shape.split(",")))) for shape in constants) < 100


def test_levels_must_agree():
    with pytest.raises(ValueError):
        pyramid_anchors([(2, 2), (1, 1)], [(4, 4)], [32, 64], [1])
