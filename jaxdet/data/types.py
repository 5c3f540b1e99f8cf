"""What the parts of data/ hand to one another: records, the sources they come from, the batches they become.

Axes: n boxes of an image, N images of a source, and B, G, H and W of the glossary in jaxdet/__init__.py.
"""

from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8


class Category(TypedDict):
    """A category with the id that the data set gives it."""

    id: int
    name: str


class Targets(TypedDict):
    """The boxes of an image, x1 y1 x2 y2 in its pixels, crowds among them."""

    boxes: Float32[np.ndarray, "n 4"]
    labels: Int32[np.ndarray, " n"]
    crowd: Bool[np.ndarray, " n"]
    area: Float32[np.ndarray, " n"]


class Record(Targets):
    """An image with its boxes; `image` is None where the file does not decode."""

    image_id: int
    image: UInt8[np.ndarray, "H W 3"] | None


class Batch(TypedDict):
    """Images at one padded shape with their boxes, x1 y1 x2 y2 in pixels of the resized image; crowds are left out.

    images: padded right and below, normalised later on the device; float32 0..255 where the split's `resizing` is
    torchvision's. image_sizes: height, width before padding; 0, 0 for a slot without an image. image_ids: -1 for a slot
    without an image. scales: resized / original, vertical and horizontal.
    """

    images: UInt8[np.ndarray, "B H W 3"] | Float32[np.ndarray, "B H W 3"]
    image_sizes: Int32[np.ndarray, "B 2"]
    gt_boxes: Float32[np.ndarray, "B G 4"]
    gt_labels: Int32[np.ndarray, "B G"]
    gt_valid: Bool[np.ndarray, "B G"]
    image_ids: Int64[np.ndarray, " B"]
    scales: Float32[np.ndarray, "B 2"]


@runtime_checkable
class Source(Protocol):
    """Images with boxes, by position."""

    @property
    def categories(self) -> tuple[Category, ...]:
        """As in the data set; the position of a category is its label."""

    @property
    def image_ids(self) -> Int64[np.ndarray, " N"]: ...

    @property
    def sizes(self) -> Int32[np.ndarray, "N 2"]:
        """Height and width, the EXIF orientation applied."""

    @property
    def box_counts(self) -> Int32[np.ndarray, " N"]:
        """Boxes of each image that are not crowds."""

    @property
    def crowd_counts(self) -> Int32[np.ndarray, " N"]:
        """Crowd regions of each image."""

    @property
    def clipped_counts(self) -> Int32[np.ndarray, " N"]:
        """Boxes of each image, crowds included, that reached over its edge and were clipped to it."""

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """What was left out when the source was opened, each item with a "reason"."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Record: ...

    def ground_truth(self) -> dict[str, Any]:
        """COCO JSON of the images, annotations and categories, crowds included."""
