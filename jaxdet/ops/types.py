"""Types of arguments that several operations take.

Axes have the names of the glossary in jaxdet/__init__.py. The size of an axis that starts with an underscore,
such as `_H_l`, is not compared with other arrays: it differs between levels.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, ScalarLike

AnyArray = jax.Array | np.ndarray
Weights = Sequence[ScalarLike] | Float[AnyArray, "4"]  # of dx, dy, dw and dh
