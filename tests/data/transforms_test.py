import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.data import transforms

BOX = np.array([[10, 20, 30, 60]], np.float32)


def rectangle(size, box, colour=(255, 0, 0)):
    """A black image with one filled box (whole pixels)."""
    image = np.zeros((*size, 3), np.uint8)
    x1, y1, x2, y2 = (int(side) for side in box)
    image[y1:y2, x1:x2] = colour
    return image


def find(image):
    """x1 y1 x2 y2 of what is more than half red."""
    red = image[..., 0] > 127
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


@pytest.mark.parametrize("size", [(200, 300), (50, 75), (73, 211), (100, 150)])
def test_boxes_follow_the_pixels_when_resized(size):
    image, boxes, scales = transforms.resize(rectangle((100, 150), BOX[0]), BOX, size)
    assert image.shape == (*size, 3) and image.dtype == np.uint8
    np.testing.assert_allclose(scales, [size[0] / 100, size[1] / 150], rtol=1e-6)
    np.testing.assert_allclose(boxes[0], find(image), atol=0.75)
    np.testing.assert_allclose(boxes, BOX * ([size[1] / 150, size[0] / 100] * 2), rtol=1e-6)


def test_the_same_size_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    resized, boxes, scales = transforms.resize(image, BOX, (40, 30))
    np.testing.assert_array_equal(resized, image)
    np.testing.assert_array_equal(boxes, BOX)
    np.testing.assert_array_equal(scales, [1, 1])


def test_halving_is_antialiased():
    """A triangle of 4 pixels: 1/8, 3/8, 3/8, 1/8 of the pixels that a new one stands for."""
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    halved, _, _ = transforms.resize(image, BOX, (8, 8))
    weights = np.zeros((8, 16))
    for i in range(1, 7):
        weights[i, 2 * i - 1 : 2 * i + 3] = np.array([1, 3, 3, 1]) / 8
    expected = np.einsum("iy,jx,yxc->ijc", weights, weights, image.astype(float))
    np.testing.assert_allclose(halved[1:7, 1:7], expected[1:7, 1:7], atol=1.5)


def test_pixels_are_torchvisions(golden):
    """Enlarged without rounding; the reference has every eighth pixel, normalised."""
    z = np.load(golden / "resize_pixels_tv.npz")
    image, _, scales = transforms.resize(z["image"], BOX, tuple(z["resized_size"].tolist()), "torchvision")
    assert image.shape == (*z["resized_size"], 3) and image.dtype == np.float32
    np.testing.assert_allclose(scales, z["resized_size"] / z["image"].shape[:2], rtol=1e-6)
    normalised = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(normalised[::8, ::8], z["input_sub"], atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_torchvision_interpolates_two_pixels_an_axis(height, width, new_height, new_width):
    """Smaller too: pixels between those two have no say. An oracle of loops."""
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    found, _, _ = transforms.resize(image, BOX, (new_height, new_width), "torchvision")

    def place(i, before, after):
        centre = max((i + 0.5) * before / after - 0.5, 0.0)
        first = min(int(centre), before - 1)
        return first, min(first + 1, before - 1), centre - first

    for i in range(0, new_height, 3):
        top, bottom, down = place(i, height, new_height)
        for j in range(0, new_width, 3):
            left, right, across = place(j, width, new_width)
            rows = [image[y, left] * (1 - across) + image[y, right] * across for y in (top, bottom)]
            np.testing.assert_allclose(found[i, j], rows[0] * (1 - down) + rows[1] * down, atol=2e-2)


def test_boxes_follow_the_pixels_when_flipped():
    image, boxes = transforms.flip(rectangle((100, 150), BOX[0]), BOX)
    np.testing.assert_array_equal(boxes[0], find(image))
    np.testing.assert_array_equal(boxes, [[120, 20, 140, 60]])


def test_flipping_twice_changes_nothing():
    rng = np.random.default_rng(0)
    image, boxes = rng.integers(0, 256, (40, 31, 3), np.uint8), rng.uniform(0, 31, (5, 4)).astype(np.float32)
    again, back = transforms.flip(*transforms.flip(image, boxes))
    np.testing.assert_array_equal(again, image)
    np.testing.assert_allclose(back, boxes, atol=1e-5)


def test_no_boxes():
    none = np.zeros((0, 4), np.float32)
    image, boxes, _ = transforms.resize(rectangle((100, 150), BOX[0]), none, (50, 75))
    assert boxes.shape == (0, 4) and transforms.flip(image, boxes)[1].shape == (0, 4)


def test_padding_is_zero_on_the_right_and_below():
    image = np.full((3, 5, 3), 7, np.uint8)
    padded = transforms.pad(image, (4, 8))
    np.testing.assert_array_equal(padded[:3, :5], image)
    assert padded.shape == (4, 8, 3) and padded.dtype == np.uint8
    assert not padded[3:].any() and not padded[:, 5:].any()
