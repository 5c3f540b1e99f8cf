"""Checks of a config before the first step, and its comparison with the one a workdir was started with."""

import contextlib
import difflib
import json

from ml_collections import ConfigDict

from jaxdet.config.keys import KEYS, keys_of

# What may change without making another model of the same parameters.
FREE = (
    "model.test.",
    "model.loss_weights.",
    "model.dtype",
    "model.backbone.remat",
    "model.rpn.pre_nms_topk",
    "model.rpn.post_nms_topk",
)


def _contradictions(flat):
    """(keys, what is wrong with them together) of values that are right one by one."""
    yield (
        ("train.batch_size", "train.accumulation"),
        "the first does not divide into so many parts",
        flat["train.batch_size"] % flat["train.accumulation"],
    )
    yield (
        ("model.rpn.negative_iou", "model.rpn.positive_iou"),
        "the first must not be above the second",
        flat["model.rpn.negative_iou"] > flat["model.rpn.positive_iou"],
    )
    for split in ("data.train", "data.val"):
        source = f"{split}.source"
        needed = {"coco": ("images", "annotations"), "tfds": ("directory", "split"), "synthetic": ("scenes",)}
        for key in needed[flat[source]]:
            key = f"{split}.{key}"
            yield (source, key), "this source needs the other key", not flat[key]
        yield (
            (source, "data.categories"),
            "drawn scenes hold people alone",
            flat[source] == "synthetic" and set(flat["data.categories"]) - {"person"},
        )


def check_config(config):
    """Raises ValueError that names every unknown or missing key and every wrong value, with what is right.

    Keys that are newer than a config file are filled in before. Where all are right one by one, those that
    contradict each other are named together.
    """
    with contextlib.suppress(KeyError):  # a whole section is missing, and named below
        _fill_added(config)
    flat = flatten(config.to_dict())
    wrong = _faults(flat) or [
        f"  {' and '.join(f'config.{key} is {flat[key]!r}' for key in keys)}: {what}"
        for keys, what, contradict in _contradictions(flat)
        if contradict
    ]
    if wrong:
        raise ValueError("the config cannot be right:\n" + "\n".join(wrong))


def _fill_added(config):
    """Gives a config the keys that came later than it. Raises KeyError if their section is missing."""
    flat = flatten(config.to_dict())
    added = {name: key.absent for name, key in KEYS.items() if key.absent is not None and name not in flat}
    with config.unlocked():
        config.update_from_flattened_dict(added)


def _faults(flat):
    names = keys_of(flat)
    faults = [f"  no key config.{name}; {nearest(name, names)}" for name in flat if name not in names]
    for name in names:
        if name not in flat:
            faults.append(f"  config.{name} is missing: {KEYS[name].rule.words}")
        elif name in KEYS and not KEYS[name].rule.test(flat[name]):
            faults.append(f"  config.{name} is {flat[name]!r}: {KEYS[name].rule.words}")
    return faults


def nearest(key, keys):
    """Words that send the reader of an unknown key to the one or two that were meant, or to the sections."""
    near = [other for other in keys if other.split(".")[-1] == key.split(".")[-1]]
    near = near or difflib.get_close_matches(key, keys, 1)
    if near:
        return "did you mean " + " or ".join(f"config.{other}" for other in near[:2]) + "?"
    return "there are " + ", ".join(dict.fromkeys(f"config.{other.split('.')[0]}" for other in keys))


def config_from_json(content):
    """The config that a workdir's config.json holds, given its content, with the keys that came later than it.

    Raises ValueError for unknown keys and wrong values, and an error of Python if it is no config at all.
    """
    config = ConfigDict(_with_tuples(content))
    for split in (config.data.train, config.data.val):
        if "floor_sizes" in split:  # `resizing` has taken its place
            del split["floor_sizes"]
    _fill_added(config)
    if faults := _faults(flatten(config.to_dict())):
        raise ValueError("it cannot be right\n" + "\n".join(faults))
    return config


def _with_tuples(value):
    """JSON has no tuples, and configs no lists."""
    if isinstance(value, dict):
        return {name: _with_tuples(item) for name, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def flatten(config, prefix=""):
    """{"a.b.c": value} of a nested dict."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat


def changes(before, now):
    """{key: "old -> new"} of every key that differs between two configs, given as nested dicts."""
    before, now = (flatten(json.loads(json.dumps(config))) for config in (before, now))
    keys = [key for key in sorted(before | now) if before.get(key, "absent") != now.get(key, "absent")]
    return {key: f"{before.get(key, 'absent')} -> {now.get(key, 'absent')}" for key in keys}


def check_same_model(before, now, workdir):
    """Raises ValueError, key by key, if `model` differs beyond FREE: checkpoints hold another model."""
    changed = changes({"model": before.model.to_dict()}, {"model": now.model.to_dict()})
    lines = [f"  config.{key}: {change}" for key, change in changed.items() if not key.startswith(FREE)]
    if lines:
        raise ValueError(f"{workdir} holds another model; use another workdir or undo\n" + "\n".join(lines))


def check_same_state(before, now, workdir):
    """Raises ValueError if a checkpoint of `before` does not hold the state that `now` trains with."""
    name, ema = (f"config.optimizer.{key}: {before.optimizer[key]} -> {now.optimizer[key]}" for key in ("name", "ema"))
    lines = [name] * (before.optimizer.name != now.optimizer.name)
    lines += [ema] * (bool(before.optimizer.ema) != bool(now.optimizer.ema))
    if lines:
        raise ValueError(
            f"the checkpoints of {workdir} do not fit; use another workdir or undo\n  " + "\n  ".join(lines)
        )
