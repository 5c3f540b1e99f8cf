"""The flags of train.py and eval.py, and configs by their place: what does not fit gets its answer in one line."""

import os
import pathlib
import re
import runpy
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

HEADLESS = "config.model.roi_head=None"


def define_cluster_flags():
    """Flags of a process that is one of several; returns a function that joins the others as they say."""
    distributed = flags.DEFINE_bool(
        "distributed", False, "One process of several, as the cluster's own variables tell JAX."
    )
    coordinator = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, of several processes.")
    processes = flags.DEFINE_integer("processes", None, "How many processes there are.", lower_bound=1)
    process = flags.DEFINE_integer("process", None, "Which of them this one is, from 0.", lower_bound=0)
    heartbeat = flags.DEFINE_integer(
        "heartbeat_seconds", 100, "A process silent for so long is dead, and the others end.", lower_bound=1
    )

    def join():
        from jaxdet.runs.mesh import join_cluster  # after the flags: a misspelt one answers at once

        join_cluster(distributed.value, coordinator.value, processes.value, process.value, heartbeat.value)

    return join


def parse_flags(argv):
    """absl's parser, for `app.run`; exits with the nearest keys where an override names one that the config lacks."""
    kept, headless = _without_head(argv)
    try:
        rest = flags.FLAGS(kept)
        if headless:
            flags.FLAGS.config.model.roi_head = None
        return rest
    except flags.Error as error:
        sys.exit(
            f"{os.path.basename(argv[0])}: {_with_range(error)}; --helpshort and --helpfull list the flags"
        )
    except (ImportError, OSError) as error:  # the config file itself
        sys.exit(f"{os.path.basename(argv[0])}: {error}")
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        sys.exit(f"{os.path.basename(argv[0])}: {_unknown_key_of(argv) or _with_range(error)}")


def _without_head(arguments):
    """Arguments but `--config.model.roi_head=None`, and whether it was there: ml_collections takes no None for a section."""
    kept = [text for text in arguments if text not in (f"-{HEADLESS}", f"--{HEADLESS}")]
    return kept, len(kept) < len(arguments)


def _with_range(error):
    """The error about an override's value, with what is right for the key that it names."""
    from jaxdet.config.checks import RULES

    key = re.search(r"--config\.([\w.]+)=", str(error))
    return f"{error}; {RULES[key[1]][0]}" if key and key[1] in RULES else error


def override(config, arguments):
    """Changes a config as `--config.KEY=VALUE ...` say, values as train.py takes them.

    Raises ValueError for any other argument, a key that the config does not have (with the nearest), or a value of a wrong type.
    """
    arguments, headless = _without_head(arguments)
    for argument in arguments:
        if not argument.startswith("--config.") or "=" not in argument:
            raise ValueError(f"no flag {argument}; keys of the config are set with --config.KEY=VALUE")
    argv, values = ["jaxdet", *arguments], flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
        if headless:
            config.model.roi_head = None
    except (AttributeError, LookupError, TypeError, ValueError, flags.Error) as error:
        raise ValueError(_unknown_key(config, arguments) or str(_with_range(error))) from error


def _unknown_key_of(argv):
    """`_unknown_key` of a whole command line; None where its config fails, and the error that led here says how."""
    try:
        config = _config_of(argv)
    except Exception:
        return None
    return _unknown_key(config, argv[1:])


def _unknown_key(config, arguments):
    """What to say of the first override whose key the config does not have; None where it has all of them."""
    keys = _keys(config)
    for argument in arguments:
        name = argument.lstrip("-").split("=")[0]
        key = name.removeprefix("config.")
        if name == key or any(f"{other}.".startswith(f"{key}.") for other in keys):
            continue
        from jaxdet.config.checks import nearest  # only now, for it takes a moment

        return f"no key {name}; {nearest(key, keys)}"
    return None


def load_config(location):
    """The config of FILE[:ARGUMENT]. Raises OSError, or ValueError where the file does not make one.

    While it runs it can import its neighbours as `configs.NAME`, wherever it is called from.
    """
    path, _, argument = location.partition(":")
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"no config at {path}; those of jaxdet are in its repository, under configs/")
    beside = str(pathlib.Path(path).resolve().parent.parent)
    sys.path.insert(0, beside)
    try:
        return runpy.run_path(path)["get_config"](*([argument] if argument else []))
    except Exception as error:
        raise ValueError(f"{path} makes no config: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(beside)


def _config_of(argv):
    """The config of `--config FILE[:ARGUMENT]`, without overrides."""
    values = [
        argument.split("=", 1)[1] for argument in argv if argument.startswith(("--config=", "-config="))
    ]
    values += [argv[i + 1] for i, argument in enumerate(argv[:-1]) if argument in ("--config", "-config")]
    return load_config(values[0])


def _keys(config, prefix=""):
    """Dotted names of all values."""
    keys = []
    for name, value in config.items():
        keys += _keys(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [prefix + name]
    return keys
