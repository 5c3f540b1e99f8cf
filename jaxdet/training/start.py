"""Starting a training from another run's or a converted model's parameters (`config.init_from`)."""

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdet.config.checks import flatten
from jaxdet.runs.workdir import Workdir

# What a backbone's output depends on, apart from its parameters
INPUT_KEYS = ("bgr", "pixel_mean", "pixel_std", "backbone.stride_in_1x1")
BATCH_NORMS = ("frozen_batch_norm", "batch_norm")  # the same four vectors, so one can start from the other
BY_CLASS = ("class_logits", "box_deltas")  # layers of the box head with rows for each class


def start_from(directory, state, config, categories):
    """A fresh TrainState with the parameters and statistics of a workdir, and a report of what was loaded.

    A network (resnet, pyramid, rpn_head, box_head) is loaded whole or not at all. If the workdir lacks it, it stays as
    it is; if the config lacks it, it is ignored. In the box head, the rows of the classes are initialised again if the
    names of `categories`, in their order, differ from the workdir's. Raises ValueError, name by name, if anything else
    differs, or if the images would be fed in another way.
    """
    other = Workdir(directory)
    names, theirs = ([c["name"] for c in each] for each in (categories, other.categories()))
    before, now = (flatten(c.model.to_dict()) for c in (other.config(), config))
    differing = [key for key in sorted(before.keys() & now.keys()) if before[key] != now[key]]
    wrong = any(key in differing for key in INPUT_KEYS)
    given = {_key(path[1:]): value for path, value in flatten_dict(other.variables()).items()}
    parts = ("trainable", "frozen", "constants", "batch_stats")
    wanted = {part: flatten_dict(getattr(state, part)) for part in parts}
    shapes = {_key(path): leaf.shape for leaves in wanted.values() for path, leaf in leaves.items()}

    shared = {key[0] for key in shapes} & {key[0] for key in given}
    made_anew = {key for key in shapes if key[0] not in shared}
    ignored = {key for key in given if key[0] not in shared}
    misfits = []
    for key in sorted((shapes.keys() | given.keys()) - made_anew - ignored):
        here, there = shapes.get(key), given[key].shape if key in given else None
        if names != theirs and key[0] == "box_head" and key[1] in BY_CLASS and here and there:
            made_anew.add(key)
        elif here != there:
            here, there = (list(shape) if shape else "absent" for shape in (here, there))
            misfits.append(f"  {'/'.join(key)}: {there} there, {here} here")
    if wrong or misfits:
        settings = [f"  config.model.{key}: {before[key]} there, {now[key]} here" for key in differing]
        more = [f"  and {len(misfits) - 10} more"] if len(misfits) > 10 else []
        lines = [f"config.init_from: {directory} does not fit", *settings, *misfits[:10], *more]
        raise ValueError("\n".join(lines))

    def filled(leaves):
        taken = {
            path: leaf if _key(path) in made_anew else jnp.asarray(given[_key(path)]) for path, leaf in leaves.items()
        }
        return unflatten_dict(taken)

    state = state.replace(**{part: filled(leaves) for part, leaves in wanted.items() if leaves})
    if state.average:
        # copies, since the step overwrites the buffers of both
        state = state.replace(average=jax.tree.map(jnp.copy, state.trainable))
    report = f"{len(shapes) - len(made_anew)} arrays loaded from {directory}"
    for what, keys in (("newly initialised", made_anew), ("ignored", ignored)):
        networks = sorted({"/".join(key[:2]) if key[0] in shared else key[0] for key in keys})
        if networks:
            report += f"; {what}: {', '.join(networks)}"
    if names != theirs:
        report += f"\n  classes differ: {_some(theirs)} there, {_some(names)} here"
    for key in differing:
        report += f"\n  config.model.{key} differs: {before[key]} there, {now[key]} here"
    return state, report


def _some(names):
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _key(path):
    """Path of a leaf without the name of the batch normalisation layer, which has two kinds."""
    return tuple(name for name in path if name not in BATCH_NORMS)
