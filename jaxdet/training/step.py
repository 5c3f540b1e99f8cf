"""The training step: from pixels to updated parameters in one jitted function."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdet.models.faster_rcnn import frozen_parameters, merge_variables
from jaxdet.training.optimizer import learning_rate, update_average


class TrainState(flax.struct.PyTreeNode):
    """All that a run needs to go on. `frozen` parameters have no gradient and no optimizer state.

    constants, batch_stats: the model's other collections, {} where it has none. average: moving average of
    `trainable`, {} where `optimizer.ema` is 0.
    """

    step: jax.Array
    trainable: Any
    frozen: Any
    constants: Any
    batch_stats: Any
    optimizer: Any
    average: Any

    def variables(self, averaged=False):
        """What `model.apply` takes; with the averaged parameters where asked and there are any."""
        trainable = self.average if averaged and self.average else self.trainable
        return merge_variables(trainable, self.frozen, self.constants, self.batch_stats)


def create_state(model, optimizer, config):
    """A fresh TrainState, a pure function of the config. Jit it: parameters then need no forward pass."""
    images = jnp.zeros((1, 64, 64, 3), jnp.uint8)
    sizes = jnp.full((1, 2), 64, jnp.int32)
    variables = model.init(jax.random.key(config.seed), images, sizes, method="detect")
    params = flatten_dict(variables["params"])
    mask = flatten_dict(frozen_parameters(variables["params"], config.model.backbone.freeze_at))
    trainable = unflatten_dict({path: value for path, value in params.items() if not mask[path]})
    frozen = unflatten_dict({path: value for path, value in params.items() if mask[path]})
    return TrainState(
        step=jnp.int32(0),
        trainable=trainable,
        frozen=frozen,
        constants=variables.get("constants", {}),
        batch_stats=variables.get("batch_stats", {}),
        optimizer=optimizer.init(trainable),
        average=trainable if config.optimizer.ema else {},
    )


def train_step(state, batch, *, model, optimizer, config):
    """One update. Returns the new state and a dict of scalars: the losses, their sum, gradient norm, rate, counts.

    The batch is processed in `train.accumulation` parts, whose gradients are averaged. Noise comes from
    (seed, step, image id) alone. Where loss or gradient are not finite, `finite` is False and the state stays as
    it was, but for the step.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    parts = config.train.accumulation

    def loss(trainable, batch_stats, part):
        variables = merge_variables(trainable, state.frozen, state.constants, batch_stats)
        losses, updated = model.apply(variables, part, key, method="losses", mutable=["batch_stats", "metrics"])
        return sum(losses.values()), (losses | updated["metrics"], updated.get("batch_stats", {}))

    def one_part(carry, part):
        gradient, batch_stats = carry
        (total, (metrics, batch_stats)), new = jax.value_and_grad(loss, has_aux=True)(
            state.trainable, batch_stats, part
        )
        return (jax.tree.map(jnp.add, gradient, new), batch_stats), metrics | {"loss": total}

    if parts == 1:
        zero = jax.tree.map(lambda p: 0.0, state.trainable)
        (gradient, batch_stats), metrics = one_part((zero, state.batch_stats), batch)
    else:
        zero = jax.tree.map(jnp.zeros_like, state.trainable)
        # every parts-th image, so that each device keeps its own
        split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
        (gradient, batch_stats), metrics = jax.lax.scan(one_part, (zero, state.batch_stats), split)
        gradient = jax.tree.map(lambda g: g / parts, gradient)
        metrics = {name: jnp.mean(value) for name, value in metrics.items()}

    with jax.named_scope("optimizer"):
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        average = state.average
        if config.optimizer.ema:
            average = update_average(average, trainable, config.optimizer.ema, state.step)
        new = state.replace(trainable=trainable, batch_stats=batch_stats, optimizer=optimizer_state, average=average)
        new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    metrics |= {"gradient_norm": norm, "learning_rate": learning_rate(config)(state.step), "finite": finite}
    return new.replace(step=state.step + 1), metrics
