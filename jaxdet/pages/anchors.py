"""How well the anchors of a model fit the boxes of a data set."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.data import pipeline
from jaxdet.data.resizing import Resizing
from jaxdet.evaluation.curves import SIZES
from jaxdet.models import FasterRCNN
from jaxdet.models.rpn import RPN
from jaxdet.pages import plots


def anchor_statistics(config, source, split):
    """How well the anchors fit the boxes of a source that are not crowds, in pixels of the resized image.

    split: config.data.train or .val; each of its short sides counts. Returns "count" of anchors and "shape" of the
    first batch shape, "positive_iou", "ious", "rows" (by size: boxes, shares that some anchor overlaps by each of the
    ious, median of the best IoU) and "panels" (SVG).
    """
    truth = source.ground_truth()
    rows = [row for row in truth["annotations"] if not row["iscrowd"]]
    order = {image_id: i for i, image_id in enumerate(np.asarray(source.image_ids).tolist())}
    places = np.array([order[row["image_id"]] for row in rows], int)
    boxes = np.array([row["bbox"] for row in rows], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    sizes = np.asarray(source.sizes)
    boxes = np.clip(boxes, 0, sizes[places][:, [1, 0, 1, 0]])
    areas = np.array([row["area"] for row in rows], float)
    shapes, bucket = pipeline.buckets(source, split)
    levels = [level_anchors(config.model, shape) for shape in shapes]
    best, seen = [], []
    resizing = Resizing.of(split)
    for short_side in resizing.short_sides:
        resized = np.array([resizing.size(size, short_side) for size in sizes])
        scaled = boxes * (resized / sizes)[places][:, [1, 0, 1, 0]]
        overlap = np.zeros(len(boxes))
        for index, anchors in enumerate(levels):
            here = bucket[places] == index
            overlap[here] = best_overlap(scaled[here], anchors)
        best.append(overlap)
        seen.append(scaled)
    best, seen = np.array(best), np.concatenate(seen)
    ious = sorted({0.3, 0.5, 0.7, round(config.model.rpn.positive_iou, 2)})
    table = []
    for size, (low, high) in SIZES.items():
        chosen = best[:, (areas >= low) & (areas < high)]
        table.append(
            {
                "size": size,
                "boxes": chosen.shape[1],
                "shares": [float(np.mean(chosen >= iou)) if chosen.size else 0.0 for iou in ious],
                "median": float(np.median(chosen)) if chosen.size else -1.0,
            }
        )
    return {
        "count": sum(level[..., 0].size for level in levels[0]),
        "shape": list(shapes[0]),
        "positive_iou": config.model.rpn.positive_iou,
        "ious": ious,
        "rows": table,
        "panels": _anchor_panels(config.model.rpn, seen, best.ravel()),
    }


def level_anchors(model, shape):
    """Anchors of the model of a config on images padded to `shape`: arrays [h, w, ratios, 4], one a level."""
    network = FasterRCNN(**model)
    images = jnp.zeros((1, *shape, 3), jnp.uint8)
    pyramid = jax.eval_shape(
        lambda: network.init_with_output(jax.random.key(0), images, jnp.zeros((1, 2), jnp.int32), method="features")[0]
    )
    anchors = jax.jit(lambda: RPN(**model.rpn).anchors(shape, pyramid))()  # op by op is slower
    return [np.asarray(level).reshape(*cells.shape[1:3], -1, 4) for level, cells in zip(anchors, pyramid, strict=True)]


def best_overlap(boxes, levels):
    """IoU [n] of the best anchor of each box [n, 4]; levels: of `level_anchors`.

    Anchors of one shape overlap a box the more, the nearer their centre is in x and in y, so one of each shape needs
    looking at.
    """
    best = np.zeros(len(boxes))
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    for level in levels:
        columns, rows = level[0, :, 0, 0::2].mean(-1), level[:, 0, 0, 1::2].mean(-1)
        x, y = _nearest(columns, centres[:, 0]), _nearest(rows, centres[:, 1])
        for ratio in range(level.shape[2]):
            anchors = level[y, x, ratio]
            corners = np.minimum(boxes[:, 2:], anchors[:, 2:]) - np.maximum(boxes[:, :2], anchors[:, :2])
            overlap = np.maximum(corners, 0).prod(1)
            union = sides.prod(1) + (anchors[:, 2:] - anchors[:, :2]).prod(1) - overlap
            best = np.maximum(best, overlap / union)
    return best


def _nearest(grid, values):
    """Index into an evenly spaced grid."""
    if len(grid) == 1:
        return np.zeros(len(values), int)
    return np.clip(np.rint((values - grid[0]) / (grid[1] - grid[0])).astype(int), 0, len(grid) - 1)


def _anchor_panels(rpn, boxes, best):
    sides = boxes[:, 2:] - boxes[:, :2]
    return [
        plots.histogram(
            "Size of boxes (dashed: of the anchors)",
            "√area, pixels of the resized image",
            np.sqrt(sides.prod(1)),
            2 ** np.linspace(2, 10, 41),
            rpn.anchor_sizes,
            logarithmic=True,
        ),
        plots.histogram(
            "Shape of boxes (dashed: of the anchors)",
            "height / width",
            sides[:, 1] / sides[:, 0],
            2 ** np.linspace(-3, 3.5, 40),
            rpn.anchor_ratios,
            logarithmic=True,
        ),
        plots.histogram("Best IoU with an anchor", "IoU", best, np.linspace(0, 1, 41)),
    ]
