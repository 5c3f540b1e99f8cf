"""A random, fixed-size choice of positives and negatives."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Int32, PRNGKeyArray

from jaxdet.ops.types import AnyArray


class Sample(NamedTuple):
    """The rows chosen for a loss, positives first."""

    index: Int32[Array, " count"]  # type: ignore[assignment]  # rows of the label array; 0 if not valid
    valid: Bool[Array, " count"]  # False for an empty slot, which must carry no loss


def sample(key: PRNGKeyArray, label: Int[AnyArray, " A"], count: int, positive_fraction: float) -> Sample:
    """Chooses up to `count` rows of label int [A]: 1 positive, 0 negative, others are never chosen.

    At most int(count * positive_fraction) positives, then negatives to fill up, each uniformly at random
    without replacement. If there are too few negatives, fewer than `count` slots are valid. `count` may
    exceed A. (Fast R-CNN, Girshick 2015, section 2.3; detectron2, subsample_labels.)
    """
    rows = label.shape[0]
    priority = jax.random.uniform(key, (rows,))
    positives, positive_total = _choose(priority, label == 1, min(int(count * positive_fraction), rows))
    negatives, negative_total = _choose(priority, label == 0, min(count, rows))

    slot = jnp.arange(count)
    candidates = jnp.concatenate([positives, negatives])
    candidate = jnp.where(slot < positive_total, slot, slot - positive_total + len(positives))
    valid = slot < positive_total + negative_total
    index = candidates[jnp.minimum(candidate, len(candidates) - 1)]
    return Sample(jnp.where(valid, index, 0).astype(jnp.int32), valid)


def _choose(
    priority: Float32[Array, " A"], eligible: Bool[AnyArray, " A"], count: int
) -> tuple[Int32[Array, " count"], Int[Array, ""]]:
    """Up to `count` eligible rows of highest priority, best first, and their number."""
    value, index = jax.lax.top_k(jnp.where(eligible, priority, -1.0), count)
    return index, jnp.sum(value >= 0)
