"""Articulated people.

A figure is a skeleton of joint angles dressed in capsules and polygons. Lengths are in body heights (1 = standing
height), angles in degrees from straight down: positive is forwards in a side view and outwards in a front view.
"""

import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from jaxdet.data.synthetic.shapes import (
    CLOTHES,
    HAIR,
    SKIN,
    TROUSERS,
    Colour,
    Point,
    Sprite,
    capsule,
    pick,
    rounded,
    shade,
    vary,
)

Look = dict[str, Any]  # colours, clothes and proportions of one person

# name: (weight, view, lean of the torso, (upper arm, forearm) twice, (thigh, shin) twice)
POSES = {
    "standing": (8, "front", 0, ((9, 3), (9, 3)), ((4, 1), (4, 1))),
    "hand on hip": (2, "front", 0, ((38, -38), (9, 3)), ((6, 3), (3, 1))),
    "hands on hips": (1, "front", 0, ((38, -38), (38, -38)), ((9, 6), (9, 6))),
    "arms folded": (2, "front", 0, ((14, -100), (14, -100)), ((4, 1), (4, 1))),
    "telephone": (2, "front", 0, ((16, -155), (9, 3)), ((4, 1), (4, 1))),
    "waving": (1, "front", 2, ((100, 165), (9, 3)), ((4, 1), (4, 1))),
    "one arm raised": (1, "front", 2, ((158, 172), (12, 5)), ((5, 2), (5, 2))),
    "arms raised": (1, "front", 0, ((145, 165), (145, 165)), ((8, 4), (8, 4))),
    "star": (0.5, "front", 0, ((82, 88), (82, 88)), ((17, 15), (17, 15))),
    "waiting": (4, "side", 1, ((-6, 8), (8, 22)), ((3, -1), (-3, -4))),
    "walking": (9, "side", 4, ((-24, -6), (26, 42)), ((27, 6), (-17, -40))),
    "walking, other foot": (8, "side", 4, ((26, 42), (-24, -6)), ((-17, -40), (27, 6))),
    "running": (1.5, "side", 13, ((-48, 38), (36, 112)), ((58, -12), (-22, -88))),
    "pointing": (0.5, "side", 0, ((86, 90), (-4, 6)), ((8, 2), (-6, -9))),
    "bending": (1, "side", 72, ((14, 4), (30, 22)), ((-7, -3), (4, 0))),
    "squatting": (1, "side", 28, ((44, 76), (34, 62)), ((104, -38), (92, -30))),
    "sitting": (2, "side", -4, ((26, 68), (20, 60)), ((87, 4), (82, -8))),
    "sitting, towards": (2, "front", 0, ((15, -24), (15, -24)), ((16, 2), (16, 2))),
}
_WEIGHTS = np.array([pose[0] for pose in POSES.values()], float)
_WEIGHTS /= _WEIGHTS.sum()


def random_look(rng: np.random.Generator) -> Look:
    """Colours and clothes of one person."""
    garment = pick(rng, ("trousers",) * 8 + ("shorts",) * 3 + ("skirt",) * 2 + ("dress",) * 2 + ("coat",) * 3)
    top = vary(rng, pick(rng, CLOTHES))
    return {
        "skin": vary(rng, pick(rng, SKIN), 8),
        "hair": vary(rng, pick(rng, HAIR), 8),
        "top": top,
        "bottom": top if garment == "dress" else vary(rng, pick(rng, TROUSERS if rng.random() < 0.75 else CLOTHES)),
        "shoes": vary(rng, pick(rng, ((30, 28, 28), (70, 46, 30), (226, 226, 226), (150, 40, 40)))),
        "garment": garment,
        "sleeves": bool(garment == "coat" or rng.random() < 0.5),
        "hair_length": pick(rng, ("short", "short", "short", "long", "long", "bald")),
        "hat": vary(rng, pick(rng, CLOTHES)) if rng.random() < 0.16 else None,
        "stripes": vary(rng, pick(rng, CLOTHES)) if rng.random() < 0.2 else None,
        "bag": vary(rng, pick(rng, CLOTHES)) if rng.random() < 0.2 else None,
        "build": float(rng.uniform(0.86, 1.22)),
        "head": float(rng.uniform(1.22, 1.4) if rng.random() < 0.12 else rng.uniform(0.95, 1.1)),
    }


