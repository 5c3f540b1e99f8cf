"""Fixtures that several test files share."""

import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def golden():
    """Folder of the small reference files that ship with the tests."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def shared():
    """Folder with real images and the full reference values; its tests are skipped where it is absent."""
    folder = pathlib.Path(os.environ.get("JAXDET_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference material at {folder}; set JAXDET_SHARED to run this test")
    return folder
