"""conv2d against a loop over taps in float64 and against lax's convolution, in all three directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import conv as module
from jaxdet.ops.conv import conv2d

# x [B, H, W, I], kernel [kh, kw, I, O], stride, padding: each kind that the detector has, and unusual ones.
CASES = {
    "3x3": ((2, 9, 8, 5), (3, 3, 5, 6), 1, None),
    "3x3, in strips": ((2, 41, 101, 16), (3, 3, 16, 16), 1, None),
    "3x3, no padding": ((1, 101, 33, 2), (3, 3, 2, 3), 1, 0),
    "5x3": ((2, 70, 41, 2), (5, 3, 2, 3), 1, None),
    "3x3 wide": ((2, 6, 7, 64), (3, 3, 64, 128), 1, None),
    "3x3 wide, stride 2": ((1, 9, 12, 128), (3, 3, 128, 128), 2, None),
    "3x3 wide, stride 2, even": ((2, 8, 6, 96), (3, 3, 96, 96), 2, None),
    "3x3 windows": ((7, 3, 3, 5), (3, 3, 5, 6), 1, 0),
    "1x1": ((2, 5, 7, 12), (1, 1, 12, 9), 1, None),
    "1x1, stride 2, odd": ((2, 9, 7, 12), (1, 1, 12, 20), 2, None),
    "1x1, stride 2, even": ((2, 8, 6, 12), (1, 1, 12, 20), 2, None),
    "1x1, one cell": ((1, 1, 1, 4), (1, 1, 4, 3), 2, None),
    "7x7 stem": ((2, 17, 22, 3), (7, 7, 3, 8), 2, None),
    "3x3, the whole map": ((6, 3, 3, 8), (3, 3, 8, 5), 1, 0),
    "no padding": ((1, 7, 9, 4), (3, 3, 4, 4), 1, 0),
    "wide, no padding, stride 3": ((1, 11, 10, 64), (3, 3, 64, 128), 3, 0),
    "1x1, padded": ((2, 4, 5, 3), (1, 1, 3, 4), 1, 1),
    "oblong": ((1, 8, 9, 64), (3, 1, 64, 128), 2, None),
}


@pytest.fixture(autouse=True)
def strips_of_narrow_layers(monkeypatch):
    """Strips for narrower layers than in training, since a wide one takes seconds in bfloat16."""
    monkeypatch.setattr(module, "WIDE", 16 * 16)


def draw(case):
    shape, kernel_shape, stride, padding = CASES[case]
    generator = np.random.default_rng(sorted(CASES).index(case))
    x = generator.standard_normal(shape).astype(np.float32)
    kernel = generator.standard_normal(kernel_shape).astype(np.float32) / np.sqrt(np.prod(kernel_shape[:3]))
    return x, kernel.astype(np.float32), stride, padding


def pads_of(kernel, padding):
    return [(kernel.shape[i] // 2 if padding is None else padding,) * 2 for i in (0, 1)]


def oracle(x, kernel, stride, padding, cotangent=None):
    """The output, or with a cotangent the gradients of x and of the kernel, one tap at a time."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    pads = pads_of(kernel, padding)
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = ((padded.shape[i + 1] - kernel.shape[i]) // stride + 1 for i in (0, 1))
    output = np.zeros((len(x), height, width, kernel.shape[3]))
    padded_gradient, kernel_gradient = np.zeros_like(padded), np.zeros_like(kernel)
    for i, j in np.ndindex(kernel.shape[:2]):
        cells = np.s_[:, i : i + (height - 1) * stride + 1 : stride, j : j + (width - 1) * stride + 1 : stride]
        output += padded[cells] @ kernel[i, j]
        if cotangent is not None:
            padded_gradient[cells] += cotangent @ kernel[i, j].T
            kernel_gradient[i, j] = np.tensordot(padded[cells], cotangent, ((0, 1, 2), (0, 1, 2)))
    if cotangent is None:
        return output
    (top, _), (left, _) = pads
    gradient = padded_gradient[:, top : top + x.shape[1], left : left + x.shape[2]]
    return gradient, kernel_gradient


def lax_conv(x, kernel, stride, padding):
    dimensions = ("NHWC", "HWIO", "NHWC")
    pads = pads_of(kernel, padding)
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=dimensions)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def value_and_gradients(convolution, x, kernel, cotangent, stride, padding):
    value, pullback = jax.vjp(lambda x, kernel: convolution(x, kernel, stride, padding), x, kernel)
    return value, *pullback(cotangent)


