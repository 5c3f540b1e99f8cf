"""Data sets with any number of faults: an error that names the file, or every fault left out and listed, never a
traceback or a wrong box.

JAXDET_CASES says how many (default 150); `make torture` takes 10,000.
"""

import contextlib
import copy
import io
import json
import math
import os
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from configs import person
from jaxdet.data import pipeline
from jaxdet.data.coco import CocoSource, summary
from jaxdet.data.decoding import decode
from tests.data.decoding_test import encoded, gradient, png, with_orientation

CASES = int(os.environ.get("JAXDET_CASES", 150))
IDS = (3, 8, 2**33, 21)


def pictures():
    """{name: encoded image} of every kind that a folder may hold; 20 wide and 12 high as they lie in the file."""
    rgb = Image.fromarray(gradient())
    made = {f"{kind.lower()}{turn}": with_orientation(kind, turn) for kind in ("JPEG", "PNG") for turn in (1, 6)}
    for kind in ("WEBP", "BMP", "GIF", "TIFF", "PPM"):
        made[kind.lower()] = encoded(rgb, kind)
    frames = [Image.new("RGB", (20, 12), colour) for colour in ("red", "green")]
    for kind in ("GIF", "PNG", "WEBP"):
        made[f"animated {kind}"] = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    made["cmyk"] = encoded(rgb.convert("CMYK"), "JPEG")
    made["palette"] = encoded(rgb.convert("P"))
    made["alpha"] = encoded(rgb.convert("RGBA"))
    made["sixteen bits"] = encoded(Image.fromarray(gradient()[..., 0].astype(np.uint16) * 257))
    made["float"] = encoded(Image.fromarray(np.ones((12, 20), np.float32)), "TIFF")
    made["bomb"] = png(60000, 60000, 1, 0, [b"\0" * 7500])
    made["gif bomb"] = made["gif"][:6] + b"\xff\xff\xff\xff" + made["gif"][10:]
    made["thin"] = encoded(Image.new("L", (5000, 1)))
    made["nothing"], made["text"] = b"", b"<html>404 not found</html>"
    return made


PICTURES = pictures()
NAMES = ["a.jpg", "sub/b.png", "c c.bin", "dü\udce9.x"]
ODD_NAMES = [
    *("", ".", "..", "/etc/passwd", "../outside.png", "sub/../../outside.png", "a.jpg/", "./a.jpg", "nul\0.png"),
    *("inside.png", "outside.png", "loop.png", "elsewhere/outside.png", "pipe", "sub", "\ud800.png", "a" * 5000, "~"),
]
JUNK = st.one_of(
    st.sampled_from([None, True, False, "", "3", "person", [], {}, [3], math.nan, math.inf, -math.inf, -0.0]),
    st.sampled_from([0, -1, 1, 3, 8, 2**31, 2**63, -(2**63), 10**400, 1e308, -1e308, 5e-324, 3.0, 0.5]),
    st.text(max_size=4),
)
SIDE = st.one_of(
    st.integers(-3, 25), st.floats(-5, 30), st.sampled_from([math.nan, math.inf, 1e308, -1e308, 1e-9, 5e-324])
)
BOX = st.one_of(
    st.lists(SIDE, min_size=4, max_size=4), st.lists(SIDE, min_size=4, max_size=4), JUNK, st.lists(JUNK, max_size=5)
)
DAMAGE = st.one_of(
    st.none(),
    st.none(),
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("flip"), st.integers(0, 10**6), st.integers(0, 255)),
)
CHANGE = st.tuples(
    st.sampled_from(["images", "annotations", "annotations", "annotations", "categories", ""]),
    st.integers(0, 30),
    st.sampled_from(["drop", "junk", "junk", "double", "another"]),
    st.sampled_from(
        ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "file_name", "height", "width", "name"]
    ),
    st.one_of(JUNK, BOX, st.sampled_from(ODD_NAMES), st.sampled_from(IDS)),
)
TEXT = st.sampled_from([*["whole"] * 30, "mark", "cut", "utf-16", "byte", "deep", "digits", "list"])


