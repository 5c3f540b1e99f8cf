"""COCO folders as records; annotations with every fault we know of: a line in `skipped`."""

import json
import math
import pickle

import numpy as np
import pytest
from PIL import Image

from jaxdet.data.coco import CocoSource, load_json, summary
from tests.data.small_coco import annotation, broken, content, open_source, reasons, write


def test_records_and_index(folder):
    source = open_source(folder, content())
    assert source.categories == ({"id": 17, "name": "person"},)
    np.testing.assert_array_equal(source.image_ids, [3, 8, 21])
    np.testing.assert_array_equal(source.sizes, [[40, 60], [50, 30], [32, 32]])
    np.testing.assert_array_equal(source.box_counts, [1, 1, 0])
    assert (
        len(source) == 3 and source.skipped == [] and (source.crowd_counts.sum(), source.clipped_counts.sum()) == (1, 0)
    )

    record = source[0]
    assert record["image_id"] == 3
    np.testing.assert_array_equal(record["image"], np.asarray(Image.open(folder / "3.png")))
    np.testing.assert_array_equal(record["boxes"], [[10, 10, 30, 20], [5, 5, 55, 35]])
    np.testing.assert_array_equal(record["labels"], [0, 0])
    np.testing.assert_array_equal(record["crowd"], [False, True])
    np.testing.assert_array_equal(record["area"], [99, 1000])
    kinds = {"boxes": np.float32, "labels": np.int32, "crowd": bool, "area": np.float32, "image": np.uint8}
    for record in source:
        assert all(record[key].dtype == kind for key, kind in kinds.items())
        assert record["boxes"].shape == (len(record["labels"]), 4)
    np.testing.assert_array_equal(source[-2]["boxes"], [[1, 2, 11, 22.5]])
    with pytest.raises(IndexError):
        source[3]


def test_labels_are_positions_among_the_chosen_by_id(folder):
    source = open_source(folder, content(), None)
    assert [c["id"] for c in source.categories] == [4, 17, 90]
    np.testing.assert_array_equal(source[0]["labels"], [2, 1, 1])
    source = open_source(folder, content(), ("dog", "person"))
    assert [c["name"] for c in source.categories] == ["person", "dog"]
    np.testing.assert_array_equal(source[0]["labels"], [1, 0, 0])
    assert {a["category_id"] for a in source.ground_truth()["annotations"]} == {17, 90}


def test_ground_truth_is_the_original(folder):
    data = content()
    data["annotations"].append(annotation(11, 8, [-5, 40, 50, 100], area=7))
    truth = open_source(folder, data).ground_truth()
    assert truth["categories"] == [{"id": 17, "name": "person"}]
    assert truth["images"] == sorted(data["images"], key=lambda image: image["id"])
    expected = [
        {k: a[k] for k in ("id", "image_id", "category_id", "bbox", "area", "iscrowd")}
        for a in (data["annotations"][i] for i in (2, 3, 0, 4))
    ]
    assert truth["annotations"] == expected
    json.dumps(truth)


def test_ids_that_the_coco_api_cannot_match_are_renumbered(folder):
    data = content()
    data["annotations"][0]["id"] = 0
    del data["annotations"][2]["id"]
    source = open_source(folder, data)
    ids = [a["id"] for a in source.ground_truth()["annotations"]]
    assert len(set(ids)) == 3 and min(ids) >= 1 and 9 in ids and source.skipped == []


def test_missing_area_and_iscrowd(folder):
    data = content()
    for item, area in zip(data["annotations"], (None, math.nan, -3, "big"), strict=True):
        item["area"] = area
    del data["annotations"][3]["iscrowd"]
    source = open_source(folder, data)
    np.testing.assert_array_equal(source[0]["area"], [200, 1500])
    assert not source[0]["crowd"].any()
    assert [a["area"] for a in source.ground_truth()["annotations"]] == [200, 1500, 205]


def test_pickles_and_reads_from_the_copy(folder):
    source = open_source(folder, content())
    copied = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copied[1]["image"], source[1]["image"])
    assert copied.ground_truth() == source.ground_truth()


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([1, 2, 3], "bbox is not four numbers"),
        ([1, 2, 3, 4, 5], "bbox is not four numbers"),
        ("1 2 3 4", "bbox is not four numbers"),
        ([1, 2, "3", 4], "bbox is not four numbers"),
        ([1, 2, None, 4], "bbox is not four numbers"),
        ([1, 2, 10**400, 4], "bbox is not four numbers"),
        (None, "bbox is not four numbers"),
        ({"x": 1}, "bbox is not four numbers"),
        ([math.nan, 2, 3, 4], "bbox holds NaN or infinity"),
        ([1, 2, math.inf, 4], "bbox holds NaN or infinity"),
        ([1, 2, 0, 4], "bbox empty or negative"),
        ([1, 2, 3, 0], "bbox empty or negative"),
        ([10, 10, -5, 5], "bbox empty or negative"),
        ([60, 2, 3, 4], "bbox outside the image"),
        ([-5, 2, 5, 4], "bbox outside the image"),
        ([1, 40, 3, 4], "bbox outside the image"),
        ([1, -9, 3, 4], "bbox outside the image"),
        ([-1e308, 2, 5, 4], "bbox outside the image"),
        ([50, 2, 1e-9, 4], "bbox empty once clipped"),
    ],
)
def test_bad_boxes_are_skipped_and_counted(folder, bbox, reason):
    data = content()
    data["annotations"].insert(0, annotation(77, 3, bbox))
    source = open_source(folder, data)
    assert reasons(source) == [reason]
    item = source.skipped[0]
    assert (item["annotation_id"], item["image_id"], item["file"]) == (77, 3, "3.png")
    assert source.clipped_counts.sum() == 0 and len(source) == 3
    assert [a["id"] for a in source.ground_truth()["annotations"]] == [7, 9, 5]
    assert reason in summary(source) and "77" in summary(source) and "skipped 1" in summary(source)


