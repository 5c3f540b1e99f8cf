"""What is on the image, at small and large sizes."""

import numpy as np
import pytest
from PIL import Image

from jaxdet.inference import drawing

GREY = 90


def blank(height, width):
    return np.full((height, width, 3), GREY, np.uint8)


def has(picture, colour, box=None):
    """Whether the colour occurs in the image, or in the part x1 y1 x2 y2 of it."""
    pixels = np.asarray(picture if box is None else picture.crop(box))
    return bool((pixels == np.asarray(colour, np.uint8)).all(axis=-1).any())


@pytest.mark.parametrize(("height", "width"), [(48, 64), (240, 320), (1333, 800), (2400, 3200)])
def test_boxes_lie_where_they_should(height, width):
    image = blank(height, width)
    x1, y1, x2, y2 = box = np.array([0.25 * width, 0.4 * height, 0.75 * width, 0.9 * height]).round()
    picture = drawing.draw(image, [box])
    assert picture.size == (width, height) and picture.mode == "RGB"
    pixels = np.asarray(picture)
    line = (pixels == drawing.PALETTE[0]).all(axis=-1)
    rows, columns = np.flatnonzero(line.any(axis=1)), np.flatnonzero(line.any(axis=0))
    assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (x1, y1, x2, y2)
    inner = pixels[int(0.6 * height) : int(0.7 * height), int(0.4 * width) : int(0.6 * width)]
    assert (inner == GREY).all(), "the object stays visible"
    assert (image == GREY).all(), "the caller's image is not changed"


def test_lines_and_letters_grow_with_the_image():
    heights, lines = [], []
    for size in (320, 1280, 5120):
        picture = np.asarray(drawing.draw(blank(size, size), [[size // 4, size // 4, size // 2, size // 2]], [0.9]))
        coloured = (picture == drawing.PALETTE[0]).all(axis=-1)
        lines.append(coloured[size // 3, : size // 3].sum())
        heights.append(np.flatnonzero(coloured.any(axis=1))[0])
    assert lines[0] >= 2 and lines[0] < lines[1] < lines[2]
    tag = [size // 4 - top for size, top in zip((320, 1280, 5120), heights, strict=True)]
    assert tag[0] >= 10 and tag[0] < tag[1] < tag[2]


def test_scores_below_the_threshold_are_left_out():
    boxes, labels = [[20, 40, 60, 90], [100, 40, 140, 90]], [0, 1]
    picture = drawing.draw(blank(120, 160), boxes, [0.5, 0.49], labels)
    assert has(picture, drawing.PALETTE[0]) and not has(picture, drawing.PALETTE[1])
    picture = drawing.draw(blank(120, 160), boxes, [0.5, 0.49], labels, threshold=0.4)
    assert has(picture, drawing.PALETTE[1])


def test_names_widen_the_tag():
    def tag_width(**words):
        picture = drawing.draw(blank(240, 320), [[10, 100, 30, 120]], [0.9], [0], **words)
        return has(picture, drawing.PALETTE[0], (60, 0, 320, 240))

    assert tag_width(names=("person",)) and not tag_width()


def test_names_of_several_lines_are_drawn_in_one():
    one, several = (
        drawing.draw(blank(240, 320), [[10, 100, 30, 120]], [0.9], [0], names=(name,))
        for name in ("traffic light", "traffic \r\n\tlight\n")
    )
    assert one.tobytes() == several.tobytes()


def test_ground_truth_is_dashed_and_of_its_own_colour():
    picture = np.asarray(drawing.draw(blank(200, 200), [], ground_truth=np.float32([[20, 20, 180, 180]])))
    top_edge = picture[20, 20:180]
    white = (top_edge == drawing.GROUND_TRUTH_COLOUR).all(axis=-1)
    dark = (top_edge == 0).all(axis=-1)
    assert white.any() and dark.any() and (white | dark).all()
    assert not any(has(Image.fromarray(picture), colour) for colour in drawing.PALETTE)


def test_the_best_box_is_on_top():
    box = [50, 50, 150, 150]
    for scores in ([0.9, 0.6], [0.6, 0.9]):
        picture = np.asarray(drawing.draw(blank(200, 200), [box, box], scores, [0, 1]))
        assert tuple(picture[149, 100]) == drawing.PALETTE[int(np.argmax(scores))]


def test_tags_do_not_hide_each_other():
    boxes = [[50, 80, 150, 150], [55, 84, 155, 154]]
    picture = drawing.draw(blank(240, 320), boxes, [0.9, 0.8], [0, 1], ["person", "person"])
    assert has(picture, drawing.PALETTE[0], (50, 60, 150, 79)), "the best above its box"
    assert has(picture, drawing.PALETTE[1], (60, 158, 150, 170)), "the other below its own"


@pytest.mark.parametrize("box", [[-50, -50, 20, 20], [90, 90, 1e9, 1e9], [0, 0, 100, 100], [-9, -9, 999, 999]])
def test_parts_outside_are_cut_off_and_the_tag_stays_inside(box):
    picture = drawing.draw(blank(100, 100), [box], [0.9], ground_truth=[box])
    assert picture.size == (100, 100) and has(picture, drawing.PALETTE[0]) and has(picture, (0, 0, 0))


def test_boxes_that_cannot_be_drawn_are_left_out():
    nan = float("nan")
    boxes = [[nan] * 4, [10, 10, 10, 50], [50, 50, 40, 60], [200, 10, 300, 50], [10, 10, nan, 50]]
    picture = drawing.draw(blank(100, 100), boxes, ground_truth=boxes)
    assert (np.asarray(picture) == GREY).all()
    assert (np.asarray(drawing.draw(blank(9, 9), np.zeros((0, 4)), [], [])) == GREY).all()
    assert (np.asarray(drawing.draw(blank(50, 50), [[5, 5, 40, 40]], [nan])) == GREY).all()


@pytest.mark.parametrize("box", [[0, 0, 0.2, 0.2], [3.4, 3.4, 3.6, 3.6], [0, 0, 3, 3], [4.9, 4.9, 5, 5]])
def test_tiny_boxes_and_images(box):
    picture = drawing.draw(blank(5, 5), [box], [0.9], [0], ["person"], [box])
    assert picture.size == (5, 5)
    assert has(drawing.draw(blank(5, 5), [box]), drawing.PALETTE[0])


def test_many_classes():
    labels = np.arange(80)
    boxes = np.tile([[10, 10, 50, 50]], (80, 1))
    drawing.draw(blank(64, 64), boxes, np.ones(80), labels, [str(i) for i in labels])


@pytest.mark.parametrize("image", [np.zeros((9, 9, 3)), np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8)])
def test_other_images_are_refused(image):
    with pytest.raises(ValueError, match="uint8"):
        drawing.draw(image, [])


def test_contact_sheet():
    red, blue = Image.new("RGB", (40, 30), (255, 0, 0)), Image.new("L", (20, 50), 7)
    sheet = drawing.contact_sheet([red, blue, red], columns=2)
    pixels = np.asarray(sheet)
    assert (pixels == (255, 0, 0)).all(axis=-1).sum() == 2 * 40 * 30
    assert (pixels == 7).all(axis=-1).sum() == 20 * 50
    assert 80 < sheet.width < 100 and 100 < sheet.height < 120
    assert drawing.contact_sheet([red], columns=5).width < 50
    for pictures, columns in (([], 2), ([red], 0)):
        with pytest.raises(ValueError, match="columns"):
            drawing.contact_sheet(pictures, columns)