@st.composite
def data_sets(draw):
    """(JSON as bytes, {file name: bytes}) with any number of faults."""
    chosen = [(draw(st.sampled_from(sorted(PICTURES))), draw(DAMAGE)) for _ in NAMES]
    files = {name: damaged(PICTURES[kind], harm) for name, (kind, harm) in zip(NAMES, chosen, strict=True)}
    turned = draw(st.booleans())
    size = {"height": 20, "width": 12} if turned else {"height": 12, "width": 20}
    content = {
        "images": [
            {"id": i, "file_name": n} | (size if draw(st.booleans()) else {}) for i, n in zip(IDS, NAMES, strict=True)
        ],
        "annotations": [
            {
                "id": draw(st.one_of(st.just(number), st.just(number), st.integers(-1, 4))),
                "image_id": draw(st.sampled_from(IDS)),
                "category_id": draw(st.sampled_from((17, 17, 90))),
                "bbox": draw(BOX),
                "iscrowd": draw(st.sampled_from((0, 0, 0, 1))),
            }
            for number in range(1, draw(st.integers(0, 6)) + 1)
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 17, "name": "person"}],
    }
    for change in draw(st.lists(CHANGE, max_size=3)):
        content = changed(content, *change)
    return written(json.dumps(content), draw(TEXT), draw(st.floats(0, 1))), files


def damaged(data, harm):
    if harm is None or not data:
        return data
    if harm[0] == "cut":
        return data[: int(harm[1] * len(data))]
    data = bytearray(data)
    data[harm[1] % len(data)] = harm[2]
    return bytes(data)


def changed(content, section, position, action, key, value):
    """`content` with one fault: in a section (or, without a name, of one), at an entry or key of it."""
    content = copy.deepcopy(content)
    if not section or not isinstance(content.get(section), list) or not content[section]:
        name = ("images", "annotations", "categories")[position % 3]
        content[name] = value
        if action == "drop":
            del content[name]
        return content
    entries, position = content[section], position % len(content[section])
    if action == "double":
        entries.append(copy.deepcopy(entries[position]))
    elif action == "another" or not isinstance(entries[position], dict):
        entries[position] = value
    elif action == "drop":
        entries[position].pop(key, None)
    else:
        entries[position][key] = value
    return content


def written(text, how, share):
    place = int(share * len(text))
    return {
        "whole": lambda: text.encode(),
        "mark": lambda: b"\xef\xbb\xbf" + text.encode(),
        "cut": lambda: text[:place].encode(),
        "utf-16": lambda: text.encode("utf-16"),
        "byte": lambda: text[:place].encode() + b"\xff" + text[place:].encode(),
        "deep": lambda: b'{"images": ' + b"[" * 100_000,
        "digits": lambda: text.replace("17", "1" * 5000, 1).encode(),
        "list": lambda: f"[{text}]".encode(),
    }[how]()


