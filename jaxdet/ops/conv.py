"""Two-dimensional convolution, in the form that is fastest on the platform.

XLA's CPU convolutions are slow where a ResNet needs them most: 1x1 kernels, and the filter gradients of wide layers. There
both are written as matrix products. Every other platform gets the plain convolution in all three directions.
"""

import functools

import jax
import jax.numpy as jnp

# Input x output channels from which one matrix product per tap beats XLA's filter gradient; narrower products, and the
# copies of shifted inputs they need, cost more than they save. Measured on two AVX-512 cores.
WIDE = 64 * 128


def conv2d(x, kernel, stride=1, padding=None):
    """Convolution of a batch of feature maps.

    x [B, H, W, I], kernel [kh, kw, I, O], stride the same along both axes, padding = zeros added on every side, half the
    kernel size when None -> [B, H', W', O] in the type of x (the kernel is converted to it), summed in float32.
    H' = (H + 2 padding - kh) // stride + 1, as in PyTorch's Conv2d.
    """
    kh, kw = kernel.shape[:2]
    pads = ((kh // 2,) * 2, (kw // 2,) * 2) if padding is None else ((padding,) * 2,) * 2
    return _conv(stride, pads, x, kernel.astype(x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv(stride, pads, x, kernel):
    if _is_pointwise(kernel.shape, pads):
        product = functools.partial(_pointwise, stride)
        return jax.lax.platform_dependent(
            x, kernel, cpu=product, default=functools.partial(_plain, stride, pads)
        )
    return _plain(stride, pads, x, kernel)


def _forward(stride, pads, x, kernel):
    return _conv(stride, pads, x, kernel), (x, kernel)


def _backward(stride, pads, residuals, cotangent):
    x, kernel = residuals
    return (
        _input_gradient(stride, pads, x, kernel, cotangent),
        _filter_gradient(stride, pads, x, kernel, cotangent),
    )


_conv.defvjp(_forward, _backward)


def _is_pointwise(kernel_shape, pads):
    return kernel_shape[:2] == (1, 1) and pads == ((0, 0), (0, 0))


def _plain(stride, pads, x, kernel):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=dimensions)


def _pointwise(stride, x, kernel):
    product = jnp.matmul(x[:, ::stride, ::stride], kernel[0, 0], preferred_element_type=jnp.float32)
    return product.astype(x.dtype)


def _input_gradient(stride, pads, x, kernel, cotangent):
    def plain(kernel, cotangent):
        return jax.linear_transpose(lambda x: _plain(stride, pads, x, kernel), x)(cotangent)[0]

    def product(kernel, cotangent):
        gradient = jnp.matmul(cotangent, kernel[0, 0].T, preferred_element_type=jnp.float32).astype(x.dtype)
        spread = [
            (0, size - (count - 1) * stride - 1, stride - 1)
            for size, count in zip(x.shape[1:3], cotangent.shape[1:3], strict=True)
        ]
        return jax.lax.pad(gradient, jnp.zeros((), x.dtype), ((0, 0, 0), *spread, (0, 0, 0)))

    if _is_pointwise(kernel.shape, pads):
        return jax.lax.platform_dependent(kernel, cotangent, cpu=product, default=plain)
    return plain(kernel, cotangent)


def _filter_gradient(stride, pads, x, kernel, cotangent):
    kh, kw, inputs, outputs = kernel.shape
    height, width = cotangent.shape[1:3]

    def plain(x, cotangent):
        return jax.linear_transpose(lambda kernel: _plain(stride, pads, x, kernel), kernel)(cotangent)[0]

    def products(x, cotangent):
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        rows = cotangent.reshape(-1, outputs)

        def tap(i, j):
            last_i, last_j = i + (height - 1) * stride + 1, j + (width - 1) * stride + 1
            shifted = x[:, i:last_i:stride, j:last_j:stride].reshape(-1, inputs)
            return jnp.matmul(shifted.T, rows, preferred_element_type=jnp.float32)

        taps = jnp.stack([tap(i, j) for i in range(kh) for j in range(kw)])
        return taps.reshape(kernel.shape).astype(kernel.dtype)

    if _is_pointwise(kernel.shape, pads) or inputs * outputs >= WIDE:
        return jax.lax.platform_dependent(x, cotangent, cpu=products, default=plain)
    return plain(x, cotangent)
