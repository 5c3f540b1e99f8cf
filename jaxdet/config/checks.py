"""Checks of a config before the first step, and its comparison with the one a workdir was started with."""

import contextlib
import difflib
import json
import math
import pathlib

from ml_collections import ConfigDict

from jaxdet.data import resizing
from jaxdet.models.layers import NORMS
from jaxdet.models.resnet import BLOCKS
from jaxdet.runs.files import write_whole

LARGEST = 2**31 - 1  # steps and random keys are int32 on the device


def _is_whole(value):
    return type(value) is int and abs(value) <= LARGEST


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value)


# What is right for a key: words for the user, and a test that no value makes raise.


def _whole(lowest, words=""):
    words = words or f"at least {lowest}"
    return f"a whole number, {words}", lambda v: _is_whole(v) and v >= lowest


def _number(words, test=lambda v: True):
    return f"a number, {words}", lambda v: _is_number(v) and test(v)


def _several(words, test, whole=False):
    each = _is_whole if whole else _is_number
    return words, lambda v: type(v) in (tuple, list) and all(map(each, v)) and test(v)


def _one_of(*choices):
    first = "'' (none)" if choices[0] == "" else str(choices[0])
    return (
        f"one of {', '.join([first, *map(str, choices[1:])])}",
        lambda v: type(v) is type(choices[-1]) and v in choices,
    )


FRACTION = _number("0 to 1", lambda v: 0 <= v <= 1)
NOT_NEGATIVE = _number("0 or more", lambda v: v >= 0)
ABOVE_0 = _number("above 0", lambda v: v > 0)
FLAG = "True or False", lambda v: type(v) is bool
TEXT = "a text", lambda v: type(v) is str
TWO_COUNTS = _several(
    "two whole numbers above 0, (training, test)", lambda v: len(v) == 2 and min(v) > 0, whole=True
)
SIDES = _several("whole numbers above 0", lambda v: len(v) > 0 and min(v) > 0, whole=True)

