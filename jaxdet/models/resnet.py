"""ResNet-18/34/50/101 (He et al. 2015, arXiv:1512.03385) as a backbone: pictures in, C2..C5 out."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdet.models.layers import Conv, Norm, max_pool

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and -34)."""

    features: int
    stride: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x):
        y = self.conv(self.features, 3, self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = self.conv(self.features, 3, name="conv2")(y)
        y = self.norm(name="norm2")(y)
        if x.shape != y.shape:
            x = self.conv(self.features, 1, self.stride, name="shortcut")(x)
            x = self.norm(name="shortcut_norm")(x)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with four times the width at the end. `stride_in_1x1` as in the original Caffe weights."""

    features: int
    stride: int
    conv: Any
    norm: Any
    stride_in_1x1: bool = False

    @nn.compact
    def __call__(self, x):
        first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        y = self.conv(self.features, 1, first, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = self.conv(self.features, 3, second, name="conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y))
        y = self.conv(4 * self.features, 1, name="conv3")(y)
        y = self.norm(name="norm3")(y)
        if x.shape != y.shape:
            x = self.conv(4 * self.features, 1, self.stride, name="shortcut")(x)
            x = self.norm(name="shortcut_norm")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Features at strides 4, 8, 16 and 32.

    depth: 18, 34, 50 or 101. width: channels of the stem (64 in the paper). norm: see layers.NORMS. freeze_at: 0 trains
    all, 1 freezes the stem, 2 also C2's stage, .. 5 everything (detectron2, FREEZE_AT). No gradient flows below the
    last frozen stage, so none of its activations is kept. remat: stages (2 to 5) of whose blocks only the inputs are
    kept for the backward pass, which computes the rest again.
    """

    depth: int
    norm: str
    freeze_at: int
    norm_epsilon: float = 1e-5
    stride_in_1x1: bool = False
    width: int = 64
    remat: tuple = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[B, H, W, 3] float -> tuple of C2..C5, each [B, H/s, W/s, C]."""
        if self.depth not in BLOCKS:
            raise ValueError(f"model.backbone.depth is {self.depth}; one of {', '.join(map(str, BLOCKS))}")
        conv = partial(Conv, use_bias=False, dtype=self.dtype)

        def norm(stage):
            return partial(Norm, self.norm, self.norm_epsilon, self.dtype, frozen=self.freeze_at >= stage)

        def block(stage, *arguments, **more):
            kind = Bottleneck if self.depth >= 50 else BasicBlock
            if self.depth >= 50:
                more["stride_in_1x1"] = self.stride_in_1x1
            return (nn.remat(kind) if stage in self.remat else kind)(*arguments, **more)

        x = conv(self.width, 7, 2, name="stem_conv")(x)
        x = max_pool(nn.relu(norm(1)(name="stem_norm")(x)))
        if self.freeze_at >= 1:
            x = jax.lax.stop_gradient(x)
        features = []
        for stage, blocks in enumerate(BLOCKS[self.depth], start=2):
            for i in range(blocks):
                stride = 2 if stage > 2 and i == 0 else 1
                width, name = self.width * 2 ** (stage - 2), f"stage{stage}_block{i}"
                x = block(stage, width, stride, conv, norm(stage), name=name)(x)
            if self.freeze_at >= stage:
                x = jax.lax.stop_gradient(x)
            features.append(x)
        return tuple(features)


def is_frozen(path, freeze_at):
    """Whether the parameter at `path` (names inside the ResNet, outermost first) lies at or below `freeze_at`."""
    if path[0].startswith("stem"):
        return freeze_at >= 1
    return freeze_at >= int(path[0].removeprefix("stage").split("_")[0])
