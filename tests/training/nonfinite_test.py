"""NaN and infinity in images, targets and gradients, at random steps: the state stays clean, the images are named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.training import loop
from jaxdet.training.nonfinite import MOST_IN_A_ROW, Watch, culprits
from jaxdet.training.optimizer import optimizer
from jaxdet.training.step import create_state, train_step
from tests import tiny
from tests.training import step_test

STEPS = 40


@jax.custom_vjp
def spoil_gradient(x, flags):
    """x as it is; its gradient is NaN where any flag is set."""
    return x


spoil_gradient.defvjp(
    lambda x, flags: (x, flags), lambda flags, g: (jnp.where(flags.any(), jnp.nan, g), jnp.zeros_like(flags))
)


class Spoiled(step_test.Line):
    """The line of step_test, which leaves out empty slots; "spoil" [B] makes a gradient NaN whose loss is finite."""

    def losses(self, batch, key):
        present = batch["image_sizes"][:, 0] > 0
        images = jnp.where(present[:, None, None, None], batch["images"], 0.0)
        target = jnp.where(present, batch["target"], 0.0)
        error = self.out(self.resnet(jnp.mean(images, (1, 2))))[:, 0] - target
        if self.is_mutable_collection("batch_stats"):
            self.mean.value = 0.5 * self.mean.value + 0.5 * jnp.mean(images, (0, 1, 2))
        self.sow("metrics", "present", jnp.sum(present), reduce_fn=lambda _, new: new, init_fn=lambda: 0)
        total = jnp.sum(jnp.where(present, error**2, 0.0))
        return {"fit": spoil_gradient(total, jnp.where(present, batch["spoil"], 0.0))}


def make_batch(step, ids):
    batch = step_test.make_batch(seed=step) | {"image_ids": np.asarray(ids)}
    return batch | {"image_sizes": np.full((4, 2), 2, np.int32), "spoil": np.zeros(4, np.float32)}


def spoil(batch, kind, slot, value):
    batch[kind] = batch[kind].copy()
    batch[kind][slot] = value


class Batches:
    """Stands in for TrainingBatches: step t has the images 4t to 4t + 3."""

    def image_ids(self, step):
        return np.arange(4 * step, 4 * step + 4)


@pytest.fixture(scope="module")
def compiled():
    config = step_test.config(ema=0.9, momentum=0.9)
    update = optimizer(config)

    def step(state, batch):
        return train_step(state, batch, model=Spoiled(), optimizer=update, config=config)

    return jax.jit(step), jax.jit(lambda: create_state(Spoiled(), update, config))()


@pytest.mark.parametrize("seed", range(5))
def test_at_random_steps_of_every_kind(compiled, seed):
    step, state = compiled
    rng, notes, spoiled = np.random.default_rng(seed), [], {}
    watch = Watch("skip", Batches(), lambda number, words, ids, alone: notes.append((number, ids, alone)))
    for number in range(1, STEPS + 1):
        ids = Batches().image_ids(number - 1)
        batch, before = make_batch(number, ids), state
        if rng.random() < 0.3:
            kind, slot = rng.choice(["images", "target", "spoil"]), int(rng.integers(4))
            spoil(batch, kind, slot, 1.0 if kind == "spoil" else rng.choice([np.nan, np.inf, -np.inf, 1e30]))
            spoiled[number] = ids.tolist(), [int(ids[slot])]
        state, metrics = step(state, batch)

        def search(ids, number=number, state=state, batch=batch):
            return culprits(step, number, state, batch, ids, lambda arrays: arrays)

        watch(number, metrics, search)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
        if number in spoiled:
            tiny.assert_equal_trees(state.replace(step=0), before.replace(step=0))
        assert int(state.step) == number
    assert notes == [(number, *named) for number, named in spoiled.items()]
    assert watch.skipped == len(spoiled) > 3


def test_stop_names_the_images_and_skipping_forever_stops_too():
    bad = {"loss": np.nan, "gradient_norm": np.float32(3), "finite": False}
    with pytest.raises(FloatingPointError) as error:
        Watch("stop", Batches(), None)(3, bad, lambda ids: [int(ids[1])])
    for words in ("step 3: loss nan", "image ids [8, 9, 10, 11], of which [9] do it alone", "nonfinite=skip"):
        assert words in str(error.value)
    with pytest.raises(FloatingPointError, match="each of which does it alone"):
        Watch("stop", Batches(), None)(3, bad, lambda ids: ids.tolist())
    notes = []
    watch = Watch("skip", Batches(), lambda *note: notes.append(note))
    for number in range(1, MOST_IN_A_ROW):
        watch(number, bad, lambda ids: [])
    assert len(notes) == MOST_IN_A_ROW - 1 and "none of which does it alone" in notes[-1][1]
    with pytest.raises(FloatingPointError, match=f"the {MOST_IN_A_ROW}th step in a row"):
        watch(MOST_IN_A_ROW, bad, lambda ids: [])
    watch = Watch("skip", Batches(), lambda *note: None)
    for number in range(1, 3 * MOST_IN_A_ROW):  # a good one in between starts the count anew
        watch(number, bad | {"finite": number % MOST_IN_A_ROW == 0}, lambda ids: [])


def poisonous(image_id):
    """Patch of the executables: a batch with this image in it finds NaN instead of parameters, and is left out."""
    shared = loop.compile_shapes

    def compile_shapes(*arguments, **how):
        def poison(executable):
            def run(state, batch):
                there = np.asarray(batch["image_ids"]) == image_id
                if not (there & (np.asarray(batch["image_sizes"])[:, 0] > 0)).any():
                    return executable(state, batch)
                kept = jax.tree.map(jnp.copy, state)
                spoiled = state.replace(trainable=jax.tree.map(tiny.nan_like, state.trainable))
                _, metrics = executable(spoiled, batch)
                return kept.replace(step=kept.step + 1), metrics

            return run

        return {shape: poison(executable) for shape, executable in shared(*arguments, **how).items()}

    return compile_shapes


def test_a_run_that_skips_names_and_counts_and_goes_on(tiny_run, tmp_path, monkeypatch):
    config = tiny_run.config.copy_and_resolve_references()
    config.train.nonfinite = "skip"
    batches = tiny.training_batches(config)
    ids = [batches.image_ids(step).tolist() for step in range(6)]
    assert ids == [batch["image_ids"].tolist() for batch in batches.read(0, 6, 0)]
    culprit = ids[2][1]
    hit = [number for number, of_step in enumerate(ids, 1) if culprit in of_step]
    with tiny.shared_executables(config):
        monkeypatch.setattr(loop, "compile_shapes", poisonous(culprit & 0x7FFFFFFF))
        state = loop.train(config, tmp_path)
    assert int(state.step) == 6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    lines = tiny.metrics(tmp_path)
    assert [line for line in lines if "skipped_image_ids" in line] == [
        {"step": number, "skipped_image_ids": ids[number - 1], "not_finite_alone": [culprit]} for number in hit
    ]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert [number for number in range(1, 7) if losses[number] is None] == hit


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_real_model_at_random_steps(tiny_data, tmp_path, monkeypatch, seed):
    """A pixel of a float image makes its step be left out; a target that is no box is left out by itself."""
    config = tiny.get_config(tiny_data)
    config.train.update(steps=16, nonfinite="skip", evaluate_every=16, checkpoint_every=16)
    config.data.train.resizing = config.data.val.resizing = "torchvision"
    config.data.workers = 0
    rng, put, batches = np.random.default_rng(seed), loop.put_batch, tiny.training_batches(config)
    spoiled, calls = {}, []

    def spoiling(batch, mesh):
        if len(calls) == 16 or not (batch["image_sizes"][:, 0] > 0).all():
            return put(batch, mesh)  # one that the search for culprits makes
        number, slot = len(calls) + 1, int(rng.integers(2))
        calls.append(number)
        kind, value = rng.choice(["images", "gt_boxes", "none"]), rng.choice([np.nan, np.inf, -np.inf])
        if kind != "none":
            batch[kind] = batch[kind].copy()
            batch[kind][slot, 0, 0] = value
        if kind == "images":
            spoiled[number] = [int(batches.image_ids(number - 1)[slot])]
        return put(batch, mesh)

    monkeypatch.setattr(loop, "put_batch", spoiling)
    with tiny.shared_executables(config):
        state = loop.train(config, tmp_path)
    assert int(state.step) == 16 and spoiled
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    skipped = [line for line in tiny.metrics(tmp_path) if "skipped_image_ids" in line]
    assert {line["step"]: line["not_finite_alone"] for line in skipped} == spoiled
