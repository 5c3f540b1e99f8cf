"""The embedded data set: drawn street scenes with people, and with what is easily taken for people.

`python -m jaxdet.data.synthetic.scenes OUTPUT.png` draws a contact sheet of it with the ground truth.
"""

import math
import operator
import pathlib
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, SupportsIndex, cast

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image, ImageDraw, ImageFilter

from jaxdet.data.synthetic.backgrounds import background
from jaxdet.data.synthetic.objects import NEGATIVES, OCCLUDERS
from jaxdet.data.synthetic.people import figure, random_look
from jaxdet.data.synthetic.shapes import Colour, Sprite, outlined, pick
from jaxdet.data.types import Category, Record, Targets

ENLARGE = 2  # scenes are drawn twice as large and reduced, which smooths their edges
LEAST_SHARE, LEAST_PIXELS = 1 / 3, 16  # a person of whom less is to be seen is not drawn at all
CROWD = 255  # value of the one crowd region in the map of visible people; people count from 1


# Standing height of an adult at a place, x, drawing function, person as in `Placed`
Thing = tuple[float, float, Callable[[np.random.Generator, float, float], Sprite], int]


class Placed(NamedTuple):
    """A sprite with its place: `corner` is the pixel of the canvas at its upper left."""

    sprite: Sprite
    corner: tuple[int, int]
    haze: float
    person: int  # 0 for objects, CROWD for members of the crowd


