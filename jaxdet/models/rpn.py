"""Region proposal network (Ren et al. 2015, arXiv:1506.01497): which anchors hold objects, and where."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, ScalarLike

from jaxdet.models.layers import Conv, each_image
from jaxdet.models.types import Anchors, Batch, Deltas, Logits, Pyramid
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.anchors import pyramid_anchors
from jaxdet.ops.losses import RPNLosses, rpn_losses
from jaxdet.ops.matching import match_boxes
from jaxdet.ops.nms import nms
from jaxdet.ops.sampling import sample
from jaxdet.ops.types import AnyArray
from jaxdet.ops.windows import windows

ANCHOR_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


class SampledAnchors(NamedTuple):
    """The sampled anchors of each image, from which the loss is computed."""

    index: Int32[Array, "B S"]  # type: ignore[assignment]  # into the anchors of all levels
    label: Int32[Array, "B S"]  # 1 positive, 0 negative, -1 an empty slot
    gt_boxes: Float32[Array, "B S 4"]  # the matched ground truth
    unmatched: Int32[Array, " B"]  # ground-truth boxes that no anchor overlaps


class RPN(nn.Module):
    """The parameters of the head and all decisions of the first stage. Fields: keys of `config.model.rpn`.

    anchor_sizes: side in pixels, one per level. anchor_ratios: height / width. rounded_anchors, grid_strides:
    as in torchvision (cell anchors are rounded; stride = padded size // grid). num_convs: 3x3 layers before
    the two predictors. positive_iou: at least. negative_iou: below. samples_per_image, positive_fraction: of
    the loss. box_beta: 0 is L1. normalize_by_sampled: divide by the number of sampled anchors (torchvision)
    instead of samples_per_image x images (detectron2). pre_nms_topk: per level, (training, test).
    post_nms_topk: per image, (training, test). smallest_side: of a proposal in pixels; 0 means any positive
    side.
    """

    anchor_sizes: tuple[float, ...]
    anchor_ratios: tuple[float, ...]
    rounded_anchors: bool
    grid_strides: bool
    num_convs: int
    positive_iou: float
    negative_iou: float
    samples_per_image: int
    positive_fraction: float
    box_beta: float
    normalize_by_sampled: bool
    pre_nms_topk: tuple[int, int]
    post_nms_topk: tuple[int, int]
    nms_iou: float
    smallest_side: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid, index: Int[AnyArray, "B S"] | None = None) -> tuple[Any, Any]:
        """Tuple of [B, h, w, C] -> tuple of logits [B, A_l] and tuple of box deltas [B, A_l, 4], float32.

        With `index` int [B, S] into the anchors of all levels: logits [B, S] and deltas [B, S, 4] of these
        anchors only. The last 3x3 layer then runs, forward and backward, on the windows around them, a
        fraction of the work.
        """
        ratios = len(self.anchor_ratios)
        init = nn.initializers.normal(0.01)
        channels = pyramid[0].shape[-1]
        convs = [Conv(channels, kernel_init=init, dtype=self.dtype, name=f"conv{i}") for i in range(self.num_convs)]
        objectness = Conv(ratios, 1, kernel_init=init, dtype=self.dtype, name="objectness_logits")
        deltas = Conv(ratios * 4, 1, kernel_init=init, dtype=self.dtype, name="box_deltas")
        for conv in convs[:-1]:
            pyramid = [nn.relu(conv(x)) for x in pyramid]

        def predict(
            x: Float[AnyArray, "N _h _w C"], images: int, padding: int | None = None
        ) -> tuple[Float32[Array, "images _N R"], Float32[Array, "images _N R 4"]]:
            """Logits [images, N, ratios] and deltas [images, N, ratios, 4] of the cells of x."""
            for conv in convs[-1:]:
                x = nn.relu(conv(x, padding))
            shape = images, -1, ratios
            return (objectness(x).reshape(shape).astype(jnp.float32), deltas(x).reshape(*shape, 4).astype(jnp.float32))

        images = pyramid[0].shape[0]  # len() refuses the symbolic batch of an export
        if index is None:
            levels = [predict(x, images) for x in pyramid]
            return (
                tuple(logits.reshape(images, -1) for logits, _ in levels),
                tuple(deltas.reshape(images, -1, 4) for _, deltas in levels),
            )
        size = convs[-1].size if convs else 1
        x = each_image(lambda index, levels: windows(levels, index // ratios, size), index, tuple(pyramid))
        logits, box_deltas = predict(x.reshape(-1, *x.shape[2:]), images, padding=0)
        ratio = (index % ratios)[..., None]
        logits = jnp.take_along_axis(logits, ratio, -1)[..., 0]
        return logits, jnp.take_along_axis(box_deltas, ratio[..., None], 2)[:, :, 0]

    @nn.nowrap
    def anchors(self, padded_size: Sequence[int], pyramid: Sequence[Any]) -> Anchors:
        """Tuple of [A_l, 4], one per level, for images padded to `padded_size` (height, width)."""
        shapes = [x.shape[1:3] for x in pyramid]
        if self.grid_strides:
            strides = [tuple(n // g for n, g in zip(padded_size, shape, strict=True)) for shape in shapes]
        else:
            strides = [(4 * 2**i, 4 * 2**i) for i in range(len(shapes))]
        return pyramid_anchors(shapes, strides, self.anchor_sizes, self.anchor_ratios, rounded=self.rounded_anchors)

    @nn.nowrap
    @jax.named_scope("proposals")
    def propose(
        self, logits: Logits, deltas: Deltas, anchors: Anchors, image_sizes: Int[AnyArray, "B 2"], train: bool
    ) -> tuple[Float32[Array, "B P 4"], Float32[Array, "B P"], Bool[Array, "B P"]]:
        """Best boxes of each image: per level top-k, decode, clip, drop empty, NMS; then top-k of all levels.

        logits, deltas, anchors as above. image_sizes [B, 2]: height, width before padding. Returns boxes
        [B, P, 4], objectness logits [B, P], best first, and valid [B, P]. No gradient flows through.
        """
        before, after = (topk[0 if train else 1] for topk in (self.pre_nms_topk, self.post_nms_topk))

        def one_level(
            logits: Float[AnyArray, " A_l"],
            deltas: Float[AnyArray, "A_l 4"],
            anchors: Float[AnyArray, "A_l 4"],
            size: Int[AnyArray, "2"],
        ) -> tuple[Float32[Array, "P_l 4"], Float32[Array, " P_l"]]:
            scores, index = jax.lax.top_k(logits, min(before, logits.shape[0]))
            boxes = box_ops.decode(deltas[index], anchors[index], ANCHOR_WEIGHTS)
            boxes = box_ops.clip(boxes, size)
            valid = box_ops.nonempty(boxes, self.smallest_side) & jnp.isfinite(scores)
            keep, valid = nms(boxes, scores, valid, self.nms_iou, min(after, scores.shape[0]))
            return boxes[keep], jnp.where(valid, scores[keep], -jnp.inf)

        def one_image(
            logits: Any, deltas: Any, size: Int[AnyArray, "2"], anchors: Anchors
        ) -> tuple[Float32[Array, "P 4"], Float32[Array, " P"], Bool[Array, " P"]]:
            levels = [one_level(*level, size) for level in zip(logits, deltas, anchors, strict=True)]
            boxes, scores = (jnp.concatenate(parts) for parts in zip(*levels, strict=True))
            scores, index = jax.lax.top_k(scores, min(after, scores.shape[0]))
            return boxes[index], scores, scores > -jnp.inf

        logits, deltas = jax.lax.stop_gradient((logits, deltas))
        return each_image(one_image, logits, deltas, image_sizes, whole=(anchors,))

    @nn.nowrap
    def sample(self, anchors: Anchors, batch: Batch, keys: Key[Array, " B"]) -> SampledAnchors:
        """Draws the anchors from which the loss is computed. anchors as above; keys [B]: random keys."""
        all_anchors = jnp.concatenate(anchors)
        present = batch["image_sizes"][:, 0] > 0  # False for an empty slot of the batch

        @jax.named_scope("targets")
        def one_image(
            key: Key[Array, ""],
            gt_boxes: Float[AnyArray, "G 4"],
            gt_valid: Bool[AnyArray, " G"],
            present: Bool[AnyArray, ""],
            anchors: Float[AnyArray, "A 4"],
        ) -> SampledAnchors:
            low, high = self.negative_iou, self.positive_iou
            matches, met = match_boxes(gt_boxes, gt_valid, anchors, low, high, allow_low_quality=True)
            drawn = sample(key, matches.label, self.samples_per_image, self.positive_fraction)
            label = jnp.where(drawn.valid & present, matches.label[drawn.index], -1)
            gt_boxes = gt_boxes[matches.gt_index[drawn.index]]
            return SampledAnchors(drawn.index, label, gt_boxes, jnp.sum(gt_valid & ~met))

        return each_image(one_image, keys, batch["gt_boxes"], batch["gt_valid"], present, whole=(all_anchors,))

    @nn.nowrap
    def losses(
        self,
        logits: Float[AnyArray, "B S"],
        deltas: Float[AnyArray, "B S 4"],
        anchors: Anchors,
        sampled: SampledAnchors,
        images: ScalarLike,
    ) -> tuple[RPNLosses, dict[str, Array]]:
        """Objectness and box loss over the sampled anchors of the whole batch, and counts for the metrics.

        logits [B, S] and deltas [B, S, 4] of the sampled anchors; anchors as above; images: number of images
        in the batch. Returns RPNLosses and a dict of scalars.
        """
        label = sampled.label
        normalizer = jnp.sum(label >= 0) if self.normalize_by_sampled else self.samples_per_image * images
        losses = rpn_losses(
            logits,
            deltas,
            jnp.concatenate(anchors)[sampled.index],
            label,
            sampled.gt_boxes,
            normalizer=jnp.maximum(normalizer, 1),
            beta=self.box_beta,
        )
        counts = {
            "rpn_positives": jnp.sum(label == 1) / jnp.maximum(images, 1),
            "boxes_no_anchor_meets": jnp.sum(sampled.unmatched),
        }
        return losses, counts
