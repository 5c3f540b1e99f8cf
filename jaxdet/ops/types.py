"""Types of arguments that several operations take."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, ScalarLike

AnyArray = jax.Array | np.ndarray
Weights = Sequence[ScalarLike] | Float[AnyArray, "4"]  # of dx, dy, dw and dh
