import json
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

import jaxdet
from jaxdet.__main__ import main
from jaxdet.data.decoding import decode
from jaxdet.inference import predict as predicting
from tests import tiny

IMAGE = tiny.picture(100, 170)


class Fixed:
    """A detector that finds the same in every image."""

    categories = ({"id": 7, "name": "person"}, {"id": 9, "name": "dog"})

    def __call__(self, image):
        assert image.dtype == np.uint8 and image.shape == IMAGE.shape
        return {
            "boxes": np.array([[10, 20, 60, 90], [100, 10, 140, 50.5], [0, 0, 9, 9]], np.float32),
            "scores": np.array([0.9, 0.6, 0.1], np.float32),
            "labels": np.array([0, 1, 0], np.int32),
        }


@pytest.fixture
def fixed(monkeypatch):
    monkeypatch.setattr("jaxdet.inference.predict.load", lambda workdir: Fixed())


def predict(*arguments):
    main(["predict", *map(str, arguments)])


def write_pictures(folder):
    """One file of each kind that a camera or a web page may write."""
    folder.mkdir()
    picture = Image.fromarray(IMAGE)
    picture.save(folder / "plain.jpg")
    picture.convert("L").save(folder / "grey.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    deep = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    picture.putalpha(128)
    picture.save(folder / "alpha.png")
    picture.convert("P").save(folder / "palette.png")
    whole = (folder / "plain.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    return [folder / name for name in ("plain.jpg", "grey.png", "cmyk.jpg", "deep.png", "alpha.png", "palette.png")]


def test_every_kind_of_image_from_the_command_line(tiny_run, tmp_path):
    """As a stranger calls it, with a truncated image in the middle; Python says the same as the command."""
    good = write_pictures(tmp_path / "pictures")
    truncated, missing = tmp_path / "pictures" / "truncated.jpg", tmp_path / "nowhere.jpg"
    command = [sys.executable, "-m", "jaxdet", "predict", "--workdir", tiny_run.workdir, "--output", tmp_path / "out"]
    done = subprocess.run(
        [*command, *good[:2], truncated, missing, *good[2:]],
        cwd=tiny.ROOT,
        env=tiny.ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "left out:" in done.stderr and "Traceback" not in done.stderr and "WARNING" not in done.stderr
    assert str(truncated) in done.stderr and str(missing) in done.stderr and "grey" not in done.stderr
    assert "6 images and detections.json" in done.stdout

    rows = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [row["picture"] for row in rows] == [str(path) for path in good]
    detector = jaxdet.load(tiny_run.workdir)
    names = [category["name"] for category in detector.categories]
    for row in rows[:3]:
        with tiny.quick_compilation():
            found = detector(decode(row["picture"]))
        assert row["detections"] == [
            {"box": box, "score": score, "label": names[label]}
            for box, score, label in zip(*(found[k].tolist() for k in ("boxes", "scores", "labels")), strict=True)
        ]
        assert row["detections"]
    for row in rows:
        assert Image.open(tmp_path / "out" / row["drawn"]).size == (170, 100)


def test_everything_is_written_and_the_best_is_drawn(fixed, tmp_path, capsys):
    Image.fromarray(IMAGE).save(tmp_path / "street.png")
    predict("--workdir", tmp_path, tmp_path / "street.png")
    output = tmp_path / "predictions"
    (row,) = json.loads((output / "detections.json").read_text())
    assert row["picture"] == str(tmp_path / "street.png") and row["drawn"] == "street.png"
    assert [d["label"] for d in row["detections"]] == ["person", "dog", "person"]
    assert row["detections"][1]["box"] == [100, 10, 140, 50.5]
    assert row["detections"][0]["score"] == pytest.approx(0.9)
    drawn = np.asarray(Image.open(output / "street.png"))
    changed = (drawn != IMAGE).any(-1)
    assert changed[20, 30] and changed[10, 120]  # upper edges of the two
    assert not changed[8, 4] and not changed[60, 40]  # 0.1 is below the threshold; the inside of a box stays
    assert str(output) in capsys.readouterr().out


@pytest.mark.parametrize("threshold, edges", [(0.7, (True, False)), (0.05, (True, True)), (1.0, (False, False))])
def test_threshold_is_of_the_drawing_alone(fixed, tmp_path, threshold, edges):
    Image.fromarray(IMAGE).save(tmp_path / "street.png")
    predict("--workdir", tmp_path, "--threshold", threshold, tmp_path / "street.png")
    drawn = np.asarray(Image.open(tmp_path / "predictions" / "street.png"))
    changed = (drawn != IMAGE).any(-1)
    assert (changed[55, 10], changed[30, 140 - 1]) == edges
    assert len(json.loads((tmp_path / "predictions" / "detections.json").read_text())[0]["detections"]) == 3


def test_images_of_one_name_do_not_overwrite_each_other(fixed, tmp_path):
    paths = [tmp_path / folder / name for folder in "ab" for name in ("1.png", "1.bmp")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(IMAGE).save(path)
    predict("--workdir", tmp_path, "--output", tmp_path / "out", *paths)
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [row["drawn"] for row in rows] == ["1.png", "1-2.png", "1-3.png", "1-4.png"]
    assert all((tmp_path / "out" / row["drawn"]).exists() for row in rows)


def test_inputs_are_not_overwritten(fixed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(IMAGE).save("street.png")
    before = (tmp_path / "street.png").read_bytes()
    (tmp_path / "deep").mkdir()
    for given in ("street.png", "deep/../street.png", str(tmp_path / "street.png")):
        predict("--workdir", "w", "--output", ".", given)
        assert json.loads((tmp_path / "detections.json").read_text())[0]["drawn"] == "street-2.png"
    assert (tmp_path / "street.png").read_bytes() == before


@pytest.mark.parametrize("given", ["in", "in/*.png", "in/**/*.png"])
def test_the_output_may_lie_in_what_is_given_or_around_it(tmp_path, monkeypatch, given):
    (tmp_path / "in" / "out").mkdir(parents=True)
    for name in ("a.png", "out/b.png"):
        (tmp_path / "in" / name).touch()
    monkeypatch.chdir(tmp_path)
    assert predicting.find([given], pathlib.Path("in/out")) == (["in/a.png"], [])
    around, failed = predicting.find([given], pathlib.Path("."))
    assert "in/a.png" in around and not failed
    files, failed = predicting.find(["in"], pathlib.Path("in"))
    assert not files and "is also the output folder" in failed[0]


def test_only_bad_images(fixed, tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"left out:\n.*empty\.jpg") as stop:
        predict("--workdir", tmp_path, tmp_path / "empty.jpg", tmp_path)
    assert str(stop.value).count("\n") == 2  # both are named
    assert json.loads((tmp_path / "predictions" / "detections.json").read_text()) == []


def test_no_run(tmp_path):
    with pytest.raises(SystemExit, match=r"jaxdet: .* holds no run"):
        predict("--workdir", tmp_path, "street.png")


@pytest.mark.parametrize("arguments", [["predict"], ["predict", "--workdir", "w"], ["nothing"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "usage: jaxdet" in capsys.readouterr().err


def test_without_arguments_the_commands_are_listed(capsys):
    main([])
    printed = capsys.readouterr().out
    assert "usage: jaxdet" in printed and "predict" in printed and "evaluate" in printed


def test_version_and_public_names():
    assert isinstance(jaxdet, types.ModuleType) and jaxdet.__version__
    assert set(jaxdet.__all__) == {"Detector", "load"} and callable(jaxdet.load)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jaxdet.nothing  # noqa: B018
