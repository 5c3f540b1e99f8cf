"""What all drawings share: sprites, colours, limbs and soft light."""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

Colour = tuple[int, ...]  # red, green, blue
Point = tuple[float, float]  # x, y
T = TypeVar("T")


class Sprite(NamedTuple):
    """A drawn object, in the pixels of the enlarged canvas."""

    image: Image.Image  # RGBA; opaque where the object is
    person: Image.Image | None  # L mask of the person within it, None for objects
    foot: Point  # the point that stands on the ground, x y within `image`


SKIN = ((247, 215, 190), (236, 196, 164), (219, 172, 135), (190, 138, 100), (150, 102, 70), (110, 72, 50), (78, 50, 37))
HAIR = ((28, 22, 20), (52, 36, 26), (88, 58, 36), (134, 92, 50), (196, 160, 96), (160, 70, 36), (150, 148, 146))
TROUSERS = ((36, 48, 84), (62, 84, 128), (34, 34, 38), (84, 82, 84), (128, 108, 82), (178, 160, 130), (60, 66, 50))
CLOTHES = (
    (196, 40, 44), (226, 98, 40), (240, 196, 60), (60, 140, 74), (40, 96, 170), (88, 160, 210), (122, 70, 150),
    (222, 120, 160), (236, 234, 228), (38, 40, 46), (28, 42, 84), (120, 40, 52), (70, 110, 104), (176, 150, 116),
    (112, 116, 122), (90, 74, 58),
)  # fmt: skip


def shade(colour: Colour, factor: float) -> Colour:
    """Colour (r, g, b) made darker (factor < 1) or brighter."""
    return tuple(max(0, min(255, round(channel * factor))) for channel in colour)


def vary(rng: np.random.Generator, colour: Colour, amount: int = 14) -> Colour:
    """Colour with each channel moved by up to `amount`."""
    steps = rng.integers(-amount, amount + 1, 3).tolist()
    return tuple(max(0, min(255, c + step)) for c, step in zip(colour, steps, strict=True))


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of a sequence, uniformly."""
    return options[int(rng.integers(len(options)))]


def capsule(
    draw: ImageDraw.ImageDraw, start: Point, end: Point, start_radius: float, end_radius: float, fill: Colour
) -> None:
    """A limb: two discs and the tapered band between them."""
    (x0, y0), (x1, y1) = start, end
    length = math.hypot(x1 - x0, y1 - y0) or 1.0
    nx, ny = (y0 - y1) / length, (x1 - x0) / length
    a, b = start_radius, end_radius
    draw.polygon(
        [
            (x0 + nx * a, y0 + ny * a),
            (x1 + nx * b, y1 + ny * b),
            (x1 - nx * b, y1 - ny * b),
            (x0 - nx * a, y0 - ny * a),
        ],
        fill,
    )
    draw.ellipse((x0 - a, y0 - a, x0 + a, y0 + a), fill)
    draw.ellipse((x1 - b, y1 - b, x1 + b, y1 + b), fill)


def rounded(image: Image.Image, depth: float, light: float) -> Image.Image:
    """Soft light from one side over an RGBA drawing, as if its parts were round.

    depth: radius of the rounding in pixels; light: -1 (from the right) to 1 (from the left), times a strength.
    """
    mask = image.getchannel("A")
    coarse = max(1, round(depth / 3))  # smooth anyway, so worked out on fewer pixels
    radius = max(1, round(depth / coarse))
    height = mask.reduce(coarse).filter(ImageFilter.BoxBlur(radius))
    left, right = (ImageChops.offset(height, shift, shift // 2) for shift in (radius, -radius))
    if light < 0:
        left, right = right, left
    relief = ImageChops.subtract(right, left, scale=2.2 / max(abs(light), 0.05), offset=128)
    if coarse > 1:
        relief = relief.resize(image.size, Image.Resampling.BILINEAR)
    lit = ImageChops.soft_light(image.convert("RGB"), Image.merge("RGB", (relief,) * 3))
    lit.putalpha(mask)
    return lit


INK = (26, 24, 28)
LINE = 2  # pixels of the enlarged canvas


def outlined(sprite: Sprite) -> Sprite:
    """The sprite with a thin dark line around it, as in a comic; the line around a person belongs to the person."""
    image = ImageOps.expand(sprite.image, LINE, (*INK, 0))
    line = Image.new("RGBA", image.size, (*INK, 0))
    line.putalpha(_grown(image.getchannel("A")))
    line.alpha_composite(image)
    person = sprite.person
    if person is not None:
        person = ImageOps.expand(person, LINE)
        body, person = person, _grown(person)
        line.paste(INK, mask=ImageChops.subtract(person, body))
    return Sprite(line, person, (sprite.foot[0] + LINE, sprite.foot[1] + LINE))


def _grown(mask: Image.Image) -> Image.Image:
    """The mask with LINE more pixels on every side."""
    for _ in range(LINE):
        sides = [ImageChops.offset(mask, *step) for step in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        for side in sides:
            mask = ImageChops.lighter(mask, side)
    return mask
