"""The twelve numbers against published ones of the COCO API and against small cases counted by hand."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxdet.evaluation import coco

CATEGORIES = [{"id": 7, "name": "person"}, {"id": 3, "name": "dog"}]


def ground_truth(boxes, images=(1, 2), **extra):
    """COCO JSON of (image id, x, y, width, height) rows of category 7."""
    annotations = [
        {"id": i, "image_id": image, "category_id": 7, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0} | extra
        for i, (image, *box) in enumerate(boxes, start=1)
    ]
    return {"images": [{"id": i} for i in images], "annotations": annotations, "categories": copy.deepcopy(CATEGORIES)}


def detection(image, x, y, width, height, score=0.9, category=7):
    return {"image_id": image, "category_id": category, "bbox": [x, y, width, height], "score": score}


def test_reference_numbers(shared):
    folder = shared / "data" / "coco_eval_reference"
    numbers = coco.evaluate(
        folder / "instances_val2014_100.json", str(folder / "instances_val2014_fakebbox100_results.json")
    )
    expected = [0.504581, 0.696973, 0.572982, 0.585626, 0.519400, 0.501398]
    expected += [0.386813, 0.593680, 0.595353, 0.639811, 0.566421, 0.564291]
    assert tuple(numbers) == coco.METRICS
    np.testing.assert_allclose(list(numbers.values()), expected, rtol=0, atol=1e-6)


def test_perfect_detections_score_one_and_absent_sizes_minus_one():
    boxes = [(1, 10, 10, 20, 20), (1, 50, 50, 50, 50), (2, 5, 5, 40, 60)]
    numbers = coco.evaluate(ground_truth(boxes), [detection(*box) for box in boxes])
    assert [numbers[name] for name in ("AP", "AP50", "AR100", "APs", "APm")] == pytest.approx([1] * 5)
    assert numbers["APl"] == numbers["ARl"] == -1
    assert numbers["AR1"] == pytest.approx(2 / 3)
    assert all(type(value) is float for value in numbers.values())


def test_half_overlapping_detection_counts_up_to_its_iou():
    # The second is 40 x 26 of 40 x 40: IoU .65, right at .50, .55, .60 and .65, so AR = (10 + 4) / 20.
    truth = ground_truth([(1, 0, 0, 40, 40), (2, 0, 0, 40, 40)])
    numbers = coco.evaluate(truth, [detection(1, 0, 0, 40, 40, 0.9), detection(2, 0, 0, 40, 26.0001, 0.8)])
    assert numbers["AR100"] == pytest.approx(14 / 20)
    # Recall .5 at precision 1 is 51 of the 101 recall points.
    assert numbers["AP"] == pytest.approx((4 + 6 * 51 / 101) / 10)
    assert (numbers["AP50"], numbers["AP75"]) == pytest.approx((1, 51 / 101))


def test_boxes_are_x_y_width_height():
    truth = ground_truth([(1, 30, 40, 20, 30)])
    assert coco.evaluate(truth, [detection(1, 30, 40, 50, 70)])["AP50"] == 0


def test_every_image_counts():
    truth = ground_truth([(1, 0, 0, 40, 40), (2, 0, 0, 40, 40)], images=(1, 2, 3))
    found = detection(1, 0, 0, 40, 40, 0.5)
    assert coco.evaluate(truth, [found])["AP"] == pytest.approx(51 / 101), "image 2 has no detection: half the recall"
    false_positive = detection(3, 0, 0, 40, 40, 0.9)
    assert coco.evaluate(truth, [found, false_positive])["AP"] == pytest.approx(0.5 * 51 / 101)


def test_no_detections_at_all():
    truth = ground_truth([(1, 0, 0, 40, 40)])
    numbers = coco.evaluate(truth, [])
    assert [numbers[name] for name in ("AP", "AP50", "APm", "AR1", "AR100", "ARm")] == [0] * 6
    assert numbers["APs"] == numbers["APl"] == -1
    assert set(coco.evaluate(ground_truth([]), []).values()) == {-1}
    assert set(coco.evaluate(ground_truth([]), [detection(1, 0, 0, 9, 9)]).values()) == {-1}


@pytest.mark.parametrize("ids", [(0, 1), (5, 5), (None, None)], ids=["zero", "twice", "missing"])
def test_annotation_ids_lose_no_match(ids):
    boxes = [(1, 0, 0, 40, 40), (1, 100, 100, 40, 40)]
    truth = ground_truth(boxes)
    for annotation, new_id in zip(truth["annotations"], ids, strict=True):
        annotation.pop("id") if new_id is None else annotation.update(id=new_id)
    numbers = coco.evaluate(truth, [detection(*box) for box in boxes])
    assert (numbers["AP"], numbers["AR100"]) == pytest.approx((1, 1))


def test_arguments_are_not_changed():
    truth = ground_truth([(1, 0, 0, 40, 40), (2, 0, 0, 40, 40)])
    truth["annotations"][0] |= {"id": 0, "iscrowd": True}
    del truth["annotations"][1]["area"]
    detections = [detection(1, 0, 0, 40, 40)]
    before = copy.deepcopy((truth, detections))
    coco.evaluate(truth, detections)
    coco.proposal_recall(truth, detections)
    assert (truth, detections) == before


def test_nothing_is_printed(capsys):
    coco.evaluate(ground_truth([(1, 0, 0, 40, 40)]), [])
    assert capsys.readouterr() == ("", "")


def test_crowds_are_ignored():
    truth = ground_truth([(1, 0, 0, 40, 40), (1, 200, 0, 100, 100)])
    truth["annotations"][1]["iscrowd"] = 1
    inside_the_crowd = [detection(1, 210 + 20 * i, 10, 15, 15, 0.95) for i in range(3)]
    numbers = coco.evaluate(truth, [detection(1, 0, 0, 40, 40, 0.9), *inside_the_crowd])
    assert (numbers["AP"], numbers["AR100"]) == pytest.approx((1, 1))
    assert numbers["APl"] == -1


def test_size_goes_by_the_annotated_area():
    box = (1, 0, 0, 60, 60)
    assert coco.evaluate(ground_truth([box], area=1000), [detection(*box)])["APs"] == pytest.approx(1)
    without_area = ground_truth([box], area=None)
    del without_area["annotations"][0]["iscrowd"]
    numbers = coco.evaluate(without_area, [detection(*box)])
    assert (numbers["APm"], numbers["APs"]) == pytest.approx((1, -1))


def test_a_detections_own_area_and_crowd_flag_do_not_matter():
    truth = ground_truth([(1, 0, 0, 10, 10)])
    extra = detection(1, 300, 300, 10, 10, 0.95) | {"area": 1e7, "iscrowd": 1, "id": 0}
    numbers = coco.evaluate(truth, [detection(1, 0, 0, 10, 10), extra])
    assert (numbers["APs"], numbers["AP"]) == pytest.approx((0.5, 0.5))


def test_categories_by_name_or_id():
    truth = ground_truth([(1, 0, 0, 40, 40), (2, 0, 0, 40, 40)])
    truth["annotations"][1]["category_id"] = 3
    detections = [detection(1, 0, 0, 40, 40), detection(2, 0, 0, 40, 10, category=3)]
    assert coco.evaluate(truth, detections)["AP"] == pytest.approx(0.5)
    for person in (["person"], "person", [7], np.int64(7)):
        assert coco.evaluate(truth, detections, categories=person)["AP"] == pytest.approx(1)
    assert coco.evaluate(truth, detections, categories=["dog"])["AP"] == 0
    with pytest.raises(ValueError, match=r"'cat'.*person, dog"):
        coco.evaluate(truth, detections, categories=["cat"])
    with pytest.raises(ValueError, match="no categories"):
        coco.evaluate(truth, detections, categories=[])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (detection(99, 0, 0, 9, 9), "detection 1 is of image 99"),
        (detection("1", 0, 0, 9, 9), "of image '1'"),
        (detection(2, 0, 0, 9, 9, category=1), "image 2, has category 1"),
        (detection(2, 0, 0, 9, 9, score=float("nan")), "image 2, has score nan"),
        (detection(2, 0, float("nan"), 9, 9), "image 2 is not four finite"),
        ({"image_id": 2, "category_id": 7, "bbox": [0, 0, 9, 9]}, "detection 1 has no score"),
    ],
)
def test_bad_detections_are_named(wrong, message):
    truth = ground_truth([(1, 0, 0, 40, 40)])
    with pytest.raises(ValueError, match=message):
        coco.evaluate(truth, [detection(1, 0, 0, 40, 40), wrong])
    if wrong["category_id"] == 7:
        with pytest.raises(ValueError, match=message):
            coco.proposal_recall(truth, [detection(1, 0, 0, 40, 40), wrong])


def test_bad_files_are_named(tmp_path):
    truth = ground_truth([(1, 0, 0, 40, 40)])
    cut = tmp_path / "cut.json"
    cut.write_text(json.dumps(truth)[:40])
    with pytest.raises(ValueError, match=r"cut\.json"):
        coco.evaluate(cut, [])
    with pytest.raises(ValueError, match="COCO JSON"):
        coco.evaluate([], [])
    with pytest.raises(ValueError, match="must be a list"):
        coco.evaluate(truth, truth)


def test_results_in_the_coco_format():
    boxes = np.float32([[1.5, 2, 11.5, 22], [0, 0, 3, 4]])
    rows = coco.to_results(np.int64([5, 6]), boxes, np.float32([0.25, 0.5]), np.int32([1, 0]), CATEGORIES)
    assert rows == [
        {"image_id": 5, "category_id": 3, "bbox": [1.5, 2.0, 10.0, 20.0], "score": 0.25},
        {"image_id": 6, "category_id": 7, "bbox": [0.0, 0.0, 3.0, 4.0], "score": 0.5},
    ]
    assert json.loads(json.dumps(rows)) == rows
    assert [row["image_id"] for row in coco.to_results(8, boxes, [1, 1], [0, 0], CATEGORIES)] == [8, 8]
    assert coco.to_results(8, np.zeros((0, 4)), [], [], CATEGORIES) == []


def test_table_has_a_column_for_each_detector():
    one = {name: i / 10 for i, name in enumerate(coco.METRICS)}
    lines = coco.table({"RPN alone": one, "with RoI head": one | {"AP": -1.0}}).splitlines()
    assert len(lines) == 13 and len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["RPN", "alone", "with", "RoI", "head"]
    assert lines[1].startswith("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]")
    assert lines[1].split()[-2:] == ["0.000", "-1.000"]
    assert lines[7].startswith("Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=  1 ]")
    assert lines[12].split()[-2:] == ["1.100", "1.100"]


def api_numbers(truth, detections):
    """The COCO API itself."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt, dt = COCO(), COCO()
        gt.dataset = copy.deepcopy(truth)
        rows = [row | {"id": i, "area": row["bbox"][2] * row["bbox"][3]} for i, row in enumerate(detections, start=1)]
        dt.dataset = truth | {"annotations": rows}
        gt.createIndex(), dt.createIndex()
        evaluator = COCOeval(gt, dt, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


@pytest.mark.parametrize("seed", range(8))
def test_numbers_equal_the_api(seed):
    """Crowds, equal boxes and scores, areas on bounds, empty images and categories, over 100 detections."""
    rng = np.random.default_rng(seed)
    images = rng.permutation(100)[: rng.integers(1, 10)].tolist()
    truth, detections = ground_truth([], images), []
    for number in range(1, int(rng.integers(2, 40))):
        box = [*rng.uniform(0, 100, 2), *np.exp(rng.uniform(1, 5.5, 2))]
        if truth["annotations"] and rng.random() < 0.2:
            box = rng.choice([row["bbox"] for row in truth["annotations"]])
        x, y, width, height = map(float, np.round(box, int(rng.choice([0, 6]))))
        image, category = int(rng.choice(images)), int(rng.choice([3, 7]) if seed else 7)
        area = float(rng.choice([1024, 9216, 0.7 * width * height]))
        row = {"image_id": image, "category_id": category, "bbox": [x, y, width, height]}
        row |= {"area": area, "iscrowd": int(rng.random() < 0.15)}
        truth["annotations"].append(row | {"id": number})
        for _ in range(rng.integers(0, 6)):
            spread = rng.choice([0, 0.05, 0.2]) * np.array([width, height, width, height])
            dx, dy, dw, dh = rng.normal(0, 1, 4) * spread
            box = x + dx, y + dy, max(width + dw, 1.0), max(height + dh, 1.0)
            kind = category if rng.random() < 0.9 else int(rng.choice([3, 7]))
            detections.append(detection(image, *box, round(rng.random(), 1), kind))
    for image in images:
        for _ in range(rng.choice([0, 3, 130])):
            box = (*rng.uniform(0, 100, 2), *np.exp(rng.uniform(1, 5.5, 2)))
            detections.append(detection(image, *box, round(rng.random(), 2), int(rng.choice([3, 7]))))
    rng.shuffle(detections)
    numbers = list(coco.evaluate(truth, detections).values())
    np.testing.assert_allclose(numbers, api_numbers(truth, detections), atol=1e-12)


def api_proposal_recall(truth, proposals, counts):
    """The COCO API itself with useCats = 0, slow."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt, dt = COCO(), COCO()
        gt.dataset = copy.deepcopy(truth)
        rows = [row | {"id": i, "area": row["bbox"][2] * row["bbox"][3]} for i, row in enumerate(proposals, start=1)]
        dt.dataset = truth | {"annotations": rows}
        gt.createIndex(), dt.createIndex()
        evaluator = COCOeval(gt, dt, "bbox")
        evaluator.params.useCats, evaluator.params.maxDets = 0, list(counts)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["recall"][:, 0, 0, :].mean(axis=0)


def test_proposal_recall_equals_the_api():
    rng = np.random.default_rng(0)
    images = range(1, 13)
    corners, sizes = rng.uniform(0, 150, (60, 2)), rng.uniform(10, 60, (60, 2))
    truth = ground_truth([(rng.integers(1, 11), *xy, *wh) for xy, wh in zip(corners, sizes, strict=True)], images)
    for annotation in truth["annotations"]:
        annotation["image_id"] = int(annotation["image_id"])
        annotation["category_id"] = int(rng.choice([3, 7]))
        annotation["iscrowd"] = int(rng.random() < 0.2)
    truth["annotations"].append(truth["annotations"][0] | {"id": 61})  # equal boxes: equal IoU
    proposals = []
    for annotation in truth["annotations"]:
        for _ in range(6):
            box = np.asarray(annotation["bbox"]) + rng.normal(0, 6, 4)
            row = detection(annotation["image_id"], *np.maximum(box, 1).tolist(), score=round(rng.random(), 2))
            proposals.append(row)
    proposals += [detection(int(rng.integers(1, 13)), *rng.uniform(5, 90, 4).tolist(), rng.random()) for _ in range(99)]
    counts = (1, 10, 30, 1000)
    recall = coco.proposal_recall(truth, proposals, counts)
    assert list(recall) == ["AR@1", "AR@10", "AR@30", "AR@1000"]
    np.testing.assert_allclose(list(recall.values()), api_proposal_recall(truth, proposals, counts), atol=1e-12)
    assert 0 < recall["AR@1"] < recall["AR@10"] < recall["AR@1000"] < 1

    arrays = {}
    for image_id in images:
        rows = [row for row in proposals if row["image_id"] == image_id]
        xywh = np.asarray([row["bbox"] for row in rows]).reshape(-1, 4)
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        arrays[image_id] = boxes, np.asarray([row["score"] for row in rows])
    from_arrays = coco.proposal_recall(truth, arrays, counts)
    np.testing.assert_allclose(list(from_arrays.values()), list(recall.values()), atol=1e-12)


def test_proposal_recall_without_proposals_or_boxes():
    truth = ground_truth([(1, 0, 0, 40, 40)])
    assert coco.proposal_recall(truth, []) == coco.proposal_recall(truth, {}) == {"AR@100": 0, "AR@1000": 0}
    assert coco.proposal_recall(truth, {1: (np.zeros((0, 4)), [])}) == {"AR@100": 0, "AR@1000": 0}
    assert coco.proposal_recall(ground_truth([]), [detection(1, 0, 0, 9, 9)], (5,)) == {"AR@5": -1}
    with pytest.raises(ValueError, match="image 9"):
        coco.proposal_recall(truth, {9: (np.zeros((1, 4)), [0.5])})
    with pytest.raises(ValueError, match="image 1 "):
        coco.proposal_recall(truth, {1: (np.zeros((1, 4)), [float("nan")])})
