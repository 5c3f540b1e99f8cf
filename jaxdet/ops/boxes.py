"""Boxes: x1 y1 x2 y2 in pixels, continuous coordinates (the width is x2 - x1, without + 1).

All functions take NumPy or JAX arrays of any numeric type and return float32.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Num, ScalarLike

from jaxdet.ops.types import AnyArray, Weights

# Limit of dw and dh: the largest side (1000) over the smallest stride (16), as a logarithm.
LARGEST_LOG_SCALE = math.log(1000.0 / 16)


def area(boxes: Num[AnyArray, "*B 4"]) -> Float32[Array, "*B"]:
    """Area [...] of boxes [..., 4] in square pixels; 0 where a side is negative."""
    boxes = jnp.asarray(boxes, jnp.float32)
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def nonempty(boxes: Num[AnyArray, "*B 4"], smallest_side: float = 0.0) -> Bool[Array, "*B"]:
    """Whether both sides of boxes [..., 4] are large enough: bool [...].

    With `smallest_side` 0, both sides must be above 0 (detectron2); otherwise they must be at least
    `smallest_side` pixels (torchvision). False for boxes with a NaN.
    """
    boxes = jnp.asarray(boxes, jnp.float32)
    sides = boxes[..., 2:] - boxes[..., :2]
    large = sides > 0 if smallest_side == 0 else sides >= smallest_side
    return large.all(-1)


def iou(a: Num[AnyArray, "N 4"], b: Num[AnyArray, "M 4"]) -> Float32[Array, "N M"]:
    """Intersection over union [N, M] of each box of a [N, 4] with each box of b [M, 4].

    0 if either box is empty (detectron2, pairwise_iou). Boxes that are not finite count as empty.
    """
    a, b = _finite_or_empty(a)[:, None], _finite_or_empty(b)[None, :]
    # One coordinate at a time: an [N, M, 2] array of both axes would be strided and fuse less well.
    width = jnp.minimum(a[..., 2], b[..., 2]) - jnp.maximum(a[..., 0], b[..., 0])
    height = jnp.minimum(a[..., 3], b[..., 3]) - jnp.maximum(a[..., 1], b[..., 1])
    intersection = jnp.maximum(width, 0.0) * jnp.maximum(height, 0.0)
    union = area(a) + area(b) - intersection
    meet = intersection > 0
    return jnp.where(meet, intersection, 0.0) / jnp.where(meet, union, 1.0)


def clip(
    boxes: Num[AnyArray, "*B 4"], size: Num[AnyArray, "2"] | tuple[ScalarLike, ScalarLike]
) -> Float32[Array, "*B 4"]:
    """Boxes [..., 4] clipped to an image of `size` (height, width) in pixels. The size may be traced."""
    height, width = size[0], size[1]
    limit = jnp.stack([width, height, width, height]).astype(jnp.float32)
    return jnp.clip(jnp.asarray(boxes, jnp.float32), 0.0, limit)


def encode(
    boxes: Num[AnyArray, "*#B 4"], anchors: Num[AnyArray, "*#B 4"], weights: Weights = (1.0, 1.0, 1.0, 1.0)
) -> Float32[Array, "*#B 4"]:
    """Deltas [..., 4] that move `anchors` [..., 4] onto `boxes` [..., 4], times `weights` (dx, dy, dw, dh).

    Leading axes broadcast. If the box or the anchor of a row is empty or not finite, its deltas are 0.
    (R-CNN, Girshick et al. 2014, appendix C; the weights as in Fast R-CNN.)
    """
    boxes, anchors = jnp.asarray(boxes, jnp.float32), jnp.asarray(anchors, jnp.float32)
    areas = jnp.minimum(area(boxes), area(anchors)), jnp.maximum(area(boxes), area(anchors))
    usable = ((areas[0] > 0) & jnp.isfinite(areas[1]))[..., None]
    # Replace unusable boxes before the logarithm, so that gradients are finite too.
    unit = jnp.array([0.0, 0.0, 1.0, 1.0], jnp.float32)
    centres, sides = _centres_and_sides(jnp.where(usable, boxes, unit))
    anchor_centres, anchor_sides = _centres_and_sides(jnp.where(usable, anchors, unit))
    shift = (centres - anchor_centres) / anchor_sides
    deltas = jnp.concatenate([shift, jnp.log(sides / anchor_sides)], axis=-1)
    return deltas * jnp.asarray(weights, jnp.float32)


def decode(
    deltas: Num[AnyArray, "*#B 4"], anchors: Num[AnyArray, "*#B 4"], weights: Weights = (1.0, 1.0, 1.0, 1.0)
) -> Float32[Array, "*#B 4"]:
    """Boxes [..., 4] that result from moving `anchors` [..., 4] by `deltas` [..., 4] divided by `weights`.

    Leading axes broadcast: deltas of all classes [N, K, 4] go with anchors[:, None]. dw and dh are limited
    from above only (detectron2, Box2BoxTransform; torchvision, BoxCoder). Boxes are not clipped to the image.
    """
    anchors = jnp.asarray(anchors, jnp.float32)
    deltas = jnp.asarray(deltas, jnp.float32) / jnp.asarray(weights, jnp.float32)
    anchor_centres, anchor_sides = _centres_and_sides(anchors)
    centres = deltas[..., :2] * anchor_sides + anchor_centres
    half = 0.5 * jnp.exp(jnp.minimum(deltas[..., 2:], LARGEST_LOG_SCALE)) * anchor_sides
    return jnp.concatenate([centres - half, centres + half], axis=-1)


def xywh_to_xyxy(boxes: Num[AnyArray, "*B 4"]) -> Float32[Array, "*B 4"]:
    """Converts boxes [..., 4] from x1 y1 width height (COCO) to x1 y1 x2 y2."""
    boxes = jnp.asarray(boxes, jnp.float32)
    return jnp.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def xyxy_to_xywh(boxes: Num[AnyArray, "*B 4"]) -> Float32[Array, "*B 4"]:
    """Converts boxes [..., 4] from x1 y1 x2 y2 to x1 y1 width height (COCO)."""
    boxes = jnp.asarray(boxes, jnp.float32)
    return jnp.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def _finite_or_empty(boxes: Num[AnyArray, "*B 4"]) -> Float32[Array, "*B 4"]:
    boxes = jnp.asarray(boxes, jnp.float32)
    return jnp.where(jnp.isfinite(area(boxes))[..., None], boxes, 0.0)


def _centres_and_sides(boxes: Float32[Array, "*B 4"]) -> tuple[Float32[Array, "*B 2"], Float32[Array, "*B 2"]]:
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sides, sides
