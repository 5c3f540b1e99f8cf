import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.models.fpn import FPN, upsample
from jaxdet.models.layers import Norm
from tests.models import tiny


def features(channels=(3, 4, 5, 6)):
    rng = np.random.default_rng(0)
    sizes = [(13, 18), (7, 9), (4, 5), (2, 3)]  # odd ones, as 49 x 71 pixels give
    return [rng.standard_normal((2, *size, c)).astype(np.float32) for size, c in zip(sizes, channels, strict=True)]


def convolve(x, kernel, bias):
    pad = kernel.shape[0] // 2
    x = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    height, width = x.shape[1] - 2 * pad, x.shape[2] - 2 * pad
    taps = [
        x[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    return sum(taps) + bias


def test_pyramid_against_plain_numpy():
    fpn, maps = FPN(4), features()
    params = jax.tree.map(
        lambda s: np.random.default_rng(s.size).standard_normal(s.shape).astype(np.float32),
        jax.eval_shape(fpn.init, jax.random.key(0), maps)["params"],
    )
    result = tiny.jit(fpn.apply)({"params": params}, maps)
    inner = None
    for level in (5, 4, 3, 2):
        lateral = convolve(maps[level - 2], **params[f"lateral{level}"])
        if inner is not None:
            rows, columns = np.arange(lateral.shape[1]) // 2, np.arange(lateral.shape[2]) // 2
            lateral = lateral + inner[:, rows][:, :, columns]
        inner = lateral
        expected = convolve(inner, **params[f"output{level}"])
        np.testing.assert_allclose(result[level - 2], expected, rtol=1e-4, atol=1e-4)
    assert len(result) == 5 and result[4].shape == (2, 1, 2, 4)
    np.testing.assert_array_equal(result[4], result[3][:, ::2, ::2])


def test_upsample_repeats_and_cuts():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(
        upsample(x, (1, 3, 6, 1))[0, :, :, 0], [[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5]]
    )


def test_a_norm_takes_the_place_of_the_bias():
    params = jax.eval_shape(FPN(8, "group_norm").init, jax.random.key(0), features())["params"]
    assert "bias" not in params["lateral2"] and "bias" not in params["output5"]
    norm = jax.eval_shape(Norm("group_norm").init, jax.random.key(0), jnp.zeros((1, 2, 2, 8)))["params"]
    assert params["lateral2_norm"] == params["output5_norm"] == norm


def test_starts_as_caffe2s_xavier():
    maps = [jnp.zeros((1, 2, 2, 256))] * 4
    kernel = tiny.jit(lambda key: FPN(64).init(key, maps)["params"]["lateral3"]["kernel"])(jax.random.key(0))
    limit = np.sqrt(3 / 256)  # uniform with variance 1 / fan in
    assert 0.95 * limit < np.abs(kernel).max() <= limit
    np.testing.assert_allclose(np.std(kernel), np.sqrt(1 / 256), rtol=0.03)
