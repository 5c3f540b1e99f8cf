"""Kinds of error against cases counted by hand, the authors' own toolbox, and what must hold for any."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.evaluation import coco
from jaxdet.evaluation.errors import KINDS, analyse

BOX = (10, 10, 40, 40)
HALF = (10, 10, 40, 16)  # IoU .4 with BOX
FAR = (200, 200, 30, 30)


def truth(*boxes, crowd=(), images=(1, 2)):
    """COCO JSON of (image, category, box) rows; `crowd`: numbers of those that are one."""
    annotations = [
        {"id": i + 1, "image_id": image, "category_id": category, "bbox": list(box), "iscrowd": int(i in crowd)}
        for i, (image, category, box) in enumerate(boxes)
    ]
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}]
    return {"images": [{"id": i} for i in images], "annotations": annotations, "categories": categories}


def found(*rows):
    """COCO results of (image, category, box, score) rows."""
    return [
        {"image_id": image, "category_id": category, "bbox": list(box), "score": score}
        for image, category, box, score in rows
    ]


DOG = (1, 2, (100, 100, 50, 50))


@pytest.mark.parametrize(
    "kind, category, box",
    [
        ("correct", 1, BOX),
        ("localisation", 1, HALF),
        ("classification", 1, (100, 100, 50, 50)),
        ("both", 1, (100, 100, 50, 20)),
        ("background", 1, FAR),
        ("background", 1, (10, 46, 40, 40)),  # IoU .05
        ("background", 2, (200, 10, 10, 10)),
    ],
)
def test_each_kind_alone(kind, category, box):
    errors = analyse(truth((1, 1, BOX), DOG), found((1, category, box, 0.9)))
    assert errors.kinds.tolist() == [kind]
    target = {"correct": 0, "localisation": 0, "classification": 1, "both": 1, "background": -1}[kind]
    assert errors.target.tolist() == [target]
    # what the detection found or nearly found is not missed
    expected = {"correct": [False, True], "localisation": [False, True], "classification": [True, False]}
    assert errors.missed.tolist() == expected.get(kind, [True, True])
    assert errors.count[kind] == 1 and errors.count["missed"] == sum(errors.missed)


def test_a_second_detection_of_a_box_is_a_duplicate():
    errors = analyse(truth((1, 1, BOX)), found((1, 1, BOX, 0.3), (1, 1, BOX, 0.9), (2, 1, BOX, 0.8)))
    assert errors.kinds.tolist() == ["duplicate", "correct", "background"]
    assert errors.found_by.tolist() == [1]


def test_what_each_kind_costs_counted_by_hand():
    """One of two boxes is found; the others are a background, a localisation and a duplicate error."""
    boxes = truth((1, 1, BOX), (2, 1, BOX), images=(1, 2, 3))
    errors = analyse(boxes, found((3, 1, FAR, 0.9), (2, 1, HALF, 0.8), (1, 1, BOX, 0.7), (1, 1, BOX, 0.6)))
    assert errors.kinds.tolist() == ["background", "localisation", "correct", "duplicate"]
    up_to_half = 51 / 101  # of the 101 recalls
    assert errors.ap == pytest.approx(up_to_half / 3)  # right: the third of three, recall 1/2
    # repaired: precision 1/2, 2/3 at recalls 1/2, 1; the envelope is 2/3 everywhere
    assert errors.cost["localisation"] == pytest.approx(2 / 3 - up_to_half / 3)
    assert errors.cost["background"] == pytest.approx(up_to_half / 2 - up_to_half / 3)
    assert errors.cost["duplicate"] == pytest.approx(0)  # it stands behind
    assert errors.cost["missed"] == errors.cost["classification"] == errors.cost["both"] == 0
    assert errors.cost["false positives"] == pytest.approx(up_to_half - up_to_half / 3)
    assert errors.cost["false negatives"] == pytest.approx(1 / 3 - up_to_half / 3)
    assert errors.ap_repaired == 1


def test_missed_boxes_are_no_longer_counted():
    errors = analyse(truth((1, 1, BOX), (2, 1, BOX)), found((1, 1, BOX, 0.7)))
    assert errors.missed.tolist() == [False, True]
    assert errors.cost["missed"] == pytest.approx(1 - 51 / 101) == errors.cost["false negatives"]


def test_a_wrong_category_is_put_right():
    """A dog called a person at .9, and a person behind it: repaired, both categories are perfect."""
    errors = analyse(truth((1, 1, BOX), DOG), found((1, 1, DOG[2], 0.9), (1, 1, BOX, 0.8)))
    assert errors.kinds.tolist() == ["classification", "correct"]
    assert errors.ap == pytest.approx((1 / 2 + 0) / 2)
    assert errors.cost["classification"] == pytest.approx(0.75)


def test_of_several_errors_on_a_box_only_the_best_becomes_right():
    errors = analyse(truth((1, 1, BOX)), found((1, 1, HALF, 0.5), (1, 1, (10, 10, 17, 40), 0.9), (2, 1, FAR, 0.6)))
    assert errors.kinds.tolist() == ["localisation", "localisation", "background"]
    assert errors.ap == 0 and errors.cost["localisation"] == 1


def test_crowds_are_neither_found_nor_missed_and_what_lies_in_them_is_ignored():
    boxes = truth((1, 1, BOX), (1, 1, (100, 100, 100, 100)), crowd=(1,))
    errors = analyse(boxes, found((1, 1, BOX, 0.5), (1, 1, (120, 120, 20, 20), 0.9), (1, 1, (150, 150, 20, 20), 0.8)))
    assert errors.kinds.tolist() == ["correct", "ignored", "ignored"]
    assert errors.missed.tolist() == [False, False] and errors.crowd.tolist() == [False, True]
    assert errors.ap == 1 and not any(errors.cost.values())


def test_a_category_without_boxes_does_not_count():
    errors = analyse(truth((1, 1, BOX)), found((1, 1, BOX, 0.5), (1, 2, BOX, 0.9)))
    assert errors.kinds.tolist() == ["correct", "ignored"] and errors.ap == 1


def test_only_the_best_detections_of_an_image_count():
    errors = analyse(truth((1, 1, BOX)), found((1, 1, BOX, 0.5), (1, 1, FAR, 0.9)), detections_per_image=1)
    assert errors.kinds.tolist() == ["ignored", "background"] and errors.missed.tolist() == [True]


def test_nothing_found_and_nothing_to_find():
    errors = analyse(truth((1, 1, BOX), (2, 1, BOX)), [])
    assert errors.ap == 0 and errors.cost["missed"] == 1 and errors.ap_repaired == 1
    assert errors.count == dict.fromkeys(("correct", *KINDS, "ignored"), 0) | {"missed": 2}
    errors = analyse(truth(), found((1, 1, BOX, 0.5)))
    assert errors.ap == -1 and errors.kinds.tolist() == ["ignored"]


def test_annotations_of_images_and_categories_that_are_not_listed_do_not_count():
    boxes = truth((1, 1, BOX), (9, 2, BOX), (1, 3, FAR))
    errors = analyse(boxes, found((1, 1, BOX, 0.5), (1, 2, BOX, 0.9)))
    assert errors.kinds.tolist() == ["correct", "ignored"] and errors.found_by.tolist() == [0, -1, -1]
    assert errors.missed.tolist() == [False] * 3
    assert errors.ap == coco.evaluate(boxes, found((1, 1, BOX, 0.5)))["AP50"] == 1


def test_wrong_results_are_refused():
    with pytest.raises(ValueError, match="image 9, which is not in the ground truth"):
        analyse(truth((1, 1, BOX)), found((9, 1, BOX, 0.5)))


def scenes(seed, crowds=False):
    """20 images of three categories with every kind of error, drawn at random."""
    rng = np.random.default_rng(seed)
    boxes, results = [], []
    for image in range(1, 21):
        for _ in range(rng.integers(0, 6)):
            category = int(rng.integers(1, 4))
            x, y = rng.integers(0, 150, 2).tolist()
            w, h = rng.integers(20, 80, 2).tolist()
            crowd = int(crowds and rng.random() < 0.15)
            boxes.append(
                {"id": len(boxes) + 1, "image_id": image, "category_id": category}
                | {"bbox": [x, y, w, h], "area": w * h, "iscrowd": crowd}
            )
            for _ in range(rng.integers(0, 4)):
                j = rng.normal(0, [3, 15][int(rng.random() < 0.5)], 4)
                kind = category if rng.random() < 0.7 else int(rng.integers(1, 4))
                box = (x + j[0], y + j[1], max(5, w + j[2]), max(5, h + j[3]))
                results += found((image, kind, box, float(rng.random())))
        for _ in range(rng.integers(0, 3)):
            x, y = rng.integers(0, 150, 2).tolist()
            w, h = rng.integers(20, 80, 2).tolist()
            results += found((image, int(rng.integers(1, 4)), (x, y, w, h), float(rng.random())))
    categories = [{"id": i, "name": str(i)} for i in (1, 2, 3)]
    return {"images": [{"id": i} for i in range(1, 21)], "annotations": boxes, "categories": categories}, results


def test_numbers_of_the_authors_own_toolbox():
    """Percent, from tidecv 1.0.1 on `scenes(3)`: Cls, Loc, Both, Dupe, Bkg, Miss, FalsePos, FalseNeg."""
    errors = analyse(*scenes(3))
    assert 100 * errors.ap == pytest.approx(29.445, abs=1e-3)
    expected = [1.492, 19.246, 1.221, 1.555, 5.433, 6.211, 29.961, 17.909]
    assert [100 * cost for cost in errors.cost.values()] == pytest.approx(expected, abs=1e-3)
    assert [errors.count[kind] for kind in KINDS] == [7, 27, 5, 11, 18, 12]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), crowds=st.booleans())
def test_what_holds_for_any_detections(seed, crowds):
    boxes, results = scenes(seed, crowds)
    errors = analyse(boxes, results)
    assert errors.ap == pytest.approx(coco.evaluate(boxes, results)["AP50"], abs=1e-12)
    assert errors.ap_repaired == 1
    assert min(errors.cost.values()) > -0.02  # a kind repaired never costs more than the steps of the interpolation
    assert max(errors.cost.values()) <= 1 - errors.ap + 1e-12
    assert sum(errors.count.values()) - errors.count["missed"] == len(results)
    assert errors.count["correct"] == np.sum((errors.found_by >= 0) & ~errors.crowd)
    order = np.random.default_rng(seed).permutation(len(results))
    shuffled = analyse(boxes, [results[i] for i in order])
    assert shuffled.kinds.tolist() == errors.kinds[order].tolist() and shuffled.cost == errors.cost


def test_ap_of_the_reference_detections(shared):
    folder = shared / "data" / "coco_eval_reference"
    boxes, results = (
        json.loads((folder / name).read_text())
        for name in ("instances_val2014_100.json", "instances_val2014_fakebbox100_results.json")
    )
    errors = analyse(boxes, results)
    assert errors.ap == pytest.approx(0.696973, abs=1e-6) and errors.ap_repaired == 1
