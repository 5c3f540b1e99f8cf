"""Reports that several test files look at."""

import pytest

from jaxdet.pages import report_page
from tests.pages.small_report import ANCHORS, one_run, read_image


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The folder of the report of one run."""
    folder = tmp_path_factory.mktemp("report")
    report_page.write(folder, [one_run("runs/<one>")], read_image, ANCHORS, ("3 images & more",))
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """That of two runs."""
    folder = tmp_path_factory.mktemp("report")
    report_page.write(folder, [one_run("runs/a"), one_run("runs/b", 0.5)], read_image, ANCHORS)
    return folder
