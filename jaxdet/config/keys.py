"""Every key of a config once: its default, what is right for it, its meaning and unit.

The defaults make up configs/person.py. `python -m jaxdet.config.docs` writes docs/config.md from this file.
"""

from ml_collections import ConfigDict

from jaxdet.config.rules import ABOVE_0, FLAG, FRACTION, NOT_NEGATIVE, TEXT, Key, Rule, number, one_of, several, whole

ABOVE_0_TO_1 = number("above 0, at most 1", lambda v: 0 < v <= 1)
BELOW_1 = number("0 to below 1", lambda v: 0 <= v < 1)
SIDES = several("whole numbers above 0", whole(1), lambda v: len(v) > 0)
TWO_COUNTS = several("two whole numbers above 0, (training, test)", whole(1), lambda v: len(v) == 2)
THREE = several("3 numbers", number("of any size"), lambda v: len(v) == 3)
THREE_ABOVE_0 = several("3 numbers above 0", ABOVE_0, lambda v: len(v) == 3)
RATIOS = several("ratios above 0", ABOVE_0, lambda v: len(v) > 0)
FIVE_SIZES = several("5 sizes above 0, one a level", ABOVE_0, lambda v: len(v) == 5)
FOUR_WEIGHTS = several("4 numbers above 0", ABOVE_0, lambda v: len(v) == 4)
RISING = several("whole numbers that rise", whole(1), lambda v: sorted(set(v)) == list(v))
STAGES = several("stages out of 2 to 5", whole(2), lambda v: max(v, default=2) <= 5)
FREEZE_AT = Rule("0 (nothing) to 5 (all)", lambda v: whole(0).test(v) and v <= 5)
WIDTH = Rule("a positive multiple of 8", lambda v: whole(1).test(v) and v % 8 == 0)
EVEN = Rule("a positive even number", lambda v: whole(1).test(v) and v % 2 == 0)
DEPTH = Rule("one of [18, 34, 50, 101]", lambda v: whole(18).test(v) and v in (18, 34, 50, 101))
NORMS = "frozen_batch_norm", "batch_norm", "group_norm"
NAMES = Rule(
    "a tuple of names, such as ('person',), none of them twice",
    lambda v: type(v) in (tuple, list) and all(type(n) is str for n in v) and len(set(v)) == len(v),
)
HEAD = "model.roi_head"  # None where there is no second stage


def _split(name, short_sides, keep_empty):
    """Keys of one of the two splits of the data."""
    coco = f"data/coco/{name}2017", f"data/coco/annotations/instances_{name}2017.json"
    keys = (
        Key("source", "coco", one_of("coco", "tfds", "synthetic"),
            "kind of data set; see [data.md](data.md)"),
        Key("images", coco[0], TEXT, "coco: folder of the images"),
        Key("annotations", coco[1], TEXT, "coco: JSON file of the annotations"),
        Key("directory", "", TEXT, "tfds: folder of the prepared data set"),
        Key("split", "", TEXT, "tfds: name of the split there"),
        Key("scenes", 0, whole(0), "synthetic: how many scenes to draw", "scenes"),
        Key("scenes_seed", 0, whole(0), "synthetic: random seed of the scenes"),
        Key("scenes_height", 192, whole(1), "synthetic: height of a scene", "pixels"),
        Key("scenes_width", 256, whole(1), "synthetic: width of a scene", "pixels"),
        Key("short_sides", short_sides, SIDES,
            "short side of a resized image: training draws one, evaluation takes the largest", "pixels"),
        Key("longest_side", 1333, whole(1, "above 0"),
            "limit of the long side of a resized image", "pixels"),
        Key("resizing", "detectron2", one_of("detectron2", "torchvision"),
            "detectron2: antialiased, to uint8, sizes rounded; torchvision: plain, to float32, rounded down",
            absent="detectron2"),
        Key("limit", 0, whole(0, "0 (all) or more"),
            "use only this many images, those of the lowest ids", "images"),
        Key("keep_empty", keep_empty, FLAG, "use images without boxes too"),
    )  # fmt: skip
    return tuple(key._replace(name=f"data.{name}.{key.name}") for key in keys)


