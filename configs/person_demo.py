"""The embedded data set, drawn street scenes: minutes on two CPU cores, nothing to download.

python train.py --config configs/person_demo.py --workdir runs/demo
"""

from configs import person_small


def get_config():
    """person_small.py, narrower, on drawn scenes."""
    config = person_small.get_config()
    model = config.model
    model.backbone.width = 32
    model.fpn.channels = 64
    model.rpn.update(pre_nms_topk=(500, 500), post_nms_topk=(200, 300))
    model.roi_head.update(hidden=256, samples_per_image=64)

    for split, scenes, seed in ((config.data.train, 1500, 0), (config.data.val, 250, 1)):
        split.update(source="synthetic", scenes=scenes, scenes_seed=seed, scenes_height=192, scenes_width=256)
        split.update(short_sides=(192,), longest_side=256)

    config.optimizer.update(learning_rate=1e-3, warmup_steps=50)
    config.train.update(steps=1200, batch_size=8, evaluate_every=600)
    config.evaluation.batch_size = 10
    return config
