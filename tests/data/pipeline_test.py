import collections
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from configs import person
from jaxdet.data import pipeline
from jaxdet.data.annotations import summary
from jaxdet.data.resizing import Resizing
from jaxdet.data.types import Source
from tests import tiny
from tests.data.transforms_test import find, rectangle


class Rectangles:
    """Black images of many sizes with a red box each, half of them portrait; image 3 does not decode."""

    categories = ({"id": 5, "name": "box"},)

    def __init__(self, count=9, seed=0):
        rng = np.random.default_rng(seed)
        self.sizes = rng.integers(60, 130, (count, 2)).astype(np.int32)
        self.sizes[0] = 100, 140  # landscape
        self.sizes[1:2] = 140, 90  # portrait
        self.image_ids = np.arange(10, 10 + count)
        self.box_counts = self.crowd_counts = np.ones(count, np.int32)
        self.clipped_counts, self.skipped = np.zeros(count, np.int32), []
        corners = np.array([5, 8]) + rng.integers(0, 10, (count, 2))
        self.boxes = np.concatenate([corners, corners + rng.integers(20, 40, (count, 2))], 1)

    def ground_truth(self):
        raise NotImplementedError  # no batch asks for it

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, i):
        crowd = np.array([1, 2, 50, 50], np.float32)
        return {
            "image_id": int(self.image_ids[i]),
            "image": None if i == 3 else rectangle(self.sizes[i], self.boxes[i]),
            "boxes": np.stack([crowd, self.boxes[i]]).astype(np.float32),
            "labels": np.array([0, i % 4], np.int32),
            "crowd": np.array([True, False]),
            "area": np.ones(2, np.float32),
        }


def split_of(**settings):
    split = person.get_config().data.train
    split.update({"short_sides": (48, 64, 80), "longest_side": 112} | settings)
    return split


def training(seed=0, batch_size=4, source=None, **settings):
    return pipeline.TrainingBatches(source or Rectangles(), split_of(**settings), seed, batch_size, 8)


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype
        np.testing.assert_array_equal(value, right[name], err_msg=name)


# ---- one slot -------------------------------------------------------------------------------------------------------


def test_boxes_follow_the_pixels():
    """The red box is found again at the one box of each slot, whatever the flip and scale."""
    source, loader = Rectangles(), training().loader
    seen = set()
    for bucket, members in enumerate(loader.members):
        for position in range(4 * len(members)):
            slot = loader.training_slot(bucket, position)
            if slot["image_ids"] == 13:
                continue
            index = int(slot["image_ids"]) - 10
            assert slot["gt_valid"].tolist() == [True] + 7 * [False]  # the crowd is no target
            assert slot["gt_labels"][0] == index % 4
            np.testing.assert_allclose(slot["gt_boxes"][0], find(slot["images"]), atol=0.75)
            height, width = slot["image_sizes"]
            np.testing.assert_allclose(slot["scales"], slot["image_sizes"] / source.sizes[index], rtol=1e-6)
            assert not slot["images"][height:].any() and not slot["images"][:, width:].any()
            assert slot["images"].shape == (*loader.shapes[bucket], 3)
            flipped = slot["gt_boxes"][0, 0] != pytest.approx(source.boxes[index, 0] * slot["scales"][1], abs=0.01)
            seen.add((bucket, flipped, min(height, width)))
    assert len({bucket for bucket, _, _ in seen}) == 2 and len({flipped for _, flipped, _ in seen}) == 2
    assert {48, 64, 80} <= {short for _, _, short in seen}


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_flip_is_a_probability(flip):
    loader, source = training(flip=flip, short_sides=(64,)).loader, Rectangles()
    for position in range(8):
        slot = loader.training_slot(0, position)
        if slot["gt_valid"].any():
            x1, _, x2, _ = source.boxes[int(slot["image_ids"]) - 10] * slot["scales"][1]
            expected = slot["image_sizes"][1] - x2 if flip else x1
            assert slot["gt_boxes"][0, 0] == pytest.approx(expected, abs=1e-3)


def test_flips_and_scales_are_drawn_evenly():
    source = Rectangles(1)
    loader = training(source=source).loader
    slots = [loader.training_slot(0, position) for position in range(600)]
    flips = np.mean([slot["gt_boxes"][0, 0] > 0.3 * slot["image_sizes"][1] for slot in slots])
    assert abs(flips - 0.5) < 0.08
    shorts = collections.Counter(int(slot["image_sizes"].min()) for slot in slots)
    assert set(shorts) == {48, 64, 80} and min(shorts.values()) > 150


