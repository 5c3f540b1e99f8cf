"""Inputs of the benchmarks, the same for every library."""

import numpy as np

SIZE = (800, 1088)
STRIDES = (4, 8, 16, 32)


def images(count, height, width):
    """uint8 [count, height, width, 3]: noise."""
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def true_boxes(images, count, height, width):
    """float32 [images, count, 4], of 20 to 300 pixels."""
    rng = np.random.default_rng(1)
    sides = np.exp(rng.uniform(np.log(20), np.log(300), (images, count, 2)))
    corner = rng.uniform(0, 1, (images, count, 2)) * ([width, height] - sides)
    return np.concatenate([corner, corner + sides], -1).astype(np.float32)


def pyramid():
    """Feature maps P2..P5 of an image of SIZE with 256 channels, float32 [H, W, 256] each."""
    rng = np.random.default_rng(2)
    return tuple(rng.standard_normal((SIZE[0] // s, SIZE[1] // s, 256), dtype=np.float32) for s in STRIDES)


def proposals(count):
    """float32 [count, 4] as a trained network's: half of them crowd around 20 objects, sizes from 16 pixels to the
    image.
    """
    rng = np.random.default_rng(3)
    height, width = SIZE
    sides = np.exp(rng.uniform(np.log(16), np.log(600), (count, 1))) * np.exp(rng.normal(0, 0.3, (count, 2)))
    centre = rng.uniform(0, 1, (count, 2)) * [width, height]
    objects = np.arange(count) % 40
    crowd = objects < 20
    centre[crowd] = centre[objects[crowd]] + rng.normal(0, 8, (crowd.sum(), 2))
    sides[crowd] = sides[objects[crowd]] * np.exp(rng.normal(0, 0.15, (crowd.sum(), 2)))
    boxes = np.concatenate([centre - sides / 2, centre + sides / 2], -1)
    return np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)


def level_boxes(clustered):
    """Boxes float32 [5, 2000, 4] of five levels and their scores [5, 2000], all different within a level.

    Spread: anywhere, few meet. Clustered: 2,000 around 60 objects, as a trained network's best anchors.
    """
    rng = np.random.default_rng(4)
    height, width = SIZE
    boxes, scores = np.zeros((5, 2000, 4), np.float32), np.zeros((5, 2000), np.float32)
    for level in range(5):
        side = 32 * 2**level
        centre = rng.uniform(0, 1, (2000, 2)) * [width, height]
        sides = side * np.exp(rng.normal(0, 0.35, (2000, 2)))
        if clustered:
            objects = rng.integers(0, 60, 2000)
            centre = centre[objects] + rng.normal(0, side / 8, (2000, 2))
            sides = sides[objects] * np.exp(rng.normal(0, 0.1, (2000, 2)))
        level_boxes = np.concatenate([centre - sides / 2, centre + sides / 2], -1)
        boxes[level] = np.clip(level_boxes, 0, [width, height, width, height])
        scores[level] = rng.permutation(2000) / 2000
    return boxes, scores
