"""Two-dimensional convolution, in the form that is fastest on the platform.

XLA's CPU convolutions are slow where a ResNet needs them most: in 1x1 kernels, which become matrix products there, and in
filter gradients, which are summed over strips of one image. Every other platform gets the plain convolution.
"""

import functools

import jax
import jax.numpy as jnp

# Cells of the output that one filter gradient sums on a CPU: XLA's slows down, up to threefold, as the sum gets longer.
STRIP = 2600


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


def _plain_filter_gradient(stride, pads, x, kernel, cotangent):
    return jax.linear_transpose(lambda kernel: _plain(stride, pads, x, kernel), kernel)(cotangent)[0]


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
    inputs, outputs = kernel.shape[2:]

    def plain(x, cotangent):
        return _plain_filter_gradient(stride, pads, x, kernel, cotangent)

    def product(x, cotangent):
        cells, cotangents = x[:, ::stride, ::stride].reshape(-1, inputs), cotangent.reshape(-1, outputs)
        gradient = jnp.matmul(cells.T, cotangents, preferred_element_type=jnp.float32)
        return gradient.reshape(kernel.shape).astype(kernel.dtype)

    def strips(x, cotangent):
        x, cotangent = x.astype(jnp.float32), cotangent.astype(jnp.float32)
        gradient = _filter_gradient_in_strips(pads, x, kernel.astype(jnp.float32), cotangent)
        return gradient.astype(kernel.dtype)

    if _is_pointwise(kernel.shape, pads):
        return jax.lax.platform_dependent(x, cotangent, cpu=product, default=plain)
    if stride == 1:
        return jax.lax.platform_dependent(x, cotangent, cpu=strips, default=plain)
    return plain(x, cotangent)


def _filter_gradient_in_strips(pads, x, kernel, cotangent):
    """The filter gradient at stride 1 as a sum of those of strips of rows, STRIP cells or less of one image each."""
    kernel_rows = kernel.shape[0]
    images, height, width = cotangent.shape[:3]
    strips = -(-height * width // STRIP)
    rows = -(-height // strips)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    total = jnp.zeros(kernel.shape, jnp.float32)
    for image in range(images):
        for top in range(0, height, rows):
            strip = cotangent[image : image + 1, top : top + rows]
            seen = x[image : image + 1, top : top + strip.shape[1] + kernel_rows - 1]
            total += _plain_filter_gradient(1, ((0, 0), (0, 0)), seen, kernel, strip)
    return total
