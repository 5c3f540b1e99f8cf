import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import person
from jaxdet.models import FasterRCNN
from jaxdet.training.optimizer import optimizer
from jaxdet.training.step import create_state, train_step
from tests import tiny


class Backbone(nn.Module):
    """A frozen scale for each colour, and one that is trained."""

    def setup(self):
        self.stem_scale = self.param("stem_scale", nn.initializers.ones, (3,))
        self.stage5_scale = self.param("stage5_scale", nn.initializers.ones, (3,))

    def __call__(self, x):
        return jax.lax.stop_gradient(x * self.stem_scale) * self.stage5_scale


class Line(nn.Module):
    """Stands in for the detector: a line through the mean colours, with the same methods, collections and noise.

    Its loss divides by the boxes of the batch it is given, as detection losses do.
    """

    def setup(self):
        self.resnet = Backbone()
        self.out = nn.Dense(1)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, (3,))

    def detect(self, images, image_sizes):
        return self.out(self.resnet(jnp.mean(images.astype(jnp.float32), (1, 2)) - self.mean.value))

    def losses(self, batch, key):
        x = jnp.mean(batch["images"].astype(jnp.float32), (1, 2))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["image_ids"])
        noise = jax.vmap(jax.random.normal)(keys)
        error = self.out(self.resnet(x))[:, 0] - batch["target"]
        if self.is_mutable_collection("batch_stats"):
            self.mean.value = 0.5 * self.mean.value + 0.5 * jnp.mean(x, 0)
        self.sow("metrics", "noise", jnp.sum(noise), reduce_fn=lambda _, new: new, init_fn=lambda: 0)
        boxes = jnp.sum(batch["gt_valid"])
        return {"fit": jnp.sum(error**2 * jnp.sum(batch["gt_valid"], 1)) / boxes, "shift": jnp.mean(error)}


def config(**settings):
    config = person.get_config()
    config.seed = settings.pop("seed", 0)
    config.model.backbone.freeze_at = 2
    config.train.accumulation = settings.pop("accumulation", 1)
    config.optimizer.update(dict(learning_rate=0.02, warmup_steps=4, reference_batch=0) | settings)
    return config


def make_batch(images=4, boxes=(1, 3, 2, 5), seed=0):
    rng = np.random.default_rng(seed)
    return {
        "images": rng.uniform(0, 1, (images, 2, 2, 3)).astype(np.float32),
        "target": rng.normal(size=images).astype(np.float32),
        "gt_valid": np.arange(6) < np.array(boxes[:images])[:, None],
        "image_ids": np.arange(images, dtype=np.int32) + 100 * seed,
    }


@functools.cache
def compiled(settings):
    """Config, first state and jitted step of `settings`, a tuple of (key, value)."""
    values = config(**dict(settings))
    update = optimizer(values)
    step = functools.partial(train_step, model=Line(), optimizer=update, config=values)
    return values, jax.jit(lambda: create_state(Line(), update, values))(), jax.jit(step)


class Trainer:
    def __init__(self, **settings):
        self.config, self.state, self.step = compiled(tuple(settings.items()))

    def __call__(self, *batches):
        for batch in batches:
            self.state, metrics = self.step(self.state, batch)
        return self.state, metrics


@jax.jit
def gradient_of(state, batch):
    """Gradient of the whole loss at a state, parameters that train only."""

    def loss(trainable):
        variables = state.replace(trainable=trainable).variables()
        collections = ["batch_stats", "metrics"]
        losses, _ = Line().apply(variables, batch, jax.random.key(0), method="losses", mutable=collections)
        return sum(losses.values())

    return jax.grad(loss)(state.trainable)


def descend(params, gradient, rate):
    return jax.tree.map(lambda p, g: p - rate * g, params, gradient)


def halves(batch):
    return [{name: value[part] for name, value in batch.items()} for part in (slice(0, 4, 2), slice(1, 4, 2))]


def assert_close(left, right, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **({"rtol": 1e-5, "atol": 1e-7} | tolerance)), left, right
    )


def test_frozen_parameters_have_no_gradient_no_optimiser_state_and_stay():
    trainer = Trainer(momentum=0.9, weight_decay=0.1)
    before = trainer.state
    assert list(before.frozen["resnet"]) == ["stem_scale"]
    assert list(before.trainable["resnet"]) == ["stage5_scale"]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(before.optimizer)]
    assert any("stage5_scale" in path for path in paths) and not any("stem_scale" in path for path in paths)
    after, _ = trainer(make_batch(), make_batch(seed=1))
    tiny.assert_equal_trees(after.frozen, before.frozen)
    assert not np.array_equal(after.trainable["resnet"]["stage5_scale"], before.trainable["resnet"]["stage5_scale"])


def test_the_logged_rate_is_the_one_that_moves_the_parameters():
    trainer = Trainer(momentum=0.0, weight_decay=0.0, warmup_factor=0.1)
    for step in range(6):
        before, batch = trainer.state, make_batch(seed=step)
        after, metrics = trainer(batch)
        expected = 0.02 * min(0.1 + 0.9 * step / 4, 1)
        assert float(metrics["learning_rate"]) == pytest.approx(expected, rel=1e-5)
        assert_close(after.trainable, descend(before.trainable, gradient_of(before, batch), expected))
        assert int(after.step) == step + 1


