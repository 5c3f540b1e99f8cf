"""COCO folders with every fault we know of: an error before the first step, or a line in `skipped`."""

import copy
import json
import math
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxdet.data.coco import CocoSource, load_json, summary

SIZES = {3: (40, 60), 8: (50, 30), 21: (32, 32)}  # image id -> height, width


def annotation(annotation_id, image_id, bbox, category_id=17, **more):
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "iscrowd": 0,
    } | more


def content():
    """A sound data set: ids with gaps, three categories out of order, a crowd, an image without boxes."""
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": SIZES[i][0], "width": SIZES[i][1]}
            for i in (21, 3, 8)
        ],
        "annotations": [
            annotation(5, 8, [1, 2, 10, 20.5], area=150.5, segmentation=[[1, 2, 3, 4, 5, 6]]),
            annotation(6, 3, [0, 0, 30, 30], category_id=90),
            annotation(7, 3, [10, 10, 20, 10], area=99.0),
            annotation(9, 3, [5, 5, 50, 30], iscrowd=1, area=1000),
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 17, "name": "person"}, {"id": 4, "name": "cat"}],
    }


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for i, (height, width) in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(images / f"{i}.png")
    return images


def write(folder, data):
    path = folder.parent / "annotations.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def open_source(folder, data, categories=("person",)):
    return CocoSource(folder, write(folder, data), categories)


def reasons(source):
    return [item["reason"] for item in source.skipped]


def test_records_and_index(folder):
    source = open_source(folder, content())
    assert source.categories == ({"id": 17, "name": "person"},)
    np.testing.assert_array_equal(source.image_ids, [3, 8, 21])
    np.testing.assert_array_equal(source.sizes, [[40, 60], [50, 30], [32, 32]])
    np.testing.assert_array_equal(source.box_counts, [1, 1, 0])
    assert len(source) == 3 and source.skipped == [] and (source.crowds, source.clipped) == (1, 0)

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
        ([60, 2, 3, 4], "bbox outside the picture"),
        ([-5, 2, 5, 4], "bbox outside the picture"),
        ([1, 40, 3, 4], "bbox outside the picture"),
        ([1, -9, 3, 4], "bbox outside the picture"),
        ([-1e308, 2, 5, 4], "bbox outside the picture"),
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
    assert source.clipped == 0 and len(source) == 3
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
    assert source.clipped == 2 and source.skipped == [] and "2 boxes clipped" in summary(source)


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


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("share", [0, 0.02, 0.6, 0.97])
def test_truncated_pictures_are_skipped(folder, kind, share):
    data = content()
    Image.open(folder / "3.png").save(folder / "3.jpg")
    data["images"][1]["file_name"] = f"3.{kind}"
    cut(folder / f"3.{kind}", share)
    source = open_source(folder, data)
    assert reasons(source) == ["image unreadable or truncated"]
    assert source.skipped[0]["image_id"] == 3 and f"3.{kind}" in source.skipped[0]["detail"]
    np.testing.assert_array_equal(source.image_ids, [8, 21])  # and its annotations go with it, uncounted
    assert [a["id"] for a in source.ground_truth()["annotations"]] == [5]


def test_missing_and_false_pictures_are_skipped(folder):
    (folder / "3.png").unlink()
    (folder / "8.png").write_text("404 not found")
    source = open_source(folder, content())
    assert [(item["reason"], item["image_id"], item["file"]) for item in source.skipped] == [
        ("image file missing", 3, "3.png"),
        ("image unreadable or truncated", 8, "8.png"),
    ]
    np.testing.assert_array_equal(source.image_ids, [21])
    assert "3.png" in summary(source)


def test_size_that_differs_from_the_json(folder):
    data = content()
    data["images"][1]["height"] = 41
    source = open_source(folder, data)
    assert reasons(source) == ["image size differs from the JSON"]
    assert "60x41" in source.skipped[0]["detail"] and "60x40" in source.skipped[0]["detail"]


