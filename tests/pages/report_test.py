"""`python -m jaxdet report` on workdirs that train.py made."""

import json
import shutil
from unittest import mock

import pytest

from jaxdet.__main__ import main
from tests import tiny


def report(config, workdir, *flags):
    with tiny.shared_executables(config):
        main(["report", "--workdir", str(workdir), *map(str, flags)])


@pytest.fixture(scope="module")
def workdir(tiny_run, tmp_path_factory):
    """A copy of the run with its report."""
    folder = shutil.copytree(tiny_run.workdir, tmp_path_factory.mktemp("reported") / "run")
    report(tiny_run.config, folder)
    return folder


def test_the_report_has_the_numbers_of_the_best_checkpoint(workdir):
    text = (workdir / "report" / "index.html").read_text()
    numbers = json.loads((workdir / "report" / "report.json").read_text())
    best = max((line for line in tiny.metrics(workdir) if "val/AP" in line), key=lambda line: line["val/AP"])
    run = numbers["runs"][str(workdir)]
    assert run["results"]["roi"]["AP"] == best["val/AP"]
    assert run["AP50"] == pytest.approx(best["val/AP50"], abs=1e-12)
    assert sorted(numbers["pictures"]) == list(tiny.VAL_IDS)
    assert len(list((workdir / "report" / "pictures").glob("50?.jpg"))) == 5
    for words in ("RPN alone", "with RoI head", "RPN: objectness loss", "localisation", "checkpoint of step"):
        assert words in text


def test_two_workdirs_on_the_images_of_the_first(workdir, tiny_run, tmp_path):
    other = shutil.copytree(tiny_run.workdir, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["data"]["val"]["images"] = config["data"]["val"]["annotations"] = "moved away"
    (other / "config.json").write_text(json.dumps(config))
    flags = ("--compare", other, "--output", tmp_path / "page", "--pictures", 2, "--choose", "worst")
    report(tiny_run.config, workdir, *flags, "--config.data.val.limit=3")
    numbers = json.loads((tmp_path / "page" / "report.json").read_text())
    first, second = numbers["runs"][str(workdir)], numbers["runs"][str(other)]
    assert first["results"] == second["results"] and first["results"]["images"] == 3
    assert len(numbers["pictures"]) == 2
    assert "B: with RoI head" in (tmp_path / "page" / "index.html").read_text()


def refused(config, workdir, *flags):
    """What the report says that does not begin to evaluate."""
    with mock.patch("jaxdet.pages.report.evaluate_split", side_effect=AssertionError("evaluated")):  # noqa: SIM117
        with pytest.raises(SystemExit) as stop:
            report(config, workdir, *flags)
    return str(stop.value)


def test_workdirs_that_detect_something_else(workdir, tiny_run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((workdir / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config))
    (other / "categories.json").write_text(json.dumps(tiny.CATEGORIES[1:]))
    said = refused(tiny_run.config, workdir, "--compare", other)
    assert f"{workdir} and {other} detect different categories: bicycle, person, dog; person, dog" in said
    config["model"]["roi_head"] = None
    (other / "config.json").write_text(json.dumps(config))
    (other / "categories.json").write_text((workdir / "categories.json").read_text())
    said = refused(tiny_run.config, workdir, "--compare", other)
    assert f"of {workdir} and {other}, {other} has no RoI head" in said and "bicycle, person, dog" in said


def test_folder_and_choice_are_looked_at_first(workdir, tiny_run, tmp_path):
    (tmp_path / "mine.txt").touch()
    said = refused(tiny_run.config, workdir, "--output", tmp_path)
    assert f"{tmp_path} holds something else than an older page" in said
    assert "-1 images for the gallery" in refused(tiny_run.config, workdir, "--pictures", -1)
    assert "-1 as the seed" in refused(tiny_run.config, workdir, "--seed", -1)
    assert len(list((workdir / "report" / "pictures").glob("50?.jpg"))) == 5  # the older page is whole


def test_images_that_are_not_there(workdir, tiny_run):
    with pytest.raises(
        SystemExit, match=r"no image folder at nowhere[\s\S]*name them: --config\.data\.val\.images=DIR"
    ):
        report(tiny_run.config, workdir, "--config.data.val.images=nowhere")


def test_what_cannot_be(workdir, tiny_run, tmp_path):
    with pytest.raises(SystemExit, match="holds no run: there is no"):
        report(tiny_run.config, tmp_path)
    with pytest.raises(SystemExit, match="beside itself"):
        report(tiny_run.config, workdir, "--compare", workdir)
    with pytest.raises(SystemExit, match=r"did you mean config\.data\.train\.limit or config\.data\.val\.limit"):
        report(tiny_run.config, workdir, "--config.data.vall.limit=3")
    with pytest.raises(SystemExit, match=r"holds another model[\s\S]*config\.model\.roi_head"):
        report(tiny_run.config, workdir, "--config.model.roi_head=None")
    with pytest.raises(SystemExit, match="2"):
        report(tiny_run.config, workdir, "--choose", "best")
