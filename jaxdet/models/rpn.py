"""Region proposal network (Ren et al. 2015, arXiv:1506.01497): which anchors hold an object, and where exactly."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.models.layers import Conv, each_image
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.anchors import pyramid_anchors
from jaxdet.ops.losses import rpn_losses
from jaxdet.ops.matching import match_boxes
from jaxdet.ops.nms import nms
from jaxdet.ops.sampling import sample

ANCHOR_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


class RPN(nn.Module):
    """The head's parameters and everything the first stage decides. Fields are the keys of `config.model.rpn`.

    anchor_sizes: side in pixels, one a level. anchor_ratios: height / width. rounded_anchors, grid_strides: as
    torchvision makes them (cell anchors rounded; stride = padded size // grid). num_convs: 3x3 layers before the
    two predictors. positive_iou, negative_iou: at least / below. samples_per_image, positive_fraction: of the
    loss. box_beta: 0 is L1. normalize_by_sampled: divide by the anchors really sampled (torchvision) instead of
    samples_per_image x images (detectron2). pre_nms_topk: per level, (training, test). post_nms_topk: per image,
    likewise. smallest_side: of a proposal in pixels; 0 means any positive side.
    """

    anchor_sizes: tuple
    anchor_ratios: tuple
    rounded_anchors: bool
    grid_strides: bool
    num_convs: int
    positive_iou: float
    negative_iou: float
    samples_per_image: int
    positive_fraction: float
    box_beta: float
    normalize_by_sampled: bool
    pre_nms_topk: tuple
    post_nms_topk: tuple
    nms_iou: float
    smallest_side: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pyramid):
        """Tuple of [B, h, w, C] -> objectness logits, tuple of [B, A_l]; box deltas, tuple of [B, A_l, 4]; fp32."""
        ratios = len(self.anchor_ratios)
        init = nn.initializers.normal(0.01)
        channels = pyramid[0].shape[-1]
        # the loss sees the sampled anchors, so the last of these gets a gradient in no more cells
        few = [0] * (self.num_convs - 1) + [self.samples_per_image]
        convs = [
            Conv(channels, kernel_init=init, few_cells=few[i], dtype=self.dtype, name=f"conv{i}")
            for i in range(self.num_convs)
        ]
        objectness = Conv(ratios, 1, kernel_init=init, dtype=self.dtype, name="objectness_logits")
        deltas = Conv(ratios * 4, 1, kernel_init=init, dtype=self.dtype, name="box_deltas")
        all_logits, all_deltas = [], []
        for x in pyramid:
            for conv in convs:
                x = nn.relu(conv(x))
            images = x.shape[0]
            all_logits.append(objectness(x).reshape(images, -1).astype(jnp.float32))
            all_deltas.append(deltas(x).reshape(images, -1, 4).astype(jnp.float32))
        return tuple(all_logits), tuple(all_deltas)

    @nn.nowrap
    def anchors(self, padded_size, pyramid):
        """Tuple of [A_l, 4], one a level, for pictures padded to `padded_size` (height, width)."""
        shapes = [x.shape[1:3] for x in pyramid]
        if self.grid_strides:
            strides = [tuple(n // g for n, g in zip(padded_size, shape, strict=True)) for shape in shapes]
        else:
            strides = [(4 * 2**i, 4 * 2**i) for i in range(len(shapes))]
        return pyramid_anchors(
            shapes, strides, self.anchor_sizes, self.anchor_ratios, rounded=self.rounded_anchors
        )

    @nn.nowrap
    @jax.named_scope("proposals")
    def propose(self, logits, deltas, anchors, image_sizes, train):
        """Best boxes of each image: per level top-k, decode, clip, drop empty, NMS; then one top-k over the levels.

        logits, deltas, anchors as above; image_sizes [B, 2] height, width before padding.
        Returns boxes [B, P, 4], objectness logits [B, P] best first, valid [B, P]. No gradient flows through.
        """
        before, after = (topk[0 if train else 1] for topk in (self.pre_nms_topk, self.post_nms_topk))

        def one_level(logits, deltas, anchors, size):
            scores, index = jax.lax.top_k(logits, min(before, logits.shape[0]))
            boxes = box_ops.decode(deltas[index], anchors[index], ANCHOR_WEIGHTS)
            boxes = box_ops.clip(boxes, size)
            valid = box_ops.nonempty(boxes, self.smallest_side) & jnp.isfinite(scores)
            keep, valid = nms(boxes, scores, valid, self.nms_iou, min(after, scores.shape[0]))
            return boxes[keep], jnp.where(valid, scores[keep], -jnp.inf)

        def one_image(logits, deltas, size, anchors):
            levels = [one_level(*level, size) for level in zip(logits, deltas, anchors, strict=True)]
            boxes, scores = (jnp.concatenate(parts) for parts in zip(*levels, strict=True))
            scores, index = jax.lax.top_k(scores, min(after, scores.shape[0]))
            return boxes[index], scores, scores > -jnp.inf

        logits, deltas = jax.lax.stop_gradient((logits, deltas))
        return each_image(one_image, logits, deltas, image_sizes, whole=(anchors,))

    @nn.nowrap
    def losses(self, logits, deltas, anchors, batch, keys):
        """Objectness and box loss over the batch, and counts worth a look.

        logits, deltas, anchors as above; keys [B] random keys. Returns RPNLosses and a dict of scalars.
        """
        logits, deltas = jnp.concatenate(logits, 1), jnp.concatenate(deltas, 1)
        anchors = jnp.concatenate(anchors)
        present = batch["image_sizes"][:, 0] > 0  # a padded image has no size and no say

        @jax.named_scope("targets")
        def targets(key, gt_boxes, gt_valid, present, anchors):
            low, high = self.negative_iou, self.positive_iou
            matches, met = match_boxes(gt_boxes, gt_valid, anchors, low, high, allow_low_quality=True)
            drawn = sample(key, matches.label, self.samples_per_image, self.positive_fraction)
            label = jnp.where(drawn.valid & present, matches.label[drawn.index], -1)
            return drawn.index, label, gt_boxes[matches.gt_index[drawn.index]], jnp.sum(gt_valid & ~met)

        index, label, gt_boxes, unmet = each_image(
            targets, keys, batch["gt_boxes"], batch["gt_valid"], present, whole=(anchors,)
        )
        sampled = (
            jnp.sum(label >= 0) if self.normalize_by_sampled else self.samples_per_image * jnp.sum(present)
        )
        losses = rpn_losses(
            jnp.take_along_axis(logits, index, 1),
            jnp.take_along_axis(deltas, index[..., None], 1),
            anchors[index],
            label,
            gt_boxes,
            normalizer=jnp.maximum(sampled, 1),
            beta=self.box_beta,
        )
        images = jnp.maximum(jnp.sum(present), 1)
        counts = {"rpn_positives": jnp.sum(label == 1) / images, "boxes_no_anchor_meets": jnp.sum(unmet)}
        return losses, counts
