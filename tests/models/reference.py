"""The published detectors of the reference values, rebuilt in our layout.

torch                                        ours
convolution [out, in, h, w]                  [h, w, in, out]
linear [out, in]                             [in, out]
first linear layer after a crop [out, C*7*7] [7*7*C, out]: crops are channel-last here
torchvision's classes 0 background, 1..K     0..K-1, background K
torchvision's deltas [(K+1)*4, in]           [in, K*4]: those of the background are never read
"""

import importlib.util
import json
import re

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import person
from jaxdet.models import FasterRCNN
from jaxdet.models.faster_rcnn import merge_variables

# torch name -> path of our tree, up to the last part. Stages count from 2 in both, as C2..C5 do.
TORCHVISION = (
    (r"backbone\.body\.conv1", "resnet/stem_conv"),
    (r"backbone\.body\.bn1", "resnet/stem_norm"),
    (r"backbone\.body\.layer(\d)\.(\d+)\.conv(\d)", lambda m: f"resnet/{_block(m, 1)}/conv{m[3]}"),
    (r"backbone\.body\.layer(\d)\.(\d+)\.bn(\d)", lambda m: f"resnet/{_block(m, 1)}/norm{m[3]}"),
    (r"backbone\.body\.layer(\d)\.(\d+)\.downsample\.0", lambda m: f"resnet/{_block(m, 1)}/shortcut"),
    (r"backbone\.body\.layer(\d)\.(\d+)\.downsample\.1", lambda m: f"resnet/{_block(m, 1)}/shortcut_norm"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.0", lambda m: f"pyramid/lateral{int(m[1]) + 2}"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.0", lambda m: f"pyramid/output{int(m[1]) + 2}"),
    (r"rpn\.head\.conv\.(\d)\.0", lambda m: f"rpn_head/conv{m[1]}"),
    (r"rpn\.head\.cls_logits", "rpn_head/objectness_logits"),
    (r"rpn\.head\.bbox_pred", "rpn_head/box_deltas"),
    (r"roi_heads\.box_head\.fc(\d)", lambda m: f"box_head/fc{int(m[1]) - 6}"),
    (r"roi_heads\.box_predictor\.cls_score", "box_head/class_logits"),
    (r"roi_heads\.box_predictor\.bbox_pred", "box_head/box_deltas"),
)
DETECTRON2 = (
    (r"backbone\.bottom_up\.stem\.conv1", "resnet/stem_conv"),
    (r"backbone\.bottom_up\.stem\.conv1\.norm", "resnet/stem_norm"),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)", lambda m: f"resnet/{_block(m, 0)}/conv{m[3]}"),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.norm", lambda m: f"resnet/{_block(m, 0)}/norm{m[3]}"),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut", lambda m: f"resnet/{_block(m, 0)}/shortcut"),
    (
        r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.norm",
        lambda m: f"resnet/{_block(m, 0)}/shortcut_norm",
    ),
    (r"backbone\.fpn_(lateral|output)(\d)", r"pyramid/\1\2"),
    (r"proposal_generator\.rpn_head\.conv", "rpn_head/conv0"),
    (r"proposal_generator\.rpn_head\.objectness_logits", "rpn_head/objectness_logits"),
    (r"proposal_generator\.rpn_head\.anchor_deltas", "rpn_head/box_deltas"),
    (r"roi_heads\.box_head\.fc(\d)", lambda m: f"box_head/fc{int(m[1]) - 1}"),
    (r"roi_heads\.box_predictor\.cls_score", "box_head/class_logits"),
    (r"roi_heads\.box_predictor\.bbox_pred", "box_head/box_deltas"),
)
NAMES = {
    "tv_resnet18": "names_tv_fasterrcnn_resnet18_fpn.json",
    "tv_resnet50": "names_tv_fasterrcnn_resnet50_fpn.json",
    "d2_resnet50": "names_d2_R50_FPN.json",
}
NORM_LEAVES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def _block(match, offset):
    return f"stage{int(match[1]) + offset}_block{match[2]}"


def path_of(name, model):
    """("params" or "constants", module, .., leaf) of a torch parameter."""
    module, leaf = name.rsplit(".", 1)
    for pattern, replacement in TORCHVISION if model.startswith("tv") else DETECTRON2:
        match = re.fullmatch(pattern, module)
        if match:
            path = match.expand(replacement) if isinstance(replacement, str) else replacement(match)
            break
    else:
        raise KeyError(f"{name}: no place for it")
    if "norm" in path:
        return ("constants", *path.split("/"), "frozen_batch_norm", NORM_LEAVES[leaf])
    return ("params", *path.split("/"), {"weight": "kernel", "bias": "bias"}[leaf])


