"""Fixtures of the tests of data sources."""

import pytest

from tests.data import small_coco


@pytest.fixture
def folder(tmp_path):
    """The images of `small_coco`; the JSON is written beside it."""
    images = tmp_path / "images"
    small_coco.write_pictures(images)
    return images
