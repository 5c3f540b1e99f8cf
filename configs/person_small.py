"""People from scratch on small sets and small machines: ResNet-18 with GroupNorm, 320 pixels.

    python train.py --config configs/person_small.py --workdir runs/small \
        --config.data.train.images=DIR --config.data.train.annotations=FILE \
        --config.data.val.images=DIR --config.data.val.annotations=FILE

Without pretrained weights nothing is frozen, and GroupNorm needs no large batch.
"""

from configs import person


def get_config():
    """person.py with a smaller network and smaller images."""
    config = person.get_config()
    model = config.model
    model.backbone.update(depth=18, norm="group_norm", freeze_at=0)
    model.fpn.update(channels=96, norm="group_norm")
    model.rpn.update(
        anchor_sizes=(16.0, 32.0, 64.0, 128.0, 256.0), pre_nms_topk=(1000, 1000), post_nms_topk=(500, 1000)
    )
    model.roi_head.update(hidden=512, samples_per_image=128)

    config.data.workers = 0
    config.data.train.update(short_sides=(192, 224, 256), longest_side=320)
    config.data.val.update(short_sides=(256,), longest_side=320)

    config.optimizer.update(
        name="adamw",
        learning_rate=1e-3,
        reference_batch=0,
        schedule="cosine",
        warmup_steps=100,
        weight_decay=0.05,
        clip_norm=10.0,
    )
    config.train.update(steps=6000, batch_size=4, evaluate_every=1000, checkpoint_every=200)
    config.evaluation.batch_size = 4
    return config
