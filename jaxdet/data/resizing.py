"""How large an image becomes, how it is padded, and how its boxes get back to its own pixels.

The pixels themselves are resized by data/transforms.py on the host and by ops/resize.py in an exported program.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Float, Float32
from ml_collections import ConfigDict

# The kinds of resizing, each with the type of the pixels that come out
DTYPES: dict[str, type[np.generic]] = {"detectron2": np.uint8, "torchvision": np.float32}

_XYXY = np.array([1, 0, 1, 0])  # of a pair (height, width), what applies to x1, y1, x2 and y2


@dataclasses.dataclass(frozen=True)
class Resizing:
    """Scales the short side of an image to `short_side`, or to less where the long one would exceed `longest_side`.

    short_sides: pixels. Training draws one of them for each image; evaluation and detectors take the largest.
    longest_side: pixels.
    kind: "detectron2" antialiases and rounds sizes half up; "torchvision" does not antialias and rounds sizes down.
    """

    short_sides: tuple[int, ...]
    longest_side: int
    kind: str = "detectron2"

    @classmethod
    def of(cls, split: ConfigDict) -> "Resizing":
        """The resizing of `config.data.train` or `config.data.val`."""
        return cls(tuple(split.short_sides), split.longest_side, split.resizing)

    @property
    def short_side(self) -> int:
        """The largest of the short sides."""
        return max(self.short_sides)

    @property
    def dtype(self) -> type[np.generic]:
        """Type of the resized pixels."""
        return DTYPES[self.kind]

    def size(self, size: Iterable[SupportsIndex], short_side: int | None = None) -> tuple[int, int]:
        """(height, width) of an image of `size` (height, width) after resizing; `short_side` is the largest by default.

        As detectron2's ResizeShortestEdge, or as torchvision's GeneralizedRCNNTransform, whose short side can be one
        pixel less than asked for.
        """
        height, width = (int(n) for n in size)
        short_side = short_side or self.short_side
        if self.kind == "torchvision":
            scale = min(short_side / min(height, width), self.longest_side / max(height, width))
            resized = height * scale, width * scale
        else:
            # In two steps, since that is how detectron2 multiplies, and a half decides
            scale = short_side / min(height, width)
            resized = (short_side, scale * width) if height < width else (scale * height, short_side)
            if max(resized) > self.longest_side:
                scale = self.longest_side / max(resized)
                resized = resized[0] * scale, resized[1] * scale
            resized = resized[0] + 0.5, resized[1] + 0.5
        # a very long, thin image keeps at least one pixel
        return max(int(resized[0]), 1), max(int(resized[1]), 1)

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The two padded (height, width) that hold every resized image: landscape and square, then portrait.

        Multiples of 32, the coarsest stride. They depend on the settings alone, so an image is padded alike in
        training, evaluation and prediction: GroupNorm sees the padding.
        """
        sides = min(self.short_side, self.longest_side), self.longest_side
        short, long = (-(-side // 32) * 32 for side in sides)
        return (short, long), (long, short)

    def shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """The one of `shapes` that an image of this `size` after resizing is padded to."""
        return self.shapes[is_portrait(*size)]


def is_portrait(height: Any, width: Any) -> Any:
    """Whether an image of this size after resizing takes the second of `Resizing.shapes`. Numbers or arrays of any
    kind.
    """
    return height > width


def original_boxes(boxes: Float[Any, "*B n 4"], scales: Any, sizes: Any) -> Float32[Any, "*B n 4"]:
    """Boxes [..., n, 4] of resized images in pixels of the original images, clipped to them.

    scales: [..., 2], resized / original, vertical and horizontal, as in a batch. sizes: [..., 2], height and width of
    the originals. Boxes may be a NumPy or a JAX array; the result is of the same kind.
    """
    xp = boxes.__array_namespace__()
    boxes, scales, sizes = (xp.asarray(part, dtype=xp.float32) for part in (boxes, scales, sizes))
    return xp.clip(boxes / scales[..., None, _XYXY], 0, sizes[..., None, _XYXY])