def test_json_without_sizes_takes_those_of_the_files(folder):
    data = content()
    for image in data["images"]:
        del image["height"], image["width"]
    source = open_source(folder, data)
    np.testing.assert_array_equal(source.sizes, [[40, 60], [50, 30], [32, 32]])


def test_size_is_meant_upright(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "3.png").rotate(90, expand=True).save(folder / "3.png", exif=exif)
    source = open_source(folder, content())
    assert source.skipped == [] and source[0]["image"].shape == (40, 60, 3)


@pytest.mark.parametrize("name", ["../3.png", "a/../../images/3.png", "/etc/passwd", ".."])
def test_file_names_stay_in_the_folder(folder, name):
    shutil.copy(folder / "3.png", folder.parent / "3.png")
    data = content()
    data["images"][1]["file_name"] = name
    source = open_source(folder, data)
    assert reasons(source) == ["file_name leaves the image folder"]
    assert source.skipped[0]["file"] == name


def test_subfolders_and_odd_names(folder):
    (folder / "day one").mkdir()
    (folder / "3.png").rename(folder / "day one" / "3 ü.png")
    data = content()
    data["images"][1]["file_name"] = "day one/3 ü.png"
    data["images"][0]["file_name"] = ""
    source = open_source(folder, data)
    assert source[0]["image"].shape == (40, 60, 3)
    assert [(item["reason"], item["image_id"]) for item in source.skipped] == [("image file missing", 21)]


def test_a_picture_that_spoils_later_is_none(folder):
    source = open_source(folder, content())
    cut(folder / "3.png", 0.5)
    (folder / "8.png").unlink()
    Image.new("RGB", (9, 9)).save(folder / "21.png")
    assert [record["image"] for record in source] == [None, None, None]
    assert source[0]["image_id"] == 3 and len(source[0]["boxes"]) == 2


def test_pictures_that_are_links_to_elsewhere_say_so(folder, tmp_path):
    (tmp_path / "links").mkdir()
    for path in folder.iterdir():
        (tmp_path / "links" / path.name).symlink_to(path)
    expected = r"none of the 3 images .* file_name leaves the image folder by a symbolic link: '3\.png'"
    with pytest.raises(ValueError, match=expected):
        CocoSource(tmp_path / "links", write(folder, content()))


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
        for word in (
            "train2017.zip",
            "val2017.zip",
            "annotations_trainval2017.zip",
            "instances_train2017.json",
        ):
            assert word in message
        assert "python train.py --config configs/person_demo.py" in message


@pytest.mark.parametrize("share", [0, 0.3, 0.5, 0.8, 0.999])
def test_json_cut_short(folder, share):
    text = json.dumps(content())
    with pytest.raises(ValueError, match=r"annotations\.json.*cut short.*line 1 column \d+"):
        open_source(folder, text[: int(len(text) * share)])


def test_json_that_is_not_text(folder):
    path = folder.parent / "binary.json"
    path.write_bytes(b'{"images": "\xff\xfe"}')
    with pytest.raises(ValueError, match=r"binary\.json.*byte"):
        CocoSource(folder, path)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content()).encode())  # a byte order mark does no harm
    assert len(CocoSource(folder, path)) == 3