@contextlib.contextmanager
def folder_of(text, files):
    """Folder with data.json and images/, beside and in which there are things that no data set should reach."""
    with tempfile.TemporaryDirectory() as place:
        root = pathlib.Path(place)
        folder = root / "images"
        (folder / "sub").mkdir(parents=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        (root / "outside.png").write_bytes(PICTURES["png1"])
        (folder / "inside.png").symlink_to("a.jpg")
        (folder / "outside.png").symlink_to("../outside.png")
        (folder / "loop.png").symlink_to("loop.png")
        (folder / "elsewhere").symlink_to("..")
        os.mkfifo(folder / "pipe")
        (root / "data.json").write_bytes(text)
        yield root


def four_numbers(box):
    """The box as floats, None where it is none to train on, whatever the image."""
    if not isinstance(box, list) or len(box) != 4 or any(type(side) not in (int, float) for side in box):
        return None
    try:
        box = [float(side) for side in box]
    except OverflowError:
        return None
    return box if all(map(math.isfinite, box)) and min(box[2:]) > 0 else None


def expected(source, content):
    """Boxes that may be trained on, in the plainest way: {image id: [(x1 y1 x2 y2 clipped, category id)]}."""
    boxes, seen = {int(image_id): [] for image_id in source.image_ids}, set()
    sizes = dict(zip(source.image_ids.tolist(), source.sizes.tolist(), strict=True))
    for entry in content["annotations"]:
        annotation_id, owner = entry.get("id"), entry.get("image_id")
        if type(annotation_id) in (int, float, str):
            if annotation_id in seen:
                continue
            seen.add(annotation_id)
        box, crowd = four_numbers(entry.get("bbox")), entry.get("iscrowd", 0)
        known = type(owner) in (int, float) and owner in boxes and type(entry.get("category_id")) in (int, float)
        if not known or box is None or entry["category_id"] not in (17, 90) or crowd not in (0, None):
            continue
        (height, width), (x, y, w, h) = sizes[int(owner)], box
        corners = np.float32([max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)])
        if (corners[2:] > corners[:2]).all() and np.isfinite(corners).all():
            boxes[int(owner)].append((corners.tolist(), entry["category_id"]))
    return boxes


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data_sets(), st.sampled_from([("person",), ("person", "dog"), None]))
def test_every_fault_is_an_error_with_a_name_or_left_out_and_listed(data_set, categories):
    with folder_of(*data_set) as root:
        try:
            source = CocoSource(root / "images", root / "data.json", categories)
        except ValueError as error:
            assert type(error) is ValueError and str(root) in str(error), error
            return
        content = json.loads((root / "data.json").read_text("utf-8-sig"))
        check_account(source, content)
        check_boxes(source, content)
        check_slots(source)
        text = io.TextIOWrapper(io.BytesIO(), "utf-8")
        print(summary(source), file=text, flush=True)
        json.dumps([source.skipped, source.ground_truth()])


def check_account(source, content):
    """Every image and every annotation is in, or listed with a reason, or goes with an image or category left out."""
    listed = [item for item in source.skipped if "annotation_id" not in item]
    assert len(source) + len(listed) == len(content["images"])
    assert all(item["reason"] and "file" in item for item in listed)
    chosen, kept = {c["id"] for c in source.categories}, set(source.image_ids.tolist())
    known, ids = {image["id"] for image in content["images"]}, {c["id"] for c in content["categories"]}
    silent, seen = 0, set()
    for entry in content["annotations"]:
        annotation_id = entry.get("id")
        if type(annotation_id) in (int, float, str):
            if annotation_id in seen:
                continue  # listed
            seen.add(annotation_id)
        owner, category = (
            entry.get(k) if type(entry.get(k)) in (int, float) else None for k in ("image_id", "category_id")
        )
        silent += owner in known and category in ids and (owner not in kept or category not in chosen)
    listed = len(source.skipped) - len(listed)
    assert len(source.annotations.boxes) + listed + silent == len(content["annotations"])


def check_boxes(source, content):
    ids = [category["id"] for category in source.categories]
    for (image_id, boxes), i in zip(sorted(expected(source, content).items()), range(len(source)), strict=True):
        record = source[i]
        assert record["image_id"] == image_id
        boxes = [(box, category) for box, category in boxes if category in ids]
        target = ~record["crowd"]
        np.testing.assert_array_equal(record["boxes"][target], np.float32([box for box, _ in boxes]).reshape(-1, 4))
        assert [ids[label] for label in record["labels"][target]] == [category for _, category in boxes]
        name = source.file_names[i]
        assert os.path.realpath(os.path.join(source.folder, name)).startswith(os.path.realpath(source.folder))
        if record["image"] is not None:
            np.testing.assert_array_equal(record["image"], decode(os.path.join(source.folder, name)))


def check_slots(source):
    """What training sees: finite boxes within an image that is there."""
    split = person.get_config().data.train
    split.update(short_sides=(24, 32), longest_side=64)
    loader = pipeline.Loader(source, split, 0, pipeline.max_boxes(source))
    for bucket, members in enumerate(loader.members):
        for position in range(len(members)):
            slot = loader.training_slot(bucket, position)
            boxes, (height, width) = slot["gt_boxes"][slot["gt_valid"]], slot["image_sizes"]
            assert np.isfinite(boxes).all() and (boxes[:, 2:] >= boxes[:, :2]).all()
            assert (boxes >= -1e-3).all() and (boxes <= [[width + 1e-3, height + 1e-3] * 2]).all()
            assert height > 0 or not len(boxes)
