"""The embedded data set: the same everywhere, boxes that fit, people of all sizes."""

import json
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxdet.data.synthetic import scenes
from jaxdet.data.synthetic.people import POSES, figure, random_look
from jaxdet.data.synthetic.scenes import ENLARGE, SyntheticPeople, draw_scene

KINDS = {"boxes": np.float32, "labels": np.int32, "crowd": bool, "area": np.float32}


@pytest.fixture(scope="module")
def source():
    scenes = SyntheticPeople(240, seed=3)
    scenes.box_counts  # noqa: B018  draws them all
    return scenes


def same(first, second):
    return first["image_id"] == second["image_id"] and all(
        np.array_equal(first[name], second[name]) for name in ("image", *KINDS)
    )


def test_a_seed_gives_the_same_bytes_in_any_order():
    first, second = SyntheticPeople(4, seed=7), SyntheticPeople(9, seed=7)
    backwards = [second[i] for i in (3, 2, 1, 0)][::-1]
    assert all(same(first[i], backwards[i]) for i in range(4))


def test_scenes_differ_between_seeds_and_indices():
    images = [SyntheticPeople(4, seed=seed)[i]["image"].tobytes() for seed in (0, 1) for i in range(4)]
    assert len(set(images)) == 8


def test_random_state_elsewhere_changes_nothing():
    before = SyntheticPeople(1, seed=2)[0]
    np.random.seed(1)
    assert same(before, SyntheticPeople(1, seed=2)[0])


def test_records_have_the_common_format(source):
    assert source.categories == ({"id": 1, "name": "person"},) and source.skipped == []
    assert source.image_ids.dtype == np.int64 and source.image_ids.tolist() == list(range(1, 241))
    assert source.sizes.dtype == np.int32 and (source.sizes == (192, 256)).all()
    assert source.box_counts.dtype == np.int32 and len(source) == 240
    for i in range(len(source)):
        record = source[i]
        assert type(record["image_id"]) is int and record["image_id"] == source.image_ids[i]
        assert record["image"].dtype == np.uint8 and record["image"].shape == (192, 256, 3)
        assert {name: record[name].dtype for name in KINDS} == {k: np.dtype(v) for k, v in KINDS.items()}
        count = len(record["boxes"])
        assert record["boxes"].shape == (count, 4)
        assert all(record[name].shape == (count,) for name in ("labels", "crowd", "area"))
        assert not record["labels"].any()
        assert source.box_counts[i] == np.sum(~record["crowd"])
        assert record["crowd"].sum() <= 1


def test_sizes_and_ids_need_no_drawing(monkeypatch):
    monkeypatch.setattr("jaxdet.data.synthetic.scenes.draw_scene", None)
    scenes = SyntheticPeople(5, height=128, width=200)
    assert scenes.sizes.tolist() == [[128, 200]] * 5 and scenes.image_ids.tolist() == [1, 2, 3, 4, 5]


def test_boxes_lie_inside_and_hold_something(source):
    for i in range(len(source)):
        x1, y1, x2, y2 = source[i]["boxes"].T
        assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= 256).all() and (y2 <= 192).all()
        area = source[i]["area"]
        assert (x2 > x1).all() and (y2 > y1).all() and (area <= (x2 - x1) * (y2 - y1)).all()
        assert (area >= 16).all()


def test_boxes_are_tight_around_what_is_seen(source):
    for i in range(0, 240, 6):
        record, (_, visible) = source[i], draw_scene(3, i, 192, 256)
        assert visible.shape == (192 * ENLARGE, 256 * ENLARGE)
        expected = []
        for person in sorted(set(visible.ravel().tolist()) - {0}):
            y, x = np.nonzero(visible == person)
            box = [x.min() / ENLARGE, y.min() / ENLARGE, (x.max() + 1) / ENLARGE, (y.max() + 1) / ENLARGE]
            expected.append((*box, len(x) / ENLARGE**2, person == scenes.CROWD))
        found = np.column_stack([record["boxes"], record["area"], record["crowd"]])
        np.testing.assert_array_equal(found, np.array(expected, np.float64).reshape(-1, 6))


def test_people_are_in_the_image_where_their_boxes_are(monkeypatch):
    """Without its people a scene changes inside the boxes (and in the shadows below them), not elsewhere."""

    def objects_only(placed, size):
        visible, kept = stays(placed, size)
        return visible, [item for item in kept if not item.person]

    stays = scenes._leave_out_hidden
    # The seat of the sitting and the shadows belong to nobody, so compare without both.
    monkeypatch.setattr("jaxdet.data.synthetic.scenes._shadow", lambda *arguments: None)
    monkeypatch.setattr("jaxdet.data.synthetic.people._bench", lambda *arguments: None)
    monkeypatch.setattr("jaxdet.data.synthetic.scenes._photograph", lambda rng, canvas: np.asarray(canvas))
    for i in range(12):
        full, visible = draw_scene(5, i, 192, 256)
        with monkeypatch.context() as patch:
            patch.setattr("jaxdet.data.synthetic.scenes._leave_out_hidden", objects_only)
            empty, _ = draw_scene(5, i, 192, 256)
        changed = (full != empty).any(-1)
        assert not changed[visible == 0].any()
        if (visible > 0).any():
            assert changed[visible > 0].mean() > 0.95


