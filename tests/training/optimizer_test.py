import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from configs import person, person_small
from jaxdet.models import FasterRCNN
from jaxdet.training.optimizer import decayed, learning_rate, optimizer, peak_rate, update_average
from jaxdet.training.step import create_state


def config(steps=90_000, batch_size=16, **settings):
    config = person.get_config()
    config.train.update(steps=steps, batch_size=batch_size)
    config.optimizer.update(settings)
    return config


def rates(config, steps):
    schedule = learning_rate(config)
    return np.array([schedule(jnp.int32(step)) for step in steps])


def test_warmup_rises_in_a_line_from_the_factor_and_is_never_zero():
    steps = np.arange(12)
    expected = 0.02 * np.minimum(0.001 + 0.999 * steps / 8, 1)
    found = rates(config(warmup_steps=8), steps)
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert found[0] > 0


def test_without_warmup_the_first_rate_is_the_whole():
    np.testing.assert_allclose(rates(config(warmup_steps=0), [0, 1]), 0.02, rtol=1e-6)


def test_step_decay_begins_at_its_boundaries():
    found = rates(config(), [1000, 59_999, 60_000, 79_999, 80_000, 89_999])
    np.testing.assert_allclose(found, [0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002], rtol=1e-5)


def test_step_decay_within_warmup_multiplies():
    found = rates(config(warmup_steps=10, step_boundaries=(5,)), range(8))
    warmup = 0.001 + 0.999 * np.arange(8) / 10
    np.testing.assert_allclose(found, 0.02 * warmup * np.where(np.arange(8) < 5, 1, 0.1), rtol=2e-5)


def test_cosine_decay_ends_at_zero():
    steps = np.array([0, 1, 250, 500, 999, 1000])
    found = rates(config(steps=1000, schedule="cosine", warmup_steps=0), steps)
    np.testing.assert_allclose(found, 0.01 * (1 + np.cos(np.pi * steps / 1000)), rtol=1e-5, atol=1e-9)


def test_cosine_decay_with_warmup():
    found = rates(config(steps=100, schedule="cosine", warmup_steps=10), [5])
    np.testing.assert_allclose(found, 0.01 * (1 + np.cos(np.pi * 0.05)) * (0.001 + 0.999 / 2), rtol=1e-5)


@pytest.mark.parametrize(
    "batch_size, reference, expected", [(16, 16, 0.02), (4, 16, 0.005), (64, 16, 0.08), (4, 0, 0.02)]
)
def test_rate_scales_with_the_batch(batch_size, reference, expected):
    settings = config(batch_size=batch_size, reference_batch=reference, warmup_steps=0)
    assert peak_rate(settings) == pytest.approx(expected)
    np.testing.assert_allclose(rates(settings, [0]), expected, rtol=1e-6)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"optimizer\.schedule is 'linear'"):
        learning_rate(config(schedule="linear"))
    with pytest.raises(ValueError, match=r"optimizer\.name is 'lion'"):
        optimizer(config(name="lion"))


def draw(seed):
    rng = np.random.default_rng(seed)
    shapes = {"fc": {"kernel": (4, 3), "bias": (3,)}, "stem_norm": {"group_norm": {"scale": (4,)}}}
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )


def run(settings, gradients):
    update = optimizer(settings)
    params = jax.tree.map(jnp.asarray, draw(0))
    state = update.init(params)
    for gradient in gradients:
        change, state = update.update(gradient, state, params)
        params = optax.apply_updates(params, change)
    return flatten_dict(params, sep="/")


GRADIENTS = [draw(seed) for seed in range(1, 6)]
DECAYS = {"fc/kernel": 1, "fc/bias": 1, "stem_norm/group_norm/scale": 0}


