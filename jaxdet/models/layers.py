"""Convolution, normalisation and pooling as the networks use them.

Kernels are [height, width, in, out], images [B, H, W, C]. Parameters are float32; the arithmetic runs in
`dtype`.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from jaxdet.models.types import Maps
from jaxdet.ops.conv import conv2d
from jaxdet.ops.types import AnyArray

NORMS = ("frozen_batch_norm", "batch_norm", "group_norm")


class Conv(nn.Module):
    """Convolution with a square kernel, padded so that stride 1 keeps the size (torch's padding = size // 2).

    [B, H, W, I] -> [B, ceil(H / stride), ceil(W / stride), features]. With padding=0, no zeros are added.
    """

    features: int
    size: int = 3
    stride: int = 1
    use_bias: bool = True
    kernel_init: Any = nn.initializers.he_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Maps, padding: int | None = None) -> Float[Array, "B _h _w features"]:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        x = conv2d(x, kernel, self.stride, padding)
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        return x


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with fixed statistics, scale and bias (detectron2, FrozenBatchNorm2d).

    All four vectors are in the collection `constants`, so they get no gradient and no optimizer updates them.
    """

    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        shape = (x.shape[-1],)

        def constant(name: str, value: float) -> Float[AnyArray, " C"]:
            return self.variable("constants", name, jnp.full, shape, value, jnp.float32).value

        scale = constant("scale", 1.0) * jax.lax.rsqrt(constant("var", 1.0) + self.epsilon)
        shift = constant("bias", 0.0) - constant("mean", 0.0) * scale
        return x * scale.astype(self.dtype) + shift.astype(self.dtype)


class Norm(nn.Module):
    """One of NORMS. BatchNorm uses and updates batch statistics only if `batch_stats` is mutable.

    frozen: part of a frozen stage, in which BatchNorm keeps its running statistics (detectron2, FREEZE_AT).
    """

    kind: str
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    frozen: bool = False

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        if self.kind == "frozen_batch_norm":
            return FrozenBatchNorm(self.epsilon, self.dtype, name="frozen_batch_norm")(x)
        if self.kind == "batch_norm":
            batch = self.is_mutable_collection("batch_stats") and not self.is_initializing()
            return nn.BatchNorm(
                use_running_average=self.frozen or not batch,
                momentum=0.9,
                epsilon=self.epsilon,
                dtype=self.dtype,
                name="batch_norm",
            )(x)
        if self.kind == "group_norm":
            groups = math.gcd(32, x.shape[-1] // 2)  # 32, fewer if there are few channels
            return nn.GroupNorm(groups, epsilon=self.epsilon, dtype=self.dtype, name="group_norm")(x)
        raise ValueError(f"unknown normalisation {self.kind!r}; one of {', '.join(NORMS)}")


def max_pool(x: Maps) -> Maps:
    """3x3 maximum at stride 2, padded by 1: [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C].

    Computed as maxima of strided slices, first of rows, then of columns. On a CPU its gradient takes half the
    time of that of a window reduction. Equal maxima share the gradient; torch gives all of it to the first.
    """
    lowest = jnp.finfo(x.dtype).min
    for axis in (1, 2):
        out = -(-x.shape[axis] // 2)
        padding = [(0, 0)] * x.ndim
        padding[axis] = (1, 2 * out - x.shape[axis])
        padded = jnp.pad(x, padding, constant_values=lowest)
        parts = [jax.lax.slice_in_dim(padded, i, i + 2 * out - 1, 2, axis) for i in range(3)]
        x = jnp.maximum(jnp.maximum(parts[0], parts[1]), parts[2])
    return x


def each_image(function: Callable[..., Any], *batches: Any, whole: tuple[Any, ...] = ()) -> Any:
    """function(image, .., *whole) for each image of the batches [B, ..]; each device computes its own images.

    Like jax.vmap. But with several devices (jax.set_mesh around the tracing), the compiler does not have to
    split the function. For a top-k, or a loop whose length depends on the image, it would first gather the
    batch on all devices.
    """

    def batched(batches: Any, whole: Any) -> Any:
        return jax.vmap(lambda *image: function(*image, *whole))(*batches)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size > 1:
        split = PartitionSpec(mesh.axis_names)
        batched = jax.shard_map(batched, in_specs=(split, PartitionSpec()), out_specs=split, check_vma=False)
    return batched(batches, whole)
