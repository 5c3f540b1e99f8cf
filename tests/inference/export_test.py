"""The exported file, run without jaxdet, against the detector."""

import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export as jax_export

import jaxdet
from jaxdet.__main__ import main
from jaxdet.inference import export
from tests import tiny

pytestmark = pytest.mark.usefixtures("symbolic_shapes")

DOCS = (tiny.ROOT / "docs" / "export.md").read_text()
LOADING, PARAMETERS = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
SIZES = [(100, 170), (150, 70), (64, 96), (9, 300), (77, 77), (1, 1), (0, 0), (243, 256)]


@pytest.fixture(scope="module")
def detector(tiny_run):
    return jaxdet.load(tiny_run.workdir)


@pytest.fixture(scope="module")
def written(tiny_run, tmp_path_factory):
    """Folder with the file that the command writes."""
    folder = tmp_path_factory.mktemp("export")
    with tiny.quick_compilation():
        main(["export", "--workdir", str(tiny_run.workdir), "--output", str(folder / "person.jaxdet")])
    return folder


def batch(sizes, height=256, width=300):
    """Images in the corners of rows of noise."""
    images = np.random.default_rng(5).integers(0, 256, (len(sizes), height, width, 3), np.uint8)
    for row, (h, w) in enumerate(sizes):
        if h and w:
            images[row, :h, :w] = tiny.picture(h, w, seed=row) if min(h, w) > 8 else 128
    return images, np.array(sizes, np.int32)


def assert_finds_the_same(detector, images, sizes, found):
    for row, (height, width) in enumerate(sizes):
        valid = found["valid"][row]
        if not height:
            assert not valid.any()
            continue
        with tiny.quick_compilation():
            expected = detector(images[row, :height, :width])
        assert expected["scores"].size > 0
        ours = {name: found[name][row, valid] for name in expected}
        assert len(ours["scores"]) == len(expected["scores"])
        assert export.difference(expected, ours, max(height, width)) <= 1e-4, (height, width)
        assert not found["boxes"][row, ~valid].any() and not found["scores"][row, ~valid].any()


def test_files(written):
    assert sorted(path.name for path in written.iterdir()) == ["person.jaxdet", "person.jaxdet.json"]
    description = json.loads((written / "person.jaxdet.json").read_text())
    assert description["categories"] == tiny.CATEGORIES and description["arguments"] == ["images", "sizes"]
    exported = jax_export.deserialize(bytearray((written / "person.jaxdet").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert str(exported.in_avals[0]) == "uint8[batch,height,width,3]"


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 8, pytest.param(3, marks=pytest.mark.slow)])
def test_batches(written, detector, count):
    """Both orientations, thin images, one of a pixel, a slot without one; noise around each."""
    run = jax.jit(jax_export.deserialize(bytearray((written / "person.jaxdet").read_bytes())).call)
    images, sizes = batch(SIZES[:count])
    with tiny.quick_compilation():
        found = jax.device_get(run(images, sizes))
    assert_finds_the_same(detector, images, sizes, found)


def run_alone(folder, detector, script):
    """Runs a script that ends with boxes, scores and labels of street.npy, without jaxdet, Flax or Pillow."""
    picture = tiny.picture(100, 170)
    np.save(folder / "street.npy", picture)
    script += (
        "import sys\n"
        "others = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not others & {'jaxdet', 'flax', 'PIL', 'safetensors', 'orbax'}, others\n"
        "np.savez('found.npz', boxes=boxes, scores=scores, labels=labels)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=tiny.ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = dict(np.load(folder / "found.npz"))
    with tiny.quick_compilation():
        expected = detector(picture)
    assert len(found["scores"]) == len(expected["scores"]) > 0
    assert export.difference(expected, found, 170) <= 1e-4


def test_as_the_documentation_loads_it(written, detector):
    assert len(LOADING.strip().replace("\n\n", "\n").splitlines()) == 10
    run_alone(written, detector, LOADING)


@pytest.mark.slow
def test_parameters_beside(tiny_run, detector, tmp_path):
    with tiny.quick_compilation():
        output = str(tmp_path / "new" / "person.jaxdet")
        main(["export", "--workdir", str(tiny_run.workdir), "--output", output, "--parameters-beside"])
    folder = tmp_path / "new"
    names = ["person.jaxdet", "person.jaxdet.json", "person.jaxdet.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == names
    run_alone(folder, detector, PARAMETERS + LOADING.replace("detect(images", "detect(parameters, images"))


def test_a_file_that_differs_is_not_kept(detector, tmp_path, monkeypatch):
    class Empty:
        def serialize(self):
            return b"nothing"

    def wrong(path, detector, parameters_path):
        assert path.read_bytes() == b"nothing" and parameters_path.exists()
        raise ValueError("the exported file differs")

    monkeypatch.setattr("jaxdet.inference.export.load", lambda workdir: detector)
    monkeypatch.setattr(export, "export_detector", lambda detector, parameters: Empty())
    monkeypatch.setattr(export, "check", wrong)
    with pytest.raises(SystemExit, match="jaxdet: the exported file differs"):
        main(["export", "--workdir", "w", "--output", str(tmp_path / "f"), "--parameters-beside"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_in_bfloat16(tiny_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run.workdir, workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["model"]["dtype"] = "bfloat16"
    (workdir / "config.json").write_text(json.dumps(config))
    with tiny.quick_compilation():
        printed = export.export_run(workdir, tmp_path / "f")
    assert "(0.02 allowed in bfloat16)" in printed and (tmp_path / "f").exists()


def test_parameters_of_an_earlier_export_are_not_left_beside(tmp_path):
    (tmp_path / "f.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"f\.safetensors exists, from an export with --parameters-beside"):
        main(["export", "--workdir", "w", "--output", str(tmp_path / "f")])


def test_difference():
    def found(boxes, scores, labels):
        return {"boxes": np.array(boxes, float).reshape(-1, 4), "scores": np.array(scores), "labels": np.array(labels)}

    a = found([[0, 0, 10, 10], [20, 20, 30, 30]], [0.9, 0.5], [0, 1])
    assert export.difference(a, a, 100) == 0
    assert export.difference(a, found([[20, 20, 31, 30], [0, 0, 10, 10]], [0.5, 0.9], [1, 0]), 100) == 0.01
    assert export.difference(a, found([[0, 0, 10, 10], [20, 20, 30, 30]], [0.9, 0.52], [0, 1]), 100) == pytest.approx(
        0.02
    )
    assert export.difference(a, found([[0, 0, 10, 10], [20, 20, 30, 30]], [0.9, 0.5], [0, 0]), 100) == np.inf
    more = found([[0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]], [0.9, 0.5, 0.1], [0, 1, 2])
    assert export.difference(a, more, 100) == export.difference(more, a, 100) == np.inf
    assert export.difference(a, more, 100, 0.2) == export.difference(more, a, 100, 0.2) == 0
    nothing = found([], [], [])
    assert export.difference(nothing, a, 100, 0.95) == 0
    assert export.difference(a, nothing, 100) == export.difference(nothing, a, 100) == np.inf
    assert export.difference(nothing, nothing, 100) == 0


def test_arguments(tiny_run, tmp_path):
    with pytest.raises(SystemExit, match="is a folder; the output is a file"):
        main(["export", "--workdir", str(tiny_run.workdir), "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds no run"):
        main(["export", "--workdir", str(tmp_path), "--output", str(tmp_path / "f")])