class SyntheticPeople:
    """`count` drawn scenes as a data source (see jaxdet.data), one category: person.

    Scene i depends only on (seed, i, height, width), so a longer set begins with the scenes of a shorter one. Image ids
    are 1..count for any seed. Boxes [n, 4] x1 y1 x2 y2 in pixels (multiples of 0.5) are tight around the visible pixels
    of a person or crowd, and `area` is their number. What people wear and carry belongs to them. A person who shows
    less than a third of the body, or under 16 pixels, is left out of the image.

    A scene is drawn on first use, in some 10 ms, and kept (so image arrays are read-only) until the images take
    `cache_bytes`: 1500 scenes of 192 x 256 take 220 MB. Boxes are always kept. `box_counts`, `crowd_counts` and
    `ground_truth` draw what is missing. A pickled source draws its scenes again. Raises ValueError for a count below
    1, a negative seed or sides below 64 pixels.
    """

    categories: tuple[Category, ...] = ({"id": 1, "name": "person"},)

    def __init__(
        self, count: int, seed: int = 0, height: int = 192, width: int = 256, cache_bytes: int = 1 << 30
    ) -> None:
        if count < 1:
            raise ValueError(f"an embedded data set needs at least 1 scene, not {count}")
        if seed < 0:
            raise ValueError(f"a seed is 0 or more, not {seed}")
        if min(height, width) < 64:
            raise ValueError(f"scenes are at least 64 pixels high and wide, not {height} x {width}")
        self.seed, self.height, self.width = int(seed), int(height), int(width)
        self.cache_bytes = int(cache_bytes)
        self.image_ids = np.arange(1, count + 1, dtype=np.int64)
        self.sizes = np.tile(np.array([[height, width]], np.int32), (count, 1))
        self.clipped_counts = np.zeros(count, np.int32)  # boxes are tight around what is drawn
        self.skipped: list[dict[str, Any]] = []
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._images: dict[int, UInt8[np.ndarray, "H W 3"]] = {}
        self._targets: dict[int, Targets] = {}

    def __getstate__(self) -> dict[str, Any]:
        private = ("_lock", "_images", "_targets")
        return {name: value for name, value in vars(self).items() if name not in private}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: SupportsIndex) -> Record:
        """The record of scene `index`; raises IndexError outside the set."""
        index = range(len(self))[operator.index(index)]
        image = self._images.get(index)
        if image is None:
            image = self._draw(index)
        return {"image_id": index + 1, "image": image, **self._targets[index]}

    def _draw(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        with self._lock:  # drawing holds the interpreter anyway, so one scene at a time costs nothing
            image = self._images.get(index)
            if image is None:
                image, visible = draw_scene(self.seed, index, self.height, self.width)
                targets = _targets(visible)
                for array in (image, *cast(dict[str, np.ndarray], targets).values()):
                    array.setflags(write=False)
                self._targets[index] = targets
                if (len(self._images) + 1) * image.nbytes <= self.cache_bytes:
                    self._images[index] = image
        return image

    def _all_targets(self) -> list[Targets]:
        for index in range(len(self)):
            if index not in self._targets:
                self._draw(index)
        return [self._targets[index] for index in range(len(self))]

    @property
    def box_counts(self) -> Int32[np.ndarray, " N"]:
        """int32 [N], people a scene, crowds not counted."""
        return np.array([np.sum(~targets["crowd"]) for targets in self._all_targets()], np.int32)

    @property
    def crowd_counts(self) -> Int32[np.ndarray, " N"]:
        """int32 [N], crowd regions a scene."""
        return np.array([np.sum(targets["crowd"]) for targets in self._all_targets()], np.int32)

    def ground_truth(self) -> dict[str, Any]:
        """All scenes' annotations in COCO's JSON form (bbox: x y width height in pixels)."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, targets in enumerate(self._all_targets()):
            image_id = index + 1
            name = f"synthetic_{self.seed}_{image_id:06d}.png"
            images.append({"id": image_id, "height": self.height, "width": self.width, "file_name": name})
            rows = (targets[name].tolist() for name in ("boxes", "crowd", "area"))
            for (x1, y1, x2, y2), crowd, area in zip(*rows, strict=True):
                row = {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1, "iscrowd": int(crowd)}
                annotations.append(row | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": area})
        categories = [dict(category) for category in self.categories]
        return {"images": images, "annotations": annotations, "categories": categories}


def _targets(visible: UInt8[np.ndarray, "tall wide"]) -> Targets:
    """Boxes, labels, crowd flags and areas of a map of visible people, enlarged as the canvas is."""
    boxes, areas, crowd = [], [], []
    for person in np.flatnonzero(np.bincount(visible.ravel())[1:]) + 1:
        mask = visible == person
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        areas.append(mask.sum())
        crowd.append(person == CROWD)
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4) / ENLARGE,
        "labels": np.zeros(len(boxes), np.int32),
        "crowd": np.array(crowd, bool),
        "area": np.array(areas, np.float32) / ENLARGE**2,
    }


def draw_scene(
    seed: int, index: int, height: int, width: int
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "tall wide"]]:
    """Scene `index` of a set: (image uint8 [H, W, 3], visible uint8 [2H, 2W]).

    `visible` tells whose pixel is seen at each place of the enlarged canvas: 0 nobody's, 255 the crowd's, else a
    person's number.
    """
    rng = np.random.default_rng([seed, index])
    tall, wide = height * ENLARGE, width * ENLARGE
    horizon = rng.uniform(0.22, 0.48) * tall
    light = float(rng.uniform(0.3, 1.0) * pick(rng, (-1, 1)))
    placed = _layout(rng, tall, wide, horizon, light)
    visible, placed = _leave_out_hidden(placed, (wide, tall))
    canvas = background(rng, wide, tall, int(horizon))
    haze = cast(Colour, canvas.getpixel((wide // 2, max(0, int(horizon) - 2))))
    for item in placed:
        _shadow(canvas, item, light)
        image = item.sprite.image
        if item.haze > 0.02:
            veil = Image.new("RGBA", image.size, (*haze, 0))
            veil.putalpha(image.getchannel("A"))
            canvas.paste(Image.blend(image, veil, item.haze), item.corner, image.getchannel("A"))
        else:
            canvas.paste(image, item.corner, image.getchannel("A"))
    return _photograph(rng, canvas), visible


def _layout(rng: np.random.Generator, tall: int, wide: int, horizon: float, light: float) -> list[Placed]:
    """Everything that stands in the scene, far things first."""
    # Height of the eye in body heights: how far heads rise above the horizon, and where feet stand below it.
    camera = rng.uniform(0.65, 1.05)
    things = _people(rng, tall, wide)
    for height, x, _, _ in list(things):
        if rng.random() < 0.08:  # something in front of a person
            nearer, aside = height * rng.uniform(1.02, 1.15), rng.normal(0, 0.3) * height
            things.append((nearer, x + aside, pick(rng, OCCLUDERS), 0))
    for _ in range(int(rng.integers(1, 5))):
        height = _between(rng, 0.14, 0.65) * tall
        things.append((height, _apart(rng, things, height, wide), pick(rng, NEGATIVES), 0))
    if rng.random() < 0.06:
        centre = rng.uniform(0.1, 0.9) * wide
        for _ in range(int(rng.integers(14, 26))):
            height, aside = tall * rng.uniform(0.07, 0.1), rng.normal(0, 0.07) * wide
            things.append((height, centre + aside, _adult, CROWD))
    things.sort(key=lambda thing: thing[0])
    placed = []
    for height, x, draw, number in things:
        sprite = outlined(draw(rng, height, light))
        ground = horizon + height * camera * rng.uniform(0.97, 1.03)
        corner = round(x - sprite.foot[0]), round(ground - sprite.foot[1])
        haze = 0.28 * max(0.0, 1 - height / (0.35 * tall))
        placed.append(Placed(sprite, corner, haze, number))
    return placed


def _people(rng: np.random.Generator, tall: int, wide: int) -> list[Thing]:
    """The scene's people as [(standing height of an adult at their place, x, drawing function, number from 1)]."""
    people: list[Thing] = []
    count = int(rng.integers(2, 9)) if rng.random() > 0.05 else 0
    for number in range(1, count + 1):
        close_up = rng.random() < 0.12  # cut off by the lower edge
        height = _between(rng, *((0.85, 1.8) if close_up else (0.28, 0.85))) * tall
        x = _apart(rng, people, height, wide)
        if people and rng.random() < 0.12:  # beside somebody
            friend = people[int(rng.integers(len(people)))]
            height, x = friend[0] * rng.uniform(0.92, 1.08), friend[1] + rng.normal(0, 0.45) * friend[0]
        people.append((height, x, _child if rng.random() < 0.12 else _adult, number))
    return people


def _apart(rng: np.random.Generator, things: list[Thing], height: float, wide: int) -> float:
    """Where something of this height hides little: of a few random places the one furthest from all things, by their
    heights.
    """

    def distance(x: float) -> float:
        return min((abs(x - other) / (height + other_height) for other_height, other, *_ in things), default=0)

    return float(max(rng.uniform(0.03, 0.97, 8) * wide, key=distance))


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """A random size, every octave as likely."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _adult(rng: np.random.Generator, height: float, light: float) -> Sprite:
    return figure(rng, height * rng.uniform(0.94, 1.06), random_look(rng), light)


def _child(rng: np.random.Generator, height: float, light: float) -> Sprite:
    return figure(rng, height * rng.uniform(0.55, 0.75), random_look(rng), light)


def _leave_out_hidden(
    placed: list[Placed], size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "tall wide"], list[Placed]]:
    """Draws the map of visible people without those who are hardly to be seen, and returns it with the things that
    stay.
    """
    while True:  # whoever goes uncovers others, so the second round is the last
        visible = Image.new("L", size)
        for sprite, corner, _, person in placed:
            visible.paste(0, corner, sprite.image.getchannel("A"))
            if person:
                visible.paste(person, corner, sprite.person)
        seen = np.bincount(np.asarray(visible).ravel(), minlength=256)
        hidden = set()
        for sprite, _, _, person in placed:
            if person not in (0, CROWD):
                whole = np.count_nonzero(np.asarray(sprite.person))
                if seen[person] < max(LEAST_SHARE * whole, LEAST_PIXELS * ENLARGE**2):
                    hidden.add(person)
        if seen[CROWD] < LEAST_PIXELS * ENLARGE**2:
            hidden.add(CROWD)
        stay = [item for item in placed if item.person not in hidden]
        if len(stay) == len(placed):
            return np.asarray(visible), placed
        placed = stay


def _shadow(canvas: Image.Image, item: Placed, light: float) -> None:
    """A soft dark patch on the ground where a thing stands."""
    sprite, (left, top) = item.sprite, item.corner
    x, y = left + sprite.foot[0], top + sprite.foot[1]
    half = min(sprite.image.width * 0.42, sprite.image.height * 0.3)
    if half < 3:
        return
    size = round(half * 2.6), max(2, round(half * 0.5))
    patch = Image.new("L", size)
    ImageDraw.Draw(patch).ellipse((0, 0, size[0] - 1, size[1] - 1), 95)
    if half > 8:
        patch = patch.filter(ImageFilter.BoxBlur(half * 0.06))
    corner = round(x - size[0] / 2 + light * half * 0.5), round(y - size[1] * 0.55)
    canvas.paste((24, 24, 32), corner, patch)


def _photograph(rng: np.random.Generator, canvas: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """The canvas as a camera would take it: reduced, at times blurred, tinted, brighter or darker, noisy."""
    image = canvas.reduce(ENLARGE)
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.6))))
    gain = rng.uniform(0.82, 1.2) * (1 + rng.normal(0, 0.035, 3))
    noise = rng.integers(-128, 128, (image.height, image.width, 3), np.int8).astype(np.float32)
    pixels: np.ndarray = np.asarray(image) * gain.astype(np.float32) + noise * float(rng.uniform(1, 6) / 128)
    return np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)


def scene_sheet(seed: int = 4, rows: int = 3, columns: int = 4, height: int = 192, width: int = 256) -> Image.Image:
    """Scenes of a set side by side with their ground truth, people in green and crowds in orange, as an image."""
    source = SyntheticPeople(rows * columns, seed, height, width)
    sheet = Image.new("RGB", (columns * (width + 4) + 4, rows * (height + 4) + 4), (255, 255, 255))
    for index in range(len(source)):
        record = source[index]
        assert record["image"] is not None
        image = Image.fromarray(record["image"])
        draw = ImageDraw.Draw(image)
        for (x1, y1, x2, y2), crowd in zip(record["boxes"], record["crowd"], strict=True):
            draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=(255, 150, 30) if crowd else (60, 255, 90))
        sheet.paste(image, (4 + index % columns * (width + 4), 4 + index // columns * (height + 4)))
    return sheet


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        sys.exit("usage: python -m jaxdet.data.synthetic.scenes OUTPUT.png")
    output = pathlib.Path(arguments[0])
    output.parent.mkdir(parents=True, exist_ok=True)
    scene_sheet().quantize(256, dither=Image.Dither.NONE).save(output, optimize=True)
    print(f"wrote {output}")


if __name__ == "__main__":
    main(sys.argv[1:])