def broken(*keys, value="drop"):
    data = copy.deepcopy(content())
    place = data
    for key in keys[:-1]:
        place = place[key]
    if value == "drop":
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected a JSON object"),
        ("null", "expected a JSON object"),
        (broken("images"), "'images'"),
        (broken("annotations"), "'annotations'"),
        (broken("categories"), "'categories'"),
        (broken("images", value={}), "images: expected a list"),
        (broken("annotations", value=None), "annotations: expected a list"),
        (broken("categories", value=7), "categories: expected a list"),
        (broken("images", value=[]), "images: the list is empty"),
        (broken("images", 1, value=3), r"images\[1\]: expected an object"),
        (broken("images", 1, "id"), r"images\[1\]: no key 'id'"),
        (broken("images", 1, "id", value="3"), r"images\[1\]\.id: expected an integer, got '3'"),
        (broken("images", 1, "id", value=2**70), r"images\[1\]\.id: expected an integer"),
        (broken("images", 1, "id", value=True), r"images\[1\]\.id: expected an integer"),
        (broken("images", 1, "file_name"), r"images\[1\]: no key 'file_name'"),
        (broken("images", 1, "file_name", value=7), r"images\[1\]\.file_name: expected a string"),
        (broken("images", 1, "width", value="60"), r"images\[1\]\.width: expected an integer"),
        (broken("images", 1, "id", value=8), r"images\[2\]\.id: 8 is there twice"),
        (broken("images", 1, "id", value=-3), r"images\[1\]\.id: -3 is below 0"),
        (broken("annotations", 2, value=[1]), r"annotations\[2\]: expected an object"),
        (broken("categories", 0, "id"), r"categories\[0\]: no key 'id'"),
        (broken("categories", 0, "name", value=None), r"categories\[0\]\.name: expected a string"),
        (broken("categories", 0, "id", value=4), r"categories\[2\]\.id: 4 is there twice"),
        (broken("categories", value=[]), "no category named 'person'.*none"),
    ],
)
def test_structure_faults_name_file_and_key(folder, data, message):
    with pytest.raises(ValueError, match=rf"annotations\.json.*{message}"):
        open_source(folder, data)


def test_unknown_category_name(folder):
    with pytest.raises(ValueError, match=r"'Persn', did you mean 'person'\? There are: dog, person, cat"):
        open_source(folder, content(), ("cat", "Persn"))
    with pytest.raises(ValueError, match="no category named 'zebra'"):
        open_source(folder, content(), ("zebra",))
    with pytest.raises(ValueError, match="none chosen"):
        open_source(folder, content(), ())


def test_no_image_in_the_folder(folder):
    path = write(folder, content())
    with pytest.raises(
        ValueError, match=r"none of the 3 images.*'3\.png'.*did you mean .*images\?.*data\.train\.images"
    ):
        CocoSource(folder.parent, path)
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="none of the 3 images"):
        CocoSource(folder / "empty", path)


def test_no_usable_image(folder):
    for i in SIZES:
        cut(folder / f"{i}.png", 0.5)
    with pytest.raises(ValueError, match=r"none of its 3 images is usable.*truncated"):
        open_source(folder, content())


def test_no_boxes_at_all_is_no_fault(folder):
    source = open_source(folder, broken("annotations", value=[]))
    assert (
        len(source) == 3 and source[0]["boxes"].shape == (0, 4) and source.ground_truth()["annotations"] == []
    )
    assert "3 images (3 without a box to train on), 0 boxes" in summary(source)


@pytest.mark.parametrize(
    ("split", "images", "empty", "boxes", "crowds"),
    [("train", 2055, 108, 7799, 141), ("val", 360, 60, 1295, 26), ("full_size", 32, 8, 110, 3)],
)
def test_real_people(shared, split, images, empty, boxes, crowds):
    data = shared / "data" / "coco_person"
    source = CocoSource(data / split, data / f"{split}.json")
    assert source.skipped == []
    assert (len(source), len(source.annotations.boxes), source.crowds) == (images, boxes, crowds)
    assert int((np.diff(source.annotations.offsets) == 0).sum()) == empty
    assert int(source.box_counts.sum()) == boxes - crowds
    truth, original = source.ground_truth(), load_json(data / f"{split}.json")
    assert sorted(a["id"] for a in truth["annotations"]) == sorted(a["id"] for a in original["annotations"])
    by_id = {a["id"]: a for a in original["annotations"]}
    assert all(a == {k: by_id[a["id"]][k] for k in a} for a in truth["annotations"])
    record = source[0]
    assert record["image"].shape[:2] == tuple(source.sizes[0])
