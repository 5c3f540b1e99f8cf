"""Configs on a command line: `--config FILE[:ARGUMENT]` and `--config.KEY=VALUE`, alike in all commands."""

import difflib
import json
import os
import pathlib
import re
import runpy
import sys
import types

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxdet.config.checks import config_from_json, flatten, nearest
from jaxdet.config.keys import HEAD, KEYS

PACKAGE = pathlib.Path(__file__).resolve().parents[1]
SHIPPED = PACKAGE / "config" / "recipes"
RECIPES = SHIPPED if SHIPPED.is_dir() else PACKAGE.parent / "configs"  # of a wheel, or of a clone
NO_HEAD = re.compile(rf"--?config\.{HEAD}=None")
OVERRIDE = re.compile(r"--?(no)?config\.")


def load_config(location):
    """The config of FILE[:ARGUMENT]; or of one of jaxdet's recipes by name, such as `person:torchvision`.

    Raises FileNotFoundError, with the nearest name, if there is no such file, and ValueError if the
    file makes no config.
    """
    name, _, argument = location.partition(":")
    stored = pathlib.Path(name).stem == "stored" and not pathlib.Path(name).exists()
    path = None if stored else _find(name)
    try:
        if stored:
            print(f"{name} is no longer needed: without --config, eval.py takes the config of its workdir")
            return config_from_json(json.loads(pathlib.Path(argument, "config.json").read_text()))
        return _run(path, argument)
    except Exception as error:
        raise ValueError(f"{name} makes no config: {type(error).__name__}: {error}") from error


def _find(name):
    """The file that makes a config. Raises FileNotFoundError if there is none."""
    path = pathlib.Path(name)
    recipes = {recipe.stem: recipe for recipe in sorted(RECIPES.glob("*.py"))}
    recipe = name.removeprefix("configs/").removesuffix(".py")
    if path.is_file() or recipe in recipes:
        return path if path.is_file() else recipes[recipe]
    known = {stem: stem for stem in recipes} | {file.stem: file for file in path.parent.glob("*.py")}
    near = difflib.get_close_matches(path.stem, known, 1)
    words = f"did you mean {known[near[0]]}?" if near else f"the recipes are {', '.join(recipes)}"
    raise FileNotFoundError(f"no config {name}: No such file; {words}")


def _run(path, argument):
    """What `get_config` of a file returns.

    While it runs, `configs` is a package of the files beside it, of other folders of that name on Python's
    path, and of jaxdet's recipes, in this order.
    """
    path = path.resolve()
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "configs"}
    for name in before:
        del sys.modules[name]
    sys.path.insert(0, str(path.parent.parent))
    sys.modules["configs"] = package = types.ModuleType("configs")
    elsewhere = [os.path.join(folder, "configs") for folder in sys.path]
    package.__path__ = [str(path.parent), *elsewhere, str(RECIPES)]
    try:
        functions = runpy.run_path(str(path))
        if "get_config" not in functions:
            raise LookupError("it has no function get_config")
        config = functions["get_config"](*([argument] if argument else []))
        if not isinstance(config, ConfigDict):
            raise TypeError(f"get_config returns a {type(config).__name__}, not a ConfigDict")
        return config
    finally:
        sys.path.remove(str(path.parent.parent))
        for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
            del sys.modules[name]
        sys.modules.update(before)


def override(config, arguments):
    """Changes a config as `--config.KEY=VALUE ...` say.

    Raises ValueError for any other argument, for a key that the config does not have (with the nearest), and
    for a value of a wrong type (with what is right).
    """
    values = [argument for argument in arguments if not NO_HEAD.fullmatch(argument)]
    for argument in values:
        if argument.startswith("-") and not OVERRIDE.match(argument):
            raise ValueError(_no_flag(argument))
    argv, fields = ["", *values], flags.FlagValues()
    fields.set_gnu_getopt()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=fields, sys_argv=argv)
        words = fields(argv)[1:]
    except (AttributeError, LookupError, TypeError, ValueError, flags.Error) as error:
        raise ValueError(_unknown_key(config, values) or _with_rule(str(error))) from error
    if words:
        raise ValueError(_no_flag(words[0]))
    if len(values) < len(arguments):  # ml_collections takes no None for a section
        config.update_from_flattened_dict({HEAD: None})


def _no_flag(word):
    return f"no flag {word}; keys of the config are set with --config.KEY=VALUE"


def _unknown_key(config, arguments):
    """What to say of the first override whose key the config does not have; None if it has all of them."""
    keys = list(flatten(config.to_dict()))
    for argument in arguments:
        name = OVERRIDE.sub("config.", argument.split("=")[0], count=1)
        key = name.removeprefix("config.")
        if name != key and not any(f"{other}.".startswith(f"{key}.") for other in keys):
            return f"no key {name}; {nearest(key, keys)}"
    return None


def _with_rule(message):
    """An error about the value of an override, with what is right for the key that it names."""
    key = re.search(r"--config\.([\w.]+)=", message)
    return f"{message}; {KEYS[key[1]].rule.words}" if key and key[1] in KEYS else message
