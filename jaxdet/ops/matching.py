"""Assigns a ground-truth box to each anchor or proposal."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Num, ScalarLike

from jaxdet.ops.boxes import iou as pairwise_iou
from jaxdet.ops.types import AnyArray


class Matches(NamedTuple):
    """The training target of each of A anchors."""

    gt_index: Int32[Array, " A"]  # the box of largest IoU; a real row if label is 1
    label: Int32[Array, " A"]  # 1 positive, 0 negative, -1 ignored


def match(
    iou: Float[AnyArray, "G A"],
    gt_valid: Bool[AnyArray, " G"],
    low: ScalarLike,
    high: ScalarLike,
    allow_low_quality: bool,
) -> Matches:
    """Matches A anchors to G ground-truth boxes by IoU [G, A]; `gt_valid` bool [G] marks the real boxes.

    An anchor is positive if its largest IoU is at least `high`, negative if it is below `low`, and ignored in
    between. With `allow_low_quality`, the best anchors of each box, ties included, are positive too; such an
    anchor keeps the box of its own largest IoU, which may be another one. If IoUs are equal, the first box
    wins. Without real boxes all anchors are negative. (Faster R-CNN, Ren et al. 2015, section 3.1.2;
    detectron2, Matcher.)

    Unlike detectron2 and torchvision, a real box that overlaps no anchor matches nothing. Its largest IoU is
    0, and those libraries make all anchors with IoU 0 to it positive.
    """
    iou = jnp.asarray(iou, jnp.float32)
    boxes, anchors = iou.shape
    if boxes == 0:
        return Matches(jnp.zeros(anchors, jnp.int32), jnp.zeros(anchors, jnp.int32))
    iou = jnp.where(gt_valid[:, None], iou, -1.0)
    best = iou.max(axis=0)
    label = jnp.where(best >= high, 1, jnp.where(best < low, 0, -1))
    if allow_low_quality:
        best_of_box = iou.max(axis=1, keepdims=True)
        label = jnp.where(((iou == best_of_box) & (best_of_box > 0)).any(axis=0), 1, label)
    return Matches(jnp.argmax(iou, axis=0).astype(jnp.int32), label.astype(jnp.int32))


def match_boxes(
    gt_boxes: Num[AnyArray, "G 4"],
    gt_valid: Bool[AnyArray, " G"],
    anchors: Num[AnyArray, "A 4"],
    low: ScalarLike,
    high: ScalarLike,
    allow_low_quality: bool,
    block: int = 32,
) -> tuple[Matches, Bool[Array, " G"]]:
    """`match` of boxes [G, 4] with anchors [A, 4], and whether each real box overlaps any anchor, bool [G].

    The whole IoU matrix of 500 boxes and the 268,000 anchors of a large image would take 512 MiB. It is
    computed and used for `block` boxes at a time, with the same result.
    """
    count = len(gt_boxes)
    if count <= block:
        iou = pairwise_iou(gt_boxes, anchors)
        return match(iou, gt_valid, low, high, allow_low_quality), (iou > 0).any(axis=1) & gt_valid

    def one_block(
        carry: tuple[Array, Array, Array], part: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array, Array], Array]:
        best, gt_index, best_of_a_box = carry
        first, boxes, valid = part
        iou = jnp.where(valid[:, None], pairwise_iou(boxes, anchors), -1.0)
        best_here = iou.max(axis=0)
        index = first + jnp.argmax(iou, axis=0).astype(jnp.int32)
        gt_index = jnp.where(best_here > best, index, gt_index)  # if equal, the first box
        most = iou.max(axis=1, keepdims=True)
        best_of_a_box |= ((iou == most) & (most > 0)).any(axis=0)
        return (jnp.maximum(best, best_here), gt_index, best_of_a_box), most[:, 0] > 0

    blocks = -(-count // block)
    padding = [(0, blocks * block - count)]
    boxes = jnp.pad(jnp.asarray(gt_boxes, jnp.float32), [*padding, (0, 0)]).reshape(blocks, block, 4)
    valid = jnp.pad(gt_valid, padding).reshape(blocks, block)
    nothing = jnp.full(len(anchors), -1.0), jnp.zeros(len(anchors), jnp.int32), jnp.zeros(len(anchors), bool)
    first = jnp.arange(blocks, dtype=jnp.int32) * block
    (best, gt_index, best_of_a_box), meets = jax.lax.scan(one_block, nothing, (first, boxes, valid))
    label = jnp.where(best >= high, 1, jnp.where(best < low, 0, -1))
    if allow_low_quality:
        label = jnp.where(best_of_a_box, 1, label)
    return Matches(gt_index, label.astype(jnp.int32)), meets.reshape(-1)[:count]
