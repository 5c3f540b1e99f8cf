"""detectron2's detectors, Faster R-CNN and RPN alone on ResNet and FPN: their names, and what a file says of the config."""

from jaxdet.interop.layout import renamed

BODY = "backbone.bottom_up."


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


def recognise(shapes):
    """Config keys that the names and shapes of a detector decide."""
    if not any(name.startswith("roi_heads.") for name in shapes):
        return {"model.roi_head": None}
    return {"model.num_classes": shapes["roi_heads.box_predictor.cls_score.weight"][0] - 1}
