import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.windows import windows

SHAPES = [(5, 7), (3, 4), (1, 1)]


def levels(batch=(), seed=0):
    generator = np.random.default_rng(seed)
    return tuple(generator.standard_normal((*batch, *shape, 3)).astype(np.float32) for shape in SHAPES)


def oracle(levels, cells, size):
    """Cell by cell, and which row of all levels each value is a copy of (-1: none)."""
    result = np.zeros((len(cells), size, size, levels[0].shape[-1]), np.float32)
    ends = np.cumsum([height * width for height, width in SHAPES])
    origin = np.full(result.shape[:3], -1)
    for n, cell in enumerate(cells):
        level = int(np.searchsorted(ends, cell, side="right"))
        first = ends[level - 1] if level else 0
        height, width = SHAPES[level]
        for i in range(size):
            for j in range(size):
                y, x = (cell - first) // width + i - size // 2, (cell - first) % width + j - size // 2
                if 0 <= y < height and 0 <= x < width:
                    result[n, i, j] = levels[level][y, x]
                    origin[n, i, j] = first + y * width + x
    return result, origin


@pytest.mark.parametrize("size", [1, 3, 5])
def test_every_cell_of_every_level(size):
    maps, cells = levels(), np.arange(sum(height * width for height, width in SHAPES))
    np.testing.assert_array_equal(jax.jit(windows, static_argnums=2)(maps, cells, size), oracle(maps, cells, size)[0])


def test_gradients_of_windows_that_share_cells():
    maps, cells = levels(), np.array([0, 1, 1, 34, 35, 46, 47])
    cotangent = np.random.default_rng(1).standard_normal((len(cells), 3, 3, 3)).astype(np.float32)
    found = jax.jit(lambda maps: jax.vjp(lambda maps: windows(maps, cells, 3), maps)[1](cotangent)[0])(maps)
    origin = oracle(maps, cells, 3)[1]
    expected = np.zeros((sum(height * width for height, width in SHAPES), 3))
    np.add.at(expected, origin[origin >= 0], cotangent[origin >= 0])
    np.testing.assert_allclose(np.concatenate([x.reshape(-1, 3) for x in found]), expected, atol=1e-6)


def test_gradients_in_bfloat16_are_summed_in_float32():
    """Rounded once, not after each window."""
    cells = np.full(64, 10)
    maps = tuple(jnp.asarray(x, jnp.bfloat16) for x in levels())
    cotangent = jnp.asarray(np.random.default_rng(1).uniform(0.5, 1, (64, 1, 1, 3)), jnp.bfloat16)
    found = jax.jit(lambda maps: jax.vjp(lambda maps: windows(maps, cells, 1), maps)[1](cotangent)[0])(maps)
    assert {x.dtype for x in found} == {jnp.dtype(jnp.bfloat16)}
    expected = np.asarray(cotangent, np.float64).sum((0, 1, 2))
    np.testing.assert_allclose(np.asarray(found[0], np.float64)[1, 3], expected, rtol=2**-8)


def test_under_vmap_and_with_nan_elsewhere():
    maps, cells = levels((2,)), np.array([[8, 40], [9, 47]])
    found = jax.jit(jax.vmap(lambda maps, cells: windows(maps, cells, 3)))(maps, cells)
    for image in range(2):
        expected = oracle([x[image] for x in maps], cells[image], 3)[0]
        np.testing.assert_array_equal(found[image], expected)
    spoiled = [np.full_like(x, np.nan) for x in maps]
    spoiled[0][:, :3, :4] = maps[0][:, :3, :4]
    far = jax.jit(jax.vmap(lambda maps, cells: windows(maps, cells, 3)))(tuple(spoiled), np.array([[8], [9]]))
    assert np.isfinite(far).all()
