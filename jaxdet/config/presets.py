"""The published recipes as config keys: where torchvision differs from the defaults, which are detectron2's.

presets.apply(config, presets.TORCHVISION)
"""

from jaxdet.config.keys import KEYS, keys_of

# detectron2's own backbones: Caffe's, by Microsoft Research Asia. Weights from elsewhere go with IMAGENET.
MSRA = {
    "model.bgr": True,
    "model.pixel_mean": (103.53, 116.28, 123.675),
    "model.pixel_std": (1.0, 1.0, 1.0),
    "model.backbone.stride_in_1x1": True,
}
IMAGENET = {name: KEYS[name].default for name in MSRA}

TORCHVISION = IMAGENET | {
    "model.backbone.norm_epsilon": 1e-5,
    "model.rpn.rounded_anchors": True,
    "model.rpn.grid_strides": True,
    "model.rpn.box_beta": 1 / 9,
    "model.rpn.normalize_by_sampled": True,
    "model.rpn.post_nms_topk": (2000, 1000),
    "model.rpn.smallest_side": 1e-3,
    "model.roi_head.aligned": False,
    "model.roi_head.level_epsilon": 1e-6,
    "model.roi_head.box_beta": 1 / 9,
    "model.test.smallest_side": 1e-2,
    "data.train.short_sides": (800,),
    "data.train.resizing": "torchvision",
    "data.val.resizing": "torchvision",
    # 26 epochs, a tenth of the rate at 16 and 22, of the 64,115 images of people in batches of 16
    "train.steps": 104_208,
    "optimizer.step_boundaries": (64_128, 88_176),
}
DETECTRON2 = {name: KEYS[name].default for name in TORCHVISION}

RECIPES = {"detectron2": DETECTRON2, "torchvision": TORCHVISION, "msra": DETECTRON2 | MSRA}

# The published detectors of both libraries, whatever config a file is converted with
DETECTORS = {
    name: KEYS[name].default
    for name in (
        "model.backbone.width",
        "model.fpn.channels",
        "model.fpn.norm",
        "model.rpn.anchor_sizes",
        "model.rpn.anchor_ratios",
        "model.rpn.num_convs",
        "model.roi_head.num_convs",
        "model.roi_head.conv_norm",
        "model.roi_head.num_fcs",
        "model.roi_head.hidden",
        "model.roi_head.class_agnostic",
        "model.roi_head.pool_size",
        "model.roi_head.box_weights",
    )
}


def apply(config, preset):
    """Sets the keys of a preset, but for those of a box head where the config has none."""
    names = keys_of({"model.roi_head": config.model.roi_head})
    config.update_from_flattened_dict({name: value for name, value in preset.items() if name in names})
