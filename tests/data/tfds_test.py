"""COCO folders written as TFDS ArrayRecord directories and read back, and directories that are damaged."""

import io
import json
import pathlib
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

from jaxdet.data import tfds as tfds_source
from jaxdet.data.annotations import summary
from jaxdet.data.coco import CocoSource
from jaxdet.data.tfds import TfdsSource, build
from jaxdet.data.tfds_layout import COCO_IDS, COCO_NAMES, coco_features
from jaxdet.data.types import Source

COUNT = 11


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Folder, JSON path: 11 images of several kinds, three categories, crowds, clipped and empty ones."""
    root = tmp_path_factory.mktemp("coco")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    data = {"images": [], "annotations": [], "categories": []}
    for i, name in ((88, "toothbrush"), (1, "person"), (30, "cat")):
        data["categories"].append({"id": i, "name": name})
    for n in range(COUNT):
        height, width = (int(side) for side in rng.integers(40, 90, 2))
        name = f"{n}.{'png' if n % 3 else 'jpg'}"
        exif = Image.Exif()
        exif[0x0112] = 6 if n == 3 else 1
        pixels = rng.integers(0, 256, (width, height) if n == 3 else (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / name, exif=exif)
        data["images"].append({"id": 1000 - 7 * n, "file_name": name, "height": height, "width": width})
        for k in range(n % 4):
            x, y, w, h = rng.uniform((-3, -3, 5, 5), (30, 30, 50, 50)).round(2).tolist()
            data["annotations"].append(
                {
                    "id": 10 * n + k + 1,
                    "image_id": 1000 - 7 * n,
                    "category_id": (1, 88, 1, 30)[(n + k) % 4],
                    "bbox": [x, y, w, h],
                    "area": round(w * h * 0.7, 3),
                    "iscrowd": int(k == 2),
                }
            )
    path = root / "instances.json"
    path.write_text(json.dumps(data))
    return root / "images", path


@pytest.fixture(scope="module")
def built(coco, tmp_path_factory):
    """Directory of a built data set; several shards."""
    directory = tmp_path_factory.mktemp("tfds") / "people"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds_source, "IMAGES_IN_A_SHARD", 4)
        build(*coco, directory)
    return directory


def write(directory, examples, names=("person", "dog"), features=None):
    """A TFDS directory of examples as they are: no check keeps a malformed one out."""
    directory.mkdir()
    kinds = tfds.features
    lax = kinds.FeaturesDict(
        {
            "image": kinds.Text(),
            "image/filename": kinds.Text(),
            "image/id": np.int64,
            "objects": kinds.Sequence(
                {
                    "area": np.int64,
                    "bbox": kinds.Tensor(shape=(4,), dtype=np.float32),
                    "id": np.int64,
                    "is_crowd": np.bool_,
                    "label": np.int64,
                }
            ),
        }
    )
    template = tfds.core.ShardedFileTemplate(
        dataset_name="coco", data_dir=directory, split="train", filetype_suffix="array_record"
    )
    path = template.sharded_filepath(shard_index=0, num_shards=1)
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for example in examples:
        writer.write(example if isinstance(example, bytes) else lax.serialize_example(example))
    writer.close()
    info = tfds.core.SplitInfo(name="train", shard_lengths=[len(examples)], num_bytes=1, filename_template=template)
    tfds.folder_dataset.write_metadata(
        data_dir=directory, features=features or coco_features(names), split_infos=[info], check_data=False
    )
    return directory


def picture(height=40, width=80, kind="JPEG"):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


def thing(i, bbox=(0.25, 0.125, 0.5, 0.75), label=0, area=33, crowd=False):
    return {"id": i, "bbox": np.array(bbox, np.float32), "label": label, "area": area, "is_crowd": crowd}


def example(i, objects, image=None):
    image = picture() if image is None else image
    return {"image": image, "image/filename": f"{i}.jpg", "image/id": i, "objects": objects}


@pytest.mark.parametrize("categories", [("person",), ("toothbrush", "person"), None])
def test_round_trip(coco, built, categories):
    before, after = CocoSource(*coco, categories), TfdsSource(built, categories)
    assert after.categories == before.categories and after.skipped == []
    assert isinstance(after, Source)
    for name in ("image_ids", "sizes", "box_counts", "crowd_counts"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
        assert getattr(after, name).dtype == getattr(before, name).dtype
    assert len(after) == len(before) == COUNT and after.crowd_counts.sum() == before.crowd_counts.sum()
    for old, new in zip(before, after, strict=True):
        assert new["image_id"] == old["image_id"]
        np.testing.assert_array_equal(new["image"], old["image"])
        np.testing.assert_allclose(new["boxes"], old["boxes"], atol=2e-5)
        for key in ("labels", "crowd"):
            np.testing.assert_array_equal(new[key], old[key])
        np.testing.assert_array_equal(new["area"], np.floor(old["area"]))
        assert all(new[key].dtype == old[key].dtype for key in ("image", "boxes", "labels", "crowd", "area"))
    truth, expected = after.ground_truth(), before.ground_truth()
    assert truth["images"] == expected["images"] and truth["categories"] == expected["categories"]
    for new, old in zip(truth["annotations"], expected["annotations"], strict=True):
        assert all(new[key] == old[key] for key in ("id", "image_id", "category_id", "iscrowd"))


def test_tfds_itself_reads_what_was_built(coco, built):
    builder = tfds.builder_from_directory(built)
    assert builder.info.splits["train"].num_examples == COUNT
    assert builder.info.splits["train"].num_shards == 3
    assert builder.info.features["objects"]["label"].names == ["person", "cat", "toothbrush"]
    record = builder.as_data_source("train")[0]
    assert record["image"].dtype == np.uint8 and record["image"].shape[2] == 3
    assert set(record["objects"]) == {"area", "bbox", "id", "is_crowd", "label"}
    assert not list(built.glob("*.partial"))


def test_image_bytes_are_kept(coco, built):
    source = TfdsSource(built)
    stored = tfds_source._parse(source._records, source._features, 2)
    assert stored["image"] == (coco[0] / stored["image/filename"].decode()).read_bytes()


def test_pickles_and_reads_from_threads(built):
    source = TfdsSource(built)
    copied = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(4) as pool:
        for i, record in enumerate(pool.map(copied.__getitem__, list(range(COUNT)) * 3)):
            np.testing.assert_array_equal(record["image"], source[i % COUNT]["image"])
    assert source[-1]["image_id"] == source.image_ids[-1]
    with pytest.raises(IndexError):
        source[COUNT]


def test_part_of_a_split(built):
    ids = [set(TfdsSource(built, split=part).image_ids) for part in ("train[:5]", "train[5:]")]
    assert len(ids[0]) == 5 and len(ids[0] | ids[1]) == COUNT


def test_a_second_split_joins_the_first(coco, tmp_path):
    build(*coco, tmp_path / "d")
    build(*coco, tmp_path / "d", "validation")
    for split in ("train", "validation"):
        assert len(TfdsSource(tmp_path / "d", split=split)) == COUNT
    with pytest.raises(ValueError, match="already has a split 'validation'"):
        build(*coco, tmp_path / "d", "validation")
    data = json.loads(coco[1].read_text())
    data["categories"][0]["id"] = 89
    other = tmp_path / "other.json"
    other.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="other categories"):
        build(coco[0], other, tmp_path / "d", "test")
    with pytest.raises(ValueError, match="letters, digits"):
        build(*coco, tmp_path / "d", "../test")


def test_a_build_that_was_interrupted_can_be_repeated(coco, tmp_path, monkeypatch):
    directory = tmp_path / "d"
    real = tfds_source._example

    def fail(source, i, make_box):
        if i == 7:
            raise KeyboardInterrupt
        return real(source, i, make_box)

    monkeypatch.setattr(tfds_source, "_example", fail)
    with pytest.raises(KeyboardInterrupt):
        build(*coco, directory)
    with pytest.raises(FileNotFoundError):
        TfdsSource(directory)
    monkeypatch.undo()
    build(*coco, directory)
    assert len(TfdsSource(directory)) == COUNT and not list(directory.glob("*.partial"))


def test_command(coco, tmp_path):
    command = [sys.executable, "-m", "jaxdet.data.tfds", "--images", coco[0], "--annotations", coco[1]]
    command += ["--output", tmp_path / "d", "--split", "val"]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert f"{COUNT} images" in done.stdout
    assert len(TfdsSource(tmp_path / "d", split="val")) == COUNT


def test_bboxes_are_fractions_y_first(tmp_path):
    source = TfdsSource(write(tmp_path / "d", [example(4, [thing(9)])]))
    np.testing.assert_array_equal(source[0]["boxes"], [[10, 10, 60, 20]])  # of an image 40 high, 80 wide
    assert source.ground_truth()["annotations"] == [
        {"id": 9, "image_id": 4, "category_id": 1, "bbox": [10, 10, 50, 10], "area": 33, "iscrowd": 0}
    ]


def test_coco_names_have_coco_ids(tmp_path):
    directory = write(tmp_path / "d", [example(4, [thing(9, label=79), thing(10)])], COCO_NAMES)
    source = TfdsSource(directory, None)
    assert tuple(category["id"] for category in source.categories) == COCO_IDS and len(COCO_IDS) == 80
    assert {a["category_id"] for a in source.ground_truth()["annotations"]} == {90, 1}
    ids = dict(zip(COCO_NAMES, COCO_IDS, strict=True))
    known = {"stop sign": 13, "backpack": 27, "cup": 47, "dining table": 67, "tv": 72, "sink": 81, "book": 84}
    assert {name: ids[name] for name in known} == known


def test_coco_ids_are_those_of_coco(shared):
    path = shared / "data" / "coco_eval_reference" / "instances_val2014_100.json"
    listed = json.loads(path.read_text())["categories"]
    assert {c["name"]: c["id"] for c in listed} == dict(zip(COCO_NAMES, COCO_IDS, strict=True))


def test_malformed_records_are_skipped_and_counted(tmp_path):
    half = picture()[: len(picture()) // 2]
    examples = [
        example(1, [thing(1)]),
        b"garbage",
        b"",
        example(3, [thing(30)], image=half),
        example(4, [thing(40)], image=b""),
        example(1, [thing(50)]),
        example(
            6,
            [
                thing(60, (0.5, 0.1, 0.5, 0.9)),
                thing(61, (0.1, np.nan, 0.5, 0.9)),
                thing(62, (0.1, 0.9, 0.5, 0.1)),
                thing(63, (1.0, 0.1, 1.5, 0.9)),
                thing(64, label=2),
                thing(65, label=-1),
                thing(1),
                thing(66, (-0.5, 0.0, 0.5, 1.5)),
                thing(67, label=1),
            ],
        ),
    ]
    source = TfdsSource(write(tmp_path / "d", examples))
    np.testing.assert_array_equal(source.image_ids, [1, 6])
    np.testing.assert_array_equal(source[1]["boxes"], [[0, 0, 80, 20]])
    counts = {}
    for item in source.skipped:
        counts.setdefault(item["reason"], []).append(
            item.get("annotation_id", item.get("image_id", item.get("record")))
        )
    assert counts == {
        "malformed record": [1, 2],
        "image unreadable or truncated": [3, 4],
        "image id seen before": [1],
        "bbox empty or negative": [60, 62],
        "bbox holds NaN or infinity": [61],
        "bbox outside the image": [63],
        "annotation of an unknown category": [64, 65],
        "annotation id seen before": [1],
    }
    assert source.clipped_counts.sum() == 1 and "skipped 2: malformed record (record 1; record 2)" in summary(source)


def test_nothing_usable(tmp_path):
    with pytest.raises(ValueError, match="no usable record"):
        TfdsSource(write(tmp_path / "d", [b"garbage"]))


def test_a_shard_that_is_missing_or_cut(built, tmp_path):
    directory = tmp_path / "d"
    shutil.copytree(built, directory)
    source = TfdsSource(directory)
    shards = sorted(directory.glob("*array_record*"))
    data = shards[1].read_bytes()
    shards[1].write_bytes(data[: len(data) // 2])
    damaged = pickle.loads(pickle.dumps(source))
    assert sum(record["image"] is None for record in damaged) == 4
    again = TfdsSource(directory)
    assert len(again) == COUNT - 4 and {item["reason"] for item in again.skipped} == {"malformed record"}
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=shards[1].name):
        TfdsSource(directory)


def test_errors_name_the_directory_and_what_to_do(built, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        TfdsSource(tmp_path / "nowhere")
    for word in ("nowhere", "data.train.directory", "jaxdet.data.tfds", "configs/person_demo.py"):
        assert word in str(error.value)
    with pytest.raises(ValueError, match=r"people: TFDS cannot open split 'test'.*train"):
        TfdsSource(built, split="test")
    with pytest.raises(ValueError, match="did you mean 'person'"):
        TfdsSource(built, ("persons",))
    directory = tmp_path / "d"
    shutil.copytree(built, directory)
    listed = json.loads((directory / "categories.json").read_text())
    (directory / "categories.json").write_text(json.dumps(listed[:1]))
    with pytest.raises(ValueError, match=r"categories\.json"):
        TfdsSource(directory)
    (directory / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="cannot open"):
        TfdsSource(directory)


def test_another_layout_or_format(built, tmp_path):
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": np.int64})
    with pytest.raises(ValueError, match=r"lacks the features.*image/id.*objects"):
        TfdsSource(write(tmp_path / "other", [b"x"], features=features))
    directory = tmp_path / "tfrecord"
    shutil.copytree(built, directory)
    info = json.loads((directory / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (directory / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match='file_format="array_record"'):
        TfdsSource(directory)


def test_a_shard_that_lies_elsewhere(built, tmp_path):
    shutil.copytree(built, tmp_path / "d")
    shard = sorted((tmp_path / "d").glob("*array_record*"))[0]
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{shard.name} lies outside of it"):
        TfdsSource(tmp_path / "d")


def test_real_people(shared, tmp_path):
    data = shared / "data" / "coco_person"
    build(data / "full_size", data / "full_size.json", tmp_path / "d")
    before, after = CocoSource(data / "full_size", data / "full_size.json"), TfdsSource(tmp_path / "d")
    np.testing.assert_array_equal(after.image_ids, before.image_ids)
    np.testing.assert_allclose(after.annotations.boxes, before.annotations.boxes, atol=1e-4)
    assert len(after.annotations.boxes) == 110 and after.crowd_counts.sum() == 3 and after.skipped == []


def test_the_builder_from_the_command_line(coco, tmp_path):
    def call(images):
        flags = [f"--images={images}", f"--annotations={coco[1]}", f"--output={tmp_path / 'd'}"]
        command = [sys.executable, "-m", "jaxdet.data.tfds", *flags]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = call(coco[0])
    assert done.returncode == 0 and f"{COUNT} images" in done.stdout, done.stderr
    for images, answer in ((coco[0], "already has a split 'train'"), (tmp_path / "nowhere", "nowhere")):
        done = call(images)
        assert done.returncode == 1 and answer in done.stderr and "Traceback" not in done.stderr
