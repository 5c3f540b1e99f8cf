import json
import math
import pathlib
import re

import pytest

from configs import person, person_rpn
from jaxdet.config import checks
from jaxdet.config.keys import KEYS
from jaxdet.runs.workdir import Workdir
from tests.configs_test import NAMES, load

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_wrong_values_are_all_named_at_once():
    config = person.get_config()
    config.model.backbone.depth = 19
    config.optimizer.learning_rate = 0.0
    config.train.steps = -5
    with pytest.raises(ValueError) as error:
        checks.check_config(config)
    message = str(error.value)
    assert "config.model.backbone.depth is 19: one of [18, 34, 50, 101]" in message
    assert "config.optimizer.learning_rate is 0.0: a number, above 0" in message
    assert "config.train.steps is -5: a whole number, at least 1" in message


@pytest.mark.parametrize(
    "key, value",
    [
        ("seed", -1),
        ("model.dtype", "float16"),
        ("model.backbone.norm", "layer_norm"),
        ("model.backbone.freeze_at", 6),
        ("model.backbone.remat", (4, 6)),
        ("model.rpn.anchor_sizes", (32.0, 64.0)),
        ("model.rpn.nms_iou", 1.5),
        ("model.rpn.pre_nms_topk", (500,)),
        ("model.rpn.post_nms_topk", (500, 0)),
        ("model.roi_head.box_weights", (10.0, 10.0)),
        ("model.pixel_std", (58.0, 57.0, 0.0)),
        ("model.roi_head.sampling_ratio", 0),
        ("data.categories", (1, 2)),
        ("data.categories", "person"),
        ("data.workers", -1),
        ("data.train.limit", -3),
        ("data.train.short_sides", ()),
        ("data.val.short_sides", (800.5,)),
        ("data.val.longest_side", 0),
        ("data.train.flip", 2.0),
        ("optimizer.name", "adam"),
        ("optimizer.schedule", "linear"),
        ("optimizer.step_boundaries", ("a", "b")),
        ("optimizer.step_boundaries", (80, 60)),
        ("optimizer.step_boundaries", (60, 60)),
        ("optimizer.warmup_factor", 0.0),
        ("optimizer.warmup_factor", "fast"),
        ("optimizer.ema", 1.0),
        ("optimizer.learning_rate", float("nan")),
        ("train.accumulation", 0),
        ("train.evaluate_every", 0),
    ],
)
def test_a_wrong_value_is_refused(key, value):
    config = person.get_config().to_dict()
    node = config
    *sections, name = key.split(".")
    for section in sections:
        node = node[section]
    node[name] = value
    with pytest.raises(ValueError, match=f"config.{key} is "):
        checks.check_config(checks.ConfigDict(config))


@pytest.mark.parametrize("name", NAMES)
def test_every_key_has_a_rule_and_no_other_type_passes(name):
    config = load(name)
    flat = checks.flatten(config.to_dict())
    without_head = {key for key in KEYS if not key.startswith("model.roi_head.")}
    assert flat.keys() == (KEYS.keys() if config.model.roi_head else without_head | {"model.roi_head"})
    for key in flat.keys() & KEYS.keys():
        right, test = KEYS[key].rule
        assert test(flat[key]) and right
        wrong = [math.nan, math.inf, -1, 2**31, None, b"", {}, [None], ("a", 1), object(), (math.nan,) * 4]
        wrong += [str(flat[key]) + "s"] if type(flat[key]) is not str else [7]
        wrong += [1, 0] if type(flat[key]) is bool else [True]
        for value in wrong:
            large = value == 2**31 and test(1e9)  # a real number without an upper end
            assert large or not test(value), (key, value)


def test_unknown_and_missing_keys_of_a_config_file():
    config = person.get_config()
    config.model.backbone.dpeth = 18
    config.warmup_steps = 3
    del config.data.train["flip"]
    with pytest.raises(ValueError) as error:
        checks.check_config(config)
    assert "no key config.model.backbone.dpeth; did you mean config.model.backbone.depth?" in str(error.value)
    assert "no key config.warmup_steps; did you mean config.optimizer.warmup_steps?" in str(error.value)
    assert "config.data.train.flip is missing: a number, 0 to 1" in str(error.value)


