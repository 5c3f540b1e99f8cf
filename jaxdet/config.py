"""Checks of a config before the first step, and its comparison with the one a workdir was started with."""

import json
import os
import pathlib

from ml_collections import ConfigDict

from jaxdet.data.transforms import RESIZINGS
from jaxdet.models.layers import NORMS
from jaxdet.models.resnet import BLOCKS


def _whole(values):
    return all(isinstance(value, int) and value > 0 for value in values)


# key -> (what is right, in words; the test). Only where a wrong value would train quietly or fail far away.
RULES = {
    "model.num_classes": ("at least 1", lambda v: v >= 1),
    "model.dtype": ("float32 or bfloat16", lambda v: v in ("float32", "bfloat16")),
    "model.pixel_mean": ("3 numbers", lambda v: len(v) == 3),
    "model.pixel_std": ("3 numbers above 0", lambda v: len(v) == 3 and min(v) > 0),
    "model.backbone.depth": (f"one of {sorted(BLOCKS)}", lambda v: v in BLOCKS),
    "model.backbone.norm": (f"one of {', '.join(NORMS)}", lambda v: v in NORMS),
    "model.backbone.freeze_at": ("0 (nothing) to 5 (all)", lambda v: v in range(6)),
    "model.backbone.remat": ("stages out of 2 to 5", lambda v: set(v) <= {2, 3, 4, 5}),
    "model.backbone.width": ("a positive multiple of 8", lambda v: v > 0 and v % 8 == 0),
    "model.rpn.anchor_sizes": ("5 sizes above 0, one a level", lambda v: len(v) == 5 and min(v) > 0),
    "model.rpn.anchor_ratios": ("ratios above 0", lambda v: len(v) > 0 and min(v) > 0),
    "model.rpn.pre_nms_topk": (
        "two whole numbers above 0, (training, test)",
        lambda v: len(v) == 2 and _whole(v),
    ),
    "model.rpn.post_nms_topk": (
        "two whole numbers above 0, (training, test)",
        lambda v: len(v) == 2 and _whole(v),
    ),
    "model.rpn.positive_fraction": ("0 to 1", lambda v: 0 <= v <= 1),
    "model.rpn.nms_iou": ("0 to 1", lambda v: 0 <= v <= 1),
    "model.rpn.smallest_side": ("0 or more pixels", lambda v: v >= 0),
    "model.roi_head.positive_fraction": ("0 to 1", lambda v: 0 <= v <= 1),
    "model.roi_head.box_weights": ("4 numbers above 0", lambda v: len(v) == 4 and min(v) > 0),
    "model.roi_head.sampling_ratio": ("at least 1", lambda v: v >= 1),
    "model.test.score_threshold": ("0 to 1", lambda v: 0 <= v <= 1),
    "model.test.nms_iou": ("0 to 1", lambda v: 0 <= v <= 1),
    "model.test.smallest_side": ("0 or more pixels", lambda v: v >= 0),
    "seed": ("0 or more", lambda v: v >= 0),
    "data.categories": ("names", lambda v: all(isinstance(n, str) for n in v)),
    "data.train.limit": ("0 (all) or more", lambda v: v >= 0),
    "data.val.limit": ("0 (all) or more", lambda v: v >= 0),
    "data.train.longest_side": ("above 0", lambda v: v > 0),
    "data.val.longest_side": ("above 0", lambda v: v > 0),
    "data.train.resizing": (f"one of {', '.join(RESIZINGS)}", lambda v: v in RESIZINGS),
    "data.val.resizing": (f"one of {', '.join(RESIZINGS)}", lambda v: v in RESIZINGS),
    "data.train.flip": ("0 to 1", lambda v: 0 <= v <= 1),
    "data.workers": ("0 or more processes", lambda v: v >= 0),
    "data.train.short_sides": ("whole numbers above 0", lambda v: len(v) > 0 and _whole(v)),
    "data.val.short_sides": ("whole numbers above 0", lambda v: len(v) > 0 and _whole(v)),
    "optimizer.name": ("sgd or adamw", lambda v: v in ("sgd", "adamw")),
    "optimizer.schedule": ("step or cosine", lambda v: v in ("step", "cosine")),
    "optimizer.step_boundaries": (
        "whole numbers that rise",
        lambda v: _whole(v) and sorted(set(v)) == list(v),
    ),
    "optimizer.learning_rate": ("above 0", lambda v: v > 0),
    "optimizer.warmup_factor": ("above 0, at most 1", lambda v: 0 < v <= 1),
    "optimizer.warmup_steps": ("0 or more", lambda v: v >= 0),
    "optimizer.ema": ("0 (off) to below 1", lambda v: 0 <= v < 1),
    "optimizer.clip_norm": ("0 (off) or more", lambda v: v >= 0),
    "train.steps": ("at least 1", lambda v: v >= 1),
    "train.batch_size": ("at least 1", lambda v: v >= 1),
    "train.accumulation": ("at least 1", lambda v: v >= 1),
    "train.shard_parameters": ("at least 1", lambda v: v >= 1),
    "train.log_every": ("at least 1", lambda v: v >= 1),
    "train.evaluate_every": ("at least 1", lambda v: v >= 1),
    "train.checkpoint_every": ("at least 1", lambda v: v >= 1),
    "train.keep_checkpoints": ("at least 1", lambda v: v >= 1),
    "evaluation.batch_size": ("at least 1", lambda v: v >= 1),
}


# What may change without making another model of the same parameters.
FREE = (
    "model.test.",
    "model.loss_weights.",
    "model.dtype",
    "model.backbone.remat",
    "model.rpn.pre_nms_topk",
    "model.rpn.post_nms_topk",
)


def check_config(config):
    """Raises ValueError that names every key with a wrong value, and what is right there."""
    flat, wrong = flatten(config.to_dict()), []
    for key, (right, test) in RULES.items():
        if key in flat and not _passes(test, flat[key]):
            wrong.append(f"  config.{key} is {flat[key]!r}: {right}")
    if not wrong and flat["train.batch_size"] % flat["train.accumulation"]:
        wrong.append("  config.train.batch_size does not divide into config.train.accumulation parts")
    if wrong:
        raise ValueError("the config cannot be right:\n" + "\n".join(wrong))


def _passes(test, value):
    try:
        return bool(test(value))
    except TypeError:  # words where numbers belong
        return False


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
    path = pathlib.Path(workdir) / "config.json"
    if resuming and path.exists():
        before = ConfigDict(json.loads(path.read_text()))
        check_same_model(before, config, workdir)
        check_same_state(before, config, workdir)
        changed = changes(before.to_dict(), config.to_dict())
        if changed:
            print("the config changed since this run was started; from here on")
            print("\n".join(f"  config.{key}: {change}" for key, change in changed.items()))


def write_config(workdir, config):
    """Writes W/config.json, whole or not at all."""
    path = pathlib.Path(workdir) / "config.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    os.replace(partial, path)