def to_our_layout(value, path, model, pool_size=7):
    """One torch array as the array that stands at `path`."""
    if path[1:3] == ("box_head", "fc0") and path[-1] == "kernel":
        channels = value.shape[1] // pool_size**2
        value = value.reshape(-1, channels, pool_size, pool_size).transpose(0, 2, 3, 1)
        value = value.reshape(len(value), -1)
    if model.startswith("tv") and path[1:3] == ("box_head", "class_logits"):
        value = np.roll(value, -1, axis=0)  # the background goes last
    if model.startswith("tv") and path[1:3] == ("box_head", "box_deltas"):
        value = value[4:]
    return np.ascontiguousarray(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T)


def settings(model, config):
    """`config.model` for one of the reference models; `config` is the dict stored with its values."""
    ours = person.get_config().model
    ours.num_classes = config["num_classes"]
    ours.backbone.depth = int(model.removeprefix("tv_resnet").removeprefix("d2_resnet"))
    topk = {"pre_nms_topk": (config["pre_nms_topk"],) * 2, "post_nms_topk": (config["post_nms_topk"],) * 2}
    # larger than what there is: all that is labelled takes part in the losses
    ours.rpn.update(positive_fraction=1.0, nms_iou=config["rpn_nms_threshold"], **topk)
    ours.roi_head.update(positive_fraction=1.0, samples_per_image=config["post_nms_topk"] + 8)
    ours.test.update(
        score_threshold=config["score_threshold"],
        nms_iou=config["nms_threshold"],
        detections_per_image=config["detections"],
    )
    if model.startswith("tv"):
        ours.rpn.update(
            rounded_anchors=True,
            grid_strides=True,
            normalize_by_sampled=True,
            box_beta=1 / 9,
            smallest_side=1e-3,
            samples_per_image=30_000,
        )
        ours.roi_head.update(aligned=False, level_epsilon=1e-6, box_beta=1 / 9)
    else:
        ours.update(bgr=True, pixel_mean=(103.53, 116.28, 123.675), pixel_std=(1.0, 1.0, 1.0))
        ours.backbone.stride_in_1x1 = True
        ours.rpn.samples_per_image = config["rpn_batch_size_per_image"]
    return ours


class Reference:
    """One reference model: `values` (the file), `model` (ours), `variables`, and the paths of torch's names."""

    def __init__(self, folder, name):
        self.name = name
        self.values = np.load(folder / f"model_{name}.npz")
        self.config = json.loads(str(self.values["config"]))
        self.settings = settings(name, self.config)
        self.model = FasterRCNN(**self.settings)
        spec = importlib.util.spec_from_file_location("formula", folder / "formula.py")
        formula = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(formula)
        entries = json.loads((folder / NAMES[name]).read_text())["entries"]
        self.paths = {entry: path_of(entry, name) for entry, _ in entries}
        arrays = {}
        for entry, shape in entries:
            value = formula.parameter(entry, self._shape(entry, shape), name, self.config["weights_seed"])
            arrays[self.paths[entry]] = to_our_layout(value, self.paths[entry], name)
        self.variables = unflatten_dict(arrays)

    def _shape(self, name, shape):
        if self.name == "d2_resnet50" and ".cls_score." in name:
            return (self.config["num_classes"] + 1, *shape[1:])
        if self.name == "d2_resnet50" and ".bbox_pred." in name:
            return (self.config["num_classes"] * 4, *shape[1:])
        return shape

    def batch(self):
        """Both pictures padded, with the boxes of the losses."""
        z, (height, width) = self.values, self.values["padded_size"]
        images = np.zeros((2, height, width, 3), np.uint8)
        boxes, labels, valid = (
            np.full((2, 6, 4), np.nan, np.float32),
            np.full((2, 6), 7),
            np.zeros((2, 6), bool),
        )
        for i in range(2):
            image = z[f"image{i}"]
            images[i, : image.shape[0], : image.shape[1]] = image
            count = len(z[f"train/gt_boxes{i}"])
            boxes[i, :count], labels[i, :count] = z[f"train/gt_boxes{i}"], z[f"train/gt_labels{i}"]
            valid[i, :count] = True
        return {
            "images": images,
            "image_sizes": z["image_sizes"],
            "gt_boxes": boxes,
            "gt_labels": labels.astype(np.int32),
            "gt_valid": valid,
            "image_ids": np.arange(2, dtype=np.int32),
        }

    def merged(self, trainable):
        """Variables with other values at some of the parameters."""
        params = flatten_dict(self.variables["params"]) | trainable
        return merge_variables({}, unflatten_dict(params), self.variables["constants"], None)
