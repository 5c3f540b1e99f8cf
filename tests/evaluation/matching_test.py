import numpy as np
import pytest
from pycocotools import mask

from jaxdet.evaluation.matching import box_iou, match_detections, overlaps


def test_iou_is_that_of_pycocotools():
    rng = np.random.default_rng(0)
    found, truth = (np.concatenate([rng.uniform(-5, 50, (n, 2)), rng.uniform(0, 40, (n, 2))], 1) for n in (60, 9))
    found[:9], found[9:12, 2], truth[0, 2:] = truth, 0, 0  # equal boxes, boxes without area
    found[12] = [truth[1, 0] + truth[1, 2], truth[1, 1], 5, 5]  # one that only touches
    crowd = rng.random(9) < 0.5
    expected = mask.iou(found, truth, crowd.astype(np.uint8))
    np.testing.assert_allclose(box_iou(found, truth, crowd), expected, rtol=1e-14)
    assert crowd.any() and not crowd.all() and 0 < np.count_nonzero(expected) < expected.size


def test_iou_without_boxes():
    assert box_iou(np.zeros((0, 4)), np.ones((2, 4)), np.zeros(2, bool)).shape == (0, 2)
    assert box_iou(np.ones((2, 4)), np.zeros((0, 4)), np.zeros(0, bool)).shape == (2, 0)


@pytest.mark.parametrize(
    ("iou", "ignored", "crowd", "expected"),
    [
        ([[0.6, 0.8], [0.7, 0.9]], [0, 0], [0, 0], [1, 0]),  # the best first takes what it overlaps most
        ([[0.8, 0.8]], [0, 0], [0, 0], [1]),  # the last of equals
        ([[0.6, 0.9]], [0, 1], [0, 0], [0]),  # an ignored one only where no other is free
        ([[0.6, 0.9], [0.6, 0.9], [0.6, 0.9]], [0, 1], [0, 0], [0, 1, -1]),
        ([[0.9], [0.8], [0.4]], [1], [1], [0, 0, -1]),  # a crowd takes any number
        (np.zeros((2, 0)), [], [], [-1, -1]),
        (np.zeros((0, 2)), [0, 0], [0, 0], []),
    ],
)
def test_matches_counted_by_hand(iou, ignored, crowd, expected):
    match = match_detections(np.asarray(iou), np.array(ignored, bool), np.array(crowd, bool), [0.5])
    assert match.tolist() == [expected]


def test_each_threshold_matches_for_itself():
    """At .5 the first takes box 0. At .8 the first reaches no box, so box 0 is free for the second."""
    free = np.zeros(2, bool)
    match = match_detections(np.array([[0.75, 0.5], [0.85, 0.6]]), free, free, np.array([0.5, 0.7, 0.8]))
    assert match.tolist() == [[0, 1], [0, -1], [-1, 0]]


def test_overlaps_are_of_the_images_with_both():
    square = [0, 0, 10, 10]
    truth = {"image": [1, 0, 1], "category": [0, 0, 1], "box": [square] * 3, "iscrowd": [False] * 3}
    found = {"image": [1, 2, 1], "category": [0, 0, 0], "box": [square, square, [0, 0, 10, 5]]}
    truth, found = ({name: np.array(values) for name, values in part.items()} for part in (truth, found))
    ((rows, boxes, iou, same),) = overlaps(truth, found)
    assert rows.tolist() == boxes.tolist() == [0, 2]
    assert iou.tolist() == [[1, 1], [0.5, 0.5]] and same.tolist() == [[True, False]] * 2
