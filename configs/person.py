"""Faster R-CNN, ResNet-50 and FPN, for the people of COCO 2017: detectron2's 1x recipe.

    python train.py --config configs/person.py --workdir runs/person

on 8 accelerators. COCO in `data/coco` (train2017/, val2017/, annotations/); any key is overridden as
`--config.train.batch_size=8`. With one GPU the batch of 16 may need `--config.train.accumulation`.

Expected: not measured. detectron2's person box AP after this schedule is about 53.6, from an ImageNet
backbone, which is given as `--config.init_from=DIR` after `python -m jaxdet convert`. Frozen random layers
learn nothing: without a backbone add --config.model.backbone.norm=group_norm
--config.model.backbone.freeze_at=0, or start from configs/person_small.py.
"""

from jaxdet.config import presets
from jaxdet.config.keys import default_config


def get_config(preset="detectron2"):
    """The default of every key; docs/config.md lists them.

    `configs/person.py:torchvision` takes that library's values instead. `configs/person.py:msra` takes
    detectron2's, with images as its own ImageNet backbones know them.
    """
    config = default_config()
    if preset not in presets.RECIPES:
        raise LookupError(f"no preset {preset!r}; {', '.join(presets.RECIPES)}")
    presets.apply(config, presets.RECIPES[preset])
    return config
