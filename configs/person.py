"""Faster R-CNN, ResNet-50 and FPN, for the people of COCO 2017: detectron2's 1x recipe.

    python train.py --config configs/person.py --workdir runs/person

on 8 accelerators. COCO in `data/coco` (train2017/, val2017/, annotations/); any key is overridden as
`--config.train.batch_size=8`. With one GPU the batch of 16 may need `--config.train.accumulation`. Expected: not
measured. detectron2's person box AP after this schedule is about 53.6, from an ImageNet backbone, which is given as
`--config.init_from=DIR` after `python -m jaxdet convert`. Frozen random layers learn nothing: without a backbone add
--config.model.backbone.norm=group_norm --config.model.backbone.freeze_at=0, or start from configs/person_small.py.
"""

from ml_collections import ConfigDict

from jaxdet.config import presets

COCO = "data/coco"


def get_config(preset="detectron2"):
    """Every key there is, with the value of the recipe.

    `configs/person.py:torchvision` takes that library's instead, `configs/person.py:msra` detectron2's with pictures as
    its own ImageNet backbones know them.
    """
    config = ConfigDict()
    config.seed = 0
    config.init_from = ""  # workdir of a run or of `jaxdet convert` whose parameters to start with

    config.model = ConfigDict()
    config.model.num_classes = 1
    config.model.dtype = "float32"  # or bfloat16: of the arithmetic; boxes and losses stay float32
    config.model.pixel_mean = (123.675, 116.28, 103.53)
    config.model.pixel_std = (58.395, 57.12, 57.375)
    config.model.bgr = False
    config.model.backbone = ConfigDict(
        dict(
            depth=50,
            width=64,
            norm="frozen_batch_norm",
            norm_epsilon=1e-5,
            freeze_at=2,
            stride_in_1x1=False,
            remat=(),  # stages computed again in the backward pass, to save memory: (2, 3, 4, 5) are all
        )
    )
    config.model.fpn = ConfigDict(dict(channels=256, norm=""))
    config.model.rpn = ConfigDict(
        dict(
            anchor_sizes=(32.0, 64.0, 128.0, 256.0, 512.0),
            anchor_ratios=(0.5, 1.0, 2.0),
            rounded_anchors=False,
            grid_strides=False,
            num_convs=1,
            positive_iou=0.7,
            negative_iou=0.3,
            samples_per_image=256,
            positive_fraction=0.5,
            box_beta=0.0,
            normalize_by_sampled=False,
            pre_nms_topk=(2000, 1000),  # training, test
            post_nms_topk=(1000, 1000),
            nms_iou=0.7,
            smallest_side=0.0,
        )
    )
    config.model.roi_head = ConfigDict(
        dict(
            num_convs=0,
            conv_norm="",
            num_fcs=2,
            hidden=1024,
            class_agnostic=False,
            pool_size=7,
            sampling_ratio=2,
            aligned=True,
            level_epsilon=0.0,
            positive_iou=0.5,
            samples_per_image=512,
            positive_fraction=0.25,
            add_ground_truth=True,
            box_weights=(10.0, 10.0, 5.0, 5.0),
            box_beta=0.0,
        )
    )
    config.model.loss_weights = ConfigDict(
        dict(rpn_objectness=1.0, rpn_box=1.0, roi_classification=1.0, roi_box=1.0)
    )
    config.model.test = ConfigDict(
        dict(score_threshold=0.05, nms_iou=0.5, smallest_side=0.0, detections_per_image=100)
    )

    config.data = ConfigDict()
    config.data.categories = ("person",)  # () takes all categories of the data set
    config.data.workers = 4  # processes that read ahead; 0 reads in this one
    split = dict(
        source="coco",  # coco, tfds or synthetic
        directory="",  # tfds: the prepared data set
        split="",  # tfds: the name of its split
        scenes=0,  # synthetic: how many, from which seed, of which size
        scenes_seed=0,
        scenes_height=192,
        scenes_width=256,
        longest_side=1333,
        resizing="detectron2",  # uint8 with antialiasing, sizes rounded; or torchvision: float without, rounded down
        limit=0,  # only so many pictures, those with the lowest ids; 0 takes all
    )
    config.data.train = ConfigDict(
        split
        | dict(
            images=f"{COCO}/train2017",
            annotations=f"{COCO}/annotations/instances_train2017.json",
            short_sides=(640, 672, 704, 736, 768, 800),
            flip=0.5,
            keep_empty=False,  # pictures without boxes
        )
    )
    config.data.val = ConfigDict(
        split
        | dict(
            images=f"{COCO}/val2017",
            annotations=f"{COCO}/annotations/instances_val2017.json",
            short_sides=(800,),
            keep_empty=True,
        )
    )

    config.optimizer = ConfigDict(
        dict(
            name="sgd",  # or adamw
            learning_rate=0.02,
            reference_batch=16,  # the rate is for this batch and scales with train.batch_size; 0 takes it as it is
            warmup_steps=1000,
            warmup_factor=0.001,
            schedule="step",  # or cosine
            step_boundaries=(60_000, 80_000),
            step_factor=0.1,
            momentum=0.9,
            weight_decay=1e-4,
            clip_norm=0.0,  # of the whole gradient; 0 is off
            ema=0.0,  # decay of the averaged parameters that evaluation uses; 0 is off
        )
    )
    config.train = ConfigDict(
        dict(
            steps=90_000,
            batch_size=16,  # over all devices
            accumulation=1,  # parts of a batch computed one after the other
            shard_parameters=1,  # so many devices share one copy of parameters and optimiser state
            nonfinite="stop",  # where a loss or gradient is NaN or infinite; "skip" leaves out the step, counts and names it
            log_every=20,
            evaluate_every=10_000,
            checkpoint_every=2_500,
            keep_checkpoints=2,  # the last so many; the best by AP stays besides
        )
    )
    config.evaluation = ConfigDict(dict(batch_size=8))
    recipes = {
        "detectron2": presets.DETECTRON2,
        "torchvision": presets.TORCHVISION,
        "msra": presets.DETECTRON2 | presets.MSRA,
    }
    if preset not in recipes:
        raise LookupError(f"no preset {preset!r}; {', '.join(recipes)}")
    presets.apply(config, recipes[preset])
    return config
