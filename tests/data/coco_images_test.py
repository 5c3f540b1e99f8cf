"""Images that a JSON lists and a folder has not, or has otherwise: skipped with a reason, or an error that helps."""

import shutil

import numpy as np
import pytest
from PIL import Image

from jaxdet.data.coco import CocoSource, summary
from tests.data.small_coco import SIZES, content, open_source, reasons, write


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("share", [0, 0.02, 0.6, 0.97])
def test_truncated_images_are_skipped(folder, kind, share):
    data = content()
    Image.open(folder / "3.png").save(folder / "3.jpg")
    data["images"][1]["file_name"] = f"3.{kind}"
    cut(folder / f"3.{kind}", share)
    source = open_source(folder, data)
    assert reasons(source) == ["image unreadable or truncated"]
    assert source.skipped[0]["image_id"] == 3 and f"3.{kind}" in source.skipped[0]["detail"]
    np.testing.assert_array_equal(source.image_ids, [8, 21])  # and its annotations go with it, uncounted
    assert [a["id"] for a in source.ground_truth()["annotations"]] == [5]


def test_missing_and_false_images_are_skipped(folder):
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


def test_an_image_that_spoils_later_is_none(folder):
    source = open_source(folder, content())
    cut(folder / "3.png", 0.5)
    (folder / "8.png").unlink()
    Image.new("RGB", (9, 9)).save(folder / "21.png")
    assert [record["image"] for record in source] == [None, None, None]
    assert source[0]["image_id"] == 3 and len(source[0]["boxes"]) == 2


def test_images_that_are_links_to_elsewhere_say_so(folder, tmp_path):
    (tmp_path / "links").mkdir()
    for path in folder.iterdir():
        (tmp_path / "links" / path.name).symlink_to(path)
    expected = r"none of the 3 images .* file_name leaves the image folder by a symbolic link: '3\.png'"
    with pytest.raises(ValueError, match=expected):
        CocoSource(tmp_path / "links", write(folder, content()))


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
