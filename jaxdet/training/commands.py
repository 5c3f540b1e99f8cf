"""train.py and eval.py, or `jaxdet train` and `jaxdet evaluate`: their flags, and every error in one line."""

import os
import sys

from absl import app, flags, logging

from jaxdet.config.command_line import OVERRIDE, load_config, override

FLAGS = flags.FLAGS


def train(argv):
    """Trains. argv: the command line, the name of the command first."""
    _define_flags("Folder of the run; an existing one is resumed.", required=["config", "workdir"])

    def run(config):
        from jaxdet.training.loop import train  # after the flags: a misspelt one answers at once

        train(config, FLAGS.workdir)

    _main(argv, run)


def evaluate(argv):
    """Evaluates a run. argv: the command line, the name of the command first."""
    _define_flags("Folder of the run.", required=["workdir"])
    flags.DEFINE_integer("images", 24, "How many images of the split to draw.", lower_bound=0)
    flags.DEFINE_alias("pictures", "images")  # its name in earlier versions

    def run(config):
        from jaxdet.training.validation import evaluate_run  # after the flags: a misspelt one answers at once

        evaluate_run(config, FLAGS.workdir, FLAGS.images)

    _main(argv, run)


def _define_flags(workdir, required):
    default = "" if "config" in required else " Default: the config of the workdir."
    flags.DEFINE_string("config", None, f"Config file or recipe, FILE[:ARGUMENT].{default}")
    flags.DEFINE_string("workdir", None, workdir)
    flags.DEFINE_bool("distributed", False, "One process of several; JAX reads the cluster's own variables.")
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, of several processes.")
    flags.DEFINE_integer("processes", None, "How many processes there are.", lower_bound=1)
    flags.DEFINE_integer("process", None, "Index of this process, from 0.", lower_bound=0)
    flags.DEFINE_integer(
        "heartbeat_seconds", 100, "If a process is silent for this long, the others end.", lower_bound=1
    )
    flags.mark_flags_as_required(required)


def _config_of_run():
    from jaxdet.runs.workdir import Workdir  # only here, since it imports JAX

    return Workdir(FLAGS.workdir).config()


def _main(argv, run):
    """Calls `run(config)`, as one of several processes if the flags ask for it.

    An error ends the program with one line.
    """
    command, config = os.path.basename(argv[0]), None

    def parse(argv):
        nonlocal config
        try:
            FLAGS.set_gnu_getopt()
            rest = FLAGS(argv, known_only=True)
            FLAGS([word for word in rest if not OVERRIDE.match(word)])  # refuses what is no flag, with the nearest
            config = _config_of_run() if FLAGS.config is None else load_config(FLAGS.config)
            override(config, rest[1:])
        except flags.Error as error:
            sys.exit(f"{command}: {error}; --helpshort and --helpfull list the flags")
        except (OSError, ValueError) as error:
            sys.exit(f"{command}: {error}")

    def main(_):
        from jaxdet.runs.mesh import join_cluster, leave_cluster

        logging.set_verbosity(logging.ERROR)  # Orbax reports every file it touches
        try:
            join_cluster(FLAGS.distributed, FLAGS.coordinator, FLAGS.processes, FLAGS.process, FLAGS.heartbeat_seconds)
            try:
                run(config)
            except Exception as error:
                leave_cluster(error)  # raises it where this process is the only one
        except (ImportError, OSError, ValueError, FloatingPointError) as error:
            sys.exit(f"{command}: {error}")

    for flag in FLAGS.flags_by_module_dict()[__name__]:
        FLAGS.register_key_flag_for_module(sys.argv[0], flag)  # so that --helpshort lists it
    app.run(main, argv, flags_parser=parse)
