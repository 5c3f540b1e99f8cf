"""Fixtures that several test files share."""

import gc
import os
import pathlib

import jaxtyping
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Checks types and shapes of arguments and results in every call; as in mypy, an int passes as a float.
# Must run before jaxdet is imported.
jaxtyping.install_import_hook(
    ["jaxdet.ops", "jaxdet.models", "jaxdet.data", "jaxdet.evaluation"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# What JAX traced stays: at the usual pace, looking for garbage among it takes a sixth of the time.
gc.set_threshold(20_000, 20, 100)


@pytest.fixture(scope="module")
def symbolic_shapes():
    """Without the checks of shapes, for exported programs: jaxtyping cannot compare sizes that are symbols."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


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


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Folder with the few images of `tiny.write_data`; not to be changed."""
    from tests import tiny

    folder = tmp_path_factory.mktemp("tiny") / "data"
    tiny.write_data(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_run(tiny_data):
    """One training of `tiny.get_config`, 6 steps, that many tests look at; its workdir is not to be changed.

    config, workdir; state: the final one; printed: standard output; events: "step", "logged" and "evaluated"
    in their order, and between them the names of the functions that were compiled.
    """
    from tests import tiny

    return tiny.undisturbed_run(tiny_data)