def test_logged_norm_and_losses():
    trainer, batch = Trainer(), make_batch()
    gradient = gradient_of(trainer.state, batch)
    _, metrics = trainer(batch)
    norm = np.sqrt(sum(float(np.sum(g**2)) for g in jax.tree.leaves(gradient)))
    assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(float(metrics["fit"] + metrics["shift"]), rel=1e-6)
    assert bool(metrics["finite"])


def test_accumulation_averages_the_gradients_of_its_parts():
    """Each part has its own normalisers, so parts with different numbers of boxes are not one batch."""
    trainer, batch = Trainer(accumulation=2, momentum=0.0, weight_decay=0.0, warmup_steps=0), make_batch()
    before = trainer.state
    after, metrics = trainer(batch)
    first, second = (gradient_of(before, half) for half in halves(batch))
    average = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    assert_close(after.trainable, jax.tree.map(lambda p, g: p - 0.02 * g, before.trainable, average))
    parts = [Trainer(warmup_steps=0)(half)[1] for half in halves(batch)]
    for name in ("loss", "fit", "shift", "noise"):
        assert float(metrics[name]) == pytest.approx(np.mean([float(part[name]) for part in parts]), rel=1e-5)
    # statistics see one part after the other
    means = [np.mean(half["images"], (0, 1, 2)) for half in halves(batch)]
    np.testing.assert_allclose(after.batch_stats["mean"], means[0] / 4 + means[1] / 2, rtol=1e-5)
    whole = gradient_of(before, batch)
    assert not np.allclose(whole["out"]["kernel"], average["out"]["kernel"], rtol=1e-3)


def test_accumulation_equals_one_batch_where_the_parts_weigh_the_same():
    batch = make_batch(boxes=(1, 2, 3, 2))
    one, two = (Trainer(accumulation=parts, weight_decay=0.1)(batch)[0] for parts in (1, 2))
    assert_close(one.trainable, two.trainable)
    assert_close(one.optimizer, two.optimizer)


def test_noise_depends_on_seed_step_and_image_alone():
    def noise(trainer, *batches):
        return float(trainer(*batches)[1]["noise"])

    batch = make_batch()
    order = {name: value[::-1] for name, value in batch.items()}
    assert noise(Trainer(), batch) == pytest.approx(noise(Trainer(), order), rel=1e-5)
    assert noise(Trainer(), batch, batch) != noise(Trainer(), batch)  # another step
    assert noise(Trainer(), batch, batch) == noise(Trainer(learning_rate=1.0), make_batch(seed=3), batch)
    assert noise(Trainer(seed=1), batch) != noise(Trainer(), batch)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_what_is_not_finite_changes_nothing_but_the_step(bad, accumulation):
    trainer = Trainer(ema=0.9, clip_norm=1.0, accumulation=accumulation)
    before, _ = trainer(make_batch())
    batch = make_batch(seed=1)
    batch["images"][3, 0, 0, 0] = bad
    after, metrics = trainer(batch)
    assert not bool(metrics["finite"])
    tiny.assert_equal_trees(after.replace(step=0), before.replace(step=0))
    assert int(after.step) == int(before.step) + 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


def test_average_follows_the_parameters():
    trainer = Trainer(ema=0.5)
    start = trainer.state
    assert start.average is not start.trainable or start.average == start.trainable
    after, _ = trainer(make_batch())
    decay = min(0.5, 1 / 10)
    assert_close(
        after.average, jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, start.trainable, after.trainable)
    )
    assert_close(after.variables(averaged=True)["params"]["out"], after.average["out"])
    assert_close(after.variables()["params"]["out"], after.trainable["out"])
    plain = Trainer().state
    assert plain.average == {}
    assert_close(plain.variables(averaged=True), plain.variables())


@pytest.mark.slow
def test_accumulation_of_the_detector(tiny_data):
    """Two parts of the real losses, whose normalisers are of each part."""
    settings = tiny.get_config(tiny_data)
    settings.model.backbone.norm = "group_norm"
    settings.optimizer.update(momentum=0.0, weight_decay=0.0, clip_norm=0.0, warmup_steps=0, schedule="step")
    settings.train.update(accumulation=2, batch_size=4)
    model, update = FasterRCNN(**settings.model), optimizer(settings)
    batches = tiny.training_batches(settings)
    batch = tiny.device_batch(next(batches.read(0, 1, 0)))
    with tiny.quick_compilation():
        state = jax.jit(lambda: create_state(model, update, settings))()
        step = functools.partial(train_step, model=model, optimizer=update, config=settings)
        after, metrics = jax.jit(step)(state, batch)
        key = jax.random.fold_in(jax.random.key(settings.seed), 0)

        @jax.jit
        def gradient(part):
            def loss(trainable):
                variables = state.replace(trainable=trainable).variables()
                losses, _ = model.apply(variables, part, key, method="losses", mutable=["metrics"])
                return sum(losses.values())

            return jax.value_and_grad(loss)(state.trainable)

        (loss1, first), (loss2, second) = (gradient(half) for half in halves(batch))
    assert float(metrics["loss"]) == pytest.approx((float(loss1) + float(loss2)) / 2, rel=1e-5)
    rate = float(metrics["learning_rate"])
    moved = jax.tree.map(lambda p, a, b: p - rate * (a + b) / 2, state.trainable, first, second)
    assert_close(after.trainable, moved, rtol=1e-4, atol=1e-6)