def cotangent_like(value, dtype=np.float32):
    return np.random.default_rng(99).standard_normal(value.shape).astype(dtype)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_loop_over_taps_and_lax(case):
    x, kernel, stride, padding = draw(case)
    expected = oracle(x, kernel, stride, padding)
    cotangent = cotangent_like(expected)
    arguments = x, kernel, cotangent, stride, padding
    exact = (expected, *oracle(x, kernel, stride, padding, cotangent))
    ours, plain = value_and_gradients(conv2d, *arguments), value_and_gradients(lax_conv, *arguments)
    for actual, reference, wanted in zip(ours, plain, exact, strict=True):
        assert actual.shape == reference.shape and actual.dtype == reference.dtype
        largest = np.abs(wanted).max()
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=3e-6 * largest)
        np.testing.assert_allclose(actual, reference, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize(
    "case", ["3x3", "3x3, in strips", "3x3 wide, stride 2, even", "3x3 windows", "1x1, stride 2, odd"]
)
def test_bfloat16_is_summed_in_float32(case):
    x, kernel, stride, padding = draw(case)
    x, kernel = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16)
    cotangent = jnp.asarray(cotangent_like(oracle(x, kernel, stride, padding)), jnp.bfloat16)
    actual = value_and_gradients(conv2d, x, kernel, cotangent, stride, padding)
    exact = (oracle(x, kernel, stride, padding), *oracle(x, kernel, stride, padding, np.asarray(cotangent, float)))
    for array, wanted in zip(actual, exact, strict=True):
        assert array.dtype == jnp.bfloat16
        # Half a unit in the last of eight bits: rounded once, at the end.
        np.testing.assert_allclose(np.asarray(array, float), wanted, rtol=2**-8, atol=3e-6 * np.abs(wanted).max())


def test_the_kernel_takes_the_type_of_x_and_its_gradient_keeps_its_own():
    x, kernel, _, _ = draw("3x3")
    x = jnp.asarray(x, jnp.bfloat16)
    assert conv2d(x, kernel).dtype == jnp.bfloat16
    gradient = jax.jit(jax.grad(lambda kernel: conv2d(x, kernel).astype(jnp.float32).sum()))(kernel)
    assert gradient.dtype == jnp.float32


@pytest.mark.parametrize("case", ["3x3", "1x1, stride 2, even"])
def test_under_vmap_and_checkpoint(case):
    x, kernel, stride, padding = draw(case)
    images, kernels = np.stack([x, 2 * x, x[::-1]]), np.stack([kernel, -kernel, kernel + 0.1])
    cotangent = cotangent_like(oracle(x, kernel, stride, padding))

    def one(x, kernel):
        convolution = jax.checkpoint(lambda x, kernel: conv2d(x, kernel, stride, padding))
        value, pullback = jax.vjp(convolution, x, kernel)
        return value, *pullback(cotangent)

    shared = jax.jit(jax.vmap(one, (0, None)))(images, kernel)
    own = jax.jit(jax.vmap(one))(images, kernels)
    for i in range(3):
        expected = value_and_gradients(lax_conv, images[i], kernel, cotangent, stride, padding)
        expected_own = value_and_gradients(lax_conv, images[i], kernels[i], cotangent, stride, padding)
        for actual, wanted in zip((*shared, *own), (*expected, *expected_own), strict=True):
            np.testing.assert_allclose(actual[i], wanted, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("strip_cells", [1, 100, 701, 10_000])
@pytest.mark.parametrize("case", ["3x3", "3x3, no padding", "5x3"])
def test_strips_of_any_size_add_up(monkeypatch, case, strip_cells):
    x, kernel, _, padding = draw(case)
    cotangent = cotangent_like(oracle(x, kernel, 1, padding))
    monkeypatch.setattr(module, "STRIP", strip_cells)
    pads = tuple(pads_of(kernel, padding))
    gradient = module._strips_filter_gradient(pads, kernel.shape, jnp.asarray(x), jnp.asarray(cotangent))
    wanted = oracle(x, kernel, 1, padding, cotangent)[1]
    np.testing.assert_allclose(gradient, wanted, rtol=0, atol=3e-6 * np.abs(wanted).max())


def test_every_image_counts_in_a_large_batch():
    x, cotangent = jnp.ones((40, 2, 2, 1)), jnp.ones((40, 2, 2, 1))
    gradient = module._strips_filter_gradient(((1, 1), (1, 1)), (3, 3, 1, 1), x, cotangent)
    np.testing.assert_array_equal(gradient[..., 0, 0], 40 * np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]))


@pytest.mark.parametrize(("case", "convolutions", "products"), [("3x3, in strips", 6, 0), ("1x1", 0, 3)])
def test_other_platforms_get_the_plain_convolution(case, convolutions, products):
    x, kernel, stride, padding = draw(case)

    def loss(x, kernel):
        return (conv2d(x, kernel, stride, padding) ** 2).sum()

    def lowered(platforms):
        exported = jax.export.export(jax.jit(jax.grad(loss, (0, 1))), platforms=platforms)
        return exported(x, kernel).mlir_module()

    def count(platform):
        text = lowered([platform])
        return text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")

    assert count("cpu") == (convolutions, products)
    assert count("cuda") == count("tpu") == (3, 0)
    lowered(["cpu", "cuda", "tpu"])
