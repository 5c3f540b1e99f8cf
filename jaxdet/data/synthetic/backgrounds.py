"""Streets, squares and parks, empty. Sizes are in pixels of the enlarged canvas."""

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from jaxdet.data.synthetic.shapes import CLOTHES, Colour, pick, shade, vary

SKIES = (
    ((112, 160, 214), (206, 224, 236)),
    ((150, 158, 168), (206, 208, 210)),
    ((92, 104, 150), (238, 184, 140)),
    ((60, 70, 104), (150, 140, 150)),
)
GROUNDS = (
    (96, 96, 100),
    (124, 120, 116),
    (160, 152, 140),
    (92, 124, 66),
    (120, 136, 84),
    (196, 178, 140),
    (216, 220, 226),
)
WALLS = (
    (150, 84, 66),
    (186, 166, 140),
    (128, 128, 132),
    (206, 196, 182),
    (98, 92, 96),
    (160, 130, 104),
    (110, 126, 140),
    (214, 190, 130),
)
LEAVES = ((52, 96, 44), (76, 120, 52), (38, 74, 46), (126, 130, 52), (170, 104, 44))


def background(rng: np.random.Generator, width: int, height: int, horizon: int) -> Image.Image:
    """An empty street, park or square as an RGB image; `horizon` is the row where the ground begins."""
    top, bottom = pick(rng, SKIES)
    share = np.clip(np.arange(height) / max(horizon, 1), 0, 1)[:, None]
    rows = np.array(vary(rng, top)) * (1 - share) + np.array(vary(rng, bottom)) * share
    ground = np.array(vary(rng, pick(rng, GROUNDS)))
    depth = (np.arange(height) - horizon)[:, None] / max(height - horizon, 1)
    rows = np.where(depth >= 0, ground * (0.84 + 0.3 * np.clip(depth, 0, 1)), rows)
    column = Image.fromarray(np.clip(rows, 0, 255).astype(np.uint8)[:, None])
    image = column.resize((width, height), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    if rng.random() < 0.3:
        _clouds(rng, draw, width, horizon, shade(bottom, 1.06))
    backdrop = rng.random()
    if backdrop < 0.6:
        _buildings(rng, draw, width, horizon)
    elif backdrop < 0.75:
        _wall(rng, draw, width, horizon)
    else:
        _tree_line(rng, draw, width, horizon)
    _ground_marks(rng, draw, width, height, horizon, tuple(int(c) for c in ground))
    return _mottled(rng, image, horizon)


def _clouds(rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, horizon: int, colour: Colour) -> None:
    for _ in range(int(rng.integers(2, 5))):
        x, y, size = rng.uniform(0, width), rng.uniform(0, 0.5 * horizon), rng.uniform(0.03, 0.07) * width
        for _ in range(4):
            dx, dy = rng.normal(0, size), rng.normal(0, size * 0.15)
            draw.ellipse((x + dx - size, y + dy - size * 0.35, x + dx + size, y + dy + size * 0.35), colour)


def _buildings(rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, horizon: int) -> None:
    x = -rng.uniform(0, 0.2) * width
    while x < width:
        wide, top = rng.uniform(0.12, 0.45) * width, horizon - rng.uniform(0.35, 1.3) * horizon
        colour = vary(rng, pick(rng, WALLS))
        draw.rectangle((x, top, x + wide, horizon), colour)
        glass = vary(rng, pick(rng, ((60, 70, 86), (126, 148, 168), (210, 200, 150), (44, 44, 50))))
        pitch_x, pitch_y = rng.uniform(0.03, 0.06) * width, rng.uniform(0.05, 0.1) * width
        fill_x, fill_y = rng.uniform(0.4, 0.75, 2)
        columns = int(wide // pitch_x)
        inset = (wide - columns * pitch_x + pitch_x * (1 - fill_x)) / 2
        row = top + 0.3 * pitch_y
        while row + pitch_y < horizon:
            for column in range(columns):
                left = x + inset + column * pitch_x
                draw.rectangle((left, row, left + fill_x * pitch_x, row + fill_y * pitch_y), glass)
            row += pitch_y
        if rng.random() < 0.5:  # a shop front
            draw.rectangle((x + 0.1 * wide, horizon - 0.14 * width, x + 0.9 * wide, horizon), shade(glass, 0.8))
            draw.rectangle(
                (x + 0.06 * wide, horizon - 0.16 * width, x + 0.94 * wide, horizon - 0.13 * width),
                vary(rng, pick(rng, CLOTHES)),
            )
        elif rng.random() < 0.7:  # a door, about as tall as the people before it
            door = x + rng.uniform(0.2, 0.7) * wide
            draw.rectangle((door, horizon - 0.13 * width, door + 0.055 * width, horizon), shade(colour, 0.5))
        x += wide


def _wall(rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, horizon: int) -> None:
    colour = vary(rng, pick(rng, WALLS))
    top = horizon * rng.uniform(-0.2, 0.4)
    draw.rectangle((0, top, width, horizon), colour)
    course = rng.uniform(0.014, 0.05) * width
    for index, y in enumerate(np.arange(top, horizon, course)):
        draw.line((0, y, width, y), shade(colour, 0.84))
        for x in np.arange(course * (index % 2), width, 2 * course):
            draw.line((x, y, x, min(y + course, horizon)), shade(colour, 0.84))


def _tree_line(rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, horizon: int) -> None:
    for _ in range(int(rng.integers(10, 22))):
        x, size = rng.uniform(0, width), rng.uniform(0.05, 0.13) * width
        draw.ellipse(
            (x - size, horizon - size * 1.7, x + size, horizon + size * 0.1), shade(vary(rng, pick(rng, LEAVES)), 0.85)
        )


def _ground_marks(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, height: int, horizon: int, ground: Colour
) -> None:
    kind = rng.random()
    vanish = rng.uniform(0.2, 0.8) * width
    if kind < 0.4:  # a road with a dashed line towards the vanishing point
        half, road = rng.uniform(0.3, 0.9) * width, vary(rng, (84, 84, 90))
        centre = vanish + rng.normal(0, 0.2) * width
        draw.polygon(
            [(vanish - 3, horizon), (vanish + 3, horizon), (centre + half, height), (centre - half, height)], road
        )
        for near in np.geomspace(0.04, 0.9, 7):
            y0, y1 = (horizon + share * (height - horizon) for share in (near, near * 1.25))
            xs = [vanish + (centre - vanish) * share for share in (near, near * 1.25)]
            draw.polygon(
                [(xs[0] - 6 * near, y0), (xs[0] + 6 * near, y0), (xs[1] + 7 * near, y1), (xs[1] - 7 * near, y1)],
                (222, 220, 206),
            )
    elif kind < 0.75:  # slabs
        line = shade(ground, 0.88)
        for share in np.geomspace(0.03, 1, 8):
            y = horizon + share * (height - horizon)
            draw.line((0, y, width, y), line)
        for x in np.linspace(-2 * width, 3 * width, 24):
            draw.line((vanish, horizon, x, height), line)
    if rng.random() < 0.5:  # a kerb or path along the buildings
        y = horizon + rng.uniform(0.02, 0.1) * (height - horizon)
        draw.rectangle((0, horizon, width, y), vary(rng, (166, 160, 152)))
        draw.line((0, y, width, y), (110, 108, 104), 2)


def _mottled(rng: np.random.Generator, image: Image.Image, horizon: int) -> Image.Image:
    """Uneven light: soft coarse noise over all, a finer one on the ground."""
    width, height = image.size
    size, sky = (width // 2, height // 2), int(horizon) // 2
    light = Image.fromarray(rng.integers(112, 145, (6, 8), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    rough = int(rng.integers(2, 12))
    grain = Image.fromarray(rng.integers(128 - rough, 129 + rough, (height // 6, width // 4), dtype=np.uint8)).resize(
        size
    )
    ground = (0, sky, *size)
    light.paste(ImageChops.add(light.crop(ground), grain.crop(ground), 1, -128), ground)
    light = light.resize((width, height), Image.Resampling.NEAREST)
    return ImageChops.add(image, Image.merge("RGB", (light,) * 3), 1, -128)
