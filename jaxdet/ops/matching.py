"""Which ground-truth box each anchor or proposal stands for."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Matches(NamedTuple):
    """What each of A anchors is for training."""

    gt_index: jax.Array  # int32 [A], the box of largest IoU; a real row wherever label is 1
    label: jax.Array  # int32 [A], 1 positive, 0 negative, -1 ignored


def match(iou, gt_valid, low, high, allow_low_quality):
    """Match A anchors to G ground-truth boxes by their IoU [G, A]; `gt_valid` bool [G] marks the real boxes.

    An anchor is positive where its largest IoU is at least `high`, negative where it is below `low`, ignored
    between. With `allow_low_quality` the best anchors of each box, ties included, are positive too; such an anchor
    keeps the box of its own largest IoU, which may be another. Equal IoUs go to the first box. Without any real box
    every anchor is negative. (Faster R-CNN, Ren et al. 2015, section 3.1.2; detectron2, Matcher.)

    Unlike detectron2 and torchvision, a real box that no anchor meets matches nothing: its largest IoU is 0, and
    they turn every anchor with IoU 0 to it positive.
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
