import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from jaxdet.models.faster_rcnn import frozen_parameters
from jaxdet.models.layers import NORMS
from jaxdet.models.resnet import ResNet
from jaxdet.training.validation import remat_options
from tests.models import tiny

# Parameters of the published classifiers (18: 11,689,512, ..), less their last dense layer
PARAMETERS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160}


def shapes_of(resnet, height, width):
    x = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    return jax.eval_shape(resnet.init_with_output, jax.random.key(0), x)


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_shapes_and_size(depth):
    features, variables = shapes_of(ResNet(depth, "group_norm", 0), 224, 319)
    channels = [64, 128, 256, 512] if depth < 50 else [256, 512, 1024, 2048]
    sizes = [(56, 80), (28, 40), (14, 20), (7, 10)]  # half the size, rounded up, at every step
    assert [x.shape for x in features] == [(2, *size, c) for size, c in zip(sizes, channels, strict=True)]
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == PARAMETERS[depth]


@pytest.mark.parametrize("norm", NORMS)
def test_where_the_norms_keep_their_values(norm):
    _, variables = shapes_of(ResNet(50, norm, 0, width=8), 64, 64)
    collections = {
        "frozen_batch_norm": {"params", "constants"},
        "batch_norm": {"params", "batch_stats"},
        "group_norm": {"params"},
    }
    assert set(variables) == collections[norm]
    inside = [path for path in flatten_dict(variables["params"]) if norm in path]
    assert bool(inside) == (norm != "frozen_batch_norm")


def test_unknown_depth_is_named():
    with pytest.raises(ValueError, match=r"depth is 20.*18, 34, 50, 101"):
        shapes_of(ResNet(20, "group_norm", 0), 64, 64)


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_which_convolution_has_the_stride(stride_in_1x1):
    sizes = {}

    def keep(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.module.name in ("conv1", "conv2"):
            sizes[context.module.path] = out.shape[1:3]
        return out

    with nn.intercept_methods(keep):
        shapes_of(ResNet(50, "group_norm", 0, width=8, stride_in_1x1=stride_in_1x1), 64, 64)
    assert sizes["stage3_block0", "conv1"] == ((8, 8) if stride_in_1x1 else (16, 16))
    assert sizes["stage3_block0", "conv2"] == sizes["stage3_block1", "conv1"] == (8, 8)
    assert sizes["stage2_block0", "conv1"] == (16, 16)


@pytest.mark.parametrize("freeze_at", [3, 5])
def test_no_gradient_below_freeze_at(freeze_at):
    resnet = ResNet(18, "group_norm", freeze_at, width=8)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 32, 32, 3)).astype(np.float32)
    shapes = jax.eval_shape(resnet.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape).astype(np.float32), shapes)

    def total(params):
        return sum(jnp.sum(jnp.sin(c)) for c in resnet.apply({"params": params}, x))

    gradient = {"resnet": tiny.jit(jax.grad(total))(params)}
    zero = flatten_dict(jax.tree.map(lambda g: not np.any(g), gradient))
    frozen = flatten_dict(frozen_parameters(gradient, freeze_at))
    assert frozen == zero
    stages = [stage for stage in range(2, 6) if frozen["resnet", f"stage{stage}_block0", "conv1", "kernel"]]
    assert frozen["resnet", "stem_conv", "kernel"] and stages == list(range(2, freeze_at + 1))


@pytest.mark.parametrize("freeze_at", range(6))
def test_frozen_parameters(freeze_at):
    params = shapes_of(ResNet(18, "group_norm", 0, width=8), 64, 64)[1]["params"]
    params = {"resnet": params, "pyramid": {"lateral2": {"kernel": 0}}, "rpn_head": {"stem_conv": 0}}
    for path, frozen in flatten_dict(frozen_parameters(params, freeze_at)).items():
        lowest = ["stem", "stage2", "stage3", "stage4", "stage5"][:freeze_at]
        assert frozen == (path[0] == "resnet" and path[1].startswith(tuple(lowest))), path


def test_frozen_stages_keep_their_batch_statistics():
    resnet = ResNet(18, "batch_norm", 3, width=8)
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    shapes = jax.eval_shape(resnet.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda s: np.full(s.shape, 0.1, np.float32), shapes)
    apply = functools.partial(resnet.apply, mutable=["batch_stats"])
    (features, updated), frozen = tiny.jit(lambda v: (apply(v, x), resnet.apply(v, x)[:2]))(variables)
    for path, before in flatten_dict(variables["batch_stats"]).items():
        after = flatten_dict(updated["batch_stats"])[path]
        assert np.array_equal(before, after) == path[0].startswith(("stem", "stage2", "stage3")), path
    for training, inference in zip(features[:2], frozen, strict=True):
        np.testing.assert_array_equal(training, inference)


def test_rematerialised_stages_give_the_same_with_less_memory():
    """Values, statistics and gradients; parameters and their names do not depend on it."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 64, 64, 3), np.float32)
    options = remat_options(ConfigDict({"model": {"backbone": {"remat": (2,)}}}))
    found = []
    for remat in ((), (2, 3, 4, 5)):
        resnet = ResNet(18, "batch_norm", 1, width=16, remat=remat)
        shapes = jax.eval_shape(resnet.init, jax.random.key(0), x)
        if not found:
            variables = jax.tree.map(lambda leaf: 0.2 + 0.1 * rng.random(leaf.shape, np.float32), shapes)
        jax.tree.map(lambda leaf, shape: np.testing.assert_equal(leaf.shape, shape.shape), variables, shapes)

        def loss(params, resnet=resnet, variables=variables):
            features, new = resnet.apply(variables | {"params": params}, x, mutable=["batch_stats"])
            return sum(jnp.sum(jnp.sin(feature)) for feature in features), new

        step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(variables["params"])
        compiled = step.compile(options)
        found.append((compiled.memory_analysis().temp_size_in_bytes, compiled(variables["params"])))
    (more, kept), (less, computed_again) = found
    assert less < 0.75 * more
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), kept, computed_again)