def test_a_box_partly_outside_is_clipped_and_counted(folder):
    data = content()
    data["annotations"] += [
        annotation(70, 3, [-4, -6, 10, 12]),
        annotation(71, 3, [50, 30, 1e308, 1e308]),
        annotation(72, 3, [50, 30, 10.00001, 10]),
    ]
    source = open_source(folder, data)
    np.testing.assert_array_equal(source[0]["boxes"][2:], [[0, 0, 6, 6], [50, 30, 60, 40], [50, 30, 60, 40]])
    np.testing.assert_array_equal(source[0]["area"][2], 120)
    assert source.clipped_counts.sum() == 2 and source.skipped == [] and "2 boxes clipped" in summary(source)


def test_annotations_of_what_is_not_there(folder):
    data = content()
    data["annotations"] += [
        annotation(30, 999, [1, 1, 5, 5]),
        annotation(31, None, [1, 1, 5, 5]),
        annotation(32, [3], [1, 1, 5, 5]),
        annotation(33, 3, [1, 1, 5, 5], category_id=2),
        annotation(34, 3, [1, 1, 5, 5], category_id="17"),
        {"id": 35},
        annotation(7, 8, [1, 1, 5, 5]),
    ]
    source = open_source(folder, data)
    found = {item["annotation_id"]: item["reason"] for item in source.skipped}
    assert found == {
        30: "annotation of an unknown image",
        31: "annotation of an unknown image",
        32: "annotation of an unknown image",
        33: "annotation of an unknown category",
        34: "annotation of an unknown category",
        35: "annotation of an unknown image",
        7: "annotation id seen before",
    }
    assert [a["id"] for a in source.ground_truth()["annotations"]] == [7, 9, 5]
    assert "skipped 4: annotation of an unknown image" in summary(source) and "; ..." in summary(source)


def test_missing_paths_say_how_to_get_coco(folder, tmp_path):
    path = write(folder, content())
    for images, annotations, key in (
        (folder, tmp_path / "no.json", "annotations"),
        (folder, tmp_path, "annotations"),
        (tmp_path / "nowhere", path, "images"),
        (path, path, "images"),
    ):
        with pytest.raises(FileNotFoundError) as error:
            CocoSource(images, annotations)
        message = str(error.value)
        named = annotations if key == "annotations" else images
        assert str(named) in message and f"data.train.{key}" in message
        for word in ("train2017.zip", "val2017.zip", "annotations_trainval2017.zip", "instances_train2017.json"):
            assert word in message
        assert "python train.py --config configs/person_demo.py" in message


def test_no_boxes_at_all_is_no_fault(folder):
    source = open_source(folder, broken("annotations", value=[]))
    assert len(source) == 3 and source[0]["boxes"].shape == (0, 4) and source.ground_truth()["annotations"] == []
    assert "3 images (3 without a box to train on), 0 boxes" in summary(source)


@pytest.mark.parametrize(
    ("split", "images", "empty", "boxes", "crowds"),
    [("train", 2055, 108, 7799, 141), ("val", 360, 60, 1295, 26), ("full_size", 32, 8, 110, 3)],
)
def test_real_people(shared, split, images, empty, boxes, crowds):
    data = shared / "data" / "coco_person"
    source = CocoSource(data / split, data / f"{split}.json")
    assert source.skipped == []
    assert (len(source), len(source.annotations.boxes), source.crowd_counts.sum()) == (images, boxes, crowds)
    assert int((np.diff(source.annotations.offsets) == 0).sum()) == empty
    assert int(source.box_counts.sum()) == boxes - crowds
    truth, original = source.ground_truth(), load_json(data / f"{split}.json")
    assert sorted(a["id"] for a in truth["annotations"]) == sorted(a["id"] for a in original["annotations"])
    by_id = {a["id"]: a for a in original["annotations"]}
    assert all(a == {k: by_id[a["id"]][k] for k in a} for a in truth["annotations"])
    record = source[0]
    assert record["image"].shape[:2] == tuple(source.sizes[0])
