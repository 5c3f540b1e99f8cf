"""Resize, flip and pad one image with its boxes (x1 y1 x2 y2 in pixels). NumPy and Pillow."""

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

Pixels = UInt8[np.ndarray, "_ _ 3"] | Float32[np.ndarray, "_ _ 3"]


def resize(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float32[np.ndarray, "n 4"],
    size: tuple[int, int],
    kind: str = "detectron2",
) -> tuple[Pixels, Float32[np.ndarray, "n 4"], Float32[np.ndarray, " 2"]]:
    """Image uint8 [H, W, 3] and boxes float32 [n, 4] at `size` (height, width).

    Both axes scale by their own, actual ratio. Bilinear: with antialiasing (Pillow) and uint8 again, as detectron2; or
    without and float32, as torchvision, which interpolates the four pixels around a point (half-pixel centres) however
    much smaller the image becomes. Returns also the scales float32 [2] (vertical, horizontal).
    """
    height, width = image.shape[:2]
    scales = np.array([size[0] / height, size[1] / width], np.float32)
    if kind == "torchvision":
        image = _interpolate(_interpolate(image.astype(np.float32), size[0], 0), size[1], 1)
    elif (height, width) != tuple(size):
        # One axis after the other: which of them Pillow takes first depends on its version and on the sizes
        wide = Image.fromarray(image).resize((size[1], height), Image.Resampling.BILINEAR)
        image = np.asarray(wide.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return image, boxes * scales[[1, 0, 1, 0]], scales


def _interpolate(image: Float32[np.ndarray, "h w 3"], length: int, axis: int) -> Float32[np.ndarray, "_ _ 3"]:
    """One axis of a float32 image at another length, linearly between the two pixels around each new centre."""
    before = image.shape[axis]
    if before == length:
        return image
    centres = (np.arange(length, dtype=np.float32) + 0.5) * np.float32(before / length) - 0.5
    centres = np.maximum(centres, 0)  # edges repeat
    first = np.minimum(centres.astype(int), before - 1)
    share = np.expand_dims(centres - first, [i for i in range(image.ndim) if i != axis]).astype(np.float32)
    second = np.minimum(first + 1, before - 1)
    interpolated: np.ndarray = image.take(first, axis) * (1 - share) + image.take(second, axis) * share
    return interpolated


def flip(image: Pixels, boxes: Float32[np.ndarray, "n 4"]) -> tuple[Pixels, Float32[np.ndarray, "n 4"]]:
    """Mirrored left to right: x' = W - x, so x1 and x2 change places."""
    width = np.float32(image.shape[1])
    mirrored = np.empty_like(image)
    for channel in range(image.shape[2]):  # one at a time: NumPy takes three times as long for all together
        mirrored[..., channel] = image[:, ::-1, channel]
    return mirrored, np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def pad(image: Pixels, shape: tuple[int, int]) -> Pixels:
    """Image [h, w, 3] in the upper left corner of zeros [H, W, 3]."""
    padded = np.zeros((*shape, 3), image.dtype)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded
