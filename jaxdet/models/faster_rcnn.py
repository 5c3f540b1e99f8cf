"""Faster R-CNN (Ren et al. 2015, arXiv:1506.01497), the two stages on one page.

    images -> normalise -> ResNet -> FPN -> RPN -> proposals -> RoIAlign -> box head -> detections
                                             |                                |
                                        two losses                        two losses

Without a box head (`roi_head=None`) the RPN alone is the detector.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, Num, ScalarLike
from ml_collections import ConfigDict

from jaxdet.models.box_head import BoxHead
from jaxdet.models.fpn import FPN
from jaxdet.models.layers import each_image
from jaxdet.models.resnet import ResNet, is_frozen
from jaxdet.models.rpn import RPN
from jaxdet.models.types import Anchors, Batch, Deltas, Logits, Tree
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.nms import class_nms
from jaxdet.ops.types import AnyArray


class Detections(NamedTuple):
    """Boxes of each image, best first.

    x1 y1 x2 y2 in pixels of the resized image. Rows that are not valid are padding.
    """

    boxes: Float32[Array, "B D 4"]
    scores: Float32[Array, "B D"]
    labels: Int32[Array, "B D"]
    valid: Bool[Array, "B D"]


class Stages(NamedTuple):
    """Output of each stage: all proposals; the RPN alone as a detector; the box head (None without one)."""

    proposals: Detections
    rpn: Detections
    roi: Detections | None

    @property
    def final(self) -> Detections:
        """Detections of the whole model."""
        return self.rpn if self.roi is None else self.roi


Settings: TypeAlias = Mapping[str, Any] | ConfigDict  # a part of a config
FirstStage = tuple[tuple[Float[AnyArray, "B _h _w C"], ...], Logits, Deltas, Anchors]


class FasterRCNN(nn.Module):
    """`FasterRCNN(**config.model)`; each field is a key of that part of the config.

    num_classes: K. dtype: of the arithmetic, "float32" or "bfloat16"; boxes, scores and losses are always
    float32. pixel_mean, pixel_std: for values 0..255, in the channel order of the network. bgr: the network
    takes BGR images. backbone, fpn, rpn, roi_head: the fields of ResNet, FPN, RPN and BoxHead. loss_weights:
    of the four losses. test: score_threshold, nms_iou, smallest_side and detections_per_image of the final
    stage.
    """

    num_classes: int
    dtype: str
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    bgr: bool
    backbone: Settings
    fpn: Settings
    rpn: Settings
    roi_head: Settings | None
    loss_weights: Settings
    test: Settings

    def __post_init__(self) -> None:
        for name in ("backbone", "fpn", "rpn", "roi_head", "loss_weights", "test"):
            value = getattr(self, name)
            if isinstance(value, ConfigDict):
                setattr(self, name, value.to_dict())
        super().__post_init__()

    @property
    def two_stage(self) -> bool:
        """Whether there is a box head. Without one, the RPN alone detects and does not tell classes apart."""
        return self.roi_head is not None

    def setup(self) -> None:
        dtype = jnp.dtype(self.dtype)
        self.resnet = ResNet(**self.backbone, dtype=dtype)
        self.pyramid = FPN(**self.fpn, dtype=dtype)
        self.rpn_head = RPN(**self.rpn, dtype=dtype)
        if self.two_stage:
            self.box_head = BoxHead(self.num_classes, **self.roi_head, dtype=dtype)  # type: ignore[arg-type]

    def features(
        self, images: Num[AnyArray, "B H W 3"], image_sizes: Int[AnyArray, "B 2"]
    ) -> tuple[Float[AnyArray, "B _h _w C"], ...]:
        """Images [B, H, W, 3] RGB 0..255, image_sizes [B, 2] -> tuple of P2..P6, each [B, h, w, C]."""
        x = images.astype(jnp.float32)
        if self.bgr:
            x = x[..., ::-1]
        x = (x - jnp.array(self.pixel_mean)) / jnp.array(self.pixel_std)
        rows = jnp.arange(x.shape[1]) < image_sizes[:, :1]
        columns = jnp.arange(x.shape[2]) < image_sizes[:, 1:]
        x = jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], x, 0.0)  # zeros after normalising
        return self.pyramid(self.resnet(x.astype(self.dtype)))

    def losses(self, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """The weighted losses of a batch as a dict of scalars; training minimises their sum.

        batch: see jaxdet.data.types. key: of this step; it is folded with the id of each image. BatchNorm
        uses and updates batch statistics if `batch_stats` is mutable. Counts are sown into the collection
        `metrics`.
        """
        return self._losses(batch, key, self._first_stage(batch["images"], batch["image_sizes"]))

    def detect(self, images: Num[AnyArray, "B H W 3"], image_sizes: Int[AnyArray, "B 2"]) -> Detections:
        """Images [B, H, W, 3] 0..255, uint8 or float -> Detections.

        image_sizes [B, 2]: height, width before padding.
        """
        return self.detect_stages(images, image_sizes).final

    def detect_stages(self, images: Num[AnyArray, "B H W 3"], image_sizes: Int[AnyArray, "B 2"]) -> Stages:
        """As `detect`, but returns the output of all Stages."""
        return self._detect_stages(image_sizes, self._first_stage(images, image_sizes))

    def evaluate(self, batch: Batch, key: Key[Array, ""]) -> tuple[Stages, dict[str, Array]]:
        """Stages and losses of one batch for validation, from one pass through the backbone."""
        first = self._first_stage(batch["images"], batch["image_sizes"])
        return self._detect_stages(batch["image_sizes"], first), self._losses(batch, key, first)

    def _first_stage(self, images: Num[AnyArray, "B H W 3"], image_sizes: Int[AnyArray, "B 2"]) -> FirstStage:
        pyramid = self.features(images, image_sizes)
        logits, deltas = self.rpn_head(pyramid)
        return pyramid, logits, deltas, self.rpn_head.anchors(images.shape[1:3], pyramid)

    def _losses(self, batch: Batch, key: Key[Array, ""], first: FirstStage) -> dict[str, Array]:
        pyramid, logits, deltas, anchors = first
        present = batch["image_sizes"][:, 0] > 0
        batch = batch | {"gt_valid": batch["gt_valid"] & present[:, None]}  # empty slots have no ground truth
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["image_ids"])
        keys = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
        images = jnp.sum(present)
        sampled = self.rpn_head.sample(anchors, batch, keys[:, 0])
        sampled_logits, sampled_deltas = self.rpn_head(pyramid, sampled.index)
        rpn, counts = self.rpn_head.losses(sampled_logits, sampled_deltas, anchors, sampled, images)
        losses = {"rpn_objectness": rpn.objectness, "rpn_box": rpn.box}
        if self.two_stage:
            boxes, _, valid = self.rpn_head.propose(logits, deltas, anchors, batch["image_sizes"], train=True)
            boxes, labels, gt_boxes, valid = self.box_head.sample(boxes, valid, batch, keys[:, 1])
            class_logits, box_deltas = self.box_head(pyramid, boxes)
            roi = self.box_head.losses(class_logits, box_deltas, boxes, labels, gt_boxes, valid)
            losses |= {"roi_classification": roi.classification, "roi_box": roi.box}
            positives = jnp.sum(valid & (labels < self.num_classes))
            counts["roi_positives"] = positives / jnp.maximum(images, 1)
        for name, value in counts.items():
            self.sow("metrics", name, value, reduce_fn=lambda _, new: new, init_fn=lambda: 0)
        return {name: value * self.loss_weights[name] for name, value in losses.items()}

    def _detect_stages(self, image_sizes: Int[AnyArray, "B 2"], first: FirstStage) -> Stages:
        pyramid, logits, deltas, anchors = first
        boxes, scores, valid = self.rpn_head.propose(logits, deltas, anchors, image_sizes, train=False)
        boxes = jnp.where(valid[..., None], boxes, 0.0)
        scores = jnp.where(valid, jax.nn.sigmoid(scores), 0.0)
        final = functools.partial(each_image, lambda *image: final_stage(*image, **self.test))
        proposals = Detections(boxes, scores, jnp.zeros_like(valid, jnp.int32), valid)
        rpn = final(boxes[:, :, None], scores[..., None], valid, image_sizes)
        if not self.two_stage:
            return Stages(proposals, rpn, None)
        class_logits, box_deltas = self.box_head(pyramid, boxes)
        class_scores, class_boxes = self.box_head.decode(class_logits, box_deltas, boxes)
        return Stages(proposals, rpn, final(class_boxes, class_scores, valid, image_sizes))


def final_stage(
    boxes: Float[AnyArray, "N K 4"],
    scores: Float[AnyArray, "N K"],
    valid: Bool[AnyArray, " N"],
    image_size: Num[AnyArray, "2"] | tuple[ScalarLike, ScalarLike],
    *,
    score_threshold: ScalarLike,
    nms_iou: ScalarLike,
    smallest_side: float,
    detections_per_image: int,
) -> Detections:
    """Detections of one image: clip, drop empty boxes and low scores, NMS within each class, top-k.

    boxes [N, K, 4], scores [N, K], valid [N], image_size [2]: height, width. smallest_side: in pixels; 0
    means any positive side. Boxes that clipping empties are dropped before NMS, so they never take a place
    among the best (detectron2 drops them last).
    """
    count, classes = scores.shape
    boxes = box_ops.clip(boxes, image_size).reshape(-1, 4)
    labels = jnp.tile(jnp.arange(classes), count)
    large = box_ops.nonempty(boxes, smallest_side)
    valid = jnp.repeat(valid, classes) & large & (scores.reshape(-1) > score_threshold)
    scores = jnp.where(valid, scores.reshape(-1), -1.0)
    # With many classes, few of the N x K candidates pass the threshold; this bounds the NMS matrix
    candidates, index = jax.lax.top_k(scores, min(scores.shape[0], max(count, 4000)))
    boxes, labels, valid = boxes[index], labels[index], valid[index]
    keep, valid = class_nms(boxes, candidates, labels, valid, nms_iou, detections_per_image)
    return Detections(
        jnp.where(valid[:, None], boxes[keep], 0.0),
        jnp.where(valid, candidates[keep], 0.0),
        jnp.where(valid, labels[keep], 0),
        valid,
    )


def frozen_parameters(params: Tree, freeze_at: int) -> Tree:
    """Tree of bool like `params`: True if `freeze_at` freezes the parameter."""

    def frozen(path: Any, _: Any) -> bool:
        names = [entry.key for entry in path]
        return names[0] == "resnet" and is_frozen(names[1:], freeze_at)

    return jax.tree_util.tree_map_with_path(frozen, params)


def merge_variables(
    trainable: Tree, frozen: Tree | None, constants: Tree | None, batch_stats: Tree | None
) -> dict[str, Tree]:
    """The variables for `model.apply`, from the parts of a state; None or {} for parts the model lacks."""
    params = unflatten_dict(flatten_dict(trainable) | flatten_dict(frozen or {}))
    return {"params": params, "constants": constants or {}, "batch_stats": batch_stats or {}}
