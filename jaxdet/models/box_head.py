"""The second stage (Girshick 2015, arXiv:1504.08083): proposals in, classes and refined boxes out."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key

from jaxdet.models.fpn import xavier_uniform
from jaxdet.models.layers import Conv, Norm, each_image
from jaxdet.models.types import Batch, Pyramid
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.losses import BoxLosses, box_losses
from jaxdet.ops.matching import match
from jaxdet.ops.roi_align import pyramid_roi_align
from jaxdet.ops.sampling import sample
from jaxdet.ops.types import AnyArray

STRIDES = (4, 8, 16, 32)  # P2..P5; only the first stage uses P6


class BoxHead(nn.Module):
    """The parameters of the head and all decisions of the second stage. Fields: keys of `model.roi_head`.

    num_convs, conv_norm: 3x3 layers before the dense ones. num_fcs, hidden: dense layers and their width.
    class_agnostic: one set of deltas for all classes. pool_size, sampling_ratio, aligned, level_epsilon: of
    RoIAlign. positive_iou: at least; other proposals are background. samples_per_image, positive_fraction: of
    the loss. add_ground_truth: ground-truth boxes join the proposals in training. box_weights, box_beta: of
    the coder and the loss.
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
    box_weights: tuple[float, ...]
    box_beta: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, pyramid: Pyramid, boxes: Float[AnyArray, "B N 4"]
    ) -> tuple[Float32[Array, "B N classes"], Float32[Array, "B N _ 4"]]:
        """P2.. [B, h, w, C], boxes [B, N, 4] -> class logits [B, N, K+1], box deltas [B, N, K or 1, 4].

        The results are float32.
        """

        def pool(levels: Any, boxes: Float[AnyArray, "N 4"]) -> Array:
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
            self.num_classes + 1, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype, name="class_logits"
        )(x)
        sets = 1 if self.class_agnostic else self.num_classes
        deltas = nn.Dense(sets * 4, kernel_init=nn.initializers.normal(0.001), dtype=self.dtype, name="box_deltas")(x)
        return logits.astype(jnp.float32), deltas.astype(jnp.float32).reshape(images, count, sets, 4)

    @nn.nowrap
    @jax.named_scope("targets")
    def sample(
        self, boxes: Float[AnyArray, "B P 4"], valid: Bool[AnyArray, "B P"], batch: Batch, keys: Key[Array, " B"]
    ) -> tuple[Float32[Array, "B S 4"], Int32[Array, "B S"], Float32[Array, "B S 4"], Bool[Array, "B S"]]:
        """Draws the proposals from which the loss is computed.

        boxes [B, P, 4], valid [B, P], keys [B]: random keys. Returns boxes [B, S, 4], labels [B, S] in 0..K
        with background K, matched ground truth [B, S, 4] and valid [B, S]. No gradient flows through.
        """

        def one_image(
            key: Key[Array, ""],
            boxes: Float[AnyArray, "P 4"],
            valid: Bool[AnyArray, " P"],
            gt_boxes: Float[AnyArray, "G 4"],
            gt_labels: Int[AnyArray, " G"],
            gt_valid: Bool[AnyArray, " G"],
        ) -> tuple[Array, Array, Array, Array]:
            if self.add_ground_truth:
                boxes, valid = jnp.concatenate([boxes, gt_boxes]), jnp.concatenate([valid, gt_valid])
            valid &= box_ops.nonempty(boxes)  # ground truth without area is not used
            iou = box_ops.iou(gt_boxes, boxes)
            threshold = self.positive_iou
            matches = match(iou, gt_valid, threshold, threshold, allow_low_quality=False)
            label = jnp.where(valid, matches.label, -1)
            drawn = sample(key, label, self.samples_per_image, self.positive_fraction)
            gt_index = matches.gt_index[drawn.index]
            positive = label[drawn.index] == 1
            classes = jnp.where(positive, gt_labels[gt_index], self.num_classes)
            # an empty slot holds an arbitrary row: replace it by an empty box
            drawn_boxes = jnp.where(drawn.valid[:, None], boxes[drawn.index], 0.0)
            return drawn_boxes, classes, gt_boxes[gt_index], drawn.valid

        truth = batch["gt_boxes"], batch["gt_labels"], batch["gt_valid"]
        return jax.lax.stop_gradient(each_image(one_image, keys, boxes, valid, *truth))

    @nn.nowrap
    def losses(
        self,
        class_logits: Float[AnyArray, "B S classes"],
        box_deltas: Float[AnyArray, "B S _ 4"],
        boxes: Float[AnyArray, "B S 4"],
        labels: Int[AnyArray, "B S"],
        gt_boxes: Float[AnyArray, "B S 4"],
        valid: Bool[AnyArray, "B S"],
    ) -> BoxLosses:
        """Classification and box loss over the sampled proposals of the whole batch, shapes as above."""
        return box_losses(
            class_logits, box_deltas, boxes, labels, gt_boxes, valid, weights=self.box_weights, beta=self.box_beta
        )

    @nn.nowrap
    def decode(
        self,
        class_logits: Float[AnyArray, "B N classes"],
        box_deltas: Float[AnyArray, "B N _ 4"],
        boxes: Float[AnyArray, "B N 4"],
    ) -> tuple[Float32[Array, "B N K"], Float32[Array, "B N K 4"]]:
        """Class scores [B, N, K] and boxes [B, N, K, 4] (one set repeated if class-agnostic), not clipped."""
        scores = jax.nn.softmax(class_logits)[..., :-1]
        decoded = box_ops.decode(box_deltas, boxes[:, :, None], self.box_weights)
        return scores, jnp.broadcast_to(decoded, (*scores.shape, 4))
