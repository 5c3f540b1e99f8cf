"""Evaluates a run: python eval.py --config configs/person.py --workdir runs/person [--config.any.key=value]."""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from jaxdet.config.command_line import define_cluster_flags, parse_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, FILE[:ARGS].", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
PICTURES = flags.DEFINE_integer("pictures", 24, "How many pictures of the split to draw.", lower_bound=0)
JOIN_CLUSTER = define_cluster_flags()
flags.mark_flags_as_required(["config", "workdir"])


def main(_):
    from jaxdet.runs.mesh import leave_cluster
    from jaxdet.training.validation import evaluate_run  # after the flags: a misspelt one answers at once

    logging.set_verbosity(logging.ERROR)  # Orbax warns that it only reads
    try:
        JOIN_CLUSTER()
        try:
            evaluate_run(CONFIG.value, WORKDIR.value, PICTURES.value)
        except Exception as error:
            leave_cluster(error)  # raises it where this process is the only one
    except (OSError, ValueError) as error:
        sys.exit(f"eval.py: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