def test_an_image_that_does_not_decode_leaves_its_slot_empty():
    slot = training().loader.evaluation_slot(0, 3)
    assert slot["image_ids"] == 13
    assert not slot["images"].any() and not slot["image_sizes"].any() and not slot["gt_valid"].any()


# ---- shapes ---------------------------------------------------------------------------------------------------------


def test_buckets_by_orientation_hold_every_scale():
    source, split = Rectangles(40), split_of()
    shapes, bucket = pipeline.buckets(source, split)
    assert len(shapes) == 2 and shapes[0] == shapes[1][::-1] and shapes[0][0] < shapes[0][1]
    assert all(side % 32 == 0 for shape in shapes for side in shape)
    np.testing.assert_array_equal(bucket, source.sizes[:, 0] > source.sizes[:, 1])
    for size, b in zip(source.sizes, bucket, strict=True):
        for short_side in split.short_sides:
            assert np.all(np.array(shapes[b]) >= Resizing.of(split).size(size, short_side))


@pytest.mark.parametrize(
    "sizes, expected",
    [
        ([(60, 100), (70, 90)], [(64, 96)]),
        ([(100, 60), (90, 70)], [(96, 64)]),
        ([(80, 80)], [(64, 96)]),
        ([(80, 80), (60, 100)], [(64, 96)]),
        ([(80, 80), (100, 60)], [(64, 96), (96, 64)]),
    ],
)
def test_one_orientation_takes_one_shape(sizes, expected):
    source = Rectangles(len(sizes))
    source.sizes = np.array(sizes, np.int32)
    shapes, bucket = pipeline.buckets(source, split_of(short_sides=(64,), longest_side=96))
    assert list(shapes) == expected  # by the settings alone, however large the images
    for size, b in zip(sizes, bucket, strict=True):
        assert np.all(np.array(shapes[b]) >= Resizing((64,), 96).size(size))


@pytest.mark.parametrize("most, expected", [(0, 8), (1, 8), (8, 8), (9, 16), (93, 96)])
def test_rows_for_the_boxes(most, expected):
    source = Rectangles()
    source.box_counts = np.array([0, most, 0], np.int32)
    assert pipeline.max_boxes(Rectangles(), source) == expected


# ---- the order ------------------------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_the_step():
    batches = training(source=Rectangles(12))
    whole = list(batches.read(0, 12, 0))
    assert len(whole) == 12 and {batch["images"].shape[1:3] for batch in whole} == set(batches.shapes)
    for start in (1, 5, 11):
        for batch, expected in zip(training(source=Rectangles(12)).read(start, 12, 0), whole[start:], strict=True):
            assert_same(batch, expected)
    assert_same(next(batches.read(7, 100, 0)), whole[7])  # however long the training is
    assert list(batches.read(12, 12, 0)) == []


