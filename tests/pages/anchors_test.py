"""The best anchor of each box, against the IoU with all of them."""

import jax
import numpy as np
import pytest

from jaxdet.config.command_line import load_config
from jaxdet.data import pipeline
from jaxdet.ops import boxes as box_ops
from jaxdet.pages import anchors as anchor_page
from tests import tiny


@pytest.mark.parametrize("grid, rounded", [(False, False), (True, True)])
def test_best_overlap_is_that_of_all_anchors(grid, rounded):
    """Against the IoU with every anchor, on a shape whose P6 is rounded up."""
    config = load_config("configs/person_small.py")
    config.model.rpn.update(grid_strides=grid, rounded_anchors=rounded)
    levels = anchor_page.level_anchors(config.model, (96, 160))
    assert [level.shape[:2] for level in levels] == [(24, 40), (12, 20), (6, 10), (3, 5), (2, 3)]
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 150, (200, 4)) * [1, 0.6, 1, 0.6]
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:]) + 1], 1)
    anchors = np.concatenate([level.reshape(-1, 4) for level in levels])
    expected = np.asarray(jax.jit(box_ops.iou)(boxes, anchors)).max(1)
    np.testing.assert_allclose(anchor_page.best_overlap(boxes, levels), expected, atol=1e-5)


def test_anchor_statistics_count_every_box_once(tiny_data):
    config = tiny.get_config(tiny_data)
    source = pipeline.open_source(config.data.train, None)
    found = anchor_page.anchor_statistics(config, source, config.data.train)
    assert [row["boxes"] for row in found["rows"]] == [19, 19, 0, 0]
    everything = found["rows"][0]["shares"]
    assert found["ious"] == [0.3, 0.5, 0.7] and sorted(everything, reverse=True) == everything
    assert found["rows"][2] == {"size": "medium", "boxes": 0, "shares": [0.0] * 3, "median": -1.0}
    # 16 x 24 .. 1 x 2 cells of three anchors
    assert found["count"] == 3 * (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2) and found["shape"] == [64, 96]
