"""Greedy non-maximum suppression of a fixed number of boxes."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, Num, ScalarLike

from jaxdet.ops.boxes import iou
from jaxdet.ops.types import AnyArray


def nms(
    boxes: Num[AnyArray, "N 4"],
    scores: Num[AnyArray, " N"],
    valid: Bool[AnyArray, " N"],
    iou_threshold: ScalarLike,
    count: int,
) -> tuple[Int32[Array, " count"], Bool[Array, " count"]]:
    """Indices int32 [count] of the boxes that greedy NMS keeps, best score first, and which are valid.

    boxes [N, 4], x1 y1 x2 y2 in pixels; scores [N]; valid bool [N]. In the order of falling scores, a box is
    kept unless its IoU with a box already kept is strictly above `iou_threshold`. If scores are equal, the
    first row wins. A row whose score is not finite is not valid. The result is exactly that of the sequential
    algorithm (torchvision, nms): the float32 IoU is compared with the threshold in double precision if that
    is a Python number. `count` may exceed N. Memory is O(N^2): choose the best few thousand boxes first.
    """
    return class_nms(boxes, scores, jnp.zeros(len(scores), jnp.int32), valid, iou_threshold, count)


@jax.named_scope("nms")
def class_nms(
    boxes: Num[AnyArray, "N 4"],
    scores: Num[AnyArray, " N"],
    classes: Int[AnyArray, " N"],
    valid: Bool[AnyArray, " N"],
    iou_threshold: ScalarLike,
    count: int,
) -> tuple[Int32[Array, " count"], Bool[Array, " count"]]:
    """As `nms`, but boxes of different classes int [N] never suppress each other."""
    boxes, classes = jnp.asarray(boxes, jnp.float32), jnp.asarray(classes)
    score = jnp.where(valid & jnp.isfinite(scores), scores, -jnp.inf)
    order = jnp.argsort(-score, stable=True)
    boxes, classes, alive = boxes[order], classes[order], score[order] > -jnp.inf

    row = jnp.arange(len(order))
    suppresses = (iou(boxes, boxes) > _in_float32(iou_threshold)) & (row[:, None] < row[None, :])
    suppresses &= classes[:, None] == classes[None, :]
    keep = _greedy(suppresses, alive)

    kept = jnp.nonzero(keep, size=count, fill_value=0)[0]
    filled = jnp.arange(count) < jnp.sum(keep)
    return jnp.where(filled, order[kept], 0).astype(jnp.int32), filled


def _in_float32(threshold: ScalarLike) -> ScalarLike:
    """The largest float32 not above a Python number: a float32 exceeds both or neither."""
    if not isinstance(threshold, float):
        return threshold
    nearest = np.float32(threshold)
    return np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > threshold else nearest


def _greedy(suppresses: Bool[Array, "N N"], alive: Bool[Array, " N"]) -> Bool[Array, " N"]:
    """Rows that are kept in sequential order; `suppresses` [N, N] is upper triangular.

    A row depends on earlier rows only, so each round settles at least one more row. The rows are final once a
    round changes nothing, in practice after a few rounds.
    """

    def improve(state: tuple[Bool[Array, " N"], Bool[Array, ""]]) -> tuple[Bool[Array, " N"], Bool[Array, ""]]:
        keep, _ = state
        better = alive & ~jnp.any(suppresses & keep[:, None], axis=0)
        return better, jnp.any(better != keep)

    keep, _ = jax.lax.while_loop(lambda state: state[1], improve, (alive, jnp.any(alive)))
    return keep