def stone_look(rng: np.random.Generator) -> Look:
    """A statue: one stone or bronze colour from head to foot."""
    colour = vary(rng, pick(rng, ((168, 166, 160), (140, 140, 138), (196, 190, 178), (96, 120, 104), (92, 80, 62))), 8)
    tones = {name: shade(colour, rng.uniform(0.9, 1.08)) for name in ("skin", "hair", "top", "bottom", "shoes")}
    return random_look(rng) | tones | {"hat": None, "stripes": None, "bag": None}


def _step(point: Point, length: float, degrees: float) -> Point:
    angle = math.radians(degrees)
    return point[0] + length * math.sin(angle), point[1] + length * math.cos(angle)


def skeleton(rng: np.random.Generator, name: str, build: float = 1.0) -> tuple[str, dict[str, Point]]:
    """Joint positions of a pose with its angles jittered.

    Returns (view, joints): view is "front", "back" or "side"; joints maps names to (x, y) in body heights, y down, hips
    at the origin. Limbs have two entries each, the far one first in a side view.
    """
    _, view, upright, arms, legs = POSES[name]
    side = view == "side"
    lean = upright + rng.normal(0, 3)
    up = 180 - lean if side else 180 + lean
    chest = _step((0, 0), 0.29, up)
    joints = {"hips": (0.0, 0.0), "chest": chest, "head": _step(chest, 0.115, up - (12 if side and lean > 40 else 0))}
    # Limbs that point at the camera look shorter.
    thigh_length = 0.09 if name == "sitting, towards" else 0.245
    half_shoulder, half_hip = (0.018, 0.012) if side else (0.1 * build, 0.045 * build)
    across = (math.cos(math.radians(lean)), math.sin(math.radians(lean))) if not side else (1.0, 0.0)
    for limb in (0, 1):
        sign = (-1, 1)[limb]
        mirror = 1 if side else sign
        upper, lower = arms[limb] + rng.normal(0, 7, 2)
        thigh, shin = legs[limb] + rng.normal(0, 3.5, 2)
        shoulder = (chest[0] + sign * half_shoulder * across[0], chest[1] + sign * half_shoulder * across[1] + 0.01)
        elbow = _step(shoulder, 0.165, mirror * upper)
        joints |= {f"shoulder{limb}": shoulder, f"elbow{limb}": elbow}
        joints[f"hand{limb}"] = _step(elbow, 0.15, mirror * lower)
        hip = sign * half_hip, 0.0
        knee = _step(hip, thigh_length, mirror * thigh)
        joints |= {f"hip{limb}": hip, f"knee{limb}": knee}
        joints[f"ankle{limb}"] = _step(knee, rng.uniform(0.215, 0.24) if not side else 0.235, mirror * shin)
    if view == "front" and rng.random() < 0.35 and not name.startswith("sitting"):
        view = "back"
    return view, joints


