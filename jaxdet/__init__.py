"""jaxdet: Faster R-CNN in JAX and Flax.

    import jaxdet
    detector = jaxdet.load("runs/person")
    detections = detector(image)        # uint8 [H, W, 3] -> {"boxes" [n, 4], "scores" [n], "labels" [n]}

Glossary, the same words everywhere:

    B images in a batch   H, W height and width    C channels   L pyramid levels (P2..P6)
    A anchors of one image, all levels             G padded ground-truth boxes of one image
    P proposals of one image after NMS             S proposals sampled for the box head
    D detections kept per image                    K classes, background not counted

    boxes       [..., 4] float32, x1 y1 x2 y2 in pixels of the resized image
    deltas      [..., 4] float32, dx dy dw dh
    valid       [...] bool, True = a real row; a padded row may hold anything
    labels      class index 0..K-1; background is K
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Detector", "load"]


def __getattr__(name: str) -> Any:
    """Imports `load` and `Detector` on first use, so that workers that only read images never import JAX."""
    if name in __all__:
        from jaxdet.inference import detector

        return getattr(detector, name)
    raise AttributeError(f"module 'jaxdet' has no attribute {name!r}")