KEYS = {key.name: key for key in (
    Key("seed", 0, whole(0, "0 or more"),
        "random seed of the first parameters, the order of the images and all sampling"),
    Key("init_from", "", TEXT,
        "workdir of a run or of `jaxdet convert` whose parameters to start from", absent=""),

    Key("model.num_classes", 1, whole(1), "classes, background not counted"),
    Key("model.dtype", "float32", one_of("float32", "bfloat16"),
        "type of the network's arithmetic; parameters, boxes and losses are always float32"),
    Key("model.pixel_mean", (123.675, 116.28, 103.53), THREE,
        "subtracted from the channels, 0 to 255, in the order that the network sees"),
    Key("model.pixel_std", (58.395, 57.12, 57.375), THREE_ABOVE_0,
        "what the channels are divided by after that"),
    Key("model.bgr", False, FLAG, "feed the channels as BGR instead of RGB"),

    Key("model.backbone.depth", 50, DEPTH,
        "layers of the ResNet"),
    Key("model.backbone.width", 64, WIDTH,
        "channels of the ResNet's first convolution; all others follow", "channels"),
    Key("model.backbone.norm", "frozen_batch_norm", one_of(*NORMS), "normalisation layers"),
    Key("model.backbone.norm_epsilon", 1e-5, NOT_NEGATIVE, "added to the variance by these layers"),
    Key("model.backbone.freeze_at", 2, FREEZE_AT,
        "last frozen stage, counted as by detectron2: 1 is the stem, 2 also the first residual stage"),
    Key("model.backbone.stride_in_1x1", False, FLAG,
        "stride of a bottleneck in its first 1x1 convolution, as in detectron2's MSRA weights, not its 3x3"),
    Key("model.backbone.remat", (), STAGES,
        "stages whose activations are recomputed in the backward pass, to save memory", absent=()),

    Key("model.fpn.channels", 256, EVEN,
        "channels of every level", "channels"),
    Key("model.fpn.norm", "", one_of("", *NORMS), "normalisation after each convolution"),

    Key("model.rpn.anchor_sizes", (32.0, 64.0, 128.0, 256.0, 512.0), FIVE_SIZES,
        "side of the anchors on P2 to P6", "pixels"),
    Key("model.rpn.anchor_ratios", (0.5, 1.0, 2.0), RATIOS,
        "height / width of the anchors"),
    Key("model.rpn.rounded_anchors", False, FLAG, "round the anchors to whole pixels, as torchvision does"),
    Key("model.rpn.grid_strides", False, FLAG,
        "space the anchors by padded size // feature map size, as torchvision does, not by 4, 8, 16, 32, 64"),
    Key("model.rpn.num_convs", 1, whole(0), "3x3 convolutions before the two predictors"),
    Key("model.rpn.positive_iou", 0.7, FRACTION,
        "an anchor with at least this IoU with a ground-truth box is positive", "IoU"),
    Key("model.rpn.negative_iou", 0.3, FRACTION,
        "an anchor with less than this IoU with every ground-truth box is negative", "IoU"),
    Key("model.rpn.samples_per_image", 256, whole(1), "anchors sampled for the loss, per image", "anchors"),
    Key("model.rpn.positive_fraction", 0.5, FRACTION, "largest share of positives among them"),
    Key("model.rpn.box_beta", 0.0, NOT_NEGATIVE, "where the smooth L1 loss turns linear; 0 is L1"),
    Key("model.rpn.normalize_by_sampled", False, FLAG,
        "divide the losses by the anchors sampled, as torchvision does, not by samples_per_image x images"),
    Key("model.rpn.pre_nms_topk", (2000, 1000), TWO_COUNTS,
        "proposals kept before NMS, per level, in training and test", "proposals"),
    Key("model.rpn.post_nms_topk", (1000, 1000), TWO_COUNTS,
        "proposals kept after NMS, per image, in training and test", "proposals"),
    Key("model.rpn.nms_iou", 0.7, FRACTION,
        "IoU above which NMS drops the proposal of the lower score", "IoU"),
    Key("model.rpn.smallest_side", 0.0, NOT_NEGATIVE,
        "proposals with a shorter side are dropped; 0 drops those of no area", "pixels"),

    Key("model.roi_head.num_convs", 0, whole(0), "3x3 convolutions before the dense layers"),
    Key("model.roi_head.conv_norm", "", one_of("", *NORMS), "normalisation after each of them"),
    Key("model.roi_head.num_fcs", 2, whole(0), "dense layers before the two predictors"),
    Key("model.roi_head.hidden", 1024, whole(1), "width of the dense layers", "channels"),
    Key("model.roi_head.class_agnostic", False, FLAG, "one set of box deltas for all classes"),
    Key("model.roi_head.pool_size", 7, whole(1), "height and width of RoIAlign's output", "bins"),
    Key("model.roi_head.sampling_ratio", 2, whole(1),
        "RoIAlign's samples per bin, along each axis", "samples"),
    Key("model.roi_head.aligned", True, FLAG,
        "shift RoIAlign by half a pixel, as detectron2 does and torchvision does not"),
    Key("model.roi_head.level_epsilon", 0.0, NOT_NEGATIVE,
        "added to the pyramid level of a proposal before it is rounded down; 1e-6 in torchvision"),
    Key("model.roi_head.positive_iou", 0.5, FRACTION,
        "a proposal with at least this IoU with a ground-truth box is positive, any other background", "IoU"),
    Key("model.roi_head.samples_per_image", 512, whole(1),
        "proposals sampled for the loss, per image", "proposals"),
    Key("model.roi_head.positive_fraction", 0.25, FRACTION, "largest share of positives among them"),
    Key("model.roi_head.add_ground_truth", True, FLAG,
        "add the ground-truth boxes to the proposals in training"),
    Key("model.roi_head.box_weights", (10.0, 10.0, 5.0, 5.0), FOUR_WEIGHTS,
        "factors of dx, dy, dw and dh in the box coder"),
    Key("model.roi_head.box_beta", 0.0, NOT_NEGATIVE, "where the smooth L1 loss turns linear; 0 is L1"),

    Key("model.loss_weights.rpn_objectness", 1.0, NOT_NEGATIVE, "factor of the RPN's objectness loss"),
    Key("model.loss_weights.rpn_box", 1.0, NOT_NEGATIVE, "factor of the RPN's box loss"),
    Key("model.loss_weights.roi_classification", 1.0, NOT_NEGATIVE,
        "factor of the box head's classification loss"),
    Key("model.loss_weights.roi_box", 1.0, NOT_NEGATIVE, "factor of the box head's box loss"),

    Key("model.test.score_threshold", 0.05, FRACTION, "detections of this score or less are dropped"),
    Key("model.test.nms_iou", 0.5, FRACTION,
        "IoU above which NMS drops the detection of the lower score, within a class", "IoU"),
    Key("model.test.smallest_side", 0.0, NOT_NEGATIVE,
        "detections with a shorter side are dropped; 0 drops those of no area", "pixels", absent=0.0),
    Key("model.test.detections_per_image", 100, whole(1), "best detections kept per image", "detections"),

    Key("data.categories", ("person",), NAMES,
        "names of the categories to detect; () takes all of the data set"),
    Key("data.workers", 4, whole(0, "0 or more processes"),
        "processes that read ahead; 0 reads in the training process", "processes"),
    *_split("train", (640, 672, 704, 736, 768, 800), keep_empty=False),
    Key("data.train.flip", 0.5, FRACTION, "probability of mirroring an image left to right"),
    *_split("val", (800,), keep_empty=True),

    Key("optimizer.name", "sgd", one_of("sgd", "adamw"), "SGD with momentum, or AdamW"),
    Key("optimizer.learning_rate", 0.02, ABOVE_0,
        "learning rate after warmup, for a batch of reference_batch"),
    Key("optimizer.reference_batch", 16, whole(0, "0 (take the rate as it is) or more"),
        "the learning rate is scaled by train.batch_size / reference_batch", "images"),
    Key("optimizer.warmup_steps", 1000, whole(0, "0 or more"), "length of the linear warmup", "steps"),
    Key("optimizer.warmup_factor", 0.001, ABOVE_0_TO_1,
        "factor of the learning rate at the start of the warmup"),
    Key("optimizer.schedule", "step", one_of("step", "cosine"), "decay of the learning rate"),
    Key("optimizer.step_boundaries", (60_000, 80_000), RISING,
        "schedule step: when the learning rate is multiplied by step_factor", "steps"),
    Key("optimizer.step_factor", 0.1, ABOVE_0_TO_1,
        "schedule step: factor at each boundary"),
    Key("optimizer.momentum", 0.9, BELOW_1, "momentum of SGD"),
    Key("optimizer.weight_decay", 1e-4, NOT_NEGATIVE,
        "weight decay of all parameters but those of normalisation layers"),
    Key("optimizer.clip_norm", 0.0, number("0 (off) or more", lambda v: v >= 0),
        "largest norm of the whole gradient"),
    Key("optimizer.ema", 0.0, number("0 (off) to below 1", lambda v: 0 <= v < 1),
        "decay of the averaged parameters, which evaluation then uses"),

    Key("train.steps", 90_000, whole(1), "length of the training", "steps"),
    Key("train.batch_size", 16, whole(1), "size of a batch over all devices", "images"),
    Key("train.accumulation", 1, whole(1),
        "parts of a batch that are computed one after the other, to save memory", "parts"),
    Key("train.shard_parameters", 1, whole(1),
        "devices that share one copy of the parameters and the optimizer's state", "devices", absent=1),
    Key("train.nonfinite", "stop", one_of("stop", "skip"),
        "what a loss or gradient that is not finite does: stop the run, or skip the step and name its images",
        absent="stop"),
    Key("train.log_every", 20, whole(1), "interval of the lines of metrics.jsonl", "steps"),
    Key("train.evaluate_every", 10_000, whole(1), "interval of the evaluations", "steps"),
    Key("train.checkpoint_every", 2_500, whole(1), "interval of the checkpoints", "steps"),
    Key("train.keep_checkpoints", 2, whole(1),
        "latest checkpoints that are kept, beside the best by AP", "checkpoints"),

    Key("evaluation.batch_size", 8, whole(1), "size of a batch over all devices", "images"),
)}  # fmt: skip


def default_config():
    """A new config with every key at its default."""
    config = {}
    for key in KEYS.values():
        *sections, name = key.name.split(".")
        node = config
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = key.default
    return ConfigDict(config)


def keys_of(flat):
    """Names of the keys that belong into a flat config {name: value}.

    All of them; but without a second stage HEAD itself, which is None, in place of those below it.
    """
    if flat.get(HEAD, "") is not None:
        return list(KEYS)
    return [HEAD, *(name for name in KEYS if not name.startswith(f"{HEAD}."))]
