"""The two published recipes as config keys: what differs between detectron2 and torchvision, and nothing else.

config.update_from_flattened_dict(presets.TORCHVISION)
"""

IMAGENET = {
    "model.bgr": False,
    "model.pixel_mean": (123.675, 116.28, 103.53),
    "model.pixel_std": (58.395, 57.12, 57.375),
    "model.backbone.stride_in_1x1": False,
}

# detectron2's own backbones: Caffe's, by Microsoft Research Asia. Weights from elsewhere go with IMAGENET.
MSRA = {
    "model.bgr": True,
    "model.pixel_mean": (103.53, 116.28, 123.675),
    "model.pixel_std": (1.0, 1.0, 1.0),
    "model.backbone.stride_in_1x1": True,
}

DETECTRON2 = IMAGENET | {
    "model.backbone.norm_epsilon": 1e-5,
    "model.rpn.rounded_anchors": False,
    "model.rpn.grid_strides": False,
    "model.rpn.box_beta": 0.0,
    "model.rpn.normalize_by_sampled": False,
    "model.rpn.post_nms_topk": (1000, 1000),
    "model.rpn.smallest_side": 0.0,
    "model.roi_head.aligned": True,
    "model.roi_head.level_epsilon": 0.0,
    "model.roi_head.box_beta": 0.0,
    "model.test.smallest_side": 0.0,
    "data.train.short_sides": (640, 672, 704, 736, 768, 800),
    "data.train.resizing": "detectron2",
    "data.val.resizing": "detectron2",
    "train.steps": 90_000,
    "optimizer.step_boundaries": (60_000, 80_000),
}

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
    # 26 epochs, a tenth of the rate at 16 and 22, of the 64,115 pictures of people in batches of 16
    "train.steps": 104_208,
    "optimizer.step_boundaries": (64_128, 88_176),
}

# The published detectors of both libraries, whatever config a file is converted with
DETECTORS = {
    "model.backbone.width": 64,
    "model.fpn.channels": 256,
    "model.fpn.norm": "",
    "model.rpn.anchor_sizes": (32.0, 64.0, 128.0, 256.0, 512.0),
    "model.rpn.anchor_ratios": (0.5, 1.0, 2.0),
    "model.rpn.num_convs": 1,
    "model.roi_head.num_convs": 0,
    "model.roi_head.conv_norm": "",
    "model.roi_head.num_fcs": 2,
    "model.roi_head.hidden": 1024,
    "model.roi_head.class_agnostic": False,
    "model.roi_head.pool_size": 7,
    "model.roi_head.box_weights": (10.0, 10.0, 5.0, 5.0),
}


def apply(config, preset):
    """Sets the keys of a preset, but for those of a box head where the config has none."""
    head = "model.roi_head."
    keys = {k: v for k, v in preset.items() if config.model.roi_head or not k.startswith(head)}
    config.update_from_flattened_dict(keys)
