import numpy as np
import pytest

from jaxdet.evaluation import coco, curves
from tests.evaluation.errors_test import BOX, FAR, found, scenes, truth


def test_the_curves_have_the_means_of_the_numbers():
    boxes, results = scenes(0, crowds=True)
    numbers, precision = coco.evaluate(boxes, results), curves.precision_recall(boxes, results)
    assert list(precision["by_iou"]) == [round(0.5 + 0.05 * i, 2) for i in range(10)]
    assert precision["by_iou"][0.5].mean() == pytest.approx(numbers["AP50"])
    assert np.mean([values.mean() for values in precision["by_iou"].values()]) == pytest.approx(numbers["AP"])
    assert precision["recall"].shape == precision["by_iou"][0.95].shape == (101,)


def test_curves_by_size():
    boxes = truth((1, 1, (0, 0, 20, 20)), (2, 1, (0, 0, 50, 50)))
    precision = curves.precision_recall(boxes, found((1, 1, (0, 0, 20, 20), 0.9)))
    assert precision["by_size"]["small"] == pytest.approx(1)
    assert not precision["by_size"]["medium"].any() and precision["by_size"]["large"] is None


def test_recall_by_size_is_that_of_the_coco_api():
    """With at most 100 proposals of one category the API's own ARs, ARm, ARl."""
    boxes, results = scenes(5, crowds=True)
    for row in (*boxes["annotations"], *results):
        row["category_id"] = 1
    numbers = coco.evaluate(boxes, results)
    recall = curves.recall_by_size(boxes, results, counts=(100,))
    expected = [numbers[name] for name in ("AR100", "ARs", "ARm", "ARl")]
    assert [row["AR@100"] for row in recall.values()] == pytest.approx(expected)


def test_recall_of_a_size_that_is_not_there():
    recall = curves.recall_by_size(truth((1, 1, BOX)), found((1, 1, BOX, 0.9), (1, 1, FAR, 0.8)), counts=(1,))
    assert [row["AR@1"] for row in recall.values()] == [1, -1, 1, -1]


def test_calibration_by_hand():
    values = curves.calibration([0.05, 0.15, 0.15, 0.95, 1.0], [False, True, False, True, True])
    assert values["count"].tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert values["precision"][[0, 1, 9]].tolist() == [0, 0.5, 1] and np.isnan(values["precision"][2])
    assert values["error"] == pytest.approx((0.05 + 2 * 0.35 + 2 * 0.025) / 5)


def test_calibration_of_nothing():
    assert curves.calibration([], [])["error"] == 0
