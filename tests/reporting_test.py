"""`python -m jaxdet report` on workdirs that train.py made."""

import json
import shutil

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
    assert numbers[str(workdir)]["results"]["roi"]["AP"] == best["val/AP"]
    assert numbers[str(workdir)]["AP50"] == pytest.approx(best["val/AP50"], abs=1e-12)
    assert sorted(numbers["pictures"]) == list(tiny.VAL_IDS)
    assert len(list((workdir / "report" / "pictures").glob("50?.jpg"))) == 5
    for words in ("RPN alone", "with RoI head", "RPN: objectness loss", "localisation", "checkpoint of step"):
        assert words in text


def test_two_workdirs_on_the_pictures_of_the_first(workdir, tiny_run, tmp_path):
    other = shutil.copytree(tiny_run.workdir, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["data"]["val"]["images"] = config["data"]["val"]["annotations"] = "moved away"
    (other / "config.json").write_text(json.dumps(config))
    flags = ("--compare", other, "--output", tmp_path / "page", "--pictures", 2, "--choose", "worst")
    report(tiny_run.config, workdir, *flags, "--config.data.val.limit=3")
    numbers = json.loads((tmp_path / "page" / "report.json").read_text())
    first, second = numbers[str(workdir)], numbers[str(other)]
    assert first["results"] == second["results"] and first["results"]["images"] == 3
    assert len(numbers["pictures"]) == 2
    assert "B: with RoI head" in (tmp_path / "page" / "index.html").read_text()


def test_pictures_that_are_not_there(workdir, tiny_run):
    with pytest.raises(
        SystemExit, match=r"no image folder at nowhere[\s\S]*name them: --config\.data\.val\.images=DIR"
    ):
        report(tiny_run.config, workdir, "--config.data.val.images=nowhere")


def test_what_cannot_be(workdir, tiny_run, tmp_path):
    with pytest.raises(SystemExit, match="holds no run: there is no"):
        report(tiny_run.config, tmp_path)
    with pytest.raises(SystemExit, match="beside itself"):
        report(tiny_run.config, workdir, "--compare", workdir)
    with pytest.raises(
        SystemExit, match=r"did you mean config\.data\.train\.limit or config\.data\.val\.limit"
    ):
        report(tiny_run.config, workdir, "--config.data.vall.limit=3")
    with pytest.raises(SystemExit, match="2"):
        report(tiny_run.config, workdir, "--choose", "best")
