"""The region proposal network alone as a detector of people; otherwise configs/person.py.

python train.py --config configs/person_rpn.py --workdir runs/person_rpn
"""

from configs import person


def get_config():
    """The recipe of person.py without the second stage."""
    config = person.get_config()
    config.model.roi_head = None
    return config