SPLIT = {
    "source": _one_of("coco", "tfds", "synthetic"),
    "images": TEXT,
    "annotations": TEXT,
    "directory": TEXT,
    "split": TEXT,
    "scenes": _whole(0),
    "scenes_seed": _whole(0),
    "scenes_height": _whole(1),
    "scenes_width": _whole(1),
    "short_sides": SIDES,
    "longest_side": _whole(1, "above 0"),
    "resizing": _one_of(*resizing.DTYPES),
    "limit": _whole(0, "0 (all) or more"),
    "keep_empty": FLAG,
}
# key -> (what is right, in words; the test)
RULES = {
    "seed": _whole(0, "0 or more"),
    "init_from": TEXT,
    "model.num_classes": _whole(1),
    "model.dtype": _one_of("float32", "bfloat16"),
    "model.pixel_mean": _several("3 numbers", lambda v: len(v) == 3),
    "model.pixel_std": _several("3 numbers above 0", lambda v: len(v) == 3 and min(v) > 0),
    "model.bgr": FLAG,
    "model.backbone.depth": (f"one of {sorted(BLOCKS)}", lambda v: type(v) is int and v in BLOCKS),
    "model.backbone.width": ("a positive multiple of 8", lambda v: _is_whole(v) and v > 0 and v % 8 == 0),
    "model.backbone.norm": _one_of(*NORMS),
    "model.backbone.norm_epsilon": NOT_NEGATIVE,
    "model.backbone.freeze_at": ("0 (nothing) to 5 (all)", lambda v: type(v) is int and v in range(6)),
    "model.backbone.stride_in_1x1": FLAG,
    "model.backbone.remat": _several("stages out of 2 to 5", lambda v: set(v) <= {2, 3, 4, 5}, whole=True),
    "model.fpn.channels": ("a positive even number", lambda v: _is_whole(v) and v > 0 and v % 2 == 0),
    "model.fpn.norm": _one_of("", *NORMS),
    "model.rpn.anchor_sizes": _several("5 sizes above 0, one a level", lambda v: len(v) == 5 and min(v) > 0),
    "model.rpn.anchor_ratios": _several("ratios above 0", lambda v: len(v) > 0 and min(v) > 0),
    "model.rpn.rounded_anchors": FLAG,
    "model.rpn.grid_strides": FLAG,
    "model.rpn.num_convs": _whole(0),
    "model.rpn.positive_iou": FRACTION,
    "model.rpn.negative_iou": FRACTION,
    "model.rpn.samples_per_image": _whole(1),
    "model.rpn.positive_fraction": FRACTION,
    "model.rpn.box_beta": NOT_NEGATIVE,
    "model.rpn.normalize_by_sampled": FLAG,
    "model.rpn.pre_nms_topk": TWO_COUNTS,
    "model.rpn.post_nms_topk": TWO_COUNTS,
    "model.rpn.nms_iou": FRACTION,
    "model.rpn.smallest_side": NOT_NEGATIVE,
    "model.roi_head.num_convs": _whole(0),
    "model.roi_head.conv_norm": _one_of("", *NORMS),
    "model.roi_head.num_fcs": _whole(0),
    "model.roi_head.hidden": _whole(1),
    "model.roi_head.class_agnostic": FLAG,
    "model.roi_head.pool_size": _whole(1),
    "model.roi_head.sampling_ratio": _whole(1),
    "model.roi_head.aligned": FLAG,
    "model.roi_head.level_epsilon": NOT_NEGATIVE,
    "model.roi_head.positive_iou": FRACTION,
    "model.roi_head.samples_per_image": _whole(1),
    "model.roi_head.positive_fraction": FRACTION,
    "model.roi_head.add_ground_truth": FLAG,
    "model.roi_head.box_weights": _several("4 numbers above 0", lambda v: len(v) == 4 and min(v) > 0),
    "model.roi_head.box_beta": NOT_NEGATIVE,
    "model.loss_weights.rpn_objectness": NOT_NEGATIVE,
    "model.loss_weights.rpn_box": NOT_NEGATIVE,
    "model.loss_weights.roi_classification": NOT_NEGATIVE,
    "model.loss_weights.roi_box": NOT_NEGATIVE,
    "model.test.score_threshold": FRACTION,
    "model.test.nms_iou": FRACTION,
    "model.test.smallest_side": NOT_NEGATIVE,
    "model.test.detections_per_image": _whole(1),
    "data.categories": (
        "a tuple of names, such as ('person',), none of them twice",
        lambda v: type(v) in (tuple, list) and all(type(n) is str for n in v) and len(set(v)) == len(v),
    ),
    "data.workers": _whole(0, "0 or more processes"),
    **{f"data.train.{key}": rule for key, rule in SPLIT.items()},
    "data.train.flip": FRACTION,
    **{f"data.val.{key}": rule for key, rule in SPLIT.items()},
    "optimizer.name": _one_of("sgd", "adamw"),
    "optimizer.learning_rate": ABOVE_0,
    "optimizer.reference_batch": _whole(0, "0 (take the rate as it is) or more"),
    "optimizer.warmup_steps": _whole(0, "0 or more"),
    "optimizer.warmup_factor": _number("above 0, at most 1", lambda v: 0 < v <= 1),
    "optimizer.schedule": _one_of("step", "cosine"),
    "optimizer.step_boundaries": _several(
        "whole numbers that rise", lambda v: min(v, default=1) > 0 and sorted(set(v)) == list(v), whole=True
    ),
    "optimizer.step_factor": _number("above 0, at most 1", lambda v: 0 < v <= 1),
    "optimizer.momentum": _number("0 to below 1", lambda v: 0 <= v < 1),
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.clip_norm": _number("0 (off) or more", lambda v: v >= 0),
    "optimizer.ema": _number("0 (off) to below 1", lambda v: 0 <= v < 1),
    "train.steps": _whole(1),
    "train.batch_size": _whole(1),
    "train.accumulation": _whole(1),
    "train.shard_parameters": _whole(1),
    "train.nonfinite": _one_of("stop", "skip"),
    "train.log_every": _whole(1),
    "train.evaluate_every": _whole(1),
    "train.checkpoint_every": _whole(1),
    "train.keep_checkpoints": _whole(1),
    "evaluation.batch_size": _whole(1),
}
HEAD = "model.roi_head"  # None where there is no second stage


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


# What may change without making another model of the same parameters.
FREE = (
    "model.test.",
    "model.loss_weights.",
    "model.dtype",
    "model.backbone.remat",
    "model.rpn.pre_nms_topk",
    "model.rpn.post_nms_topk",
)
# Keys that came later, each with the value that older workdirs and config files were made with
ADDED = {
    "init_from": "",
    "model.backbone.remat": (),
    "model.test.smallest_side": 0.0,
    "data.train.resizing": "detectron2",
    "data.val.resizing": "detectron2",
    "train.shard_parameters": 1,
    "train.nonfinite": "stop",
}


