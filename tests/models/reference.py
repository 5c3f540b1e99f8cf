"""The published detectors behind the reference values, converted from the formula of their parameters."""

import json
import math
import zlib

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import person
from jaxdet.config import presets
from jaxdet.interop import convert, detectron2, torchvision
from jaxdet.models import FasterRCNN
from jaxdet.models.faster_rcnn import merge_variables
from tests.models import tiny

NAMES = {
    "tv_resnet18": "names_tv_fasterrcnn_resnet18_fpn.json",
    "tv_resnet50": "names_tv_fasterrcnn_resnet50_fpn.json",
    "d2_resnet50": "names_d2_R50_FPN.json",
}


# Factors of parameters by the end of their names: they keep activations bounded and spread what is compared.
GAINS = {
    "tv_resnet18": {
        ".bn2.weight": 0.3,
        "cls_logits.weight": 0.4,
        "rpn.head.bbox_pred.weight": 0.07,
        "cls_score.weight": 0.5,
        "box_predictor.bbox_pred.weight": 0.25,
    },
    "tv_resnet50": {
        ".bn3.weight": 0.3,
        "cls_logits.weight": 0.15,
        "rpn.head.bbox_pred.weight": 0.03,
        "cls_score.weight": 0.3,
        "box_predictor.bbox_pred.weight": 0.12,
    },
    "d2_resnet50": {
        ".conv3.norm.weight": 0.3,
        "stem.conv1.weight": 1 / 64,
        "objectness_logits.weight": 0.3,
        "anchor_deltas.weight": 0.03,
        "cls_score.weight": 0.2,
        "box_predictor.bbox_pred.weight": 0.2,
    },
}


def parameter(name, shape, model, seed):
    """What a reference model has under a name: a pure function of name, shape and seed, in float32."""
    rng = np.random.default_rng(zlib.crc32(name.encode(), seed))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        value = rng.uniform(0.5, 1.5, shape)
    elif name.endswith(("running_mean", ".bias")):
        value = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:
        value = np.maximum(0.5, 1 + 0.1 * rng.standard_normal(shape))
    else:
        value = rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    gains = (gain for end, gain in GAINS[model].items() if name.endswith(end))
    return (value * next(gains, 1.0)).astype(np.float32)


def settings(model, config):
    """Our config for one of the reference models; `config` is the dict stored with its values."""
    ours = person.get_config("torchvision" if model.startswith("tv") else "detectron2")
    if model.startswith("d2"):
        presets.apply(ours, presets.MSRA)
    ours.model.num_classes = config["num_classes"]
    ours.model.backbone.depth = int(model.removeprefix("tv_resnet").removeprefix("d2_resnet"))
    topk = {"pre_nms_topk": (config["pre_nms_topk"],) * 2, "post_nms_topk": (config["post_nms_topk"],) * 2}
    # larger than what there is: all that is labelled takes part in the losses
    anchors = 30_000 if model.startswith("tv") else config["rpn_batch_size_per_image"]
    ours.model.rpn.update(positive_fraction=1.0, samples_per_image=anchors, nms_iou=config["rpn_nms_threshold"], **topk)
    ours.model.roi_head.update(positive_fraction=1.0, samples_per_image=config["post_nms_topk"] + 8)
    ours.model.test.update(
        score_threshold=config["score_threshold"],
        nms_iou=config["nms_threshold"],
        detections_per_image=config["detections"],
    )
    return ours


class Reference:
    """A reference model: `values` (the file), `model` (ours), `variables`, and the paths of torch's names."""

    def __init__(self, folder, name, dtype="float32"):
        self.name = name
        self.values = np.load(folder / f"model_{name}.npz")
        self.config = json.loads(str(self.values["config"]))
        ours = settings(name, self.config)
        ours.model.dtype = dtype
        self.settings = ours.model
        self.model = FasterRCNN(**self.settings)
        entries = json.loads((folder / NAMES[name]).read_text())["entries"]
        self.arrays = {
            entry: parameter(entry, self._shape(entry, shape), name, self.config["weights_seed"])
            for entry, shape in entries
        }
        theirs = torchvision if name.startswith("tv") else detectron2
        places = convert.places(ours, theirs)
        self.paths = {entry: path for entry, (path, _) in places.items()}
        self.variables = unflatten_dict(convert.from_torch(self.arrays, places, ours, theirs)[0])

    def _shape(self, name, shape):
        if self.name == "d2_resnet50" and ".cls_score." in name:
            return (self.config["num_classes"] + 1, *shape[1:])
        if self.name == "d2_resnet50" and ".bbox_pred." in name:
            return (self.config["num_classes"] * 4, *shape[1:])
        return shape

    def batch(self):
        """Both images padded, with the boxes of the losses."""
        z, (height, width) = self.values, self.values["padded_size"]
        images = np.zeros((2, height, width, 3), np.uint8)
        boxes, labels, valid = (np.full((2, 6, 4), np.nan, np.float32), np.full((2, 6), 7), np.zeros((2, 6), bool))
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

    def gradient_paths(self):
        """The parameters whose gradients are in the file: {torch's name: path}."""
        return {str(name): self.paths[name][1:] for name in self.values["train/grad_names"]}

    def everything(self):
        """The ResNet's input, each network's output, stages, losses and gradient, from one pass."""
        batch, params = self.batch(), flatten_dict(self.variables["params"])
        trainable = {path: params[path] for path in self.gradient_paths().values()}

        def run(trainable):
            seen = {}

            def keep(call, args, kwargs, context):
                out = call(*args, **kwargs)
                if context.method_name == "__call__":
                    seen.setdefault(type(context.module).__name__, (args, out))
                return out

            with nn.intercept_methods(keep):
                (stages, losses), updated = self.model.apply(
                    self.merged(trainable), batch, jax.random.key(0), method="evaluate", mutable=["metrics"]
                )
            return sum(losses.values()), {
                "input": seen["ResNet"][0][0],
                "C": seen["ResNet"][1],
                "P": seen["FPN"][1],
                "rpn": seen["RPN"][1],
                "head": seen["BoxHead"][1],
                "stages": stages,
                "losses": losses,
                "metrics": updated["metrics"],
            }

        gradient, out = tiny.jit(jax.grad(run, has_aux=True))(trainable)
        return jax.device_get(out | {"gradient": gradient})