def test_hosts_share_each_batch():
    batches = training()
    whole = list(batches.read(0, 6, 0))
    parts = [list(batches.read(0, 6, 0, shard, 2)) for shard in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert_same(batch, {name: np.concatenate([first[name], second[name]]) for name in batch})


def test_worker_processes_change_nothing(tiny_data):
    config = tiny.get_config(tiny_data)
    batches = tiny.training_batches(config)
    for batch, expected in zip(batches.read(1, 5, 2), batches.read(1, 5, 0), strict=True):
        assert_same(batch, expected)
    source = pipeline.open_source(config.data.val, None)
    evaluation = pipeline.EvaluationBatches(source, config.data.val, 2, 8)
    for batch, expected in zip(evaluation.read(2), evaluation.read(0), strict=True):
        assert_same(batch, expected)


KILLED = """
import os, signal
from configs import person
from jaxdet.data.pipeline import TrainingBatches
from jaxdet.data.synthetic.scenes import SyntheticPeople

batches = TrainingBatches(SyntheticPeople(2, 0, 64, 96), person.get_config().data.train, 0, 2, 8)
reader = batches.read(0, 1000, 1)
next(reader)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_worker_processes_end_with_a_killed_run():
    """They hold standard output open, so the call returns only when the last of them is gone."""
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tiny.ROOT, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL


def test_every_image_is_seen_as_often():
    batches = training(source=Rectangles(23), batch_size=3)
    seen = collections.Counter(i for batch in batches.read(0, 40, 0) for i in batch["image_ids"].tolist())
    for members in batches.loader.members:
        counts = [seen[int(batches.loader.source.image_ids[i])] for i in members]
        assert max(counts) - min(counts) <= 1
    assert sum(seen.values()) == 120


def test_each_pass_has_its_own_order_and_each_seed_too():
    def order(seed, passes):
        loader = training(seed, source=Rectangles(30)).loader
        count = len(loader.members[0])
        return [int(loader.training_slot(0, passes * count + i)["image_ids"]) for i in range(count)]

    assert sorted(order(0, 0)) == sorted(order(0, 1)) == sorted(order(1, 0))
    assert order(0, 0) != order(0, 1) and order(0, 0) != order(1, 0)


def test_orientations_take_turns_in_proportion():
    batches = training(source=Rectangles(40))
    bucket, before = batches.plan(2000)
    share = len(batches.loader.members[1]) / 40
    assert abs(np.mean(bucket) - share) < 0.05
    for b in (0, 1):
        np.testing.assert_array_equal(before[bucket == b], np.arange(np.sum(bucket == b)))


# ---- evaluation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_evaluation_sees_each_image_once(batch_size):
    source = Rectangles(23)
    batches = pipeline.EvaluationBatches(source, split_of(), batch_size, 8)
    read = list(batches.read(0))
    assert len(read) == len(batches)
    ids = np.concatenate([batch["image_ids"] for batch in read])
    assert sorted(ids[ids >= 0].tolist()) == source.image_ids.tolist()
    for batch in read:
        padding = batch["image_ids"] < 0
        assert batch["images"].shape == (batch_size, *batch["images"].shape[1:3], 3)
        assert batch["images"].shape[1:3] in batches.shapes
        assert not batch["image_sizes"][padding].any() and not batch["gt_valid"][padding].any()
        assert not batch["images"][padding].any() and not padding.all()
    assert all(np.all(batch["image_sizes"].min(1) <= 80) for batch in read)


def test_evaluation_takes_the_largest_scale_and_never_flips():
    source = Rectangles(8)
    for batch in pipeline.EvaluationBatches(source, split_of(flip=1.0), 4, 8).read(0):
        for row, image_id in enumerate(batch["image_ids"].tolist()):
            if image_id not in (-1, 13):
                index = image_id - 10
                expected = Resizing((80,), 112).size(source.sizes[index])
                assert tuple(batch["image_sizes"][row]) == expected
                scaled = source.boxes[index] * batch["scales"][row][[1, 0, 1, 0]]
                np.testing.assert_allclose(batch["gt_boxes"][row, 0], scaled, rtol=1e-5)


# ---- sources --------------------------------------------------------------------------------------------------------


def val_split(folder, **settings):
    split = tiny.get_config(folder).data.val
    split.update(settings)
    return split


def test_empty_images_stay_by_a_key(tiny_data):
    everything = pipeline.open_source(val_split(tiny_data), None)
    assert everything.image_ids.tolist() == list(tiny.VAL_IDS)
    boxed = pipeline.open_source(val_split(tiny_data, keep_empty=False), None)
    assert boxed.image_ids.tolist() == list(tiny.VAL_IDS[:-1])
    assert boxed.box_counts.min() > 0


@pytest.mark.parametrize("split", [{}, {"keep_empty": False}, {"source": "synthetic", "scenes": 40}])
def test_every_source_has_all_that_is_asked_of_one(tiny_data, split):
    source = pipeline.open_source(val_split(tiny_data, scenes_height=64, scenes_width=64, **split), None)
    assert isinstance(source, Source) and source.skipped == []
    records = [source[i] for i in range(len(source))]
    assert [record["image_id"] for record in records] == source.image_ids.tolist()
    assert [record["image"].shape[:2] for record in records] == [tuple(size) for size in source.sizes.tolist()]
    assert source.box_counts.tolist() == [np.sum(~record["crowd"]) for record in records]
    assert source.crowd_counts.tolist() == [np.sum(record["crowd"]) for record in records]
    assert source.crowd_counts.sum() > 0 and source.clipped_counts.tolist() == [0] * len(source)
    truth = source.ground_truth()
    assert [image["id"] for image in truth["images"]] == source.image_ids.tolist()
    assert len(truth["annotations"]) == (source.box_counts + source.crowd_counts).sum()


def test_crowds_and_clipped_boxes_are_counted_on_the_images_that_are_kept(tmp_path):
    tiny.write_data(tmp_path / "data")
    path = tmp_path / "data" / "val.json"
    truth = json.loads(path.read_text())
    kept = {"id": 90, "image_id": tiny.VAL_IDS[0], "category_id": 7, "bbox": [80, 5, 30, 20], "iscrowd": 0}
    left_out = {"id": 91, "image_id": tiny.VAL_IDS[-1], "category_id": 7, "bbox": [-9, 5, 30, 20], "iscrowd": 1}
    truth["annotations"] += [kept, left_out]
    path.write_text(json.dumps(truth))
    everything, boxed = (
        summary(pipeline.open_source(val_split(tmp_path / "data", keep_empty=keep), None)) for keep in (True, False)
    )
    assert "5 images (1 without a box to train on), 10 boxes, 2 crowd regions, 2 boxes clipped" in everything
    assert "4 images (0 without a box to train on), 10 boxes, 1 crowd regions, 1 boxes clipped" in boxed


def test_limit_takes_the_lowest_ids_of_what_is_kept(tiny_data):
    chosen = pipeline.open_source(val_split(tiny_data, keep_empty=False, limit=3), ("dog",))
    everything = pipeline.open_source(val_split(tiny_data), ("dog",))
    with_dogs = everything.image_ids[everything.box_counts > 0]
    assert chosen.image_ids.tolist() == with_dogs[:3].tolist()
    assert [chosen[i]["image_id"] for i in range(len(chosen))] == chosen.image_ids.tolist()
    truth = chosen.ground_truth()
    assert [image["id"] for image in truth["images"]] == chosen.image_ids.tolist()
    assert {item["image_id"] for item in truth["annotations"]} == set(chosen.image_ids.tolist())
    assert len(chosen.sizes) == len(chosen.box_counts) == len(chosen)


def test_nothing_left_is_an_error(tmp_path):
    tiny.write_data(tmp_path / "data")
    split = val_split(tmp_path / "data", keep_empty=False)
    pipeline.open_source(split, ("bicycle",))
    truth = (tmp_path / "data" / "val.json").read_text().replace('"category_id": 3', '"category_id": 7')
    (tmp_path / "data" / "val.json").write_text(truth)
    for keep_empty in (False, True):
        with pytest.raises(ValueError, match="the data set is empty: none of the 5 images"):
            pipeline.open_source(val_split(tmp_path / "data", keep_empty=keep_empty), ("bicycle",))


def test_bad_boxes_are_named_where_nothing_is_left(tmp_path):
    tiny.write_data(tmp_path / "data")
    truth = json.loads((tmp_path / "data" / "val.json").read_text())
    for row in truth["annotations"]:
        row["bbox"][2] = 0
    (tmp_path / "data" / "val.json").write_text(json.dumps(truth))
    first, count = truth["annotations"][0]["image_id"], len(truth["annotations"])
    expected = rf"has a box of .*; {count} were skipped: bbox empty or negative, image id {first}; .*; \.\.\."
    with pytest.raises(ValueError, match=expected):
        pipeline.open_source(val_split(tmp_path / "data"), None)


def test_unknown_source():
    with pytest.raises(ValueError, match="data source 'cocoa': use coco, tfds or synthetic"):
        pipeline.open_source(split_of(source="cocoa"), None)


def test_drawn_scenes():
    split = split_of(source="synthetic", scenes=6, scenes_seed=5, scenes_height=64, scenes_width=96, keep_empty=True)
    assert len(pipeline.open_source(split, None)) == 6
    split.keep_empty = False
    assert pipeline.open_source(split, None).box_counts.min() > 0


def test_an_image_that_breaks_while_training_is_only_an_empty_slot(tmp_path):
    tiny.write_data(tmp_path / "data")
    config = tiny.get_config(tmp_path / "data")
    batches = tiny.training_batches(config)
    name = tmp_path / "data" / "train" / "17.png"
    name.write_bytes(name.read_bytes()[:100])
    Image.new("RGB", (10, 10)).save(tmp_path / "data" / "train" / "23.png")  # another size than the index says
    empty = set()
    for batch in batches.read(0, 16, 0):
        empty |= set(batch["image_ids"][batch["image_sizes"][:, 0] == 0].tolist())
    assert empty == {17, 23}
