"""The only parameters: five Linen modules. Everything they compute with is in `jaxdet.ops`."""

from jaxdet.models.faster_rcnn import Detections, FasterRCNN, Stages

__all__ = ["Detections", "FasterRCNN", "Stages"]
