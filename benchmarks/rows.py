"""jaxdet's side of benchmarks.run. Each builder returns the work as a function without arguments that ends when it is
done.
"""

import functools

import jax
import numpy as np

from benchmarks import inputs
from configs import person
from jaxdet.models import FasterRCNN
from jaxdet.ops.nms import nms as suppress
from jaxdet.ops.roi_align import pyramid_roi_align
from jaxdet.runs.mesh import device_mesh, replicated
from jaxdet.training.optimizer import optimizer
from jaxdet.training.step import create_state, train_step


def peak_memory():
    """MiB that the device held at most, None on a CPU."""
    statistics = jax.devices()[0].memory_stats()
    return statistics and statistics["peak_bytes_in_use"] / 2**20


def device():
    """Kind of the device."""
    return jax.devices()[0].device_kind


def infer(height, width, batch=1, dtype="float32"):
    config = person.get_config()
    config.model.dtype = dtype
    model = FasterRCNN(**config.model)
    images = jax.device_put(inputs.images(batch, height, width))
    sizes = np.full((batch, 2), (height, width), np.int32)
    variables = jax.jit(lambda: model.init(jax.random.key(0), images, sizes, method="detect"))()
    detect = jax.jit(lambda variables, images: model.apply(variables, images, sizes, method="detect"))
    return lambda: jax.block_until_ready(detect(variables, images))


def training_step(height, width, batch, dtype):
    """The jitted training step of person.py on one device, with its two arguments, a state and a batch."""
    config = person.get_config()
    config.model.dtype = dtype
    model, update = FasterRCNN(**config.model), optimizer(config)
    example = {
        "images": inputs.images(batch, height, width),
        "image_sizes": np.full((batch, 2), (height, width), np.int32),
        "gt_boxes": inputs.true_boxes(batch, 8, height, width),
        "gt_labels": np.zeros((batch, 8), np.int32),
        "gt_valid": np.ones((batch, 8), bool),
        "image_ids": np.arange(batch),
        "scales": np.ones((batch, 2), np.float32),
    }
    everywhere = replicated(
        device_mesh(devices=jax.devices()[:1])
    )  # of one device: a batch of two would not divide among more
    step = functools.partial(train_step, model=model, optimizer=update, config=config)
    step = jax.jit(step, donate_argnums=(0,), out_shardings=everywhere)
    state = jax.jit(lambda: create_state(model, update, config), out_shardings=everywhere)()
    return step, state, jax.device_put(example, everywhere)


def train(height, width, batch=2, dtype="float32"):
    step, state, example = training_step(height, width, batch, dtype)

    def run():
        nonlocal state
        state, metrics = step(state, example)
        jax.block_until_ready((state, metrics))

    return run


def roi_align(count, gradient):
    features, boxes = jax.device_put((inputs.pyramid(), inputs.proposals(count)))

    def forward(features, boxes):
        return pyramid_roi_align(features, boxes, inputs.STRIDES)

    def both(features, boxes, cotangent):
        crops, backward = jax.vjp(lambda features: forward(features, boxes), features)
        return crops, backward(cotangent)

    if not gradient:
        run = jax.jit(forward)
        return lambda: jax.block_until_ready(run(features, boxes))
    run, cotangent = jax.jit(both), np.ones((count, 7, 7, 256), np.float32)
    return lambda: jax.block_until_ready(run(features, boxes, cotangent))


def nms(clustered):
    boxes, scores = jax.device_put(inputs.level_boxes(clustered))
    valid = np.ones(scores.shape, bool)
    run = jax.jit(jax.vmap(lambda boxes, scores, valid: suppress(boxes, scores, valid, 0.7, 1000)))
    return lambda: jax.block_until_ready(run(boxes, scores, valid))
