"""Learning rate, optimizer and weight decay, all from optax."""

import jax
import jax.numpy as jnp
import optax


def peak_rate(config):
    """The learning rate after warmup: `optimizer.learning_rate`, scaled linearly from the reference batch, if there is
    one.

    A batch n times as large takes a rate n times as large (Goyal et al. 2017, arXiv:1706.02677).
    """
    rate = config.optimizer.learning_rate
    if config.optimizer.reference_batch:
        rate *= config.train.batch_size / config.optimizer.reference_batch
    return rate


def learning_rate(config):
    """The schedule, step -> learning rate: linear warmup from `warmup_factor` (never 0), times step or cosine decay."""
    settings = config.optimizer
    if settings.schedule == "step":
        scales = {step: settings.step_factor for step in settings.step_boundaries}
        decay = optax.piecewise_constant_schedule(peak_rate(config), scales)
    elif settings.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak_rate(config), config.train.steps)
    else:
        raise ValueError(f"optimizer.schedule is {settings.schedule!r}; use step or cosine")
    if not settings.warmup_steps:
        return decay
    warmup = optax.linear_schedule(settings.warmup_factor, 1.0, settings.warmup_steps)
    return lambda step: warmup(step) * decay(step)


def decayed(params):
    """Tree of bool: weight decay acts on all parameters but those of normalisation layers, as in detectron2."""

    def decays(path, _):
        return not any("norm" in entry.key for entry in path)

    return jax.tree_util.tree_map_with_path(decays, params)


def optimizer(config):
    """SGD with momentum as in torch (weight decay is added to the gradient before the momentum), or AdamW."""
    settings = config.optimizer
    rate = learning_rate(config)
    # Clipping has no state, nor has its replacement: a run can resume with it or without it.
    parts = [optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity()]
    if settings.name == "sgd":
        parts += [
            optax.add_decayed_weights(settings.weight_decay, mask=decayed),
            optax.trace(decay=settings.momentum),
            optax.scale_by_learning_rate(rate),
        ]
    elif settings.name == "adamw":
        parts += [optax.adamw(rate, weight_decay=settings.weight_decay, mask=decayed)]
    else:
        raise ValueError(f"optimizer.name is {settings.name!r}; use sgd or adamw")
    return optax.chain(*parts)


def update_average(average, params, decay, step):
    """Exponential moving average of the parameters. It warms up, so that the first steps soon lose their weight."""
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
