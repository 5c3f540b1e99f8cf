"""Windows of feature maps around chosen cells, so that a layer can run on those cells alone."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdet.ops.types import AnyArray


def windows(
    levels: Sequence[Float[AnyArray, "_H_l _W_l C"]], cells: Int[AnyArray, " N"], size: int
) -> Float[Array, "N size size C"]:
    """The `size` x `size` neighbours of each chosen cell, zeros outside its map.

    levels: [H_l, W_l, C] each. cells: int [N], counted row by row through all levels, finest first. size:
    odd. Returns [N, size, size, C] in the type of the levels. Differentiable in them; a cell in several windows
    gets the sum of the gradients, taken in float32.
    """
    total, first = jnp.zeros((), jnp.float32), 0
    around = jnp.arange(size) - size // 2
    for features in levels:
        height, width, _ = features.shape
        here = cells - first
        inside = (here >= 0) & (here < height * width)
        y = (here // width)[:, None, None] + around[:, None]
        x = (here % width)[:, None, None] + around
        inside = inside[:, None, None] & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        y = jnp.where(inside, y, height)  # outside the map, so nothing is read
        total += jnp.asarray(features, jnp.float32).at[y, x].get(mode="fill", fill_value=0)
        first += height * width
    return total.astype(levels[0].dtype)