def check_config(config):
    """Raises ValueError that names every key that is unknown, missing or has a wrong value, and what is right there.

    Keys of ADDED that an older config file lacks are filled in before. Where all are right one by one, those that
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
    """Gives a config the keys that came later than it. Raises KeyError where their section is missing."""
    flat = flatten(config.to_dict())
    with config.unlocked():
        config.update_from_flattened_dict({key: value for key, value in ADDED.items() if key not in flat})


def _faults(flat):
    headless = flat.get(HEAD, "") is None
    rules = {key: rule for key, rule in RULES.items() if not (headless and key.startswith(f"{HEAD}."))}
    unknown = [key for key in flat if key not in rules and not (headless and key == HEAD)]
    faults = [f"  no key config.{key}; {nearest(key, rules)}" for key in unknown]
    faults += [f"  config.{key} is missing: {rules[key][0]}" for key in rules if key not in flat]
    for key, (right, test) in rules.items():
        if key in flat and not test(flat[key]):
            faults.append(f"  config.{key} is {flat[key]!r}: {right}")
    return faults


def nearest(key, keys):
    """Words that send the reader of an unknown key to the one or two that were meant, or to the sections."""
    near = [other for other in keys if other.split(".")[-1] == key.split(".")[-1]]
    near = near or difflib.get_close_matches(key, keys, 1)
    if near:
        return "did you mean " + " or ".join(f"config.{other}" for other in near[:2]) + "?"
    return "there are " + ", ".join(dict.fromkeys(f"config.{other.split('.')[0]}" for other in keys))


def load_config(directory):
    """Config of a workdir, W/config.json, with the keys that came later than it.

    Raises FileNotFoundError where there is none, ValueError where it is damaged or has a key or value that cannot be.
    """
    path = pathlib.Path(directory) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{directory} holds no run: there is no {path}; train.py --workdir makes one")
    try:
        config = ConfigDict(_with_tuples(json.loads(path.read_text())))
        for split in (config.data.train, config.data.val):
            if "floor_sizes" in split:  # `resizing` has taken its place
                del split["floor_sizes"]
        _fill_added(config)
        faults = _faults(flatten(config.to_dict()))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no config: {error}") from None
    if faults:
        raise ValueError(f"{path} cannot be right:\n" + "\n".join(faults))
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
    """Raises ValueError, key by key, where `model` differs beyond FREE: the checkpoints hold another model."""
    changed = changes({"model": before.model.to_dict()}, {"model": now.model.to_dict()})
    lines = [f"  config.{key}: {change}" for key, change in changed.items() if not key.startswith(FREE)]
    if lines:
        raise ValueError(f"{workdir} holds another model; take another workdir or undo\n" + "\n".join(lines))


def check_same_state(before, now, workdir):
    """Raises ValueError where a checkpoint of `before` lacks a part of the state that `now` trains with, or has another."""
    name, ema = (
        f"config.optimizer.{key}: {before.optimizer[key]} -> {now.optimizer[key]}" for key in ("name", "ema")
    )
    lines = [name] * (before.optimizer.name != now.optimizer.name)
    lines += [ema] * (bool(before.optimizer.ema) != bool(now.optimizer.ema))
    if lines:
        raise ValueError(
            f"the checkpoints of {workdir} do not fit; take another workdir or undo\n  " + "\n  ".join(lines)
        )


def compare_configs(workdir, config, resuming):
    """Where a run goes on, names each key that differs from the config it was started with, W/config.json.

    Raises ValueError where the model, the kind of optimiser or the use of averaged parameters differs. Everything else
    may change on the way and counts from here on.
    """
    if resuming and (pathlib.Path(workdir) / "config.json").exists():
        before = load_config(workdir)
        check_same_model(before, config, workdir)
        check_same_state(before, config, workdir)
        changed = changes(before.to_dict(), config.to_dict())
        if changed:
            print("the config changed since this run was started; from here on")
            print("\n".join(f"  config.{key}: {change}" for key, change in changed.items()))


def write_config(workdir, config):
    """Writes W/config.json, whole or not at all."""
    write_whole(pathlib.Path(workdir) / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
