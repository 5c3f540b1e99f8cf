"""The only parameters: five Linen modules. The operations they use are in `jaxdet.ops`."""

from jaxdet.models.faster_rcnn import Detections, FasterRCNN, Stages

__all__ = ["Detections", "FasterRCNN", "Stages"]