def test_sgd_is_the_rule_of_torch():
    """torch.optim.SGD: decay joins the gradient, the sum joins the momentum, the rate multiplies last."""
    settings = config(warmup_steps=3, warmup_factor=0.1, weight_decay=0.05, learning_rate=0.3)
    found = run(settings, GRADIENTS)
    for name, p in flatten_dict(draw(0), sep="/").items():
        momentum = np.zeros_like(p)
        for step, gradient in enumerate(GRADIENTS):
            gradient = flatten_dict(gradient, sep="/")[name] + 0.05 * DECAYS[name] * p
            momentum = 0.9 * momentum + gradient
            p = p - 0.3 * min(0.1 + 0.9 * step / 3, 1) * momentum
        np.testing.assert_allclose(found[name], p, rtol=1e-5, atol=1e-6)


def test_adamw_decays_apart_from_the_gradient():
    settings = config(name="adamw", warmup_steps=0, weight_decay=0.05, learning_rate=0.01)
    found = run(settings, GRADIENTS)
    for name, p in flatten_dict(draw(0), sep="/").items():
        first, second = np.zeros_like(p), np.zeros_like(p)
        for step, gradient in enumerate(GRADIENTS, start=1):
            gradient = flatten_dict(gradient, sep="/")[name]
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            direction = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
            p = p - 0.01 * (direction + 0.05 * DECAYS[name] * p)
        np.testing.assert_allclose(found[name], p, rtol=1e-4, atol=1e-6)


def test_clipping_scales_the_whole_gradient_before_decay():
    settings = config(warmup_steps=0, clip_norm=0.5, weight_decay=0.05, learning_rate=0.3)
    found = run(settings, GRADIENTS[:1])
    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(GRADIENTS[0])))
    assert norm > 0.5
    for name, p in flatten_dict(draw(0), sep="/").items():
        gradient = flatten_dict(GRADIENTS[0], sep="/")[name] * 0.5 / norm
        np.testing.assert_allclose(found[name], p - 0.3 * (gradient + 0.05 * DECAYS[name] * p), rtol=1e-5)


def test_clipping_leaves_a_small_gradient_alone():
    plain, clipped = (run(config(warmup_steps=0, clip_norm=clip), GRADIENTS[:1]) for clip in (0.0, 1e6))
    for name, value in plain.items():
        np.testing.assert_array_equal(clipped[name], value)


def test_clipping_can_be_turned_on_and_off_on_the_way():
    shapes = [jax.tree.structure(optimizer(config(clip_norm=clip)).init(draw(0))) for clip in (0.0, 10.0)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("norm", ["group_norm", "batch_norm"])
def test_weight_decay_leaves_out_norms_and_nothing_else(norm):
    settings = person_small.get_config()
    settings.model.backbone.norm = settings.model.fpn.norm = settings.model.roi_head.conv_norm = norm
    settings.model.roi_head.num_convs = 1
    model = FasterRCNN(**settings.model)
    state = jax.eval_shape(lambda: create_state(model, optimizer(settings), settings))
    mask = flatten_dict(decayed(state.trainable))
    for path, decays in mask.items():
        assert decays == (norm not in path), path
        assert decays or path[-1] in ("scale", "bias")
        assert path[-1] != "kernel" or decays
    assert mask["box_head", "fc0", "bias"] and mask["rpn_head", "conv0", "bias"]  # as detectron2
    assert sum(not decays for decays in mask.values()) == 2 * (20 + 8 + 1)  # ResNet-18, FPN, head


def test_moving_average_of_the_parameters():
    average, params, expected = {"p": jnp.float32(1)}, [3.0, -2.0, 5.0], 1.0
    for step, value in enumerate(params):
        average = update_average(average, {"p": jnp.float32(value)}, 0.9, jnp.int32(step))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert float(average["p"]) == pytest.approx(expected, rel=1e-6)


def test_moving_average_reaches_its_decay():
    average = update_average({"p": jnp.float32(0)}, {"p": jnp.float32(1)}, 0.9, jnp.int32(10**6))
    assert float(average["p"]) == pytest.approx(0.1, rel=1e-5)
