"""The region proposal network alone as a detector: any config without its second stage.

    python train.py --config configs/person_rpn.py --workdir runs/person_rpn
    python train.py --config configs/person_rpn.py:person_small --workdir runs/small_rpn ...

The first is person.py, and wants a pretrained backbone as that does.
"""

import importlib


def get_config(base="person"):
    """The config of configs/BASE.py with `model.roi_head` None."""
    config = importlib.import_module(f"configs.{base}").get_config()
    config.model.roi_head = None
    return config
