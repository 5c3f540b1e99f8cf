"""Which config `--config` means, and what `--config.KEY=VALUE` makes of it."""

import json
import sys

import pytest

from configs import person
from jaxdet.config import checks
from jaxdet.config.command_line import RECIPES, load_config, override
from tests.config.keys_test import GOLDEN

OWN = """
def get_config(argument="none"):
    config = person_small.get_config()
    config.init_from = argument
    return config
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder outside the clone, as the one that commands are called in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(RECIPES.parent))])
    return tmp_path


@pytest.mark.parametrize("location", GOLDEN)
def test_a_recipe_is_found_by_its_name_from_anywhere(location, elsewhere):
    name, colon, argument = location.partition(":")
    for place in (location, f"configs/{name}.py{colon}{argument}"):
        flat = checks.flatten(load_config(place).to_dict())
        assert json.dumps(flat, sort_keys=True) == json.dumps(GOLDEN[location], sort_keys=True)


def test_a_file_comes_before_a_recipe_of_its_name(elsewhere):
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "person_demo.py").write_text("from configs import person_small\n" + OWN)
    assert load_config("configs/person_demo.py:mine").init_from == "mine"
    assert load_config("person_demo").init_from == ""


@pytest.mark.parametrize(
    "name, words",
    [
        ("persn_small", "did you mean person_small?"),
        ("configs/person_dmeo.py", "did you mean person_demo?"),
        ("mine/frist.py", "did you mean mine/first.py?"),
        ("mine", "the recipes are person, person_demo, person_rpn, person_small"),  # a folder
        ("", "the recipes are person,"),
    ],
)
def test_a_file_that_is_not_there(elsewhere, name, words):
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "first.py").touch()
    with pytest.raises(FileNotFoundError) as error:
        load_config(name)
    assert str(error.value).startswith(f"no config {name}: No such file; {words}")


@pytest.mark.parametrize(
    "text, words",
    [
        ("def get_config(:", r"SyntaxError: invalid syntax \(own.py, line 1\)"),
        ("config = {}", "LookupError: it has no function get_config"),
        ("def get_config():\n    return {'train': 3}", "TypeError: get_config returns a dict, not a ConfigDict"),
        ("def get_config():\n    pass", "TypeError: get_config returns a NoneType, not a ConfigDict"),
        ("from configs import nobody", "ImportError: cannot import name 'nobody' from 'configs'"),
        ("import nobody_has_this", "ModuleNotFoundError: No module named 'nobody_has_this'"),
        ("def get_config(folder):\n    pass", "TypeError: get_config"),
    ],
)
def test_a_file_that_makes_no_config(elsewhere, text, words):
    (elsewhere / "own.py").write_text(text)
    before = list(sys.path), dict(sys.modules)
    with pytest.raises(ValueError, match=rf"^own\.py makes no config: {words}"):
        load_config("own.py")
    assert (list(sys.path), dict(sys.modules)) == before


def test_an_own_file_imports_recipes_and_its_neighbours(elsewhere):
    """Wherever it lies, and whatever else is called configs; none of it stays."""
    for folder in ("configs", "experiments", "other/configs"):
        (elsewhere / folder).mkdir(parents=True)
        (elsewhere / folder / "__init__.py").write_text("raise ImportError")
        (elsewhere / folder / "mine.py").write_text("from configs import base, person_small\n" + OWN)
        (elsewhere / folder / "base.py").write_text("")
    (elsewhere / "configs" / "base.py").write_text("raise ImportError('another folder')")
    sys.path.append(str(elsewhere / "other"))
    before = list(sys.path), {name: sys.modules[name] for name in sys.modules if name.startswith("configs")}
    assert load_config("experiments/mine.py").model.backbone.depth == 18
    with pytest.raises(ValueError, match="another folder"):
        load_config("configs/mine.py")
    after = list(sys.path), {name: sys.modules[name] for name in sys.modules if name.startswith("configs")}
    assert after == before and "configs.person" in after[1]


def test_a_config_of_a_workdir_by_its_old_location(elsewhere, capsys):
    (elsewhere / "run").mkdir()
    (elsewhere / "run" / "config.json").write_text(person.get_config().to_json())
    assert load_config("configs/stored.py:run").to_dict() == person.get_config().to_dict()
    assert "configs/stored.py is no longer needed" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"stored\.py makes no config: FileNotFoundError: .*nowhere/config\.json"):
        load_config("configs/stored.py:nowhere")


def test_every_way_to_set_a_key():
    config = person.get_config()
    override(config, ["--config.train.steps", "3", "--config.model.bgr", "--noconfig.data.val.keep_empty"])
    assert config.train.steps == 3 and config.model.bgr and not config.data.val.keep_empty
    override(config, ["-config.train.steps=4", "--config.model.pixel_mean=(1.0,2.0,3.0)"])
    assert config.train.steps == 4 and config.model.pixel_mean == (1.0, 2.0, 3.0)
    override(config, ["--config.model.roi_head=None", "--config.train.steps=5"])
    assert config.model.roi_head is None and config.train.steps == 5
    checks.check_config(config)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["street.jpg"], "no flag street.jpg; keys of the config are set with --config.KEY=VALUE"),
        (["--config.train.steps=3", "4"], "no flag 4;"),
        (["--steps=3"], "no flag --steps=3;"),
        (["--config=other.py"], "no flag --config=other.py;"),
        (["--config.train.stepz=3"], "no key config.train.stepz; did you mean config.train.steps?"),
        (["--noconfig.model.brg"], "no key config.model.brg; did you mean config.model.bgr?"),
        (["--config.model.roi_head=None", "--config.train.stepz=3"], "no key config.train.stepz;"),
        (["--config.train.flip=x"], "no key config.train.flip; did you mean config.data.train.flip?"),
        (["--config.data.train.flip=x"], "could not convert string to float: 'x'; a number, 0 to 1"),
        (["--config.train.steps"], "Missing value for flag --config.train.steps"),
    ],
)
def test_what_sets_no_key_is_refused(arguments, words):
    with pytest.raises(ValueError) as error:
        override(person.get_config(), arguments)
    assert words in str(error.value)