def test_every_key_is_found_by_a_misspelt_name():
    for key in KEYS:
        for wrong in (key[:-1], key + key[-1], key[:-2] + key[-1] + key[-2]):
            if wrong not in KEYS:
                assert f"config.{key}" in re.split("[ ?]", checks.nearest(wrong, KEYS)), wrong


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"train.batch_size": 16, "train.accumulation": 3},
            "config.train.batch_size is 16 and config.train.accumulation is 3: the first does not divide",
        ),
        (
            {"model.rpn.negative_iou": 0.8},
            "config.model.rpn.negative_iou is 0.8 and config.model.rpn.positive_iou is 0.7: the first must",
        ),
        (
            {"data.train.source": "tfds"},
            "config.data.train.source is 'tfds' and config.data.train.directory is '': this source needs",
        ),
        (
            {"data.train.source": "synthetic"},
            "config.data.train.source is 'synthetic' and config.data.train.scenes is 0: this source needs",
        ),
        (
            {"data.val.source": "synthetic", "data.val.scenes": 5, "data.categories": ("dog",)},
            r"config.data.val.source is 'synthetic' and config.data.categories is \('dog',\): drawn scenes hold people",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_named_together(change, message):
    config = person.get_config()
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        checks.check_config(config)


def older(config):
    """What a workdir held before some keys were there."""
    content = json.loads(config.to_json())
    for split in content["data"]["train"], content["data"]["val"]:
        del split["resizing"]
        split["floor_sizes"] = False
    del content["model"]["test"]["smallest_side"], content["train"]["nonfinite"]
    del content["train"]["shard_parameters"], content["init_from"]
    return content


def test_an_older_workdir_loads_with_what_it_was_made_with(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(older(person.get_config())))
    assert checks.changes(Workdir(tmp_path).config().to_dict(), person.get_config().to_dict()) == {}
    Workdir(tmp_path).compare_config(person.get_config())
    assert capsys.readouterr().out == ""


def test_an_older_config_file_is_filled_in():
    config = person.get_config().to_dict()
    del config["model"]["backbone"]["remat"], config["train"]["nonfinite"]
    config = checks.ConfigDict(config).lock()  # as from a flag
    checks.check_config(config)
    assert config.model.backbone.remat == () and config.train.nonfinite == "stop" and config.is_locked
    config = person.get_config()
    del config.train
    with pytest.raises(ValueError, match=r"config\.train\.steps is missing"):
        checks.check_config(config)


def test_a_text_as_categories_is_told_to_be_a_tuple():
    config = person.get_config().to_dict()
    config["data"]["categories"] = "person"
    with pytest.raises(ValueError, match=r"categories is 'person': a tuple of names, such as \('person',\)"):
        checks.check_config(checks.ConfigDict(config))


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "is no config"),
        ("[]", "is no config"),
        ("[" * 100_000, "is no config"),
        ('{"model": 3}', "is no config"),
        ('{"model": {"depth": 3}, "data": {"train": {}, "val": {}}, "train": {}}', "is no config"),
        (
            '{"data": {"train": {}, "val": {}}, "model": {"test": {}, "backbone": {}}, "train": {}}',
            "config.seed is missing",
        ),
    ],
)
def test_a_damaged_config_of_a_workdir(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"config\.json (.|\n)*{message}"):
        Workdir(tmp_path).config()


# Where the keys of a section are read, as jaxdet spells it
READ_AS = {
    "optimizer": r"(settings|optimizer)\.",
    "train": r"config\.train\.",
    "evaluation": r"config\.evaluation\.",
    "data.train": r"(split|config\.data\.train)\.",
    "data.val": r"(split|config\.data\.val)\.",
    "data": r"config\.data\.",
    "": r"config\.",
    "model.backbone": r"(self|model\.backbone)\.",
}


