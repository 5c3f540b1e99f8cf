import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.layers import Conv, FrozenBatchNorm, Norm, max_pool
from tests.models import tiny


@pytest.mark.parametrize("shape", [(1, 7, 10, 3), (2, 8, 5, 1), (1, 1, 2, 2)])
def test_max_pool(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32) - 3  # below the padding's zero
    expected = np.empty((shape[0], -(-shape[1] // 2), -(-shape[2] // 2), shape[3]), np.float32)
    for i in range(expected.shape[1]):
        for j in range(expected.shape[2]):
            window = x[:, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2]
            expected[:, i, j] = window.max((1, 2))
    np.testing.assert_array_equal(tiny.jit(max_pool)(x), expected)


def test_gradient_of_max_pool_goes_to_the_largest():
    x = np.random.default_rng(1).permutation(35).reshape(1, 5, 7, 1).astype(np.float32)
    weight = np.arange(1.0, 13).reshape(1, 3, 4, 1)
    gradient = tiny.jit(jax.grad(lambda x: (max_pool(x) * weight).sum()))(x)
    expected = np.zeros_like(x)
    for i in range(3):
        for j in range(4):
            window = np.s_[0, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2, 0]
            expected[window][x[window] == x[window].max()] += 4 * i + j + 1
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize(("size", "stride"), [(1, 2), (3, 1), (3, 2), (7, 2)])
def test_conv_is_padded_on_both_sides_alike(size, stride):
    x = np.random.default_rng(0).standard_normal((1, 9, 10, 2)).astype(np.float32)
    conv = Conv(3, size, stride)
    variables = conv.init(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["kernel"])
    padded = np.pad(x, [(0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)])
    expected = [
        [
            np.tensordot(padded[0, i : i + size, j : j + size], kernel, 3)
            for j in range(0, padded.shape[2] - size + 1, stride)
        ]
        for i in range(0, padded.shape[1] - size + 1, stride)
    ]
    np.testing.assert_allclose(tiny.jit(conv.apply)(variables, x)[0], expected, atol=1e-5)


def test_frozen_batch_norm_is_made_of_constants():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    scale, bias, mean, var = rng.uniform(0.5, 2, (4, 5)).astype(np.float32)
    constants = {"scale": scale, "bias": bias, "mean": mean, "var": var}
    norm = FrozenBatchNorm(1e-5)
    assert set(norm.init(jax.random.key(0), x)) == {"constants"}
    expected = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(norm.apply({"constants": constants}, x), expected, atol=1e-5)


def test_batch_norm_uses_the_batch_only_where_it_may_update():
    x = 3 + 2 * np.random.default_rng(0).standard_normal((4, 6, 5, 2)).astype(np.float32)
    norm = Norm("batch_norm")
    variables = norm.init(jax.random.key(0), x)
    start = variables["batch_stats"]["batch_norm"]
    assert start["mean"].tolist() == [0, 0] and start["var"].tolist() == [1, 1]
    np.testing.assert_allclose(norm.apply(variables, x), x / np.sqrt(1 + 1e-5), rtol=1e-5)

    y, updated = norm.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(np.mean(y, (0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(y, (0, 1, 2)), 1, atol=1e-4)
    statistics = updated["batch_stats"]["batch_norm"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * x.var((0, 1, 2)), rtol=1e-4)


def test_group_norm_is_of_each_image_alone():
    x = np.random.default_rng(0).standard_normal((2, 6, 5, 8)).astype(np.float32)
    norm = Norm("group_norm")
    variables = norm.init(jax.random.key(0), x)
    both, alone = tiny.jit(lambda x: (norm.apply(variables, x), norm.apply(variables, x[1:])))(x)
    np.testing.assert_allclose(both[1:], alone, atol=1e-6)
    groups = np.reshape(both, (2, 30, 4, 2))
    np.testing.assert_allclose(groups.mean((1, 3)), 0, atol=1e-5)


@pytest.mark.parametrize("channels", [8, 16, 24, 48, 64, 96, 256])
def test_group_norm_takes_any_even_number_of_channels(channels):
    shapes = jax.eval_shape(Norm("group_norm").init, jax.random.key(0), jnp.zeros((1, 2, 2, channels)))
    assert shapes["params"]["group_norm"]["scale"].shape == (channels,)


def test_unknown_norm_is_named():
    with pytest.raises(ValueError, match=r"layer_norm.*group_norm"):
        jax.eval_shape(Norm("layer_norm").init, jax.random.key(0), jnp.zeros((1, 2, 2, 4)))
