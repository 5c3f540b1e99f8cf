"""Feature pyramid (Lin et al. 2016, arXiv:1612.03144): C2..C5 in, P2..P6 out."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jaxdet.models.layers import Conv, Norm
from jaxdet.models.types import Maps
from jaxdet.ops.types import AnyArray

xavier_uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")  # Caffe2's XavierFill


class FPN(nn.Module):
    """1x1 lateral convolutions, top-down sums, 3x3 output convolutions. P6 is every second cell of P5.

    channels: of each level. norm: "" for none, or one of layers.NORMS after each convolution.
    """

    channels: int
    norm: str = ""
    dtype: Any = jnp.float32

    def _conv(self, x: Maps, size: int, name: str) -> Float[AnyArray, "B _H _W channels"]:
        conv = Conv(
            self.channels, size, use_bias=not self.norm, kernel_init=xavier_uniform, dtype=self.dtype, name=name
        )
        x = conv(x)
        return Norm(self.norm, dtype=self.dtype, name=f"{name}_norm")(x) if self.norm else x

    @nn.compact
    def __call__(
        self, features: Sequence[Float[AnyArray, "B _h _w _C"]]
    ) -> tuple[Float[AnyArray, "B _h _w channels"], ...]:
        """Tuple of C2..C5 -> tuple of P2..P6, each [B, h, w, channels]."""
        levels = range(2, 2 + len(features))
        inner = None
        outputs = {}
        for level, c in sorted(zip(levels, features, strict=True), reverse=True):
            lateral = self._conv(c, 1, f"lateral{level}")
            inner = lateral if inner is None else lateral + upsample(inner, lateral.shape)
            outputs[level] = self._conv(inner, 3, f"output{level}")
        pyramid = [outputs[level] for level in levels]
        return (*pyramid, pyramid[-1][:, ::2, ::2])


def upsample(x: Float[AnyArray, "B _h _w C"], shape: tuple[int, ...]) -> Float[AnyArray, "B _H _W C"]:
    """Nearest neighbour upsampling by 2, cropped to `shape` [B, H, W, C] if its sides are odd."""
    return x.repeat(2, axis=1).repeat(2, axis=2)[:, : shape[1], : shape[2]]
