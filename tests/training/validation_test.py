import json
import shutil
import types

import numpy as np
import pytest
from PIL import Image

import jaxdet
from configs import person
from jaxdet.data import pipeline
from jaxdet.evaluation.coco import METRICS, evaluate
from jaxdet.runs.checkpoint import Checkpoints
from jaxdet.training import validation
from tests import tiny


@pytest.fixture(scope="module")
def evaluated(tiny_run, tmp_path_factory):
    """A copy of the run after `evaluate_run`: workdir, results, printed."""
    workdir = shutil.copytree(tiny_run.workdir, tmp_path_factory.mktemp("evaluated") / "run")
    results, printed = tiny.evaluate(tiny_run.config, workdir, pictures=3)
    return types.SimpleNamespace(config=tiny_run.config, workdir=workdir, results=results, printed=printed)


def read(path):
    return json.loads(path.read_text())


def test_layout_of_eval_json(evaluated):
    results = read(evaluated.workdir / "eval.json")
    assert results == evaluated.results
    assert list(results) == ["roi", "rpn", "proposals", "images"]
    assert list(results["roi"]) == list(results["rpn"]) == list(METRICS)
    assert tuple(["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]) == METRICS
    assert list(results["proposals"]) == ["AR@100", "AR@1000"] and results["images"] == 5
    assert all(type(value) is float for stage in ("roi", "rpn", "proposals") for value in results[stage].values())


def test_detections_are_cocos_results(evaluated):
    rows = read(evaluated.workdir / "detections.json")
    truth = pipeline.open_source(evaluated.config.data.val, None).ground_truth()
    assert evaluate(truth, rows) == evaluated.results["roi"]
    sizes = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
    assert rows and {row["category_id"] for row in rows} <= {3, 7, 20}
    assert {row["image_id"] for row in rows} <= set(tiny.VAL_IDS)
    for row in rows:
        assert set(row) == {"image_id", "category_id", "bbox", "score"} and 1e-3 < row["score"] <= 1
        x, y, width, height = row["bbox"]
        assert min(x, y) >= 0 and min(width, height) > 0
        assert x + width <= sizes[row["image_id"]][0] + 1e-3 and y + height <= sizes[row["image_id"]][1] + 1e-3


def test_the_detector_says_the_same(evaluated):
    """One image through `jaxdet.load` and the same image in a batch of the evaluation."""
    detector = jaxdet.load(evaluated.workdir)
    source = pipeline.open_source(evaluated.config.data.val, None)
    with tiny.quick_compilation():
        found = detector(source[0]["image"])
    rows = [row for row in read(evaluated.workdir / "detections.json") if row["image_id"] == source[0]["image_id"]]
    assert len(rows) == len(found["scores"]) > 0
    boxes = np.array([row["bbox"] for row in rows])
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_allclose(found["scores"], [row["score"] for row in rows], atol=1e-4)
    np.testing.assert_allclose(found["boxes"], boxes, atol=1e-2)
    ids = [source.categories[label]["id"] for label in found["labels"]]
    assert ids == [row["category_id"] for row in rows]


def test_the_numbers_are_those_of_the_best_checkpoint(evaluated):
    best = Checkpoints(evaluated.workdir / "checkpoints", read_only=True).best_step()
    (line,) = [line for line in tiny.metrics(evaluated.workdir) if line["step"] == best and "val/AP" in line]
    assert {f"val/{name}": value for name, value in evaluated.results["roi"].items()}.items() <= line.items()
    assert {f"val/rpn_{name}": value for name, value in evaluated.results["rpn"].items()}.items() <= line.items()


def test_both_columns_and_the_files_are_printed(evaluated):
    rows = [line for line in evaluated.printed.splitlines() if line.startswith("Average ")]
    assert len(rows) == 12 and all(len(row.split("]")[1].split()) == 2 for row in rows)
    assert "RPN alone   with RoI head" in evaluated.printed
    assert "proposals: AR@100 " in evaluated.printed and "5 images" in evaluated.printed
    assert "compiled 2 shapes for evaluation" in evaluated.printed
    assert str(evaluated.workdir / "eval.json") in evaluated.printed


def test_images_are_drawn(evaluated):
    folder = evaluated.workdir / "pictures"
    names = [f"{image_id:012d}.png" for image_id in tiny.VAL_IDS[:3]]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "all.png"]
    # 96 x 64 and 64 x 96, five times as large
    assert [Image.open(folder / name).size for name in names[:2]] == [(480, 320), (320, 480)]
    assert str(folder / "all.png") in evaluated.printed


def test_images_of_what_the_rpn_finds_among_several_categories(evaluated, tmp_path):
    source = pipeline.open_source(evaluated.config.data.val, None)
    rows = [{"image_id": 501, "category_id": 1, "bbox": [5, 5, 20, 20], "score": 0.9}]
    categories = validation.evaluation.rpn_categories(source.categories)
    validation.draw_images(tmp_path / "pictures", source, rows, categories, 1)
    assert (tmp_path / "pictures" / "all.png").exists()


def test_the_last_stage_may_be_set_anew(tiny_run, tmp_path):
    """`model.test` belongs to the evaluation; everything else of the model must fit."""
    config = tiny_run.config.copy_and_resolve_references()
    config.model.test.score_threshold = 0.1
    validation.check_same_model(tiny_run.config, config, tmp_path)
    config.model.fpn.channels = 32
    with pytest.raises(ValueError, match=r"config\.model\.fpn\.channels: 16 -> 32"):
        validation.evaluate_run(config, tiny_run.workdir)


def test_a_folder_without_a_run(tiny_run, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        validation.evaluate_run(tiny_run.config, tmp_path)
    shutil.copy(tiny_run.workdir / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no .*categories\.json"):
        validation.evaluate_run(tiny_run.config, tmp_path)
    shutil.copy(tiny_run.workdir / "categories.json", tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no checkpoints"):
        validation.evaluate_run(tiny_run.config, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        validation.evaluate_run(tiny_run.config, tmp_path)


def test_categories_and_classes_must_agree():
    config = person.get_config()
    three = types.SimpleNamespace(categories=tiny.CATEGORIES)
    with pytest.raises(ValueError, match=r"model\.num_classes is 1, but .* 3 categories \(bicycle, person, dog\)"):
        validation.check_categories(config, three, tiny.CATEGORIES)
    config.model.num_classes = 3
    validation.check_categories(config, three, [category | {"id": 0} for category in tiny.CATEGORIES])
    with pytest.raises(ValueError, match="are bicycle, person, dog, but in training dog, person, bicycle"):
        validation.check_categories(config, three, tiny.CATEGORIES[::-1])


def test_other_categories_than_those_of_the_training_are_refused(tiny_run, tmp_path):
    workdir = shutil.copytree(tiny_run.workdir, tmp_path / "run")
    content = (workdir / "categories.json").read_text().replace("dog", "wolf")
    (workdir / "categories.json").write_text(content)
    with pytest.raises(ValueError, match="in training bicycle, person, wolf"):
        validation.evaluate_run(tiny_run.config, workdir)


@pytest.fixture(scope="module")
def rpn_run(tmp_path_factory):
    """Two steps of the RPN alone on three categories, evaluated."""
    folder = tmp_path_factory.mktemp("rpn")
    tiny.write_data(folder / "data", portrait=False)
    config = tiny.get_config(folder / "data")
    config.model.roi_head = None
    config.model.backbone.freeze_at = 5
    config.train.update(steps=2, evaluate_every=2)
    state, _ = tiny.train(config, folder / "run")
    results, printed = tiny.evaluate(config, folder / "run", pictures=2)
    return types.SimpleNamespace(workdir=folder / "run", state=state, results=results, printed=printed, config=config)


def test_the_rpn_alone_trains_and_evaluates(rpn_run):
    assert "box_head" not in rpn_run.state.trainable
    assert list(rpn_run.results) == ["rpn", "proposals", "images"] == list(read(rpn_run.workdir / "eval.json"))
    assert "with RoI head" not in rpn_run.printed and "RPN alone" in rpn_run.printed
    lines = tiny.metrics(rpn_run.workdir)
    assert {"rpn_objectness", "rpn_box"} <= lines[0].keys() and "roi_box" not in lines[0]
    assert "val/rpn_AP" in lines[-1] and "val/AP" not in lines[-1]
    rows = read(rpn_run.workdir / "detections.json")
    assert rows and {row["category_id"] for row in rows} == {1}
    assert (rpn_run.workdir / "pictures" / "all.png").exists()
    assert Checkpoints(rpn_run.workdir / "checkpoints", read_only=True).best_step() == 2


def test_the_rpn_alone_is_a_detector(rpn_run):
    detector = jaxdet.load(rpn_run.workdir)
    assert [category["name"] for category in detector.categories] == ["object"]
    image = pipeline.open_source(rpn_run.config.data.val, None)[0]["image"]
    with tiny.quick_compilation():
        found = detector(image)
    assert len(found["scores"]) > 0 and set(found["labels"]) == {0}
