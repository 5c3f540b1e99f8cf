"""The anchors of a feature pyramid."""

from collections.abc import Sequence
from typing import Any, SupportsIndex

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, ScalarLike


def pyramid_anchors(
    feature_shapes: Sequence[Sequence[SupportsIndex]] | np.ndarray,
    strides: Sequence[Sequence[SupportsIndex]] | np.ndarray,
    sizes: Sequence[ScalarLike] | np.ndarray,
    ratios: Sequence[ScalarLike] | np.ndarray,
    rounded: bool = False,
) -> tuple[Float32[Array, "_A_l 4"], ...]:
    """Anchors of all levels: a tuple of float32 [H*W*R, 4], x1 y1 x2 y2 in pixels, in the order y, x, ratio.

    feature_shapes  (H, W) of each level
    strides         (vertical, horizontal) pixels between neighbouring cells of each level
    sizes           square root of the anchors' area in pixels, one per level
    ratios          height / width, the same on all levels
    rounded         whether a cell's anchors are rounded to whole pixels, half to even (only torchvision does)

    Anchors are centred on the top left corner of their cell and may extend beyond the image. Raises
    ValueError if the levels do not agree in number. (FPN, Lin et al. 2017, section 4.1.)
    """
    return tuple(
        _level_anchors(shape, stride, _cell_anchors(size, ratios, rounded))
        for shape, stride, size in zip(feature_shapes, strides, sizes, strict=True)
    )


def _cell_anchors(size: Any, ratios: Any, rounded: bool) -> Float32[np.ndarray, "R 4"]:
    """The R anchors of one cell [R, 4], around the origin."""
    height_factors = np.sqrt(np.asarray(ratios, np.float32))
    heights, widths = height_factors * np.float32(size), (1 / height_factors) * np.float32(size)
    cell = np.stack([-widths, -heights, widths, heights], axis=1) / 2
    return np.round(cell) if rounded else cell


def _level_anchors(shape: Any, stride: Any, cell: Float32[np.ndarray, "R 4"]) -> Float32[Array, "A_l 4"]:
    # Built from two short ranges, so that the compiled program holds no large constants.
    ys, xs = (jnp.arange(n, dtype=jnp.float32) * step for n, step in zip(shape, stride, strict=True))
    ys, xs = jnp.broadcast_arrays(ys[:, None], xs[None, :])
    shifts = jnp.stack([xs, ys, xs, ys], axis=-1)
    return (shifts[:, :, None] + cell).reshape(-1, 4)
