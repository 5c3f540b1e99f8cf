"""The parameter names of detectron2's Faster R-CNN and RPN on ResNet and FPN, and the config of a file.

Its ImageNet backbones have Caffe2's names (`MSRA/R-50.pkl`), or its own names if they were converted from torchvision.
"""

import re

import numpy as np

from jaxdet.interop.layout import renamed

BODY = "backbone.bottom_up."
NORM_EPSILON = 1e-5
CAFFE2 = (
    (r"conv1_w", r"stem.conv1.weight"),
    (r"res_conv1_bn_([sb])", r"stem.conv1.norm.\1"),
    (r"res(\d)_(\d+)_branch1_w", r"res\1.\2.shortcut.weight"),
    (r"res(\d)_(\d+)_branch1_bn_([sb])", r"res\1.\2.shortcut.norm.\3"),
    (r"res(\d)_(\d+)_branch2([abc])_w", r"res\1.\2.conv\3.weight"),
    (r"res(\d)_(\d+)_branch2([abc])_bn_([sb])", r"res\1.\2.conv\3.norm.\4"),
    (r"fc1000_([wb])", r"stem.fc.\1"),
)
LETTERS = {"a": "1", "b": "2", "c": "3"}  # of the convolutions of a block


def module_name(module, config):
    """Their name of a module of ours: "resnet/stage2_block0/conv1" -> "backbone.bottom_up.res2.0.conv1"."""
    return renamed(
        module,
        (
            (r"resnet/stem_conv", BODY + "stem.conv1"),
            (r"resnet/stem_norm", BODY + "stem.conv1.norm"),
            (r"resnet/stage(\d)_block(\d+)/(conv\d|shortcut)", BODY + r"res\1.\2.\3"),
            (r"resnet/stage(\d)_block(\d+)/norm(\d)", BODY + r"res\1.\2.conv\3.norm"),
            (r"resnet/stage(\d)_block(\d+)/shortcut_norm", BODY + r"res\1.\2.shortcut.norm"),
            (r"pyramid/(lateral|output)(\d)", r"backbone.fpn_\1\2"),
            (r"rpn_head/conv0", "proposal_generator.rpn_head.conv"),
            (r"rpn_head/objectness_logits", "proposal_generator.rpn_head.objectness_logits"),
            (r"rpn_head/box_deltas", "proposal_generator.rpn_head.anchor_deltas"),
            (r"box_head/fc(\d)", lambda i: f"roi_heads.box_head.fc{int(i) + 1}"),
            (r"box_head/class_logits", "roi_heads.box_predictor.cls_score"),
            (r"box_head/box_deltas", "roi_heads.box_predictor.bbox_pred"),
        ),
    )


def from_caffe2(arrays):
    """Arrays of one of Caffe2's ImageNet backbones by detectron2's names, as it reads them.

    Its norms are a scale and a shift alone, so mean and variance are those that change nothing; momenta and the bias of
    the first convolution, which detectron2 has no place for, are left out. Names that are not Caffe2's stay.
    """
    ours = {}
    for name, value in arrays.items():
        if name == "conv1_b" or name.endswith("_momentum"):
            continue
        for pattern, replacement in CAFFE2:
            name = re.sub(f"^{pattern}$", replacement, name)
        name = re.sub(r"\.conv([abc])\.", lambda match: f".conv{LETTERS[match[1]]}.", name)
        name = re.sub(r"\.[wsb]$", lambda match: ".bias" if match[0] == ".b" else ".weight", name)
        ours[name] = value
        if name.endswith("norm.weight"):
            norm = name.removesuffix("weight")
            ours[norm + "running_mean"] = np.zeros(value.shape, np.float32)
            ours[norm + "running_var"] = np.full(value.shape, 1 - NORM_EPSILON, np.float32)
    return ours


def without_constants(arrays):
    """Arrays without, and those of, what older files hold beside parameters: cell anchors, mean and deviation of
    pixels.
    """
    constants = {
        name: value
        for name, value in arrays.items()
        if name in ("pixel_mean", "pixel_std")
        or re.fullmatch(r"proposal_generator\.anchor_generator\.cell_anchors\.\d", name)
    }
    return {name: value for name, value in arrays.items() if name not in constants}, constants


def check_constants(source, constants, config):
    """Raises ValueError unless those of a file are what the config says."""
    ratios = np.sqrt(np.array(config.model.rpn.anchor_ratios))
    expected = {name: np.array(config.model[name]) for name in ("pixel_mean", "pixel_std")}
    for level, side in enumerate(config.model.rpn.anchor_sizes):
        halves = np.stack([side / ratios, side * ratios], -1) / 2
        expected[f"proposal_generator.anchor_generator.cell_anchors.{level}"] = np.concatenate([-halves, halves], -1)
    for name, value in constants.items():
        here = expected.get(name)
        if here is None or here.size != value.size or np.abs(here - value.reshape(here.shape)).max() > 1e-2:
            raise ValueError(
                f"{source}: {name} is {value.ravel().round(2).tolist()}, "
                f"here {'absent' if here is None else here.ravel().round(2).tolist()}"
            )


def recognise(shapes):
    """Config keys that the names and shapes of a detector decide."""
    if not any(name.startswith("roi_heads.") for name in shapes):
        return {"model.roi_head": None}
    return {"model.num_classes": shapes["roi_heads.box_predictor.cls_score.weight"][0] - 1}
