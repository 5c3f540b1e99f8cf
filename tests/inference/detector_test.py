import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxdet
from jaxdet.models.faster_rcnn import Detections
from tests import tiny

LANDSCAPE, PORTRAIT = tiny.picture(100, 170), tiny.picture(150, 70)


@pytest.fixture(scope="module")
def detector(tiny_run):
    return jaxdet.load(tiny_run.workdir)


def detect(detector, image):
    with tiny.quick_compilation():
        return detector(image)


FRESH = """
import sys
import jaxdet

jaxdet.load(sys.argv[1])
heavy = {"pycocotools", "grain", "matplotlib", "tensorflow_datasets"} & {name.partition(".")[0] for name in sys.modules}
assert not heavy, heavy
"""


def test_loading_imports_neither_data_sets_nor_plots(tiny_run):
    subprocess.run([sys.executable, "-c", FRESH, tiny_run.workdir], cwd=tiny.ROOT, env=tiny.ENVIRONMENT, check=True)


@pytest.mark.parametrize("image", [LANDSCAPE, PORTRAIT])
def test_detections_of_an_image(detector, image):
    before = image.copy()
    found = detect(detector, image)
    assert list(found) == ["boxes", "scores", "labels"]
    assert {name: (value.dtype, value.ndim) for name, value in found.items()} == {
        "boxes": (np.float32, 2),
        "scores": (np.float32, 1),
        "labels": (np.int32, 1),
    }
    assert 0 < len(found["boxes"]) == len(found["scores"]) == len(found["labels"]) <= 100
    assert np.all(np.diff(found["scores"]) <= 0) and np.all(found["scores"] > 1e-3)
    height, width = image.shape[:2]
    x1, y1, x2, y2 = found["boxes"].T
    assert np.all((x1 >= 0) & (y1 >= 0) & (x2 > x1) & (y2 > y1) & (x2 <= width) & (y2 <= height))
    assert set(found["labels"]) <= {0, 1, 2}
    np.testing.assert_array_equal(image, before)
    again = detect(detector, image)
    for name, value in found.items():
        np.testing.assert_array_equal(value, again[name])


@pytest.mark.parametrize("shape, resized", [((100, 170), (56, 96)), ((150, 70), (96, 45)), ((32, 48), (64, 96))])
def test_boxes_are_in_pixels_of_the_image(tiny_run, shape, resized):
    detector = jaxdet.load(tiny_run.workdir)

    def detect(variables, images, image_sizes):
        """A box that fills the left half of the resized image, one that reaches out of it, and one row of padding."""
        height, width = image_sizes[0]
        assert (height, width) == resized and images.shape == ((1, 64, 96, 3) if height < width else (1, 96, 64, 3))
        boxes = [[0, 0, width / 2, height], [width / 4, -5, width + 5, height / 2], [np.nan] * 4]
        return Detections(*map(np.array, ([boxes], [[0.9, 0.8, 0.7]], [[1, 0, 2]], [[True, True, False]])))

    detector.detect = detect
    found = detector(np.zeros((*shape, 3), np.uint8))
    height, width = shape
    expected = [[0, 0, width / 2, height], [width / 4, 0, width, height / 2]]
    np.testing.assert_allclose(found["boxes"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["scores"], [0.9, 0.8])
    np.testing.assert_array_equal(found["labels"], [1, 0])


def test_one_compilation_for_each_orientation(detector):
    for image in (LANDSCAPE, PORTRAIT):
        detect(detector, image)
    compiled = []

    def listen(name, seconds, **details):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(details["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for image in (
            tiny.picture(100, 170, seed=1),
            tiny.picture(97, 60),
            np.zeros((64, 96, 3), np.uint8),
            np.zeros((9, 300, 3), np.uint8),
            np.zeros((77, 77, 3), np.uint8),
        ):
            detect(detector, image)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []
    assert detector.detect._cache_size() == 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (2, 3)])
def test_a_tiny_or_thin_image_is_an_image(detector, shape):
    boxes = detect(detector, np.full((*shape, 3), 128, np.uint8))["boxes"]
    assert np.isfinite(boxes).all() and np.all(boxes <= [shape[1], shape[0]] * 2)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 96), np.uint8),
        np.zeros((64, 96, 4), np.uint8),
        np.zeros((64, 96, 3), np.float32),
        np.zeros((1, 64, 96, 3), np.uint8),
        np.zeros((0, 96, 3), np.uint8),
        "image.jpg",
    ],
)
def test_anything_else_is_refused(detector, image):
    with pytest.raises(ValueError, match=r"an image must be uint8 \[H, W, 3\] in RGB, not"):
        detector(image)


def test_categories_in_the_order_of_the_labels(detector):
    assert list(detector.categories) == tiny.CATEGORIES


def test_the_averaged_parameters_are_used(tiny_run, detector):
    detector = jaxdet.load(tiny_run.workdir, step=6)
    expected = tiny_run.state.average["box_head"]["fc0"]["kernel"]
    np.testing.assert_array_equal(detector.variables["params"]["box_head"]["fc0"]["kernel"], expected)
    frozen = tiny_run.state.frozen["resnet"]["stem_conv"]["kernel"]
    np.testing.assert_array_equal(detector.variables["params"]["resnet"]["stem_conv"]["kernel"], frozen)
    tiny.assert_equal_trees(dict(detector.variables["batch_stats"]), tiny_run.state.batch_stats)
    tiny.assert_equal_trees(dict(detector.variables["constants"]), tiny_run.state.constants)


def test_a_checkpoint_by_its_step(tiny_run):
    kernels = [
        np.asarray(jaxdet.load(tiny_run.workdir, step).variables["params"]["box_head"]["fc0"]["kernel"])
        for step in (4, 6)
    ]
    assert not np.array_equal(*kernels)
    with pytest.raises(FileNotFoundError, match="checkpoints/5"):
        jaxdet.load(tiny_run.workdir, step=5)


def test_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run: there is no .*config\.json"):
        jaxdet.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        jaxdet.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content, message",
    [
        (json.dumps(tiny.CATEGORIES[:2]), r"names 2 categories, but model\.num_classes in config\.json is 3"),
        (json.dumps([*tiny.CATEGORIES, {"id": 21, "name": "cat"}]), "names 4 categories"),
        ("[" * 100_000, "is no list of categories"),
        ("{}", "names 0 categories"),
        ("[3]", "is no list of categories"),
    ],
    ids=["fewer", "more", "nested", "none", "numbers"],
)
def test_categories_that_do_not_fit(tiny_run, tmp_path, content, message):
    (tmp_path / "config.json").write_bytes((tiny_run.workdir / "config.json").read_bytes())
    (tmp_path / "categories.json").write_text(content)
    with pytest.raises(ValueError, match=rf"categories\.json {message}"):
        jaxdet.load(tmp_path)


def test_a_run_without_a_checkpoint_yet(tiny_run, tmp_path):
    for name in ("config.json", "categories.json"):
        (tmp_path / name).write_bytes((tiny_run.workdir / name).read_bytes())
    with pytest.raises(FileNotFoundError, match="holds no checkpoints"):
        jaxdet.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        jaxdet.load(tmp_path)
