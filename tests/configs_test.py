"""The recipes in configs/."""

import ast
import functools
import importlib
import pathlib

import jax
import pytest

from configs import person_rpn
from jaxdet.config import checks
from jaxdet.models import FasterRCNN
from jaxdet.training.optimizer import optimizer
from jaxdet.training.step import create_state

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "stored"))


def load(name):
    return importlib.import_module(f"configs.{name}").get_config()


@functools.cache
def read_attributes():
    """Every name that some file of jaxdet reads as `.name` or `["name"]`; jaxdet/config only checks them."""
    names = set()
    for path in (ROOT / "jaxdet").rglob("*.py"):
        if path.parent.name != "config":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    names.add(node.attr)
                elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                    names.add(node.slice.value)
    return names


@pytest.mark.parametrize("name", NAMES)
def test_every_config_builds_its_model_and_state(name):
    config = load(name)
    checks.check_config(config)
    model = FasterRCNN(**config.model)
    state = jax.eval_shape(lambda: create_state(model, optimizer(config), config))
    assert jax.tree.leaves(state.trainable)
    assert (state.average != {}) == bool(config.optimizer.ema)
    assert ("box_head" in state.trainable) == (config.model.roi_head is not None)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        assert leaf.dtype in ("float32", "int32"), path  # whatever the arithmetic runs in


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_read_somewhere(name):
    """Keys of `model` are fields of modules, which refuse unknown ones; both kinds must be read by name."""
    keys = checks.flatten(load(name).to_dict())
    unread = [key for key in keys if key.split(".")[-1] not in read_attributes()]
    # the four weights and the settings of the last stage go by name into dictionaries and keyword arguments
    passed = ("model.loss_weights.", "model.test.")
    assert [key for key in unread if not key.startswith(passed)] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_config_has_the_keys_of_person(name):
    """So an override or a script that works with one works with all."""
    keys, expected = (checks.flatten(load(n).to_dict()).keys() for n in (name, "person"))
    if load(name).model.roi_head is None:
        expected = {key for key in expected if not key.startswith("model.roi_head")} | {"model.roi_head"}
    assert set(keys) == set(expected)


def test_docstrings_hold_the_command():
    for name in NAMES:
        assert f"--config configs/{name}.py --workdir" in importlib.import_module(f"configs.{name}").__doc__


@pytest.mark.parametrize("name", [name for name in NAMES if name != "person_rpn"])
def test_the_rpn_alone_of_every_config(name):
    alone, whole = person_rpn.get_config(name).to_dict(), load(name).to_dict()
    assert alone["model"].pop("roi_head") is None and whole["model"].pop("roi_head")
    assert alone == whole
