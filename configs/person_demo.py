"""The embedded data set, drawn street scenes: minutes on two CPU cores, nothing to download.

python train.py --config configs/person_demo.py --workdir runs/demo
"""

from configs import person_small


def get_config():
    """person_small.py, narrower, on small drawn scenes."""
    config = person_small.get_config()
    model = config.model
    model.backbone.width = 32
    model.fpn.channels = 64
    model.rpn.update(
        anchor_sizes=(16.0, 32.0, 64.0, 96.0, 128.0),
        anchor_ratios=(1.0, 2.0, 3.0),  # the drawn people stand more often than they lie
        samples_per_image=64,
        pre_nms_topk=(500, 500),
        post_nms_topk=(200, 300),
    )
    model.roi_head.update(hidden=256, samples_per_image=128)

    for split, scenes, seed in ((config.data.train, 2000, 0), (config.data.val, 200, 1)):
        split.update(source="synthetic", scenes=scenes, scenes_seed=seed, scenes_height=128, scenes_width=160)
        split.update(short_sides=(128,), longest_side=160)

    config.optimizer.update(learning_rate=2e-3, warmup_steps=50)
    config.train.update(steps=1700, batch_size=8, evaluate_every=1700, checkpoint_every=340)
    config.evaluation.batch_size = 10
    return config
