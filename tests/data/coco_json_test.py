"""Every fault of a COCO JSON that makes it unusable: an error before the first step that names file and key."""

import json

import pytest

from jaxdet.data.coco import CocoSource
from tests.data.small_coco import broken, content, open_source


@pytest.mark.parametrize("share", [0, 0.3, 0.5, 0.8, 0.999])
def test_json_cut_short(folder, share):
    text = json.dumps(content())
    with pytest.raises(ValueError, match=r"annotations\.json.*cut short.*line 1 column \d+"):
        open_source(folder, text[: int(len(text) * share)])


def test_json_that_is_not_text(folder):
    path = folder.parent / "binary.json"
    path.write_bytes(b'{"images": "\xff\xfe"}')
    with pytest.raises(ValueError, match=r"binary\.json.*byte"):
        CocoSource(folder, path)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content()).encode())  # a byte order mark does no harm
    assert len(CocoSource(folder, path)) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected a JSON object"),
        ("null", "expected a JSON object"),
        (broken("images"), "'images'"),
        (broken("annotations"), "'annotations'"),
        (broken("categories"), "'categories'"),
        (broken("images", value={}), "images: expected a list"),
        (broken("annotations", value=None), "annotations: expected a list"),
        (broken("categories", value=7), "categories: expected a list"),
        (broken("images", value=[]), "images: the list is empty"),
        (broken("images", 1, value=3), r"images\[1\]: expected an object"),
        (broken("images", 1, "id"), r"images\[1\]: no key 'id'"),
        (broken("images", 1, "id", value="3"), r"images\[1\]\.id: expected an integer, got '3'"),
        (broken("images", 1, "id", value=2**70), r"images\[1\]\.id: expected an integer"),
        (broken("images", 1, "id", value=True), r"images\[1\]\.id: expected an integer"),
        (broken("images", 1, "file_name"), r"images\[1\]: no key 'file_name'"),
        (broken("images", 1, "file_name", value=7), r"images\[1\]\.file_name: expected a string"),
        (broken("images", 1, "width", value="60"), r"images\[1\]\.width: expected an integer"),
        (broken("images", 1, "id", value=8), r"images\[2\]\.id: 8 is there twice"),
        (broken("images", 1, "id", value=-3), r"images\[1\]\.id: -3 is below 0"),
        (broken("annotations", 2, value=[1]), r"annotations\[2\]: expected an object"),
        (broken("categories", 0, "id"), r"categories\[0\]: no key 'id'"),
        (broken("categories", 0, "name", value=None), r"categories\[0\]\.name: expected a string"),
        (broken("categories", 0, "id", value=4), r"categories\[2\]\.id: 4 is there twice"),
        (broken("categories", value=[]), "no category named 'person'.*none"),
    ],
)
def test_structure_faults_name_file_and_key(folder, data, message):
    with pytest.raises(ValueError, match=rf"annotations\.json.*{message}"):
        open_source(folder, data)


def test_unknown_category_name(folder):
    with pytest.raises(ValueError, match=r"'Persn', did you mean 'person'\? There are: dog, person, cat"):
        open_source(folder, content(), ("cat", "Persn"))
    with pytest.raises(ValueError, match="no category named 'zebra'"):
        open_source(folder, content(), ("zebra",))
    with pytest.raises(ValueError, match="none chosen"):
        open_source(folder, content(), ())
