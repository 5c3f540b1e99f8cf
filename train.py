"""Trains a detector: python train.py --config configs/person.py --workdir runs/person [--config.any.key=value]."""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from jaxdet.config.command_line import define_cluster_flags, parse_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, FILE[:ARGS].", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an existing one is gone on with.")
JOIN_CLUSTER = define_cluster_flags()
flags.mark_flags_as_required(["config", "workdir"])


def main(_):
    from jaxdet.runs.mesh import leave_cluster
    from jaxdet.training.loop import train  # after the flags: a misspelt one answers at once

    logging.set_verbosity(logging.ERROR)  # Orbax reports every file it touches
    try:
        JOIN_CLUSTER()
        try:
            train(CONFIG.value, WORKDIR.value)
        except Exception as error:
            leave_cluster(error)  # raises it where this process is the only one
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
