"""A detector of a few thousand parameters on a few images of coloured boxes: what the tests train.

It is a config file too: `train.py --config tests/tiny.py:FOLDER` after `write_data(FOLDER)`.
"""

import contextlib
import io
import json
import os
import pathlib
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from configs import person_small
from jaxdet.data import pipeline
from jaxdet.runs import mesh
from jaxdet.runs.workdir import Workdir
from jaxdet.training import loop, validation

ROOT = pathlib.Path(__file__).resolve().parent.parent
CATEGORIES = [{"id": 3, "name": "bicycle"}, {"id": 7, "name": "person"}, {"id": 20, "name": "dog"}]
TRAIN_IDS = (2**33 + 1, 11, 14, 17, 20, 23, 26, 29)  # one does not fit into 32 bits
VAL_IDS = (501, 502, 503, 504, 505)
# Little optimisation, and executables shared with other processes through a cache on disk.
COMPILATION = {
    "jax_disable_most_optimizations": True,
    "jax_compilation_cache_dir": str(ROOT / ".cache" / "jax"),
    "jax_persistent_cache_min_compile_time_secs": 0.5,
}
ENVIRONMENT = os.environ | {name.upper(): str(value) for name, value in COMPILATION.items()}
_executables, _states = {}, {}


def get_config(folder):
    """Every kind of state there is: frozen parameters, constants, batch statistics, momentum, averaged parameters."""
    config = person_small.get_config()
    config.seed = 2  # takes both orientations before and after a stop in the middle
    model = config.model
    model.num_classes = len(CATEGORIES)
    model.backbone.update(width=8, norm="batch_norm", freeze_at=3)
    model.fpn.update(channels=16, norm="frozen_batch_norm")
    model.rpn.update(
        anchor_sizes=(8.0, 16.0, 32.0, 64.0, 128.0), pre_nms_topk=(60, 50), post_nms_topk=(40, 30), samples_per_image=32
    )
    model.roi_head.update(hidden=16, samples_per_image=16)
    model.test.score_threshold = 1e-3  # six steps teach nothing; there is something to see all the same
    config.data.categories = ()
    for split, sides in (("train", (48, 64)), ("val", (64,))):
        config.data[split].update(
            images=f"{folder}/{split}", annotations=f"{folder}/{split}.json", short_sides=sides, longest_side=96
        )
    config.optimizer.update(
        name="sgd", learning_rate=0.01, reference_batch=4, warmup_steps=3, weight_decay=1e-4, ema=0.9
    )
    config.train.update(steps=6, batch_size=2, log_every=1, evaluate_every=3, checkpoint_every=2)
    config.evaluation.batch_size = 2
    return config


