"""The losses of the two stages, all in float32.

Sums run over all leading axes, so the images of a batch may be given at once. Rows that do not take part in a
loss may hold anything: they are replaced before the arithmetic, so that no NaN reaches the gradients.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, ScalarLike

from jaxdet.ops.boxes import encode
from jaxdet.ops.types import AnyArray, Weights


class RPNLosses(NamedTuple):
    objectness: Float32[Array, ""]
    box: Float32[Array, ""]


class BoxLosses(NamedTuple):
    classification: Float32[Array, ""]
    box: Float32[Array, ""]


def smooth_l1(difference: Float[AnyArray, "*B"], beta: float) -> Float[Array, "*B"]:
    """Elementwise loss: |d| - beta / 2 if |d| >= beta, a parabola below; plain L1 if beta is 0.

    (Fast R-CNN, Girshick 2015, with the corner at beta as in detectron2 and torchvision.)
    """
    # |d| with slope 0 at 0 (jnp.abs has 1): ground-truth boxes among the proposals start exactly there.
    absolute = jax.lax.stop_gradient(jnp.sign(difference)) * difference
    if beta == 0:
        return absolute
    return jnp.where(absolute < beta, 0.5 * difference**2 / beta, absolute - 0.5 * beta)


def rpn_losses(
    objectness_logits: Float[AnyArray, "*B A"],
    box_deltas: Float[AnyArray, "*B A 4"],
    anchors: Float[AnyArray, "*#B A 4"],
    label: Int[AnyArray, "*B A"],
    gt_boxes: Float[AnyArray, "*B A 4"],
    normalizer: ScalarLike,
    beta: float = 0.0,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
) -> RPNLosses:
    """Losses of the region proposal network, both sums divided by `normalizer`.

    objectness_logits  [..., A]
    box_deltas         [..., A, 4]
    anchors            [..., A, 4] pixels, x1 y1 x2 y2; leading axes broadcast
    label              int [..., A]: 1 positive, 0 negative, -1 not sampled
    gt_boxes           [..., A, 4] pixels, the box that each anchor is matched to; used if the label is 1
    normalizer         scalar: samples per image x images (detectron2), or sampled rows (torchvision);
                       0 (nothing was sampled) is replaced by 1

    Objectness is binary cross-entropy over the sampled rows, box is smooth-L1 (`beta`) over the positive
    rows. (Faster R-CNN, Ren et al. 2015, equation 1; detectron2, RPN.losses.)
    """
    sampled, positive = label >= 0, label == 1
    logits = jnp.where(sampled, objectness_logits.astype(jnp.float32), 0.0)
    cross_entropy = jax.nn.softplus(logits) - logits * positive
    normalizer = jnp.where(jnp.asarray(normalizer) > 0, normalizer, 1)
    return RPNLosses(
        objectness=jnp.sum(jnp.where(sampled, cross_entropy, 0.0)) / normalizer,
        box=_box_sum(box_deltas, gt_boxes, anchors, positive, weights, beta) / normalizer,
    )


def box_losses(
    class_logits: Float[AnyArray, "*B S classes"],
    box_deltas: Float[AnyArray, "*B S _ 4"],
    proposals: Float[AnyArray, "*B S 4"],
    label: Int[AnyArray, "*B S"],
    gt_boxes: Float[AnyArray, "*B S 4"],
    valid: Bool[AnyArray, "*B S"],
    weights: Weights = (10.0, 10.0, 5.0, 5.0),
    beta: float = 0.0,
) -> BoxLosses:
    """Losses of the box head, both sums divided by the number of valid rows (at least 1).

    class_logits  [..., S, K+1], background last
    box_deltas    [..., S, K, 4], or [..., S, 1, 4] if one set serves all classes
    proposals     [..., S, 4] pixels, x1 y1 x2 y2; they carry no gradient
    label         int [..., S] in 0..K, background K
    gt_boxes      [..., S, 4] pixels, the box that each proposal is matched to; used if the label is below K
    valid         bool [..., S]

    Classification is softmax cross-entropy over the valid rows. Box is smooth-L1 (`beta`) of the deltas of
    the true class, over the valid rows that are not background. (Fast R-CNN, Girshick 2015; detectron2,
    FastRCNNOutputLayers.)
    """
    background = class_logits.shape[-1] - 1
    label = jnp.where(valid, label, background)
    positive = label < background
    total = jnp.maximum(jnp.sum(valid), 1)

    logits = jnp.where(valid[..., None], class_logits.astype(jnp.float32), 0.0)
    log_probability = jax.nn.log_softmax(logits)
    cross_entropy = -jnp.take_along_axis(log_probability, label[..., None], axis=-1)[..., 0]

    true_class = jnp.where(positive, label, 0) if box_deltas.shape[-2] > 1 else jnp.zeros_like(label)
    deltas = jnp.take_along_axis(box_deltas, true_class[..., None, None], axis=-2)[..., 0, :]
    return BoxLosses(
        classification=jnp.sum(jnp.where(valid, cross_entropy, 0.0)) / total,
        box=_box_sum(deltas, gt_boxes, proposals, positive, weights, beta) / total,
    )


def _box_sum(
    deltas: Float[AnyArray, "*B N 4"],
    gt_boxes: Float[AnyArray, "*B N 4"],
    anchors: Float[AnyArray, "*#B N 4"],
    positive: Bool[AnyArray, "*B N"],
    weights: Weights,
    beta: float,
) -> Float32[Array, ""]:
    """Smooth-L1 between deltas and their targets, summed over the positive rows."""
    positive = positive[..., None]
    target = jax.lax.stop_gradient(encode(gt_boxes, anchors, weights))
    difference = jnp.where(positive, deltas.astype(jnp.float32), 0.0) - jnp.where(positive, target, 0.0)
    return jnp.sum(smooth_l1(difference, beta))