def test_hardly_visible_people_are_not_drawn():
    body = figure(np.random.default_rng(0), 60, random_look(np.random.default_rng(1)), pose="standing")
    wall = scenes.Sprite(Image.new("RGBA", body.image.size, (90, 90, 90, 255)), None, body.foot)

    def people_left(shift):
        placed = [scenes.Placed(body, (20, 20), 0.0, 1), scenes.Placed(wall, (20, 20 + shift), 0.0, 0)]
        visible, kept = scenes._leave_out_hidden(placed, (200, 200))
        return int(visible.max()), [item.person for item in kept]

    assert people_left(4) == (0, [0])  # all but the head's top behind the wall
    assert people_left(60) == (1, [1, 0])


def test_sizes_and_kinds_of_scenes_are_spread(source):
    records = [source[i] for i in range(len(source))]
    area = np.concatenate([r["area"][~r["crowd"]] for r in records])
    height = np.concatenate([(r["boxes"][:, 3] - r["boxes"][:, 1])[~r["crowd"]] for r in records])
    small, large = (area < 32**2).mean(), (area >= 96**2).mean()
    assert 0.2 < small < 0.6 and 0.01 < large < 0.15
    assert ((height >= 24) & (height <= 150)).mean() > 0.75
    assert 0.03 < (source.box_counts == 0).mean() < 0.16 and source.box_counts.max() >= 5
    assert 0.01 < np.mean([r["crowd"].any() for r in records]) < 0.12
    touching = [(r["boxes"][:, 0] == 0).any() or (r["boxes"][:, 3] == 192).any() for r in records]
    assert np.mean(touching) > 0.1  # cut off by the image's edge


def test_ground_truth_repeats_the_records(source):
    truth = json.loads(json.dumps(source.ground_truth()))
    assert truth["categories"] == [{"id": 1, "name": "person"}]
    assert [image["id"] for image in truth["images"]] == source.image_ids.tolist()
    assert all((image["height"], image["width"]) == (192, 256) for image in truth["images"])
    rows = truth["annotations"]
    assert [row["id"] for row in rows] == list(range(1, len(rows) + 1))
    for i in range(len(source)):
        mine = [row for row in rows if row["image_id"] == i + 1]
        boxes = np.array([row["bbox"] for row in mine], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_array_equal(boxes, source[i]["boxes"])
        assert [row["area"] for row in mine] == source[i]["area"].tolist()
        assert [row["iscrowd"] for row in mine] == source[i]["crowd"].tolist()
        assert all(row["category_id"] == 1 for row in mine)


def test_each_scene_is_drawn_once_even_by_many_threads(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "jaxdet.data.synthetic.scenes.draw_scene", lambda *scene: drawn.append(scene) or draw_scene(*scene)
    )
    scenes, results = SyntheticPeople(6, seed=1, height=64, width=96), [None] * 8

    def read(worker):
        results[worker] = [scenes[(worker + i) % 6] for i in range(6)], scenes.box_counts

    threads = [threading.Thread(target=read, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(scene[1] for scene in drawn) == list(range(6))
    for worker, (records, counts) in enumerate(results):
        assert all(same(record, scenes[(worker + i) % 6]) for i, record in enumerate(records))
        assert np.array_equal(counts, scenes.box_counts)


def test_a_full_cache_changes_no_record():
    kept, small = SyntheticPeople(3, seed=4), SyntheticPeople(3, seed=4, cache_bytes=192 * 256 * 3)
    assert all(same(kept[i], small[i]) for i in (0, 1, 2, 1, 0, 2))
    assert len(small._images) == 1 and len(small._targets) == 3


def test_a_pickled_source_is_small_and_the_same(source):
    data = pickle.dumps(source)
    assert len(data) < 20_000
    copy = pickle.loads(data)
    assert len(copy) == len(source) and all(same(copy[i], source[i]) for i in (0, 5, 239))


def test_images_cannot_be_written_over(source):
    with pytest.raises(ValueError, match="read-only"):
        source[0]["image"][:] = 0


def test_indices_are_those_of_a_sequence():
    scenes = SyntheticPeople(3, height=64, width=64)
    assert scenes[-1]["image_id"] == 3 and scenes[np.int64(1)]["image_id"] == 2
    with pytest.raises(IndexError):
        scenes[3]


@pytest.mark.parametrize("arguments", [{"count": 0}, {"count": 4, "height": 20}, {"count": 4, "seed": -1}])
def test_impossible_sets_are_refused(arguments):
    with pytest.raises(ValueError):
        SyntheticPeople(**arguments)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(64, 200), st.integers(64, 200))
def test_scenes_of_any_size_can_be_drawn(seed, height, width):
    record = SyntheticPeople(1, seed, height, width)[0]
    assert record["image"].shape == (height, width, 3)
    boxes = record["boxes"]
    assert (boxes >= 0).all() and (boxes <= (width, height, width, height)).all()


@pytest.mark.parametrize("pose", POSES)
def test_every_pose_stands_on_the_ground_within_its_tile(pose):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        sprite = figure(rng, 120, random_look(rng), light=0.7, pose=pose)
        mask = np.asarray(sprite.person) > 0
        edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
        assert mask.any() and not any(edge.any() for edge in edges)
        assert mask.shape == sprite.image.size[::-1]
        assert abs(np.nonzero(mask.any(1))[0].max() + 1 - sprite.foot[1]) < 8
        assert (np.asarray(sprite.image)[..., 3][mask] == 255).all()


def test_the_scene_sheet_is_written(tmp_path, capsys):
    output = tmp_path / "new" / "sheet.png"
    scenes.main([str(output)])
    assert Image.open(output).size == (4 * 260 + 4, 3 * 196 + 4)
    assert output.stat().st_size < 400_000 and str(output) in capsys.readouterr().out
    with pytest.raises(SystemExit, match="usage"):
        scenes.main([])
