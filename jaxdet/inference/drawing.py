"""Draws boxes on images."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's palette for all kinds of colour vision, without its dark blue, bright colours first
PALETTE = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0))
GROUND_TRUTH_COLOUR = (255, 255, 255)
_DARK = (0, 0, 0)


def draw(image, boxes, scores=None, labels=None, names=None, ground_truth=None, threshold=0.5):
    """The image with boxes drawn on it, as a PIL image of the same size.

    image         uint8 [H, W, 3], RGB; not changed
    boxes         [n, 4] x1 y1 x2 y2 in pixels of the image; parts outside are cut off, empty boxes are left out
    scores        [n], or None; boxes below `threshold` are left out, and the best one is drawn on top
    labels        int [n], or None; each class has its own colour (they repeat after six)
    names         the classes' names in the order of the labels, written beside the score
    ground_truth  [m, 4] boxes to draw below the others, in dashed white
    threshold     lowest score that is drawn

    Raises ValueError for an image of another type or shape.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image to draw on must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    drawing = Image.fromarray(image).copy()
    canvas = ImageDraw.Draw(drawing)
    # Both follow the size of the image, because a page scales it as a whole. Text needs at least ten pixels.
    line = max(2, round(max(drawing.size) / 220))
    font = ImageFont.load_default(max(10, round(max(drawing.size) / 38)))

    for box in _rows(ground_truth):
        if corners := _corners(box, drawing.size):
            _dashed(canvas, corners, line)

    boxes = _rows(boxes)
    best_first = range(len(boxes))
    if scores is not None:
        scores = np.asarray(scores, np.float64)
        best_first = [i for i in np.argsort(-scores, kind="stable") if scores[i] >= threshold]
    drawn, places, tags = [], [], []
    for i in best_first:
        if corners := _corners(boxes[i], drawing.size):
            label = None if labels is None else int(labels[i])
            colour = PALETTE[(label or 0) % len(PALETTE)]
            drawn.append((corners, colour))
            words = [] if names is None or label is None else [" ".join(str(names[label]).split())]
            words += [] if scores is None else [f"{scores[i]:.2f}"]
            if words:
                text = " ".join(words)
                places.append(_place(corners, text, font, places, drawing.size))
                tags.append((text, colour))
    for corners, colour in reversed(drawn):
        _solid(canvas, corners, colour, line)
    for place, (text, colour) in zip(reversed(places), reversed(tags), strict=True):
        middle = (place[0] + place[2] + 1) / 2, (place[1] + place[3] + 1) / 2
        canvas.rectangle(place, fill=colour)
        canvas.text(middle, text, fill=_DARK, font=font, anchor="mm")
    return drawing


def contact_sheet(images, columns):
    """A grid of many images, row by row, each centred in a cell of the size of the largest.

    images    PIL images of any size
    columns   images per row

    Raises ValueError if there are no images or no columns.
    """
    if not images or columns < 1:
        raise ValueError(f"a contact sheet needs images and columns, not {len(images)} in {columns} columns")
    columns = min(columns, len(images))
    width = max(image.width for image in images)
    height = max(image.height for image in images)
    gap = max(2, round(max(width, height) / 60))
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), (255, 255, 255))
    for i, image in enumerate(images):
        x = gap + (i % columns) * (width + gap) + (width - image.width) // 2
        y = gap + (i // columns) * (height + gap) + (height - image.height) // 2
        sheet.paste(image.convert("RGB"), (x, y))
    return sheet


def _rows(boxes):
    return np.asarray([] if boxes is None else boxes, np.float64).reshape(-1, 4)


def _corners(box, size):
    """First and last pixels of a box, or None if it is empty, outside the image or not finite."""
    x1, y1, x2, y2 = np.clip(box, 0, [*size, *size])
    if not (x2 > x1 and y2 > y1):
        return None
    left, top = min(round(x1), size[0] - 1), min(round(y1), size[1] - 1)
    return left, top, max(left, round(x2) - 1), max(top, round(y2) - 1)


def _line_width(corners, line):
    """Thinner for a small box, which a thick line would cover."""
    return min(line, max(1, min(corners[2] - corners[0], corners[3] - corners[1]) // 8))


def _solid(canvas, corners, colour, line):
    # A dark rim keeps a bright line visible on a bright image.
    left, top, right, bottom = corners
    line = _line_width(corners, line)
    rim = max(1, line // 3)
    canvas.rectangle((left - rim, top - rim, right + rim, bottom + rim), outline=_DARK, width=line + 2 * rim)
    canvas.rectangle(corners, outline=colour, width=line)


def _dashed(canvas, corners, line):
    left, top, right, bottom = corners
    line = _line_width(corners, line)
    canvas.rectangle(corners, outline=_DARK, width=line)
    dash = 4 * line
    for x in range(left, right + 1, 2 * dash):
        for y in (top, bottom - line + 1):
            canvas.rectangle((x, y, min(x + dash - 1, right), y + line - 1), fill=GROUND_TRUTH_COLOUR)
    for y in range(top, bottom + 1, 2 * dash):
        for x in (left, right - line + 1):
            canvas.rectangle((x, y, x + line - 1, min(y + dash - 1, bottom)), fill=GROUND_TRUTH_COLOUR)


def _place(corners, text, font, taken, size):
    """Place for the text: above the box, else below it, else inside; over no other text if possible."""
    ascent, descent = font.getmetrics()
    width, height = math.ceil(font.getlength(text)) + ascent // 2, ascent + descent
    x = max(0, min(corners[0], size[0] - width))
    places = []
    for y in (corners[1] - height, corners[3] + 1, corners[1]):
        inside = max(0, min(y, size[1] - height))
        places.append((x, inside, x + width - 1, inside + height - 1))
    free = [p for p in places if not any(_overlap(p, other) for other in taken)]
    clear = [p for p in free if p[1] >= corners[3] or p[3] < corners[1]]
    return (clear or free or places)[0]


def _overlap(a, b):
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]
