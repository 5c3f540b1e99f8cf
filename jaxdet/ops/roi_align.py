"""RoIAlign: a fixed grid of features for each box, from one feature map or from the matching pyramid level.

The grid of a box is separable: each output cell is a sum over a few rows times a sum over a few columns. So a
box is described by indices and weights along each axis ("taps"); nothing larger is ever built. Source: Mask
R-CNN (He et al., 2017); details as in detectron2's ROIAlign and torchvision's roi_align.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, Num, ScalarLike

from jaxdet.ops.types import AnyArray

CANONICAL_LEVEL = 4
CANONICAL_SIDE = 224.0
TILE = 16  # cells; a box covers 14 to 28 cells each way on its level


class Taps(NamedTuple):
    """The cells that an output cell sums along each axis, T = 2 * sampling_ratio. Taps may repeat or be 0."""

    level: Int32[Array, " N"]  # position in the tuple of levels
    y_index: Int32[Array, "N size T"]
    y_weight: Float32[Array, "N size T"]
    x_index: Int32[Array, "N size T"]
    x_weight: Float32[Array, "N size T"]


Shapes = tuple[tuple[int, int], ...]  # (H_l, W_l) of each level
Levels = tuple[Float[AnyArray, "_H_l _W_l C"], ...]
PerPixel = ScalarLike | Sequence[ScalarLike] | Num[AnyArray, "2"]  # one number or (vertical, horizontal)


def box_levels(
    boxes: Num[AnyArray, "*B 4"], lowest: int = 2, highest: int = 5, level_epsilon: float = 0.0
) -> Int32[Array, "*B"]:
    """Level of each box: floor(4 + log2(sqrt(area) / 224) + level_epsilon), clamped to lowest..highest.

    boxes [..., 4] x1 y1 x2 y2 in pixels -> int32 [...]. Empty, inverted and NaN boxes get the lowest level.
    level_epsilon 0 is detectron2's assign_boxes_to_levels (whose 1e-8 inside the logarithm only keeps it
    finite), 1e-6 is torchvision's LevelMapper. Uses comparisons, so that the result does not depend on a
    platform's logarithm. Source: Feature Pyramid Networks (Lin et al., 2017), equation 1.
    """
    boxes = jnp.asarray(boxes, jnp.float32)
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    side = jnp.sqrt(jnp.where((width > 0) & (height > 0), width * height, 0.0)) / CANONICAL_SIDE
    thresholds = [2.0 ** (level - CANONICAL_LEVEL - level_epsilon) for level in range(lowest + 1, highest + 1)]
    reached = [(side >= threshold).astype(jnp.int32) for threshold in thresholds]
    return sum(reached, jnp.full(side.shape, lowest, jnp.int32))


def roi_align(
    features: Float[AnyArray, "H W C"],
    boxes: Num[AnyArray, "N 4"],
    scale: PerPixel,
    size: int = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Float[Array, "N size size C"]:
    """RoIAlign on one feature map.

    features [H, W, C], boxes [N, 4] x1 y1 x2 y2 in image pixels. scale: cells per pixel, a number or a
    (vertical, horizontal) pair. Returns [N, size, size, C] in the type of the features, summed in float32.
    Each output cell is the mean of sampling_ratio x sampling_ratio bilinear samples. With `aligned`, boxes
    are shifted by half a cell; without, boxes are at least one cell wide and high. A sample more than one
    cell outside the map is 0; a nearer one takes the value at the edge. Boxes carry no gradient. Boxes that
    are not finite give zeros.
    """
    level = jnp.zeros(boxes.shape[0], jnp.int32)
    return _align((features,), boxes, level, (scale,), size, sampling_ratio, aligned)


def pyramid_roi_align(
    features: Sequence[Float[AnyArray, "_H_l _W_l C"]],
    boxes: Num[AnyArray, "N 4"],
    strides: Sequence[PerPixel],
    size: int = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
    lowest_level: int = 2,
    level_epsilon: float = 0.0,
) -> Float[Array, "N size size C"]:
    """RoIAlign of each box on the pyramid level that matches its size.

    features: tuple of [H_l, W_l, C], finest first; the first is level `lowest_level`. boxes [N, 4] x1 y1 x2
    y2 in image pixels. strides: pixels per cell of each level, numbers or (vertical, horizontal) pairs.
    Returns [N, size, size, C]. `box_levels` chooses the level; everything else as in `roi_align`. Source:
    detectron2's ROIPooler and torchvision's MultiScaleRoIAlign.
    """
    level = box_levels(boxes, lowest_level, lowest_level + len(features) - 1, level_epsilon) - lowest_level
    scales = tuple(1.0 / jnp.asarray(stride, jnp.float32) for stride in strides)
    return _align(tuple(features), boxes, level, scales, size, sampling_ratio, aligned)


@jax.named_scope("roi_align")
def _align(
    features: Levels,
    boxes: Num[AnyArray, "N 4"],
    level: Int32[Array, " N"],
    scales: Sequence[PerPixel],
    size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Float[Array, "N size size C"]:
    shapes = tuple((x.shape[0], x.shape[1]) for x in features)
    return _sample(shapes, features, _box_taps(shapes, boxes, level, scales, size, sampling_ratio, aligned))


def _box_taps(
    shapes: Shapes,
    boxes: Num[AnyArray, "N 4"],
    level: Int32[Array, " N"],
    scales: Sequence[PerPixel],
    size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Taps:
    boxes = jax.lax.stop_gradient(boxes).astype(jnp.float32)
    finite = jnp.isfinite(boxes).all(-1)
    boxes = jnp.where(finite[:, None], boxes, 0.0)
    scale = jnp.stack([jnp.broadcast_to(jnp.asarray(scale, jnp.float32), 2) for scale in scales])[level]
    cells = jnp.array(shapes, jnp.int32)[level]
    y_index, y_weight = _axis_taps(boxes[:, 1::2], scale[:, 0], cells[:, 0], size, sampling_ratio, aligned)
    x_index, x_weight = _axis_taps(boxes[:, 0::2], scale[:, 1], cells[:, 1], size, sampling_ratio, aligned)
    return Taps(level, y_index, jnp.where(finite[:, None, None], y_weight, 0.0), x_index, x_weight)


def _axis_taps(
    sides: Float32[Array, "N 2"],
    scale: Float32[Array, " N"],
    cells: Int32[Array, " N"],
    size: int,
    sampling_ratio: int,
    aligned: bool,
) -> tuple[Int32[Array, "N size T"], Float32[Array, "N size T"]]:
    """Indices and weights along one axis of boxes with sides [N, 2], both [N, size, 2 * sampling_ratio]."""
    start, end = (sides * scale[:, None]).T
    length = (end - start) if aligned else jnp.maximum(end - start, 1.0)
    start = start - 0.5 if aligned else start
    steps = (jnp.arange(size * sampling_ratio, dtype=jnp.float32) + 0.5) / sampling_ratio
    position = start[:, None] + steps * (length / size)[:, None]
    last = cells[:, None] - 1
    inside = (position >= -1.0) & (position <= last + 1)
    position = jnp.clip(position, 0.0, last)
    index = position.astype(jnp.int32)
    fraction = position - index
    index = jnp.stack([index, jnp.minimum(index + 1, last)], axis=-1)
    weight = jnp.stack([1.0 - fraction, fraction], axis=-1) / sampling_ratio
    weight = jnp.where(inside[..., None], weight, 0.0)
    shape = (len(sides), size, 2 * sampling_ratio)
    return index.reshape(shape), weight.reshape(shape)


def _row_taps(
    shapes: Shapes, taps: Taps
) -> Iterator[tuple[Int32[Array, "N size size"], Float32[Array, "N size size 1"]]]:
    """Yields one pair of taps at a time: rows of the concatenated cells [N, size, size] and their weights."""
    widths = jnp.array([width for _, width in shapes], jnp.int32)
    sizes = [0] + [height * width for height, width in shapes[:-1]]
    first = jnp.cumsum(jnp.array(sizes, jnp.int32))[taps.level]
    y_row = first[:, None, None] + taps.y_index * widths[taps.level][:, None, None]
    for i in range(taps.y_index.shape[-1]):
        for j in range(taps.x_index.shape[-1]):
            rows = y_row[:, :, None, i] + taps.x_index[:, None, :, j]
            yield rows, (taps.y_weight[:, :, None, i] * taps.x_weight[:, None, :, j])[..., None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sample(shapes: Shapes, features: Levels, taps: Taps) -> Float[Array, "N size size C"]:
    """Weighted sums of gathered cells: [H_l, W_l, C] of every level -> [N, size, size, C]."""
    cells = jnp.concatenate([level.reshape(-1, level.shape[-1]) for level in features])
    parts = (weight * cells[rows].astype(jnp.float32) for rows, weight in _row_taps(shapes, taps))
    total = sum(parts, jnp.zeros((), jnp.float32))
    return total.astype(cells.dtype)


def _sample_forward(shapes: Shapes, features: Levels, taps: Taps) -> tuple[Float[Array, "N size size C"], Taps]:
    return _sample(shapes, features, taps), taps


def _sample_backward(shapes: Shapes, taps: Taps, cotangent: Float[Array, "N size size C"]) -> tuple[Levels, None]:
    # Scattering rows is very slow in XLA on a CPU, so whole tiles of cells are added there.
    gradient = jax.lax.platform_dependent(
        taps,
        cotangent.astype(jnp.float32),
        cpu=functools.partial(_spread_tiles, shapes),
        default=functools.partial(_spread_rows, shapes),
    )
    return tuple(level.astype(cotangent.dtype) for level in gradient), None


_sample.defvjp(_sample_forward, _sample_backward)


def _spread_rows(shapes: Shapes, taps: Taps, cotangent: Float32[Array, "N size size C"]) -> Levels:
    """Gradient of the features by scattering rows of channels: [N, size, size, C] -> [H_l, W_l, C] each."""
    ends = list(itertools.accumulate(height * width for height, width in shapes))
    cells = jnp.zeros((ends[-1], cotangent.shape[-1]), jnp.float32)
    for rows, weight in _row_taps(shapes, taps):
        cells = cells.at[rows].add(weight * cotangent)
    levels = jnp.split(cells, ends[:-1])
    return tuple(level.reshape(*shape, -1) for level, shape in zip(levels, shapes, strict=True))


def _spread_tiles(shapes: Shapes, taps: Taps, cotangent: Float32[Array, "N size size C"]) -> Levels:
    """The same gradient, one tile of cells at a time."""
    levels = tuple(jnp.zeros((1, *shape, cotangent.shape[-1]), jnp.float32) for shape in shapes)
    image = jnp.zeros(len(cotangent), jnp.int32)
    return tuple(level[0] for level in _add_tiles(levels, image, taps, cotangent))


@jax.custom_batching.custom_vmap
def _add_tiles(
    levels: tuple[Float32[Array, "images _H_l _W_l C"], ...],
    image: Int32[Array, " N"],
    taps: Taps,
    cotangent: Float32[Array, "N size size C"],
) -> tuple[Float32[Array, "images _H_l _W_l C"], ...]:
    """Adds boxes of several images to levels [images, H_l, W_l, C]; image [N] is the image of each box."""
    order = jnp.argsort(taps.level)
    ends = jnp.searchsorted(taps.level[order], jnp.arange(len(levels)), side="right")
    starts = jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]])

    def add_box(position: Array, cells: Array) -> Array:
        return _add_box(cells, *jax.tree.map(lambda array: array[order[position]], (image, taps, cotangent)))

    return tuple(
        jax.lax.fori_loop(start, end, add_box, cells) for start, end, cells in zip(starts, ends, levels, strict=True)
    )


@_add_tiles.def_vmap
def _add_tiles_of_batch(
    batch: int, batched: Sequence[Any], *arguments: Any
) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
    """Joins the images into one list of boxes: a loop whose length varies would batch into selects."""
    levels, image, taps, cotangent = jax.tree.map(
        lambda array, is_batched: array if is_batched else jnp.broadcast_to(array, (batch, *array.shape)),
        arguments,
        tuple(batched),
    )
    image = image + levels[0].shape[1] * jnp.arange(batch, dtype=image.dtype)[:, None]
    joined = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), (levels, image, taps, cotangent))
    levels = tuple(level.reshape(batch, -1, *level.shape[1:]) for level in _add_tiles(*joined))
    return levels, (True,) * len(levels)


def _add_box(
    cells: Float32[Array, "images H W C"], image: Int32[Array, ""], taps: Taps, cotangent: Float32[Array, "size size C"]
) -> Float32[Array, "images H W C"]:
    """Adds one box to cells [images, H, W, C], in as many tiles as cover it. taps, cotangent: of this box."""
    height, width, channels = cells.shape[1:]
    size = len(cotangent)
    rows, columns = min(TILE, height), min(TILE, width)
    y_first, x_first = taps.y_index.min(), taps.x_index.min()
    tiles_down = (taps.y_index.max() - y_first) // rows + 1
    tiles_across = (taps.x_index.max() - x_first) // columns + 1

    def add_tile(tile: Array, cells: Array) -> Array:
        y = y_first + tile // tiles_across * rows
        x = x_first + tile % tiles_across * columns
        # At the far edges a tile is moved back into the map. Cells it shares with the previous tile get 0.
        y_start, x_start = jnp.minimum(y, height - rows), jnp.minimum(x, width - columns)
        y_weight = _dense_weights(taps.y_index, taps.y_weight, y, y_start, rows)
        x_weight = _dense_weights(taps.x_index, taps.x_weight, x, x_start, columns)
        spread = (y_weight @ cotangent.reshape(size, -1)).reshape(rows, size, channels)
        spread = jnp.broadcast_to(x_weight, (rows, columns, size)) @ spread
        corner = (image, y_start, x_start, 0)
        before = jax.lax.dynamic_slice(cells, corner, (1, rows, columns, channels))
        return jax.lax.dynamic_update_slice(cells, before + spread, corner)

    return jax.lax.fori_loop(0, tiles_down * tiles_across, add_tile, cells)


def _dense_weights(
    index: Int32[Array, "size T"],
    weight: Float32[Array, "size T"],
    first: Int32[Array, ""],
    start: Int32[Array, ""],
    count: int,
) -> Float32[Array, "count size"]:
    """Taps [size, T] of one axis as a matrix [count, size], from cell `start`; cells before `first` get 0."""
    cell = start + jnp.arange(count)[:, None, None]
    return jnp.where((cell == index) & (cell >= first), weight, 0.0).sum(-1)