def picture(height, width, seed=0):
    """Noise with a bright box in it, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 120, (height, width, 3), np.uint8)
    image[height // 4 : height // 2, width // 3 : width // 2] = rng.integers(120, 256, 3)
    return image


def write_data(folder, portrait=True):
    """COCO JSON and PNG files of 8 images to train on and 5 to evaluate on, of 64 x 96 pixels, every third upright.

    Boxes are of three categories, whose ids are not 1, 2, 3. One is a crowd, one image has none.
    """
    for split, image_ids, seed in (("train", TRAIN_IDS, 0), ("val", VAL_IDS, 1)):
        rng = np.random.default_rng(seed)
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for i, image_id in enumerate(image_ids):
            height, width = (96, 64) if portrait and i % 3 == 1 else (64, 96)
            image = rng.integers(60, 120, (height, width, 3), np.uint8)
            for _ in range(0 if image_id == VAL_IDS[-1] else 1 + i % 4):
                number = len(annotations) + 1
                x, y, w, h = (int(n) for n in (*rng.integers(0, 40, 2), *rng.integers(12, 24, 2)))
                image[y : y + h, x : x + w] = rng.integers(120, 256, 3)
                kind = {"category_id": (7, 7, 3, 7, 20)[number % 5], "iscrowd": int(number == 6)}
                sides = {"bbox": [x, y, w, h], "area": w * h}
                annotations.append({"id": number, "image_id": image_id} | kind | sides)
            Image.fromarray(image).save(folder / split / f"{image_id}.png")
            images.append({"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width})
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (folder / f"{split}.json").write_text(json.dumps(content))


@contextlib.contextmanager
def quick_compilation():
    """Compiles as processes with ENVIRONMENT do."""
    before = {name: jax.config.values[name] for name in COMPILATION}
    for name, value in COMPILATION.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@contextlib.contextmanager
def shared_executables(config):
    """Inside, runs that differ in nothing that is compiled use executables and first state of the first of them."""
    compile_shapes, create_state = validation.compile_shapes, loop.create_state
    same = str((config.seed, config.model, config.optimizer, config.train.steps, config.train.accumulation))

    def shared(function, first, batches, mesh, *, purpose, **how):
        if purpose == "training" and int(first.step) == 0 and not config.init_from:
            _states[same] = jax.device_get(first)
        arrays = [(array.shape, array.dtype) for batch in batches for array in batch.values()]
        key = purpose, str(arrays), mesh, same
        if key not in _executables:
            _executables[key] = compile_shapes(function, first, batches, mesh, purpose=purpose, **how)
        return _executables[key]

    def shared_state(*arguments):
        return jax.tree.map(jnp.asarray, _states[same]) if same in _states else create_state(*arguments)

    with (
        quick_compilation(),
        mock.patch.object(loop, "create_state", shared_state),
        mock.patch.object(validation, "compile_shapes", shared),
        mock.patch.object(loop, "compile_shapes", shared),
    ):
        yield


def train(config, workdir):
    """`loop.train`; returns the final state as NumPy arrays and what was printed."""
    with shared_executables(config), contextlib.redirect_stdout(io.StringIO()) as printed:
        state = loop.train(config, workdir)
    return jax.device_get(state), printed.getvalue()


def evaluate(config, workdir, pictures=0):
    """`validation.evaluate_run`; returns the results and what was printed."""
    with shared_executables(config), contextlib.redirect_stdout(io.StringIO()) as printed:
        results = validation.evaluate_run(config, workdir, pictures)
    return results, printed.getvalue()


def undisturbed_run(folder):
    """Trains beside `folder`, which holds the data, and notes what is compiled when; see conftest.tiny_run."""
    config, workdir, events = get_config(folder), folder.parent / "run", []

    def listen(name, seconds, **details):
        if name == "/jax/core/compile/backend_compile_duration":
            events.append(details["fun_name"])

    def noting(method, note):
        def wrapped(self, *arguments):
            method(self, *arguments)
            events.append(note(*arguments))

        return wrapped

    lap = noting(loop.Progress.lap, lambda waited: "step")
    write = noting(loop.MetricsLog.write, lambda step, values: "evaluated" if "val/loss" in values else "logged")
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with mock.patch.object(loop.Progress, "lap", lap), mock.patch.object(loop.MetricsLog, "write", write):
            state, printed = train(config, workdir)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return types.SimpleNamespace(config=config, workdir=workdir, state=state, printed=printed, events=events)


def metrics(workdir):
    """Lines of metrics.jsonl, without what a clock measured."""
    lines = Workdir(workdir).metrics()
    return [{k: v for k, v in line.items() if k not in ("step_time", "data_time")} for line in lines]


def checkpoint_steps(workdir):
    """Steps of the checkpoints there are."""
    return sorted(int(path.name) for path in Workdir(workdir).checkpoints.iterdir())


def assert_equal_trees(left, right):
    """Every leaf equal, bit for bit."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def nan_like(array):
    """NaN in its place, without compiling anything."""
    return jax.device_put(np.full(array.shape, np.nan, array.dtype), array.sharding)


def training_batches(config):
    """`pipeline.TrainingBatches` of a config."""
    source = pipeline.open_source(config.data.train, None)
    return pipeline.TrainingBatches(source, config.data.train, config.seed, config.train.batch_size, 8)


def device_batch(batch):
    """The part of a batch that the device sees."""
    return mesh.put_batch(batch, mesh.device_mesh())