def test_every_key_is_read_in_the_section_it_stands_in():
    """Not only some attribute of that name: `.split` and `.name` are everywhere."""
    sources = "\n".join(path.read_text() for path in (ROOT / "jaxdet").rglob("*.py") if path.parent.name != "config")
    for key in KEYS:
        section, _, name = key.rpartition(".")
        if key.startswith(("model.loss_weights.", "model.test.")):
            assert re.search(rf"\b{name}\b", sources), key  # by name, into keyword arguments
        else:
            way = READ_AS.get(section, r"self\.")
            assert re.search(rf"{way}{name}\b", sources), key


def test_changes_are_named_key_by_key():
    before = person.get_config().to_dict()
    now = person.get_config()
    now.optimizer.learning_rate = 0.01
    now.data.train.short_sides = (800,)
    assert checks.changes(before, json.loads(now.to_json())) == {
        "optimizer.learning_rate": "0.02 -> 0.01",
        "data.train.short_sides": "(640, 672, 704, 736, 768, 800) -> (800,)",
    }
    assert checks.changes(before, json.loads(json.dumps(before))) == {}


def resume(tmp_path, before, now):
    workdir = Workdir(tmp_path)
    workdir.write_config(before)
    workdir.compare_config(now)
    workdir.write_config(now)
    return json.loads((tmp_path / "config.json").read_text())


def test_a_changed_config_is_named_and_counts_from_then_on(tmp_path, capsys):
    now = person.get_config()
    now.train.steps = 270_000
    now.optimizer.step_boundaries = (210_000, 250_000)
    written = resume(tmp_path, person.get_config(), now)
    printed = capsys.readouterr().out
    assert "config.train.steps: 90000 -> 270000" in printed
    assert "config.optimizer.step_boundaries: (60000, 80000) -> (210000, 250000)" in printed
    assert printed.count("config.") == 2
    assert checks.changes(written, now.to_dict()) == {}


def test_an_equal_config_is_not_mentioned(tmp_path, capsys):
    resume(tmp_path, person.get_config(), person.get_config())
    assert capsys.readouterr().out == ""


def test_another_model_is_refused(tmp_path):
    now = person.get_config()
    now.model.backbone.depth = 18
    now.model.num_classes = 2
    with pytest.raises(ValueError, match="holds another model") as error:
        resume(tmp_path, person.get_config(), now)
    assert "config.model.backbone.depth: 50 -> 18" in str(error.value)
    assert "config.model.num_classes: 1 -> 2" in str(error.value)
    assert json.loads((tmp_path / "config.json").read_text())["model"]["num_classes"] == 1


@pytest.mark.parametrize("first, second", [(person, person_rpn), (person_rpn, person)])
def test_a_box_head_more_or_less_is_another_model(tmp_path, first, second):
    with pytest.raises(ValueError, match=r"config\.model\.roi_head"):
        resume(tmp_path, first.get_config(), second.get_config())


def test_what_leaves_the_parameters_alone_may_change(tmp_path, capsys):
    before, now = person.get_config(), person.get_config()
    now.model.test.score_threshold = 0.5
    now.model.dtype = "bfloat16"
    now.model.backbone.remat = (3, 4)
    del before.model.backbone.remat  # as in a run that is older than the key
    now.model.loss_weights.roi_box = 2.0
    now.model.rpn.post_nms_topk = (500, 300)
    resume(tmp_path, before, now)
    printed = capsys.readouterr().out
    assert "config.model.test.score_threshold: 0.05 -> 0.5" in printed
    assert all(key in printed for key in ("model.dtype", "loss_weights.roi_box", "rpn.post_nms_topk"))


@pytest.mark.parametrize("key, value", [("name", "adamw"), ("ema", 0.99)])
def test_another_kind_of_optimiser_is_refused(tmp_path, key, value):
    now = person.get_config()
    now.optimizer[key] = value
    with pytest.raises(ValueError, match=rf"do not fit.*\n.*config\.optimizer\.{key}: "):
        resume(tmp_path, person.get_config(), now)
