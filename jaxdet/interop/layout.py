"""The layout of arrays in torch and here: kernels [out, in, h, w] there, [h, w, in, out] here.

Crops are channel-first in torch, so the first dense layer has its inputs in another order. In torchvision, class 0 is
the background, which is last here; its box deltas of the background are never read.
"""

import re

import numpy as np

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
NORM_KINDS = ("frozen_batch_norm", "batch_norm")


def module_and_leaf(path):
    """("params", "resnet", "stem_norm", "batch_norm", "scale") -> ("resnet/stem_norm", "scale")."""
    names = [name for name in path[1:-1] if name not in NORM_KINDS]
    return "/".join(names), path[-1]


def renamed(module, rules):
    """The name that the first matching rule, (pattern, text or function of the groups), gives to a module of ours.

    Raises ValueError if none does, as for a GroupNorm.
    """
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, module)
        if match:
            return match.expand(replacement) if isinstance(replacement, str) else replacement(*match.groups())
    raise ValueError(f"{module} has no counterpart in the other library")


def to_ours(value, path, pool_size):
    """A torch array as the leaf at `path`."""
    if _after_a_crop(path):
        crops = value.reshape(len(value), -1, pool_size, pool_size)
        value = crops.transpose(0, 2, 3, 1).reshape(len(value), -1)
    return np.ascontiguousarray(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T)


def to_torch(value, path, pool_size):
    """The leaf at `path` as a torch array; `to_ours` backwards."""
    value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    if _after_a_crop(path):
        crops = value.reshape(len(value), pool_size, pool_size, -1)
        value = crops.transpose(0, 3, 1, 2).reshape(len(value), -1)
    return np.ascontiguousarray(value)


def _after_a_crop(path):
    return path[1:] == ("box_head", "fc0", "kernel")
