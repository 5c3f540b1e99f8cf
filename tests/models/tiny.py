"""A detector small enough to compile in seconds, with settings, batches and parameters for the tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from configs import person
from jaxdet.models import FasterRCNN

HEIGHT, WIDTH, ROWS = 64, 96, 5  # of the padded images; ground-truth rows of each


def config(num_classes=3, **backbone):
    """The whole config of a ResNet-18 of width 8 for images of 64 x 96; `backbone` are its keys."""
    config = person.get_config()
    model = config.model
    model.num_classes = num_classes
    model.backbone.update({"depth": 18, "width": 8, "norm": "group_norm", "freeze_at": 0} | backbone)
    model.fpn.channels = 16
    model.rpn.update(
        anchor_sizes=(8.0, 16.0, 32.0, 64.0, 128.0), pre_nms_topk=(60, 50), post_nms_topk=(40, 30), samples_per_image=32
    )
    model.roi_head.update(hidden=16, samples_per_image=16)
    model.test.update(detections_per_image=20)
    return config


@functools.cache
def batch(images=2, seed=0):
    """`images` noisy images of different sizes with 1 to 4 boxes each; rows that are not real hold NaN."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers((40, 60), (HEIGHT + 1, WIDTH + 1), (images, 2))
    valid = np.arange(ROWS) < rng.integers(1, ROWS, (images, 1))
    centres = rng.uniform(0.3, 0.7, (images, ROWS, 2)) * sizes[:, None, ::-1]
    sides = rng.uniform(0.1, 0.5, (images, ROWS, 2)) * sizes[:, None, ::-1]
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], -1).astype(np.float32)
    pixels = rng.integers(0, 256, (images, HEIGHT, WIDTH, 3), np.uint8)
    inside = (np.arange(HEIGHT)[:, None] < sizes[:, None, None, 0]) & (np.arange(WIDTH) < sizes[:, None, None, 1])
    return {
        "images": np.where(inside[..., None], pixels, 0).astype(np.uint8),
        "image_sizes": sizes.astype(np.int32),
        "gt_boxes": np.where(valid[..., None], boxes, np.nan).astype(np.float32),
        "gt_labels": np.where(valid, rng.integers(0, 3, (images, ROWS)), -9).astype(np.int32),
        "gt_valid": valid,
        "image_ids": (100 * seed + np.arange(images)).astype(np.int32),
    }


def variables(model, seed=0):
    """Random parameters, without the symmetry and zeros of a fresh initialisation; nothing is compiled."""
    shapes = jax.eval_shape(
        functools.partial(model.init, method="detect"),
        jax.random.key(0),
        jnp.zeros((1, HEIGHT, WIDTH, 3), jnp.uint8),
        jnp.zeros((1, 2), jnp.int32),
    )
    return fill(shapes, seed)


def fill(shapes, seed=0):
    """Random values for a tree of ShapeDtypeStructs whose leaves have the names of our parameters."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        leaf, noise = path[-1].key, rng.standard_normal(shape.shape).astype(np.float32)
        if leaf == "kernel":
            return noise * np.float32(np.sqrt(2 / np.prod(shape.shape[:-1])))
        if leaf == "var":
            return np.abs(1 + 0.1 * noise)
        return 0.1 * noise + (leaf == "scale")

    return jax.tree_util.tree_map_with_path(draw, shapes)


# The tests run a step or two of each program: less time in the compiler counts for more than a fast program.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=QUICK)


class Tiny:
    """A model and one jitted function of it: stages, losses and gradients at once."""

    def __init__(self, config):
        self.config, self.model = config, FasterRCNN(**config.model)
        self.variables = variables(self.model)

        @jit
        def run(params, rest, batch, key, loss_weights):
            # the weights as an argument, so that other weights need no other program
            model = FasterRCNN(**(config.model.to_dict() | {"loss_weights": loss_weights}))

            def total(params):
                (stages, losses), updated = model.apply(
                    {"params": params} | rest, batch, key, method="evaluate", mutable=["metrics"]
                )
                return sum(losses.values()), (losses, updated["metrics"], stages)

            (_, (losses, metrics, stages)), gradient = jax.value_and_grad(total, has_aux=True)(params)
            return losses, metrics, stages, gradient

        self.run = run

    def __call__(self, batch, key=0, variables=None, **loss_weights):
        """Losses and counts as dicts, Stages and the tree of gradients of the losses' sum, all NumPy."""
        values = self.variables if variables is None else variables
        rest = {name: value for name, value in values.items() if name != "params"}
        weights = {name: np.float32(loss_weights.get(name, 1)) for name in self.config.model.loss_weights}
        return jax.device_get(self.run(values["params"], rest, batch, jax.random.key(key), weights))
