import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import person
from jaxdet.data.resizing import Resizing, is_portrait, original_boxes


@pytest.mark.parametrize("short_side, longest_side", [(800, 1333), (640, 1333), (256, 320)])
def test_size_is_detectron2s(golden, short_side, longest_side):
    reference = np.load(golden / "resize.npz")
    found = [Resizing((short_side,), longest_side).size(size) for size in reference["original"]]
    np.testing.assert_array_equal(found, reference[f"{short_side}_{longest_side}/d2"])


@pytest.mark.parametrize("short_side, longest_side", [(800, 1333), (640, 1333), (256, 320)])
def test_size_is_torchvisions_when_rounded_down(golden, short_side, longest_side):
    reference = np.load(golden / "resize.npz")
    sizes = reference["original"]
    found = [Resizing((short_side,), longest_side, "torchvision").size(size) for size in sizes]
    np.testing.assert_array_equal(found, reference[f"{short_side}_{longest_side}/tv"])


@pytest.mark.parametrize(
    "size, sides, expected", [((256, 198), (256, 320), (320, 247)), ((105, 310), (800, 1333), (451, 1333))]
)
def test_a_long_side_is_scaled_in_two_steps(size, sides, expected):
    """ResizeShortestEdge multiplies twice; one factor for both would round these up."""
    assert Resizing(sides[:1], sides[1]).size(size) == expected


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(16, 1000), st.integers(0, 1000))
def test_size_keeps_the_bounds(height, width, short_side, more):
    longest_side = short_side + more
    resizing = Resizing((short_side,), longest_side)
    found = resizing.size((height, width))
    assert max(found) <= longest_side and min(found) <= short_side and min(found) >= 1
    assert max(found) == longest_side or min(found) == short_side
    assert resizing.size((width, height)) == found[::-1]


@pytest.mark.parametrize(
    "short_side, longest_side, landscape",
    [(800, 1333, (800, 1344)), (256, 320, (256, 320)), (100, 64, (64, 64)), (1, 33, (32, 64))],
)
def test_padded_shapes(short_side, longest_side, landscape):
    assert Resizing((short_side,), longest_side).shapes == (landscape, landscape[::-1])


def test_a_split_with_several_short_sides_has_one_pair_of_shapes():
    split = person.get_config().data.train
    split.update(short_sides=(48, 80, 64), longest_side=112, resizing="torchvision")
    resizing = Resizing.of(split)
    assert resizing == Resizing((48, 80, 64), 112, "torchvision") and resizing.short_side == 80
    assert resizing.shapes == ((96, 128), (128, 96)) and resizing.dtype == np.float32
    assert [resizing.size((100, 120), side) for side in (48, 64, 80, None)] == [(48, 57), (64, 76), (80, 96), (80, 96)]


@pytest.mark.parametrize("size, portrait", [((64, 96), False), ((64, 64), False), ((65, 64), True)])
def test_a_square_image_is_padded_as_landscape(size, portrait):
    resizing = Resizing((64,), 96)
    assert resizing.shape(size) == ((96, 64) if portrait else (64, 96))
    assert is_portrait(*size) == portrait == is_portrait(*jnp.array([size]).T)[0]


def test_boxes_go_back_to_the_original_and_stay_inside():
    boxes = np.array([[10, 20, 30, 40], [-5, -5, 500, 500]], np.float32)
    found = original_boxes(boxes, (2.0, 0.5), (100, 300))
    np.testing.assert_allclose(found, [[20, 10, 60, 20], [0, 0, 300, 100]])
    assert original_boxes(np.zeros((0, 4)), (1, 1), (9, 9)).shape == (0, 4)


def test_boxes_of_a_batch_go_back_at_once_in_a_compiled_function():
    rng = np.random.default_rng(0)
    boxes, scales = (rng.uniform(-9, 99, (3, 5, 4)).astype(np.float32), rng.uniform(0.3, 3, (3, 2)).astype(np.float32))
    sizes = rng.integers(20, 60, (3, 2)).astype(np.int32)
    expected = [original_boxes(*row) for row in zip(boxes, scales, sizes, strict=True)]
    np.testing.assert_array_equal(original_boxes(boxes, scales, sizes), expected)
    found = jax.jit(original_boxes)(boxes=jnp.asarray(boxes), scales=scales, sizes=sizes)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
