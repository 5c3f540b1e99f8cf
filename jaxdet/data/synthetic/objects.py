"""Street furniture, plants, cars, animals and statues: what stands before people, and what is easily taken for them.

Every function draws one object as a Sprite from (rng, h, light): h is the standing height in pixels that a person would
have at its place, so that a scene keeps its proportions; light as in `shapes.rounded`.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

from jaxdet.data.synthetic.backgrounds import LEAVES, WALLS
from jaxdet.data.synthetic.people import figure, stone_look
from jaxdet.data.synthetic.shapes import CLOTHES, Sprite, capsule, pick, rounded, shade, vary

METAL = ((60, 62, 66), (110, 112, 116), (38, 60, 46), (150, 150, 152), (84, 70, 60))


def _sheet(width: float, height: float) -> tuple[Image.Image, ImageDraw.ImageDraw, int, int]:
    """An empty tile with its drawing and the ground point in the middle of its lower edge."""
    size = max(4, math.ceil(width)), max(4, math.ceil(height))
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    return image, ImageDraw.Draw(image), size[0], size[1]


def _standing(image: Image.Image, light: float, depth: float) -> Sprite:
    return Sprite(rounded(image, depth, light), None, (image.width / 2, image.height - 1))


def lamp_post(rng: np.random.Generator, h: float, light: float) -> Sprite:
    image, draw, w, t = _sheet(0.7 * h, rng.uniform(2.0, 2.9) * h)
    colour, thick = vary(rng, pick(rng, METAL)), 0.03 * h
    x = w / 2
    draw.rectangle((x - thick, 0.06 * t, x + thick, t), colour)
    draw.rectangle((x - 2 * thick, t - 0.2 * h, x + 2 * thick, t), shade(colour, 0.9))
    if rng.random() < 0.5:
        draw.ellipse((x - 0.1 * h, 0, x + 0.1 * h, 0.22 * h), (240, 232, 196))
    else:
        draw.rectangle((x, 0.05 * t, x + 0.3 * h, 0.05 * t + thick * 1.5), colour)
        draw.ellipse((x + 0.15 * h, 0.05 * t, x + 0.34 * h, 0.05 * t + 0.08 * h), (226, 224, 210))
    return _standing(image, light, thick)


def post(rng: np.random.Generator, h: float, light: float) -> Sprite:
    """A bollard or a pillar: as thick and tall as a person may be."""
    pillar = rng.random() < 0.4
    tall, thick = (
        (rng.uniform(0.9, 1.5), rng.uniform(0.1, 0.18)) if pillar else (rng.uniform(0.45, 0.8), rng.uniform(0.05, 0.09))
    )
    image, draw, w, t = _sheet((2 * thick + 0.1) * h, tall * h)
    colour, x, r = vary(rng, pick(rng, METAL + WALLS)), w / 2, thick * h
    draw.rounded_rectangle((x - r, 0, x + r, t + r), r * 0.8 * bool(rng.random() < 0.7), colour)
    if rng.random() < 0.6:
        draw.rectangle((x - r, 0.12 * t, x + r, 0.22 * t), vary(rng, (222, 214, 204)))
    if rng.random() < 0.35:  # a ball on top, like a head
        draw.ellipse((x - r * 1.1, 0, x + r * 1.1, r * 2.2), shade(colour, 1.1))
    return _standing(image, light, r * 0.7)


def tree(rng: np.random.Generator, h: float, light: float) -> Sprite:
    image, draw, w, t = _sheet(rng.uniform(1.1, 1.9) * h, rng.uniform(1.7, 2.8) * h)
    bark, leaf = vary(rng, (92, 70, 50)), vary(rng, pick(rng, LEAVES))
    x, thick, crown = w / 2, rng.uniform(0.05, 0.11) * h, rng.uniform(0.5, 0.65) * t
    capsule(draw, (x, t), (x + rng.normal(0, 0.05) * w, 0.3 * t), thick, thick * 0.6, bark)
    for sign in (-1, 1):
        capsule(draw, (x, 0.62 * t), (x + sign * 0.28 * w, 0.3 * t), thick * 0.5, thick * 0.3, bark)
    if rng.random() < 0.25:
        for layer in np.linspace(0.9, 0.3, 4):  # a conifer
            y = crown * layer + 0.15 * t
            draw.polygon(
                [(x, y - 0.35 * t), (x - 0.42 * w * layer, y), (x + 0.42 * w * layer, y)],
                shade(leaf, 1.15 - 0.3 * layer),
            )
    else:
        for index in range(26):
            dx, dy = rng.uniform(-0.34, 0.34) * w, rng.uniform(0.14, 0.86) * crown
            r = rng.uniform(0.07, 0.15) * w
            draw.ellipse((x + dx - r, dy - r, x + dx + r, dy + r), shade(leaf, 0.78 + 0.016 * index))
    return _standing(image, light, 0.06 * h)


def sign(rng: np.random.Generator, h: float, light: float) -> Sprite:
    image, draw, w, t = _sheet(0.5 * h, rng.uniform(1.1, 1.5) * h)
    x, colour = (
        w / 2,
        vary(rng, pick(rng, ((200, 36, 40), (36, 84, 170), (240, 200, 50), (40, 130, 80), (236, 236, 230)))),
    )
    draw.rectangle((x - 0.018 * h, 0.1 * t, x + 0.018 * h, t), vary(rng, (120, 122, 124)))
    r, shape = 0.15 * h, rng.random()
    if shape < 0.4:
        draw.ellipse((x - r, 0, x + r, 2 * r), colour)
        draw.ellipse((x - 0.7 * r, 0.3 * r, x + 0.7 * r, 1.7 * r), (238, 236, 230))
    elif shape < 0.6:
        draw.polygon([(x, 0), (x - 1.2 * r, 2 * r), (x + 1.2 * r, 2 * r)], colour)
        draw.polygon([(x, 0.6 * r), (x - 0.7 * r, 1.7 * r), (x + 0.7 * r, 1.7 * r)], (238, 236, 230))
    else:
        draw.rectangle((x - 1.4 * r, 0, x + 1.4 * r, 1.6 * r), colour)
        for line in (0.4, 0.8, 1.2):
            draw.line((x - r, line * r, x + rng.uniform(0.2, 1) * r, line * r), (30, 30, 34), max(1, round(0.02 * h)))
    return Sprite(rounded(image, 0.015 * h, light * 0.4), None, (x, t - 1))


def hydrant(rng: np.random.Generator, h: float, light: float) -> Sprite:
    image, draw, w, t = _sheet(0.36 * h, 0.46 * h)
    x, colour = w / 2, vary(rng, pick(rng, ((200, 40, 36), (226, 180, 40), (60, 100, 170))))
    draw.rectangle((x - 0.085 * h, 0.25 * t, x + 0.085 * h, t), colour)
    draw.ellipse((x - 0.09 * h, 0.04 * t, x + 0.09 * h, 0.5 * t), colour)
    draw.rectangle((x - 0.15 * h, 0.46 * t, x + 0.15 * h, 0.62 * t), shade(colour, 0.85))
    draw.rectangle((x - 0.11 * h, 0.9 * t, x + 0.11 * h, t), shade(colour, 0.75))
    draw.rectangle((x - 0.025 * h, 0, x + 0.025 * h, 0.1 * t), shade(colour, 0.8))
    return _standing(image, light, 0.05 * h)


def waste_bin(rng: np.random.Generator, h: float, light: float) -> Sprite:
    image, draw, w, t = _sheet(rng.uniform(0.32, 0.5) * h, rng.uniform(0.5, 0.7) * h)
    colour = vary(rng, pick(rng, (*METAL, (40, 90, 60), (44, 70, 120))))
    draw.polygon([(0.04 * w, 0.1 * t), (0.96 * w, 0.1 * t), (0.86 * w, t), (0.14 * w, t)], colour)
    draw.rectangle((0, 0, w, 0.13 * t), shade(colour, 0.7))
    return _standing(image, light, 0.08 * h)


def hedge(rng: np.random.Generator, h: float, light: float) -> Sprite:
    image, draw, w, t = _sheet(rng.uniform(0.8, 2.2) * h, rng.uniform(0.35, 0.6) * h)
    leaf = vary(rng, pick(rng, LEAVES))
    draw.rectangle((0.06 * w, 0.25 * t, 0.94 * w, t), shade(leaf, 0.8))
    for index in range(int(22 * w / h) + 8):
        r = rng.uniform(0.1, 0.2) * t
        x, y = rng.uniform(r, w - r), rng.uniform(r, t - r)
        draw.ellipse((x - r, y - r, x + r, y + r), shade(leaf, 0.78 + 0.3 * ((index * 7) % 10) / 10))
    return _standing(image, light, 0.05 * h)


def car(rng: np.random.Generator, h: float, light: float) -> Sprite:
    image, draw, w, t = _sheet(2.4 * h, 0.86 * h)
    colour, glass = vary(rng, pick(rng, (*CLOTHES, (200, 204, 208), (60, 64, 70)))), (70, 84, 98)
    draw.polygon([(0.18 * w, 0.42 * t), (0.3 * w, 0.03 * t), (0.68 * w, 0.03 * t), (0.84 * w, 0.42 * t)], colour)
    draw.polygon([(0.24 * w, 0.4 * t), (0.32 * w, 0.1 * t), (0.48 * w, 0.1 * t), (0.48 * w, 0.4 * t)], glass)
    draw.polygon([(0.51 * w, 0.4 * t), (0.51 * w, 0.1 * t), (0.66 * w, 0.1 * t), (0.77 * w, 0.4 * t)], glass)
    draw.rounded_rectangle((0.01 * w, 0.38 * t, 0.99 * w, 0.84 * t), 0.12 * t, shade(colour, 0.95))
    draw.rectangle((0.01 * w, 0.68 * t, 0.99 * w, 0.74 * t), shade(colour, 0.7))
    draw.ellipse((0.94 * w, 0.46 * t, 0.99 * w, 0.58 * t), (244, 236, 200))
    draw.rectangle((0.01 * w, 0.46 * t, 0.035 * w, 0.58 * t), (190, 40, 40))
    for x in (0.21, 0.79):
        for r, tone in ((0.2, (24, 24, 26)), (0.11, (150, 152, 156))):
            draw.ellipse((x * w - r * t, t * 0.8 - r * t, x * w + r * t, t * 0.8 + r * t), tone)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _standing(image, light * 0.6, 0.06 * h)


def four_legs(rng: np.random.Generator, h: float, light: float) -> Sprite:
    """A dog or a horse, by its proportions."""
    horse = rng.random() < 0.4
    size = rng.uniform(0.85, 1.0) * h if horse else rng.uniform(0.28, 0.45) * h
    coat = vary(rng, pick(rng, ((92, 60, 36), (44, 36, 32), (196, 176, 144), (150, 104, 60), (226, 222, 214))))
    image, draw, w, t = _sheet(1.9 * size, 1.5 * size)
    back, belly, x0, x1 = 0.55 * t, 0.72 * t, 0.3 * w, 0.66 * w
    for x, tone in ((x0, 0.75), (x1, 0.75), (x0 + 0.05 * w, 1), (x1 + 0.04 * w, 1)):
        knee = x + rng.normal(0, 0.03) * w
        capsule(draw, (x, belly), (knee, 0.84 * t), 0.06 * size, 0.045 * size, shade(coat, tone))
        capsule(
            draw,
            (knee, 0.84 * t),
            (x + rng.normal(0, 0.04) * w, 0.975 * t),
            0.04 * size,
            0.03 * size,
            shade(coat, tone),
        )
    barrel = (belly - back) * (0.78 if horse else 0.62)
    capsule(draw, (x0 + 0.02 * w, back + barrel * 0.6), (x1, back + barrel * 0.6), barrel, barrel * 1.05, coat)
    neck = (x1 + 0.15 * w, 0.2 * t) if horse else (x1 + 0.1 * w, 0.4 * t)
    capsule(draw, (x1 + 0.03 * w, back), neck, 0.13 * size, 0.085 * size, coat)
    muzzle = (neck[0] + 0.12 * w, neck[1] + 0.09 * t)
    capsule(draw, neck, muzzle, 0.095 * size, 0.055 * size, coat)
    draw.polygon(
        [
            (neck[0] - 0.04 * w, neck[1]),
            (neck[0] - 0.02 * w, neck[1] - 0.13 * t),
            (neck[0] + 0.03 * w, neck[1] - 0.03 * t),
        ],
        shade(coat, 0.7),
    )
    tail = (x0 - 0.1 * w, belly + 0.12 * t) if horse else (x0 - 0.12 * w, 0.4 * t)
    capsule(draw, (x0 - 0.02 * w, back), tail, 0.05 * size, 0.025 * size, shade(coat, 0.75))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _standing(image, light, 0.07 * size)


def bird(rng: np.random.Generator, h: float, light: float) -> Sprite:
    size = rng.uniform(0.14, 0.24) * h
    image, draw, w, t = _sheet(1.6 * size, 1.2 * size)
    colour = vary(rng, pick(rng, ((96, 100, 110), (230, 230, 228), (40, 40, 44), (130, 96, 70))))
    draw.ellipse((0.15 * w, 0.3 * t, 0.72 * w, 0.78 * t), colour)
    draw.polygon([(0.3 * w, 0.45 * t), (0.0, 0.75 * t), (0.1 * w, 0.45 * t)], shade(colour, 0.8))
    draw.ellipse((0.6 * w, 0.08 * t, 0.84 * w, 0.44 * t), shade(colour, 0.9))
    draw.polygon([(0.82 * w, 0.2 * t), (w, 0.28 * t), (0.82 * w, 0.32 * t)], (220, 150, 50))
    for x in (0.42, 0.52):
        draw.line((x * w, 0.75 * t, x * w, t), (190, 120, 60), max(1, round(0.05 * size)))
    return _standing(image, light, 0.1 * size)


def statue(rng: np.random.Generator, h: float, light: float) -> Sprite:
    """A figure of one stone colour on a plinth: the shape of a person, and not a person."""
    look = stone_look(rng)
    pose = pick(
        rng,
        ("standing", "hand on hip", "hands on hips", "arms folded", "one arm raised", "pointing", "waiting", "walking"),
    )
    body = figure(rng, rng.uniform(0.75, 1.05) * h, look, light, pose)
    tall, half = rng.uniform(0.28, 0.6) * h, rng.uniform(0.2, 0.28) * h
    left = min(0, body.foot[0] - half)
    width = max(body.image.width, body.foot[0] + half) - left
    image, draw, _, t = _sheet(width, body.foot[1] + tall)
    x = body.foot[0] - left
    stone = vary(rng, shade(look["top"], rng.uniform(0.8, 1.0)), 6)
    draw.rectangle((x - half, t - tall, x + half, t), shade(stone, 0.9))
    for y, reach in ((t - tall, 1.1), (t - 0.1 * h, 1.15)):
        draw.rectangle((x - half * reach, y - 0.02 * h, x + half * reach, y + 0.07 * h), stone)
    image.alpha_composite(body.image, (round(-left), 0))
    return Sprite(image, None, (x, t - 1))


OCCLUDERS = (car, hedge, waste_bin, post, lamp_post, sign, tree)
NEGATIVES = (lamp_post, post, tree, sign, hydrant, waste_bin, hedge, car, four_legs, four_legs, bird, statue, statue)
