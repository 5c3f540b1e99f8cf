import numpy as np
import pytest

from jaxdet.data import pipeline
from jaxdet.evaluation import stages
from jaxdet.evaluation.categories import ONE_CATEGORY, rpn_categories
from jaxdet.evaluation.coco import METRICS
from jaxdet.models.faster_rcnn import Detections, Stages
from tests import tiny

ROWS = 12


@pytest.fixture
def split(tiny_data):
    split = tiny.get_config(tiny_data).data.val
    split.short_sides, split.longest_side = ((80,), 112)  # the images are enlarged, both axes by their own ratio
    return split


def perfect_stages(batch, roi_head=True, images=None):
    """Output of a perfect detector on a batch, NaN in rows that are not valid; only for `images` if given."""
    size = len(batch["image_ids"])
    found = {
        "boxes": np.full((size, ROWS, 4), np.nan, np.float32),
        "scores": np.full((size, ROWS), np.nan, np.float32),
        "labels": np.full((size, ROWS), 99, np.int32),
        "valid": np.zeros((size, ROWS), bool),
    }
    for row, image_id in enumerate(batch["image_ids"].tolist()):
        count = np.count_nonzero(batch["gt_valid"][row])
        if images is not None and image_id not in images:
            continue
        places = np.arange(count) * 2  # valid rows need not come first
        found["boxes"][row, places] = batch["gt_boxes"][row, :count]
        found["labels"][row, places] = batch["gt_labels"][row, :count]
        found["scores"][row, places] = np.linspace(0.9, 0.5, count)
        found["valid"][row, places] = True
    roi = Detections(**found)
    rpn = roi._replace(labels=np.zeros_like(roi.labels))
    return Stages(rpn, rpn, roi if roi_head else None)


def collect(split, categories, **settings):
    source = pipeline.open_source(split, categories)
    batches = pipeline.EvaluationBatches(source, split, 2, 8)
    return source, stages.collect(((batch, perfect_stages(batch, **settings)) for batch in batches.read(0)), source)


def test_perfect_detections_score_one(split):
    source, (found, seen, unreadable) = collect(split, None)
    results = stages.summarize(source, found, seen)
    assert list(results) == ["roi", "rpn", "proposals", "images"]
    assert tuple(results["roi"]) == tuple(results["rpn"]) == METRICS and len(METRICS) == 12
    assert results["images"] == 5 and unreadable == [] and sorted(seen) == list(tiny.VAL_IDS)
    for stage in ("roi", "rpn"):
        assert results[stage]["AP"] == pytest.approx(1) and results[stage]["AR100"] == pytest.approx(1)
    assert results["proposals"] == {"AR@100": pytest.approx(1), "AR@1000": pytest.approx(1)}
    assert stages.final(results) is results["roi"] and stages.final(found) is found["roi"]
    assert stages.columns(results) == {"RPN alone": results["rpn"], "with RoI head": results["roi"]}


def test_detections_have_the_data_sets_ids_and_pixels(split):
    source, (found, _, _) = collect(split, ("person", "dog"))
    assert [category["id"] for category in source.categories] == [7, 20]
    truth = [item for item in source.ground_truth()["annotations"] if not item["iscrowd"]]
    key = lambda row: (row["image_id"], row["category_id"], *np.round(row["bbox"], 2))  # noqa: E731
    assert sorted(map(key, found["roi"])) == sorted(map(key, truth))
    assert {row["category_id"] for row in found["roi"]} == {7, 20}
    assert all(type(row["image_id"]) is int and 0 <= row["score"] <= 1 for row in found["roi"])


def test_one_category_keeps_its_id_in_both_columns(split):
    source, (found, seen, _) = collect(split, ("person",))
    assert {row["category_id"] for row in found["roi"] + found["rpn"]} == {7}
    assert stages.summarize(source, found, seen)["rpn"]["AP"] == pytest.approx(1)


def test_the_rpn_tells_no_categories_apart(split):
    """Of three categories it finds "objects": all boxes count, whatever their category."""
    source, (found, seen, _) = collect(split, None)
    assert {row["category_id"] for row in found["rpn"]} == {1}
    assert {row["category_id"] for row in found["roi"]} == {3, 7, 20}
    assert stages.summarize(source, found, seen)["rpn"]["AP"] == pytest.approx(1)
    # a first category of id 1 is no special case: labels of the RPN are all 0
    assert rpn_categories(source.categories) == ONE_CATEGORY
    assert rpn_categories(source.categories[:1]) == source.categories[:1]


def test_without_a_box_head_there_is_no_column_for_it(split):
    source, (found, seen, _) = collect(split, ("person",), roi_head=False)
    results = stages.summarize(source, found, seen)
    assert list(results) == ["rpn", "proposals", "images"]
    assert stages.final(results) is results["rpn"] and stages.final(found) is found["rpn"]
    assert stages.columns(results) == {"RPN alone": results["rpn"]}
    table = stages.results_table(results)
    assert "RPN alone" in table and "with RoI head" not in table
    assert "proposals: AR@100 1.000, AR@1000 1.000; 5 images" in table


def test_an_image_without_detections_counts(split):
    source, (found, seen, _) = collect(split, None, images={501})
    results = stages.summarize(source, found, seen)
    boxes = sum(not item["iscrowd"] for item in source.ground_truth()["annotations"])
    assert results["images"] == 5
    assert results["proposals"]["AR@100"] == pytest.approx(source.box_counts[0] / boxes)
    assert results["roi"]["AP"] < 1


def test_wrong_detections_on_an_empty_image_count(split):
    """The last image has no boxes: confident detections there lower the precision."""
    source, (found, seen, _) = collect(split, ("person",))
    empty = [{"image_id": tiny.VAL_IDS[-1], "category_id": 7, "bbox": [i, 0, 9, 9], "score": 0.99} for i in range(9)]
    results = stages.summarize(source, found | {"roi": found["roi"] + empty}, seen)
    assert results["roi"]["AP"] < 0.7 and results["roi"]["AR100"] == pytest.approx(1)


def test_unreadable_images_are_seen_and_have_no_detections(split):
    source = pipeline.open_source(split, None)
    batches = list(pipeline.EvaluationBatches(source, split, 2, 8).read(0))
    for name in ("image_sizes", "gt_valid"):
        batches[0][name][0] = 0
    lost = int(batches[0]["image_ids"][0])
    found, seen, unreadable = stages.collect(((batch, perfect_stages(batch)) for batch in batches), source)
    assert unreadable == [lost] and sorted(seen) == list(tiny.VAL_IDS)
    assert lost not in found["proposals"] and lost not in {row["image_id"] for row in found["roi"]}
    assert stages.summarize(source, found, seen)["images"] == 5


@pytest.mark.parametrize("seen", [(501, 502, 503, 504), (501, 502, 503, 504, 505, 505)])
def test_every_image_exactly_once_or_not_at_all(split, seen):
    source, (found, _, _) = collect(split, None)
    with pytest.raises(RuntimeError, match="evaluation saw"):
        stages.summarize(source, found, list(seen))
