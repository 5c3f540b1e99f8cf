"""torchvision's detectors: their names, and what a file of theirs says of the config.

The body of a detector has the names of the ImageNet classifier, which are timm's too.
"""

import numpy as np

from jaxdet.interop.layout import renamed

BODY = "backbone.body."
CLASS_ROWS = ("box_head/class_logits", "box_head/box_deltas")
# Names of older files, which torchvision still reads
OLD = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
)


def module_name(module, config):
    """Their name of a module of ours: "resnet/stage2_block0/conv1" -> "backbone.body.layer1.0.conv1"."""
    head = config.model.roi_head
    first_dense = 5 if head and head.num_convs else 6  # position after four layers and a flattening, or fc6
    dense = "roi_heads.box_head." if first_dense == 5 else "roi_heads.box_head.fc"
    return renamed(
        module,
        (
            (r"resnet/stem_conv", BODY + "conv1"),
            (r"resnet/stem_norm", BODY + "bn1"),
            (r"resnet/stage(\d)_block(\d+)/conv(\d)", lambda s, b, i: f"{BODY}layer{int(s) - 1}.{b}.conv{i}"),
            (r"resnet/stage(\d)_block(\d+)/norm(\d)", lambda s, b, i: f"{BODY}layer{int(s) - 1}.{b}.bn{i}"),
            (
                r"resnet/stage(\d)_block(\d+)/shortcut(_norm)?",
                lambda s, b, norm: f"{BODY}layer{int(s) - 1}.{b}.downsample.{int(bool(norm))}",
            ),
            (r"pyramid/lateral(\d)(_norm)?", lambda p, norm: _block("inner", p, norm)),
            (r"pyramid/output(\d)(_norm)?", lambda p, norm: _block("layer", p, norm)),
            (r"rpn_head/conv(\d)", r"rpn.head.conv.\1.0"),
            (r"rpn_head/objectness_logits", "rpn.head.cls_logits"),
            (r"rpn_head/box_deltas", "rpn.head.bbox_pred"),
            (r"box_head/conv(\d)(_norm)?", lambda i, norm: f"roi_heads.box_head.{i}.{int(bool(norm))}"),
            (r"box_head/fc(\d)", lambda i: f"{dense}{int(i) + first_dense}"),
            (r"box_head/class_logits", "roi_heads.box_predictor.cls_score"),
            (r"box_head/box_deltas", "roi_heads.box_predictor.bbox_pred"),
        ),
    )


def _block(kind, level, norm):
    return f"backbone.fpn.{kind}_blocks.{int(level) - 2}.{int(bool(norm))}"


def recognise(shapes):
    """Config keys that the names and shapes of a detector decide.

    Two variants: `fasterrcnn_resnet50_fpn` and its kin with frozen norms, and `.._v2`, which trains norms everywhere
    and has four convolutions in the box head and two in the RPN. A COCO_V1 file (91 outputs, frozen norms) is run with
    epsilon 0 by torchvision, as its weights were made so.
    """
    outputs = shapes["roi_heads.box_predictor.cls_score.weight"][0]
    keys = {"model.num_classes": outputs - 1}
    if any(name.startswith("roi_heads.box_head.0.") for name in shapes):
        keys |= {"model.backbone.norm": "batch_norm", "model.fpn.norm": "batch_norm", "model.rpn.num_convs": 2}
        keys |= {"model.roi_head.num_convs": 4, "model.roi_head.conv_norm": "batch_norm"}
        keys |= {"model.roi_head.num_fcs": 1}
    elif outputs == 91:
        keys |= {"model.backbone.norm_epsilon": 0.0}
    return keys


def background_last(name, value):
    """Rows of the two predictors in our order, and the rows that have no place here (deltas of the background)."""
    if name.startswith("roi_heads.box_predictor.cls_score"):
        return np.roll(value, -1, axis=0), value[:0]
    if name.startswith("roi_heads.box_predictor.bbox_pred"):
        return value[4:], value[:4]
    return value, value[:0]


def background_first(name, value, unread):
    """`background_last` backwards; `unread` are the rows that it set aside."""
    if name.startswith("roi_heads.box_predictor.cls_score"):
        return np.roll(value, 1, axis=0)
    if name.startswith("roi_heads.box_predictor.bbox_pred"):
        return np.concatenate([unread, value])
    return value