def figure(rng: np.random.Generator, height: float, look: Look, light: float = 0.0, pose: str | None = None) -> Sprite:
    """A person (or, by `look`, a statue) as a Sprite; a sitting person comes with a bench that is not part of the mask.

    height: standing height in pixels of the canvas. light: see `rounded`. pose: a key of POSES, drawn by weight when
    None.
    """
    name = pose or list(POSES)[int(rng.choice(len(POSES), p=_WEIGHTS))]
    view, joints = skeleton(rng, name, look["build"])
    facing = 1 if rng.random() < 0.5 else -1
    points = {key: (x * facing * height, y * height) for key, (x, y) in joints.items()}
    margin = 0.17 * height
    left, top = (min(p[axis] for p in points.values()) - margin for axis in (0, 1))
    right, bottom = (max(p[axis] for p in points.values()) + margin for axis in (0, 1))
    points = {key: (x - left, y - top) for key, (x, y) in points.items()}
    size = max(4, math.ceil(right - left)), max(4, math.ceil(bottom - top))
    image = Image.new("RGBA", size, (*shade(look["top"], 0.8), 0))
    _dress(ImageDraw.Draw(image), points, view, facing, height, look)
    if abs(light) > 0.05 and height > 40:
        image = rounded(image, 0.035 * height, light)
    person = image.getchannel("A")
    sole = max(points["ankle0"][1], points["ankle1"][1]) + 0.035 * height
    if name.startswith("sitting") and sole > points["hips"][1]:
        bench = Image.new("RGBA", size, (0, 0, 0, 0))
        _bench(ImageDraw.Draw(bench), points["hips"], sole, height, view, vary(rng, (104, 72, 46), 20))
        bench.alpha_composite(image)
        image = bench
    return Sprite(image, person, (points["hips"][0], sole))


def _bench(draw: ImageDraw.ImageDraw, hips: Point, ground: float, height: float, view: str, colour: Colour) -> None:
    x, y = hips
    half = (0.2 if view == "side" else 0.3) * height
    seat = y + 0.055 * height
    for leg in (-0.8, 0.75):
        draw.rectangle((x + leg * half, seat, x + (leg + 0.1) * half, ground), shade(colour, 0.6))
    if view != "side":
        draw.rectangle((x - half, y - 0.2 * height, x + half, y - 0.12 * height), shade(colour, 0.85))
        draw.rectangle((x - half, y - 0.09 * height, x + half, y - 0.03 * height), shade(colour, 0.85))
    draw.rectangle((x - half, seat - 0.02 * height, x + half, seat + 0.03 * height), colour)


def _dress(draw: ImageDraw.ImageDraw, points: dict[str, Point], view: str, facing: int, h: float, look: Look) -> None:
    """Draws the body over a skeleton in pixels, from the far parts to the near ones."""
    side = view == "side"
    width = look["build"] * h
    if look["bag"] and side:
        x, y = points["chest"]
        capsule(
            draw,
            (x - facing * 0.09 * h, y + 0.06 * h),
            (x - facing * 0.085 * h, y + 0.16 * h),
            0.06 * h,
            0.065 * h,
            look["bag"],
        )
    if look["hair_length"] == "long" and view == "front":
        _locks(draw, points, h, look)
    if side:
        _arm(draw, points, 0, width, h, look, 0.8)
    for limb in (0, 1):
        _leg(draw, points, limb, width, h, look, 0.82 if side and limb == 0 else 1.0, view, facing)
    _skirt(draw, points, width, h, look)
    _torso(draw, points, side, width, h, look)
    capsule(draw, points["chest"], points["head"], 0.034 * h, 0.03 * h, shade(look["skin"], 0.9))
    if look["bag"] and view == "back":
        x, y = points["chest"]
        draw.rounded_rectangle((x - 0.085 * h, y + 0.02 * h, x + 0.085 * h, y + 0.2 * h), 0.03 * h, look["bag"])
    _head(draw, points["head"], view, facing, h * look["head"], look)
    if look["hair_length"] == "long" and view == "back":
        _locks(draw, points, h, look)
    for limb in (1,) if side else (0, 1):
        _arm(draw, points, limb, width, h, look, 1.0)


