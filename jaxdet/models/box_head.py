"""The second stage (Girshick 2015, arXiv:1504.08083): pooled proposals in, classes and refined boxes out."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.models.fpn import xavier_uniform
from jaxdet.models.layers import Conv, Norm, each_image
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.losses import box_losses
from jaxdet.ops.matching import match
from jaxdet.ops.roi_align import pyramid_roi_align
from jaxdet.ops.sampling import sample

STRIDES = (4, 8, 16, 32)  # P2..P5; P6 serves the first stage only


class BoxHead(nn.Module):
    """The head's parameters and everything the second stage decides. Fields are the keys of `config.model.roi_head`.

    num_convs, conv_norm: 3x3 layers before the dense ones. num_fcs, hidden: dense layers and their width.
    class_agnostic: one set of deltas for all classes. pool_size, sampling_ratio, aligned, level_epsilon: of
    RoIAlign. positive_iou: at least; the rest is background. samples_per_image, positive_fraction: of the loss.
    add_ground_truth: the true boxes join the proposals in training. box_weights, box_beta: of coder and loss.
    """

    num_classes: int
    num_convs: int
    conv_norm: str
    num_fcs: int
    hidden: int
    class_agnostic: bool
    pool_size: int
    sampling_ratio: int
    aligned: bool
    level_epsilon: float
    positive_iou: float
    samples_per_image: int
    positive_fraction: float
    add_ground_truth: bool
    box_weights: tuple
    box_beta: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pyramid, boxes):
        """Tuple of P2.. [B, h, w, C], boxes [B, N, 4] -> class logits [B, N, K+1], deltas [B, N, K or 1, 4]; fp32."""

        def pool(levels, boxes):
            return pyramid_roi_align(
                levels,
                boxes,
                STRIDES,
                size=self.pool_size,
                sampling_ratio=self.sampling_ratio,
                aligned=self.aligned,
                level_epsilon=self.level_epsilon,
            )

        x = each_image(pool, pyramid[: len(STRIDES)], boxes)
        images, count = x.shape[:2]
        x = x.reshape(images * count, *x.shape[2:])
        for i in range(self.num_convs):
            norm = self.conv_norm
            x = Conv(x.shape[-1], use_bias=not norm, dtype=self.dtype, name=f"conv{i}")(x)
            if norm:
                x = Norm(norm, dtype=self.dtype, name=f"conv{i}_norm")(x)
            x = nn.relu(x)
        x = x.reshape(images, count, -1)
        for i in range(self.num_fcs):
            fc = nn.Dense(self.hidden, kernel_init=xavier_uniform, dtype=self.dtype, name=f"fc{i}")
            x = nn.relu(fc(x))
        logits = nn.Dense(
            self.num_classes + 1,
            kernel_init=nn.initializers.normal(0.01),
            dtype=self.dtype,
            name="class_logits",
        )(x)
        sets = 1 if self.class_agnostic else self.num_classes
        deltas = nn.Dense(sets * 4, kernel_init=nn.initializers.normal(0.001), dtype=self.dtype, name="box_deltas")(x)
        return logits.astype(jnp.float32), deltas.astype(jnp.float32).reshape(images, count, sets, 4)

    @nn.nowrap
    @jax.named_scope("targets")
    def sample(self, boxes, valid, batch, keys):
        """Draws the proposals that the loss sees.

        boxes [B, P, 4], valid [B, P]; keys [B] random keys. Returns boxes [B, S, 4], labels [B, S] in 0..K with
        background K, matched ground truth [B, S, 4] and valid [B, S]. No gradient flows through.
        """

        def one_image(key, boxes, valid, gt_boxes, gt_labels, gt_valid):
            if self.add_ground_truth:
                boxes, valid = jnp.concatenate([boxes, gt_boxes]), jnp.concatenate([valid, gt_valid])
            valid &= box_ops.nonempty(boxes)  # a true box without area is none to learn from
            iou = box_ops.iou(gt_boxes, boxes)
            threshold = self.positive_iou
            matches = match(iou, gt_valid, threshold, threshold, allow_low_quality=False)
            label = jnp.where(valid, matches.label, -1)
            drawn = sample(key, label, self.samples_per_image, self.positive_fraction)
            gt_index = matches.gt_index[drawn.index]
            positive = label[drawn.index] == 1
            classes = jnp.where(positive, gt_labels[gt_index], self.num_classes)
            # an empty slot holds whatever row came last: a harmless box in its place
            drawn_boxes = jnp.where(drawn.valid[:, None], boxes[drawn.index], 0.0)
            return drawn_boxes, classes, gt_boxes[gt_index], drawn.valid

        truth = batch["gt_boxes"], batch["gt_labels"], batch["gt_valid"]
        return jax.lax.stop_gradient(each_image(one_image, keys, boxes, valid, *truth))

    @nn.nowrap
    def losses(self, class_logits, box_deltas, boxes, labels, gt_boxes, valid):
        """Classification and box loss over the sampled proposals of the whole batch, shapes as above."""
        return box_losses(
            class_logits,
            box_deltas,
            boxes,
            labels,
            gt_boxes,
            valid,
            weights=self.box_weights,
            beta=self.box_beta,
        )

    @nn.nowrap
    def decode(self, class_logits, box_deltas, boxes):
        """Class scores [B, N, K] and boxes [B, N, K, 4] (one set for all classes repeated), not yet clipped."""
        scores = jax.nn.softmax(class_logits)[..., :-1]
        decoded = box_ops.decode(box_deltas, boxes[:, :, None], self.box_weights)
        return scores, jnp.broadcast_to(decoded, (*scores.shape, 4))
