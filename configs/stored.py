"""The config that lies in a workdir, for a model that `python -m jaxdet convert` made.

python eval.py --config configs/stored.py:runs/converted --workdir runs/converted
"""

from jaxdet.runs.workdir import Workdir


def get_config(workdir):
    """W/config.json as a config."""
    return Workdir(workdir).config()
