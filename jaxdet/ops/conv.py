"""Two-dimensional convolution, in the form that is fastest on the platform.

XLA's CPU convolutions are slow in two cases that a ResNet needs most: 1x1 kernels, which become matrix
products here, and filter gradients of wide layers, which are summed over strips. Other platforms get the
plain convolution.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdet.ops.types import AnyArray

# On a CPU, XLA's filter gradient gets up to three times slower as the sum over output cells gets longer.
# For wide layers with long sums, several shorter sums pay off despite the longer compilation.
LONG = 8000  # cells
WIDE = 128 * 128  # input x output channels
STRIP = 2600  # cells
MOST_STRIPS = 32  # of one batch

Pads = tuple[tuple[int, int], tuple[int, int]]
Maps = Float[Array, "B H W I"]
Outputs = Float[Array, "B H2 W2 O"]
Kernel = Float[Array, "kh kw I O"]


def conv2d(
    x: Float[AnyArray, "B H W I"], kernel: Float[AnyArray, "kh kw I O"], stride: int = 1, padding: int | None = None
) -> Outputs:
    """Convolution of a batch of feature maps.

    x [B, H, W, I], kernel [kh, kw, I, O]. stride: the same along both axes. padding: zeros added on each
    side; None means half the kernel size. Returns [B, H', W', O] in the type of x, summed in float32; the
    kernel is converted to the type of x. H' = (H + 2 padding - kh) // stride + 1, as in PyTorch's Conv2d.
    Differentiable once.
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    kh, kw = kernel.shape[:2]
    if padding == 0 and x.shape[1:3] == (kh, kw):
        return _matmul(x.reshape(len(x), -1), kernel.astype(x.dtype).reshape(-1, kernel.shape[3]))[:, None, None]
    pads = ((kh // 2,) * 2, (kw // 2,) * 2) if padding is None else ((padding,) * 2,) * 2
    return _conv(stride, pads, x, kernel.astype(x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv(stride: int, pads: Pads, x: Maps, kernel: Kernel) -> Outputs:
    plain = functools.partial(_plain, stride, pads)
    if _is_pointwise(kernel, pads):
        return jax.lax.platform_dependent(x, kernel, cpu=functools.partial(_product, stride), default=plain)
    return plain(x, kernel)


def _forward(stride: int, pads: Pads, x: Maps, kernel: Kernel) -> tuple[Outputs, tuple[Maps, Kernel]]:
    return _conv(stride, pads, x, kernel), (x, kernel)


def _backward(stride: int, pads: Pads, residuals: tuple[Maps, Kernel], cotangent: Outputs) -> tuple[Maps, Kernel]:
    x, kernel = residuals
    plain_input = functools.partial(_plain_input_gradient, stride, pads, x.shape)
    plain_filter = functools.partial(_plain_filter_gradient, stride, pads, kernel.shape)
    on_cpu_input, on_cpu_filter = plain_input, plain_filter
    if _is_pointwise(kernel, pads):
        on_cpu_input = functools.partial(_product_input_gradient, stride, x.shape)
        on_cpu_filter = functools.partial(_product_filter_gradient, stride)
    elif stride == 1 and math.prod(x.shape[:3]) >= LONG and math.prod(kernel.shape[2:]) >= WIDE and _one_device():
        on_cpu_filter = functools.partial(_strips_filter_gradient, pads, kernel.shape)
    return (
        jax.lax.platform_dependent(kernel, cotangent, cpu=on_cpu_input, default=plain_input),
        jax.lax.platform_dependent(x, cotangent, cpu=on_cpu_filter, default=plain_filter),
    )


_conv.defvjp(_forward, _backward)


def _is_pointwise(kernel: Kernel, pads: Pads) -> bool:
    return kernel.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0))


def _one_device() -> bool:
    return jax.sharding.get_abstract_mesh().size <= 1  # else strips would move between devices


# --- The plain convolution and its two gradients ---


def _plain(stride: int, pads: Pads, x: Maps, kernel: Kernel) -> Outputs:
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=dimensions)


def _plain_input_gradient(
    stride: int, pads: Pads, x_shape: tuple[int, ...], kernel: Kernel, cotangent: Outputs
) -> Maps:
    x = jax.ShapeDtypeStruct(x_shape, cotangent.dtype)
    return jax.linear_transpose(lambda x: _plain(stride, pads, x, kernel), x)(cotangent)[0]


def _plain_filter_gradient(
    stride: int, pads: Pads, kernel_shape: tuple[int, ...], x: Maps, cotangent: Outputs
) -> Kernel:
    kernel = jax.ShapeDtypeStruct(kernel_shape, cotangent.dtype)
    return jax.linear_transpose(lambda kernel: _plain(stride, pads, x, kernel), kernel)(cotangent)[0]


# --- A kernel of one cell: matrix products ---


def _matmul(a: Float[Array, "*B I"], b: Float[Array, "I O"]) -> Float[Array, "*B O"]:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(a.dtype)


def _product(stride: int, x: Maps, kernel: Kernel) -> Outputs:
    return _matmul(x[:, ::stride, ::stride], kernel[0, 0])


def _product_input_gradient(stride: int, x_shape: tuple[int, ...], kernel: Kernel, cotangent: Outputs) -> Maps:
    gradient = _matmul(cotangent, kernel[0, 0].T)
    rows, columns = ((0, x_shape[axis] - (cotangent.shape[axis] - 1) * stride - 1, stride - 1) for axis in (1, 2))
    return jax.lax.pad(gradient, jnp.zeros((), gradient.dtype), ((0, 0, 0), rows, columns, (0, 0, 0)))


def _product_filter_gradient(stride: int, x: Maps, cotangent: Outputs) -> Kernel:
    cells = x[:, ::stride, ::stride].reshape(-1, x.shape[-1])
    return _matmul(cells.T, cotangent.reshape(-1, cotangent.shape[-1]))[None, None]


# --- A larger kernel at stride 1: the filter gradient in strips ---


def _strips_filter_gradient(pads: Pads, kernel_shape: tuple[int, ...], x: Maps, cotangent: Outputs) -> Kernel:
    """Sum of the filter gradients of strips of rows, each strip from one image."""
    images, height, width = cotangent.shape[:3]
    strips = min(-(-height * width // STRIP), max(1, MOST_STRIPS // images))
    rows = -(-height // strips)
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), *pads, (0, 0)))
    total = jnp.zeros(kernel_shape, jnp.float32)
    for image in range(images):
        for top in range(0, height, rows):
            strip = cotangent[image : image + 1, top : top + rows].astype(jnp.float32)
            seen = x[image : image + 1, top : top + strip.shape[1] + kernel_shape[0] - 1]
            total += _plain_filter_gradient(1, ((0, 0), (0, 0)), kernel_shape, seen, strip)
    return total.astype(cotangent.dtype)
