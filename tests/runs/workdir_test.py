import json
import os
import shutil
import tarfile
import types

import numpy as np
import pytest

import jaxdet
from configs import person
from jaxdet.data import pipeline
from jaxdet.runs.checkpoint import Checkpoints
from jaxdet.runs.workdir import CONVERTED, Workdir
from tests import tiny

# ---- a run of before -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def before(golden, tmp_path_factory):
    """A run that an older jaxdet made (tests/golden/README.md): its workdir, config, and what it gave there."""
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(golden / "workdir_before.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    answers = json.loads((folder / "answers.json").read_text())
    config = Workdir(folder / "run").config()
    config.train.update(steps=config.train.steps + len(answers["steps"]), log_every=1)
    return types.SimpleNamespace(workdir=folder / "run", config=config, **answers)


def test_a_run_of_before_detects_the_same(before):
    detector = jaxdet.load(before.workdir)
    source = pipeline.open_source(before.config.data.val, None)
    for picture in before.pictures:
        with tiny.quick_compilation():
            found = detector(source[picture["index"]]["image"])
        assert found["labels"].tolist() == picture["labels"] and len(picture["labels"]) > 3
        np.testing.assert_allclose(found["scores"], picture["scores"], atol=1e-5)
        np.testing.assert_allclose(found["boxes"], picture["boxes"], rtol=1e-5, atol=1e-3)


def test_a_run_of_before_evaluates_the_same(before, tmp_path):
    workdir = shutil.copytree(before.workdir, tmp_path / "run")
    expected = json.loads((workdir / "eval.json").read_text())
    results, _ = tiny.evaluate(before.config, workdir)
    assert results.keys() == expected.keys() and results["images"] == expected["images"]
    for stage in ("roi", "rpn", "proposals"):
        assert results[stage] == pytest.approx(expected[stage], abs=1e-4)
    assert expected["roi"]["AP"] > 0 and expected["rpn"]["AP"] > 0


def test_a_run_of_before_is_resumed(before, tmp_path):
    workdir = shutil.copytree(before.workdir, tmp_path / "run")
    older = Workdir(workdir).metrics()
    _, printed = tiny.train(before.config, workdir)
    assert f"step {older[-1]['step']} of {workdir}" in printed
    lines = tiny.metrics(workdir)
    assert Workdir(workdir).metrics()[: len(older)] == older
    for line, expected in zip(lines[len(older) :], [*before.steps, before.evaluation], strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-6)


# ---- what lies where -------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    workdir, config = Workdir(tmp_path), person.get_config()
    workdir.write_config(config)
    assert workdir.config().to_dict() == config.to_dict()
    workdir.write_categories(tuple(tiny.CATEGORIES))
    assert workdir.categories() == tiny.CATEGORIES
    workdir.write_metrics([{"step": 1, "loss": 0.1}])
    workdir.add_metrics({"step": 2, "loss": None})
    assert workdir.metrics() == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": None}]
    workdir.write_skipped([{"split": "val", "image_id": np.int64(3)}])
    workdir.add_skipped({"image_id": 4})
    workdir.add_skipped({"image_id": 5}, process=2)
    assert workdir.skipped_file.read_text() == '{"split": "val", "image_id": "3"}\n{"image_id": 4}\n'
    assert (tmp_path / "skipped-2.jsonl").read_text() == '{"image_id": 5}\n'
    workdir.write_results({"images": 1}, [])
    assert sorted(os.listdir(tmp_path)) == [
        *("categories.json", "config.json", "detections.json", "eval.json"),
        *("metrics.jsonl", "skipped-2.jsonl", "skipped.jsonl"),
    ]


def test_a_converted_model_is_a_checkpoint_of_step_0(tmp_path):
    params = {"resnet": {"kernel": np.ones((2, 3), np.float32)}}
    constants = {"resnet": {"scale": np.zeros(3, np.float32)}}
    Workdir(tmp_path).save_converted({"params": params, "constants": constants})
    assert Workdir(tmp_path).best_step() == CONVERTED == 0
    variables = {"params": params, "constants": constants, "batch_stats": {}}
    tiny.assert_equal_trees(Workdir(tmp_path).variables(), variables)
    assert set(Checkpoints(tmp_path / "checkpoints").restore_arrays(0)) == {"trainable", "constants"}


def test_what_is_missing_is_named(tmp_path):
    workdir = Workdir(tmp_path / "run")
    for read, name in ((workdir.config, "config.json"), (workdir.categories, "categories.json")):
        with pytest.raises(FileNotFoundError, match=rf"run holds no run: there is no .*run/{name}; train\.py"):
            read()
    for read in (workdir.variables, workdir.best_step):
        with pytest.raises(FileNotFoundError, match="run holds no checkpoints"):
            read()
    workdir.checkpoints.mkdir(parents=True)
    for read in (workdir.variables, workdir.best_step):
        with pytest.raises(FileNotFoundError, match="run/checkpoints holds no finished checkpoint yet"):
            read()
    assert workdir.metrics() == []


@pytest.mark.parametrize("content", [b"", b"{", b"[[]]", b"3", b"\xff\xfe", b'[{"id": "x", "name": 1}]'])
def test_what_is_damaged_is_named(tmp_path, content):
    workdir = Workdir(tmp_path)
    for path, read in ((workdir.config_file, workdir.config), (workdir.categories_file, workdir.categories)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path} is no "):
            read()
