"""The compiled resizing against data/resizing.py and data/transforms.py, which use NumPy and Pillow."""

import functools

import jax
import numpy as np
import pytest

from jaxdet.data import transforms
from jaxdet.data.resizing import DTYPES, Resizing
from jaxdet.ops import resize

HALVES = [(243, 384), (387, 640), (99, 128), (15, 310), (44, 248), (22, 800), (105, 384)]


@pytest.mark.parametrize("sides", [(256, 320), (800, 1333), (64, 96), (100, 100), (7, 1)])
@pytest.mark.parametrize("kind", DTYPES)
def test_sizes(sides, kind):
    """Thousands of sizes, those among them where the result lies on a half or a whole number."""
    rng = np.random.default_rng(0)
    sizes = np.concatenate(
        [
            rng.integers(1, 1200, (8000, 2)),
            rng.integers(1, 20, (4000, 2)) * rng.integers(1, 70, (4000, 1)),
            HALVES,
            np.array(HALVES)[:, ::-1],
            [[1, 1], [1, 5000], [9000, 3], [8192, 8192]],
        ]
    ).astype(np.int32)
    found = jax.jit(functools.partial(resize.resized_sizes, kind=kind), static_argnums=(1, 2))(sizes, *sides)
    expected = [Resizing(sides[:1], sides[1], kind).size(size) for size in sizes]
    np.testing.assert_array_equal(found, expected)


def test_no_image_has_no_size():
    np.testing.assert_array_equal(resize.resized_sizes(np.zeros((2, 2), np.int32), 64, 96), 0)


@pytest.mark.parametrize("kind", DTYPES)
def test_images(kind):
    """Enlarged, reduced, thin and unchanged images and an empty slot, with noise around them."""
    sizes = [(60, 80), (61, 47), (40, 90), (5, 80), (1, 1), (47, 3), (160, 190), (133, 200), (0, 0)]
    resized = [(45, 60), (64, 49), (40, 90), (5, 96), (64, 64), (64, 4), (64, 76), (11, 17), (0, 0)]
    rng = np.random.default_rng(1)
    sizes += [tuple(size) for size in rng.integers(1, (161, 201), (40, 2)).tolist()]
    resized += [tuple(size) for size in rng.integers(1, (65, 97), (40, 2)).tolist()]
    images = rng.integers(0, 256, (len(sizes), 160, 200, 3), np.uint8)
    images[1] = np.where(images[1] > 127, 255, 0)
    shape = (64, 96)
    found = jax.jit(functools.partial(resize.resize, shape=shape, kind=kind))(
        images, np.array(sizes, np.int32), np.array(resized, np.int32)
    )
    assert found.dtype == DTYPES[kind]
    for image, size, new, row in zip(images, sizes, resized, np.asarray(found), strict=True):
        if size == (0, 0):
            assert not row.any()
            continue
        pixels = image[: size[0], : size[1]]
        expected, _, _ = transforms.resize(pixels, np.zeros((0, 4), np.float32), new, kind)
        expected = transforms.pad(expected, shape)
        if kind == "detectron2":
            np.testing.assert_array_equal(row, expected, err_msg=f"{size} to {new}")
        else:
            np.testing.assert_allclose(row, expected, atol=2e-3, err_msg=f"{size} to {new}")
