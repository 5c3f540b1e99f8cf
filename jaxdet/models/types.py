"""Types of what the modules pass to one another."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float

from jaxdet.ops.types import AnyArray

Batch = dict[str, AnyArray]  # a data.types.Batch on the device; models do not import jaxdet.data
Maps = Float[AnyArray, "B _H _W C"]
Pyramid = Sequence[Float[AnyArray, "B _h _w C"]]  # finest level first
Logits = Sequence[Float[AnyArray, "B _A_l"]]  # one per level, as the next two
Deltas = Sequence[Float[AnyArray, "B _A_l 4"]]
Anchors = Sequence[Float[AnyArray, "_A_l 4"]]
Tree = Any  # nested dicts of arrays
