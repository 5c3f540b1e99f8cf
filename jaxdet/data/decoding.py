"""Image files to arrays: whatever a camera or a web page wrote, as uint8 RGB the right way up."""

import io
import os
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

# Pillow also opens formats that run other programs (EPS) or that hold no photographs; a data set needs these only.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "JPEG2000", "PPM")

_ORIENTATION = 0x0112  # the EXIF tag

# What turns the stored pixels upright, by EXIF orientation (CIPA DC-008, "Orientation").
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


def decode(path_or_bytes: str | os.PathLike[str] | bytes) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an image.

    The EXIF orientation is applied; alpha is composited on white, as a browser shows it; 16-bit grey is scaled
    to 8 bits; grey, palette and CMYK become RGB; of an animation the first frame counts.

    Args:
      path_or_bytes: path of a file, or the encoded bytes.

    Returns:
      uint8 [H, W, 3], RGB, contiguous and writable.

    Raises:
      ValueError: not an image, empty, truncated, corrupt, of more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, or of
        samples without a known white (32-bit ones); the message names the file.
      OSError: the file cannot be read at all (FileNotFoundError where it is missing).
    """
    data = path_or_bytes if isinstance(path_or_bytes, bytes) else _read(path_or_bytes)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image)
            orientation = _orientation(image)  # before loading, so that `oriented_size` sees the same
            image.load()
            pixels = _rgb(image)
    except Exception as error:  # the decoders raise a dozen types on corrupt bytes, SyntaxError among them
        raise _unreadable(path_or_bytes, error) from error
    return np.array(_UPRIGHT[orientation](pixels) if orientation in _UPRIGHT else pixels, order="C")


def oriented_size(path_or_bytes: str | os.PathLike[str] | bytes) -> tuple[int, int]:
    """Height and width that `decode` will return, read from the header only.

    Args:
      path_or_bytes: path of a file, or the encoded bytes.

    Returns:
      (height, width) in pixels, ints, after the EXIF orientation.

    Raises:
      ValueError: the header is no image's, or tells of too many pixels; the message names the file.
      OSError: the file cannot be read at all.
    """
    if isinstance(path_or_bytes, bytes):
        return _header(io.BytesIO(path_or_bytes), path_or_bytes)
    with open(path_or_bytes, "rb") as file:
        return _header(file, path_or_bytes)


def checked_size(path_or_bytes: str | os.PathLike[str] | bytes) -> tuple[int, int]:
    """`oriented_size`, having looked as well whether a JPEG or PNG still has its end.

    Costs one more read of a few bytes. A file that lacks the marker (some cameras write more after it) is decoded to
    find out, so an image that is whole is never refused.

    Args, returns and raises: as `oriented_size`; ValueError for a truncated file too.
    """
    if isinstance(path_or_bytes, bytes):
        size, ends = oriented_size(path_or_bytes), _ends(io.BytesIO(path_or_bytes))
    else:
        with open(path_or_bytes, "rb") as file:
            size, ends = _header(file, path_or_bytes), _ends(file)
    if not ends:
        decode(path_or_bytes)
    return size


def _read(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _header(file: io.BytesIO | io.BufferedReader, source: str | os.PathLike[str] | bytes) -> tuple[int, int]:
    try:
        image = Image.open(file, formats=FORMATS)
        _check_size(image)
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)
    except Exception as error:
        raise _unreadable(source, error) from error


def _ends(file: io.BytesIO | io.BufferedReader) -> bool:
    """Whether a JPEG or PNG ends as it must; True for other formats, whose end says nothing."""
    file.seek(0)
    start = file.read(4)
    file.seek(-min(32, file.seek(0, os.SEEK_END)), os.SEEK_END)
    end = file.read()
    if start.startswith(b"\xff\xd8"):
        return end.rstrip(b"\0").endswith(b"\xff\xd9")
    return not start.startswith(b"\x89PNG") or b"IEND" in end


def _unreadable(source: str | os.PathLike[str] | bytes, error: Exception | str) -> ValueError:
    if isinstance(source, bytes):
        length, name = len(source), f"image of {len(source)} bytes"
    else:
        length, name = os.path.getsize(source), os.fspath(source)
    if isinstance(error, UnidentifiedImageError):
        return _unreadable(source, "no image in a known format, or its header is damaged" if length else "empty")
    return ValueError(f"{name}: cannot decode: {error}")


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ValueError(f"an image of {width}x{height} pixels")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(f"{width}x{height} pixels are more than the {limit} that are taken as safe to decode")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 as the header tells it; 1 if there is none or it is damaged."""
    if image.format == "TIFF":
        return 1  # Pillow turns a TIFF itself, its header's size included
    if image.format == "PNG" and not {"exif", "Raw profile type exif", "XML:com.adobe.xmp"} & image.info.keys():
        return 1  # Pillow would decode the whole image to look for the chunk behind the pixels
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF; the pixels may be fine
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """uint8 [h, w, 3] of a loaded Pillow image."""
    if image.mode[0] in "IF":
        samples = np.asarray(image)
        if image.mode == "F" or samples.min() < 0 or samples.max() > 65535:
            raise ValueError(f"samples of mode {image.mode} have no known white; store 8 or 16 bits")
        grey = (samples.astype(np.uint32) * 255 + 32767) // 65535
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
