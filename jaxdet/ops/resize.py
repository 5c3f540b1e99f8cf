"""Resizing inside a compiled program, for images whose size is known only at run time.

Gives the same numbers as data/resizing.py and data/transforms.py, bit for bit if the images stay uint8.
Unlike the other operations, these take a batch: one loop runs as often as the largest image needs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, Int32, Num, UInt8

from jaxdet.ops.types import AnyArray

WEIGHT_BITS = 22  # of Pillow's fixed-point weights, PRECISION_BITS in its Resample.c
_DIGITS = (8, 8, 6)  # bits per division step, so that each step fits 32 bits


def resized_sizes(
    sizes: Int[AnyArray, "B 2"], short_side: int, longest_side: int, kind: str = "detectron2"
) -> Int32[Array, "B 2"]:
    """`data.resizing.Resizing.size` of each row: int32 [B, 2] -> int32 [B, 2]. Rows of zeros stay zeros.

    Computed in float64 like the original, because rounding of halves matters. A TPU emulates float64; there,
    a size that falls on a half may be rounded the other way.
    """
    with jax.enable_x64(True):
        true = jnp.maximum(sizes, 1).astype(jnp.float64)
        shorter, longer = true.min(1, keepdims=True), true.max(1, keepdims=True)
        if kind == "torchvision":
            resized = true * _rounded(jnp.minimum(short_side / shorter, longest_side / longer))
        else:
            scaled = _rounded(_rounded(short_side / shorter) * true)
            resized = jnp.where(true == shorter, jnp.float64(short_side), scaled)
            limit = _rounded(longest_side / resized.max(1, keepdims=True))
            resized = jnp.where(resized.max(1, keepdims=True) > longest_side, resized * limit, resized)
            resized = _rounded(resized) + 0.5
        resized = jnp.maximum(_rounded(resized).astype(jnp.int32), 1)
    return jnp.where(sizes > 0, resized, 0)


def _rounded(value: Array) -> Array:
    """Keeps the compiler from fusing a product with the following sum, which would round once, not twice."""
    return jax.lax.optimization_barrier(value)


def resize(
    images: UInt8[AnyArray, "B _ _ 3"],
    sizes: Int[AnyArray, "B 2"],
    resized: Int[AnyArray, "B 2"],
    shape: tuple[int, int],
    kind: str = "detectron2",
) -> UInt8[Array, "B H W 3"] | Float32[Array, "B H W 3"]:
    """Images at their new sizes, padded with zeros to one shape.

    images: uint8 [B, H, W, 3]; the image is the upper left part of size `sizes` int32 [B, 2]. resized: int32
    [B, 2]. shape: (height, width) of the result, at least as large as `resized`. Returns [B, height, width,
    3]: uint8, as Pillow's antialiasing bilinear filter ("detectron2"), or float32 without antialiasing
    ("torchvision"); see transforms.resize.

    "detectron2" is exact up to before**2 / after = 2**23 per side, such as 81,900 pixels resized to 800.
    Beyond that, the sum of the weights no longer fits 32 bits and the pixels are wrong.
    """
    axes = [(1, 0), (2, 1)] if kind == "torchvision" else [(2, 1), (1, 0)]  # rows first or last
    axis_resize = _interpolate if kind == "torchvision" else _antialias
    if kind == "torchvision":
        images = images.astype(jnp.float32)
    for axis, side in axes:
        images = axis_resize(images, sizes[:, side], resized[:, side], shape[side], axis)
    rows = jnp.arange(shape[0]) < resized[:, :1]
    columns = jnp.arange(shape[1]) < resized[:, 1:]
    inside = (rows[:, :, None] & columns[:, None, :])[..., None]
    return jnp.where(inside, images, jnp.zeros((), images.dtype))


def _take(images: Num[AnyArray, "B _ _ 3"], index: Int[Array, "B n"], axis: int) -> Num[Array, "B _ _ 3"]:
    """images [B, H, W, 3] at index [B, n] along one axis, clipped to the edge."""
    return jax.vmap(lambda image, index: jnp.take(image, index, axis - 1, mode="clip"))(images, index)


def _along(values: Num[Array, "B n"], axis: int) -> Num[Array, "B _ _ 1"]:
    """[B, n] as [B, n, 1, 1] or [B, 1, n, 1]."""
    return values[:, :, None, None] if axis == 1 else values[:, None, :, None]


def _antialias(
    images: UInt8[AnyArray, "B _ _ 3"], before: Int[AnyArray, " B"], after: Int[AnyArray, " B"], length: int, axis: int
) -> UInt8[Array, "B _ _ 3"]:
    """Resizes one axis like Pillow: a triangle filter as wide as the scale, in fixed point, to uint8.

    before, after [B]: pixels along the axis. After multiplying by 2 * after, Pillow's positions and weights
    are integers, so the result does not depend on a platform's rounding. (Pillow, Resample.c:
    precompute_coeffs, normalize_coeffs_8bpc and ImagingResampleHorizontal_8bpc.)
    """
    before, after = jnp.maximum(before, 1)[:, None], jnp.maximum(after, 1)[:, None]
    width = 2 * jnp.maximum(before, after)
    centre = (2 * jnp.arange(length, dtype=jnp.int32) + 1) * before
    first = jnp.maximum((centre - width + after) // (2 * after), 0)
    taps = jnp.max(width // after) + 2

    def weight(tap: Array) -> Array:
        pixel = first + tap
        distance = jnp.abs((2 * pixel + 1) * after - centre)
        return jnp.where(pixel < before, jnp.maximum(width - distance, 0), 0).astype(jnp.uint32)

    total = jax.lax.fori_loop(0, taps, lambda tap, sum: sum + weight(tap), jnp.zeros_like(first, jnp.uint32))
    total = jnp.maximum(total, 1)

    def add(tap: Array, sum: Array) -> Array:
        quotient, rest = jnp.zeros_like(total), weight(tap)
        for bits in _DIGITS:
            rest = rest << bits
            quotient, rest = (quotient << bits) + rest // total, rest % total
        rounded = (quotient + (2 * rest >= total)).astype(jnp.int32)
        return sum + _along(rounded, axis) * _take(images, first + tap, axis).astype(jnp.int32)

    half = 1 << (WEIGHT_BITS - 1)
    shape = (*images.shape[:axis], length, *images.shape[axis + 1 :])
    sum = jax.lax.fori_loop(0, taps, add, jnp.full(shape, half, jnp.int32))
    return jnp.clip(sum >> WEIGHT_BITS, 0, 255).astype(jnp.uint8)


def _interpolate(
    images: Float32[AnyArray, "B _ _ 3"],
    before: Int[AnyArray, " B"],
    after: Int[AnyArray, " B"],
    length: int,
    axis: int,
) -> Float32[Array, "B _ _ 3"]:
    """Interpolates one axis linearly between the two pixels around each new centre; see transforms.resize."""
    before, after = jnp.maximum(before, 1)[:, None], jnp.maximum(after, 1)[:, None]
    scale = before.astype(jnp.float32) / after.astype(jnp.float32)
    centres = jnp.maximum(_rounded((jnp.arange(length, dtype=jnp.float32) + 0.5) * scale) - 0.5, 0)
    first = jnp.minimum(centres.astype(jnp.int32), before - 1)
    share = _along(centres - first, axis)
    second = jnp.minimum(first + 1, before - 1)
    return _take(images, first, axis) * (1 - share) + _take(images, second, axis) * share