def _arm(
    draw: ImageDraw.ImageDraw, points: dict[str, Point], limb: int, width: float, h: float, look: Look, tone: float
) -> None:
    shoulder, elbow, hand = (points[f"{joint}{limb}"] for joint in ("shoulder", "elbow", "hand"))
    sleeve, skin = shade(look["top"], tone * 0.95), shade(look["skin"], tone)
    edge = 0.005 * h  # a dark rim parts the arm from a body of the same colour
    draw.ellipse((hand[0] - 0.026 * h, hand[1] - 0.026 * h, hand[0] + 0.026 * h, hand[1] + 0.026 * h), skin)
    lower = sleeve if look["sleeves"] else skin
    capsule(draw, shoulder, elbow, 0.034 * width, 0.03 * width + edge, shade(sleeve, 0.78))
    capsule(draw, elbow, hand, 0.027 * width + edge, 0.02 * width + edge / 2, shade(lower, 0.8))
    capsule(draw, elbow, hand, 0.027 * width, 0.02 * width, lower)
    capsule(draw, shoulder, elbow, 0.034 * width, 0.03 * width, sleeve)
    if look["sleeves"]:
        draw.ellipse((hand[0] - 0.02 * h, hand[1] - 0.02 * h, hand[0] + 0.02 * h, hand[1] + 0.02 * h), skin)


def _leg(
    draw: ImageDraw.ImageDraw,
    points: dict[str, Point],
    limb: int,
    width: float,
    h: float,
    look: Look,
    tone: float,
    view: str,
    facing: int,
) -> None:
    hip, knee, ankle = (points[f"{joint}{limb}"] for joint in ("hip", "knee", "ankle"))
    cloth, skin, shoe = (shade(look[key], tone) for key in ("bottom", "skin", "shoes"))
    bare = look["garment"] in ("skirt", "dress")
    x, y = ankle
    if view == "side":
        toe = x + facing * 0.07 * h
        draw.polygon([(x - facing * 0.03 * h, y - 0.01 * h), (x + facing * 0.03 * h, y - 0.01 * h), (toe, y + 0.02 * h),
                      (toe, y + 0.035 * h), (x - facing * 0.035 * h, y + 0.035 * h)], shoe)  # fmt: skip
    else:
        draw.ellipse((x - 0.036 * h, y - 0.01 * h, x + 0.036 * h, y + 0.037 * h), shoe)
    shin = skin if bare or look["garment"] == "shorts" else cloth
    capsule(draw, knee, ankle, 0.039 * width, 0.028 * width, shin)
    capsule(draw, hip, knee, 0.054 * width, 0.043 * width, skin if bare else cloth)


def _skirt(draw: ImageDraw.ImageDraw, points: dict[str, Point], width: float, h: float, look: Look) -> None:
    if look["garment"] not in ("skirt", "dress", "coat"):
        return
    (x, y), knees = points["hips"], (points["knee0"], points["knee1"])
    reach = 0.5 if look["garment"] == "coat" else 0.85
    hems = sorted(((x + (kx - x) * reach, y + (ky - y) * reach) for kx, ky in knees), key=lambda p: p[0])
    flare = 0.05 * width if look["garment"] == "coat" else 0.075 * width
    colour = look["top"] if look["garment"] == "coat" else look["bottom"]
    draw.polygon([(x - 0.08 * width, y - 0.06 * h), (x + 0.08 * width, y - 0.06 * h), (hems[1][0] + flare, hems[1][1]),
                  (hems[0][0] - flare, hems[0][1])], shade(colour, 0.93))  # fmt: skip


