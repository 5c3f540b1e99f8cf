"""Two-dimensional convolution with PyTorch's symmetric padding."""

import jax


def conv2d(x, kernel, stride=1, padding=None):
    """Convolution of a batch of feature maps.

    x [B, H, W, I], kernel [kh, kw, I, O], stride the same each way, padding = zeros added to every side, kernel // 2 by
    default -> [B, H', W', O] in the type of x, accumulated in float32.
    """
    kh, kw = kernel.shape[:2]
    pad = ((kh // 2, kh // 2), (kw // 2, kw // 2)) if padding is None else ((padding, padding),) * 2
    kernel = kernel.astype(x.dtype)
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=dimensions)
