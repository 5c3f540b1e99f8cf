"""A look at data before training."""

import json
import re

import pytest
from PIL import Image

from jaxdet.__main__ import main
from jaxdet.config.command_line import load_config, override
from tests import tiny


def inspect(folder, output, *flags):
    main(["inspect", "--config", f"tests/tiny.py:{folder}", "--output", str(output), *flags])


def test_data_that_is_whole(tiny_data, tmp_path, capsys):
    inspect(tiny_data, tmp_path / "page")
    printed = capsys.readouterr().out
    assert "train: 8 images" in printed and "val: 5 images (1 without a box" in printed
    numbers = json.loads((tmp_path / "page" / "inspect.json").read_text())
    assert numbers["broken"] == []
    train = numbers["train"]
    assert train["pictures"] == 8 and train["boxes"] == 19 and train["crowd regions"] == 1
    assert train["categories"] == {"bicycle": 4, "person": 11, "dog": 4}
    assert train["smallest picture"] == [64, 64] and train["largest picture"] == [96, 96]
    assert sum(train["sizes"].values()) == 19 == train["anchors"][0]["boxes"]
    assert numbers["val"]["without boxes"] == 1
    text = (tmp_path / "page" / "index.html").read_text()
    pictures = re.findall(r'src="(samples/[^"]*)"', text)
    assert len(pictures) == 24 + 5 and "Nothing is broken" in text
    sizes = {Image.open(tmp_path / "page" / picture).size for picture in pictures}
    assert sizes == {(96, 64), (64, 96)}  # padded, as the network has them


def test_a_number_of_classes_that_does_not_fit_is_noted(tiny_data, tmp_path, capsys):
    inspect(tiny_data, tmp_path, "--config.model.num_classes=1", "--config.model.roi_head=None")
    printed = capsys.readouterr().out
    assert "training would refuse this: train: model.num_classes is 1, but" in printed
    assert "train: 8 images" in printed and "val: 5 images" in printed
    numbers = json.loads((tmp_path / "inspect.json").read_text())
    assert numbers["broken"] == [] and len(numbers["notes"]) == 2 and numbers["val"]["pictures"] == 5
    assert "num_classes is 1" in (tmp_path / "index.html").read_text()


def test_names_and_ids_that_utf8_cannot_hold(tmp_path, capsys):
    """And two ids of one name."""
    tiny.write_data(tmp_path / "data")
    for split in ("train", "val"):
        content = json.loads((tmp_path / "data" / f"{split}.json").read_text())
        for category in content["categories"][:2]:
            category["name"] = "caf\udce9"
        content["annotations"].append({"id": 99, "image_id": "\ud800", "category_id": 7, "bbox": [1, 1, 5, 5]})
        (tmp_path / "data" / f"{split}.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="unknown image"):
        inspect(tmp_path / "data", tmp_path / "page")
    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert r"image ids \ud800" in text and r"caf\udce9 15, dog 4" in text
    numbers = json.loads((tmp_path / "page" / "inspect.json").read_text())
    assert numbers["train"]["categories"] == {"caf\udce9": 15, "dog": 4}


def broken_data(folder):
    """`tiny.write_data` with one fault of each kind; returns the ids of the images concerned."""
    tiny.write_data(folder)
    content = json.loads((folder / "train.json").read_text())
    images, rows = content["images"], content["annotations"]
    (folder / "train" / images[1]["file_name"]).unlink()
    damaged = folder / "train" / images[2]["file_name"]
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = b"\0" * 40  # head and end stay: only decoding tells
    damaged.write_bytes(data)
    empty = next(row for row in rows if row["image_id"] == images[3]["id"])
    empty["bbox"][2] = 0
    rows.append({"id": 99, "image_id": 12345, "category_id": 7, "bbox": [1, 1, 5, 5]})
    (folder / "train.json").write_text(json.dumps(content))
    return [images[i]["id"] for i in (1, 2, 3)] + [12345]


def test_broken_data_ends_with_1_and_names_the_images(tmp_path, capsys):
    ids = broken_data(tmp_path / "data")
    with pytest.raises(SystemExit) as stop:
        inspect(tmp_path / "data", tmp_path / "page")
    message = str(stop.value)  # a text as exit code is 1
    expected = (
        "image file missing",
        "image does not decode",
        "bbox empty or negative",
        "annotation of an unknown image",
    )
    for image_id, reason in zip(ids, expected, strict=True):
        assert re.search(rf"train: 1 x {reason}, image ids {image_id}$", message, re.M), message
    assert message.count("\n") == 4 and "val" not in message
    assert '<p class="fault">' in (tmp_path / "page" / "index.html").read_text()
    assert json.loads((tmp_path / "page" / "inspect.json").read_text())["broken"] == message.splitlines()[1:]


def test_a_split_that_is_not_there_is_named_and_the_other_one_shown(tiny_data, tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"val: no annotation file at .*nowhere\.json"):
        inspect(tiny_data, tmp_path, "--config.data.val.annotations=nowhere.json")
    assert "train: 8 images" in capsys.readouterr().out
    assert "val" not in json.loads((tmp_path / "inspect.json").read_text())


@pytest.mark.parametrize(
    "flag, answer",
    [
        ("--config.data.trian.limit=3", r"no key config\.data\.trian\.limit; did you mean config\.data\.train\.limit"),
        ("--config.data.train.limit=few", "invalid literal"),
        ("--config.data.train.limit=-1", r"config\.data\.train\.limit is -1"),
        ("--limit=3", "no flag --limit=3"),
    ],
)
def test_wrong_flags(tiny_data, tmp_path, flag, answer):
    with pytest.raises(SystemExit, match=answer):
        inspect(tiny_data, tmp_path, flag)


def test_overrides_are_taken_as_train_takes_them():
    config = load_config("configs/person_small.py")
    flags = ["--config.data.categories=('dog','cat')", "--config.data.val.keep_empty=False"]
    override(config, [*flags, "--config.train.steps=5", "--config.optimizer.learning_rate=1e-4"])
    assert config.data.categories == ("dog", "cat") and config.data.val.keep_empty is False
    assert config.train.steps == 5 and config.optimizer.learning_rate == 1e-4
