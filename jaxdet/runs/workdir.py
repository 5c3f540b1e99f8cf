"""The folder of a run: the one place that knows the names and contents of its files.

config.json         config of the training, or of the conversion
categories.json     categories of the training data, in the order of the labels
checkpoints/        see runs/checkpoint.py
metrics.jsonl       losses and evaluations, one line per step; TensorBoard's files are beside it
skipped.jsonl       images and boxes that were left out, and why; skipped-1.jsonl is that of process 1
eval.json           numbers of the last evaluation by eval.py
detections.json     its detections, in COCO's result format
pictures/           images with some of them drawn
predictions/        output of `jaxdet predict`
report/             output of `jaxdet report`
unread.safetensors  what `jaxdet convert` keeps for converting back
lock                held by the training that writes into the folder
"""

import contextlib
import json
import pathlib

from jaxdet.config.checks import changes, check_same_model, check_same_state, config_from_json
from jaxdet.models.faster_rcnn import merge_variables
from jaxdet.runs.checkpoint import Checkpoints
from jaxdet.runs.files import append_line, write_whole

# Step of the only checkpoint of a converted model; a training saves its first at step 1 or later
CONVERTED = 0


class Workdir:
    """Reads and writes the folder of a run, which need not exist yet.

    A file is written whole or not at all; lines are added one at a time. Reading raises FileNotFoundError that says
    what is missing, or ValueError that names the damaged file.
    """

    def __init__(self, path):
        self.path = path = pathlib.Path(path)
        self.config_file = path / "config.json"
        self.categories_file = path / "categories.json"
        self.checkpoints = path / "checkpoints"
        self.metrics_file = path / "metrics.jsonl"
        self.skipped_file = path / "skipped.jsonl"
        self.results_file = path / "eval.json"
        self.detections_file = path / "detections.json"
        self.pictures = path / "pictures"
        self.predictions = path / "predictions"
        self.report = path / "report"
        self.unread_file = path / "unread.safetensors"
        self.lock_file = path / "lock"

    def __str__(self):
        return str(self.path)

    # ---- config and categories ---------------------------------------------------------------------------------------

    def config(self):
        """The config, with the keys that were added since the run was made."""
        return _read_json(self.config_file, "config", config_from_json)

    def write_config(self, config):
        """Writes config.json."""
        write_whole(self.config_file, json.dumps(config.to_dict(), indent=2) + "\n")

    def compare_config(self, config):
        """Prints each key in which `config` differs from the one that the run was started with.

        Raises ValueError if the model, the kind of optimizer or the use of averaged parameters differs. Everything else
        may change, and applies from here on.
        """
        if not self.config_file.exists():
            return
        before = self.config()
        check_same_model(before, config, self)
        check_same_state(before, config, self)
        if changed := changes(before.to_dict(), config.to_dict()):
            print("the config changed since this run was started; from here on:")
            print("\n".join(f"  config.{key}: {change}" for key, change in changed.items()))

    def categories(self):
        """Categories of the training as [{"id", "name"}], in the order of the labels."""

        def parse(content):
            return [{"id": int(category["id"]), "name": str(category["name"])} for category in content]

        return _read_json(self.categories_file, "list of categories", parse)

    def write_categories(self, categories):
        """Writes categories.json."""
        write_whole(self.categories_file, json.dumps(categories) + "\n")

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def best_step(self):
        """Step of the checkpoint with the highest AP, or of the newest if none was evaluated."""
        with self._open_checkpoints() as checkpoints:
            return checkpoints.best_step()

    def variables(self, step=None):
        """What `model.apply` takes, of the best checkpoint or that of `step`; averaged parameters if there are any."""
        with self._open_checkpoints() as checkpoints:
            state = checkpoints.restore_arrays(checkpoints.best_step() if step is None else step)
        trainable = state.get("average") or state["trainable"]
        return merge_variables(trainable, state.get("frozen"), state.get("constants"), state.get("batch_stats"))

    def save_converted(self, variables):
        """Saves what `model.apply` takes as the checkpoint of a converted model."""
        state = {"trainable" if name == "params" else name: arrays for name, arrays in variables.items()}
        with contextlib.closing(Checkpoints(self.checkpoints)) as checkpoints:
            checkpoints.save(CONVERTED, state)

    @contextlib.contextmanager
    def _open_checkpoints(self):
        if not self.checkpoints.is_dir():
            raise FileNotFoundError(f"{self} holds no checkpoints; train.py --workdir writes them")
        with contextlib.closing(Checkpoints(self.checkpoints, read_only=True)) as checkpoints:
            if checkpoints.latest_step() is None:
                raise FileNotFoundError(f"{self.checkpoints} holds no finished checkpoint yet")
            yield checkpoints

    # ---- logs and results -------------------------------------------------------------------------------

    def metrics(self):
        """Lines of metrics.jsonl as dicts with a "step"; [] without the file. A line cut off by a crash is left out."""
        lines = []
        for text in self.metrics_file.read_text().splitlines() if self.metrics_file.exists() else ():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
        return [line for line in lines if isinstance(line, dict) and "step" in line]

    def write_metrics(self, lines):
        """Replaces metrics.jsonl."""
        write_whole(self.metrics_file, "".join(json.dumps(line) + "\n" for line in lines))

    def add_metrics(self, line):
        """Appends one line to metrics.jsonl."""
        append_line(self.metrics_file, json.dumps(line))

    def write_skipped(self, items):
        """Writes skipped.jsonl: a dict for every image or box that was left out."""
        write_whole(self.skipped_file, "".join(json.dumps(item, default=str) + "\n" for item in items))

    def add_skipped(self, item, process=0):
        """Appends a line to skipped.jsonl. Every process but the first has a file of its own."""
        path = self.path / f"skipped-{process}.jsonl" if process else self.skipped_file
        append_line(path, json.dumps(item))

    def write_results(self, results, detections):
        """Writes eval.json and detections.json."""
        write_whole(self.results_file, json.dumps(results, indent=2) + "\n")
        write_whole(self.detections_file, json.dumps(detections) + "\n")


def _read_json(path, what, parse):
    """`parse(content)` of a JSON file. Raises as Workdir."""
    if not path.exists():
        raise FileNotFoundError(f"{path.parent} holds no run: there is no {path}; train.py --workdir makes one")
    try:
        return parse(json.loads(path.read_text()))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no {what}: {error}") from None