def _torso(draw: ImageDraw.ImageDraw, points: dict[str, Point], side: bool, width: float, h: float, look: Look) -> None:
    hips, chest, colour = points["hips"], points["chest"], look["top"]
    below = look["top" if look["garment"] == "coat" else "bottom"]
    if side:
        capsule(draw, hips, hips, 0.072 * width, 0.072 * width, below)
        waist = hips[0] * 0.8 + chest[0] * 0.2, hips[1] * 0.8 + chest[1] * 0.2
        capsule(draw, chest, waist, 0.066 * width, 0.068 * width, colour)
        return
    left, right = points["shoulder0"], points["shoulder1"]
    waist_y, half = hips[1] - 0.02 * h, 0.092 * width
    if left[0] > right[0]:
        left, right = right, left
    draw.rounded_rectangle((hips[0] - half, waist_y - 0.05 * h, hips[0] + half, hips[1] + 0.05 * h), 0.04 * h, below)
    outline = [
        (left[0] - 0.01 * h, left[1]),
        (chest[0] - 0.04 * h, chest[1] - 0.03 * h),
        (chest[0] + 0.04 * h, chest[1] - 0.03 * h),
        (right[0] + 0.01 * h, right[1]),
        (hips[0] + half, waist_y),
        (hips[0] - half, waist_y),
    ]
    draw.polygon(outline, colour)
    if look["stripes"]:
        for share in (0.25, 0.5, 0.75):
            y = chest[1] + share * (waist_y - chest[1])
            reach = (1 - share) * (right[0] - left[0]) / 2 + share * half - 0.006 * h
            x = chest[0] + share * (hips[0] - chest[0])
            draw.rectangle((x - reach, y, x + reach, y + 0.025 * h), look["stripes"])


def _locks(draw: ImageDraw.ImageDraw, points: dict[str, Point], h: float, look: Look) -> None:
    x, y = points["head"]
    head = look["head"] * h
    draw.rounded_rectangle(
        (x - 0.062 * head, y - 0.03 * head, x + 0.062 * head, y + 0.14 * head), 0.03 * h, shade(look["hair"], 0.9)
    )


def _head(draw: ImageDraw.ImageDraw, centre: Point, view: str, facing: int, h: float, look: Look) -> None:
    x, y = centre
    rx, ry = 0.052 * h, 0.068 * h
    oval = (x - rx, y - ry, x + rx, y + ry)
    draw.ellipse(oval, look["skin"])
    hair = look["skin"] if look["hair_length"] == "bald" else look["hair"]
    if view == "back":
        draw.ellipse(
            (x - rx * 1.06, y - ry * 1.06, x + rx * 1.06, y + ry * (0.6 if look["hair_length"] == "short" else 0.9)),
            hair,
        )
    else:
        cap = (x - rx * 1.08, y - ry * 1.1, x + rx * 1.08, y + ry * 0.95)
        if view == "front":
            draw.chord(cap, 195, 345, hair)
        else:
            start, end = (90, 310) if facing > 0 else (230, 450)
            draw.chord(cap, start, end, hair)
            nose = x + facing * rx
            draw.polygon(
                [
                    (nose - facing * rx * 0.2, y - ry * 0.2),
                    (nose + facing * rx * 0.22, y + ry * 0.15),
                    (nose - facing * rx * 0.2, y + ry * 0.2),
                ],
                look["skin"],
            )
            if look["hair_length"] == "long":
                capsule(
                    draw, (x - facing * rx * 0.6, y), (x - facing * rx * 0.9, y + ry * 1.7), rx * 0.5, rx * 0.35, hair
                )
        dark = shade(look["skin"], 0.35)
        eyes = (-0.4, 0.4) if view == "front" else (facing * 0.5,)
        for eye in eyes:
            draw.ellipse((x + eye * rx - rx * 0.13, y - ry * 0.1, x + eye * rx + rx * 0.13, y + ry * 0.08), dark)
        mouth = x if view == "front" else x + facing * rx * 0.6
        draw.line(
            (mouth - rx * 0.3, y + ry * 0.5, mouth + rx * 0.3, y + ry * 0.5),
            shade(look["skin"], 0.65),
            max(1, round(h * 0.008)),
        )
    if look["hat"]:
        draw.chord((x - rx * 1.15, y - ry * 1.25, x + rx * 1.15, y + ry * 0.6), 180, 360, look["hat"])
        brim = (-1.3, 1.3) if view != "side" else ((-1.1, 1.9) if facing > 0 else (-1.9, 1.1))
        draw.rectangle((x + brim[0] * rx, y - ry * 0.42, x + brim[1] * rx, y - ry * 0.26), shade(look["hat"], 0.75))
