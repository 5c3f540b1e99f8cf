import importlib
import json
import pathlib

import numpy as np
import pytest

from jaxdet.config import checks, presets
from jaxdet.config.keys import KEYS, default_config, keys_of
from jaxdet.config.rules import number, several, whole
from jaxdet.data.resizing import DTYPES
from jaxdet.models.layers import NORMS
from jaxdet.models.resnet import BLOCKS

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "configs.json").read_text())


def test_an_entry_is_complete():
    for name, key in KEYS.items():
        assert key.name == name and key.rule.words and key.meaning, name
        assert key.rule.test(key.default), name
        assert key.absent is None or key.rule.test(key.absent), name
        assert isinstance(key.default, bool | int | float | str | tuple), name


def test_every_call_makes_a_new_config():
    first, second = default_config(), default_config()
    first.model.rpn.nms_iou = 0.9
    assert second.model.rpn.nms_iou == KEYS["model.rpn.nms_iou"].default


def test_choices_are_those_of_the_code():
    def chosen(name, choices):
        return [choice for choice in choices if KEYS[name].rule.test(choice)]

    for name in ("model.backbone.norm", "model.fpn.norm", "model.roi_head.conv_norm"):
        assert chosen(name, [*NORMS, "batchnorm"]) == list(NORMS)
        assert all(norm in KEYS[name].rule.words for norm in NORMS)
    assert chosen("model.backbone.depth", range(200)) == sorted(BLOCKS)
    for split in ("train", "val"):
        assert chosen(f"data.{split}.resizing", [*DTYPES, "pillow"]) == list(DTYPES)


def test_a_config_without_a_second_stage_has_none_of_its_keys():
    assert keys_of({}) == list(KEYS)
    alone = keys_of({"model.roi_head": None})
    assert {name for name in KEYS if name not in alone} == {n for n in KEYS if n.startswith("model.roi_head.")}
    assert [name for name in alone if name not in KEYS] == ["model.roi_head"]


@pytest.mark.parametrize("preset", presets.RECIPES.values())
def test_presets_set_keys_that_there_are_to_what_is_right(preset):
    for name, value in preset.items():
        assert KEYS[name].rule.test(value) and type(value) is type(KEYS[name].default), name


def test_no_number_is_too_large_for_a_rule():
    for value in (10**400, -(10**400)):
        assert not whole(0).test(value)
        assert number("any").test(value) and not several("", whole(0), len).test((value,))
    assert not number("any").test(np.float32(1))


@pytest.mark.parametrize("location", GOLDEN)
def test_every_recipe_is_what_it_has_always_been(location):
    """Each key's value and type, as before the keys had entries: JSON tells 0 from 0.0."""
    name, _, argument = location.partition(":")
    config = importlib.import_module(f"configs.{name}").get_config(*([argument] if argument else []))
    flat = checks.flatten(config.to_dict())
    assert json.dumps(flat, sort_keys=True) == json.dumps(GOLDEN[location], sort_keys=True)
    assert not any(type(value) is list for value in flat.values())
