import json
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest

from benchmarks import wheels

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# All that runs in the parts of benchmarks.gpu; the parts with torch run in processes that have nothing of ours but
# inputs.
RUN = (
    "jaxdet.training.loop",
    "jaxdet.training.validation",
    "jaxdet.inference.serve",
    "benchmarks.rows",
    "benchmarks.trace",
)
RUN += ("benchmarks.serve_load", "benchmarks.timed_training", "tests.models.reference_test")


def make_wheel(folder, name, code=""):
    """The smallest there is."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", code)
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return path


def test_names():
    wheel = pathlib.Path("a/Python_Multipart-0.0.34-py3-none-any.whl")
    assert wheels.package(wheel) == wheels.normal("python-multipart") == "python-multipart"


def test_takes_what_is_missing_and_nothing_else(tmp_path):
    for name in ("jaxdet_made_up", "pytest"):
        make_wheel(tmp_path, name, "here = True")
    target = tmp_path / "packages"
    assert wheels.take(tmp_path, target) == ["jaxdet-made-up"]
    assert (target / "jaxdet_made_up.py").exists() and not (target / "pytest.py").exists()
    assert wheels.take(tmp_path, target) == []


def test_what_is_missing_still_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "WANTED", ("pytest", "jaxdet-made-up"))
    with pytest.raises(FileNotFoundError, match=r"has jaxdet-made-up; make gpu-wheels"):
        wheels.take(tmp_path, tmp_path / "packages")


def test_what_is_wanted_has_bounds():
    lines = (ROOT / "requirements.txt").read_text() + (ROOT / "requirements-dev.txt").read_text()
    bounded = {wheels.normal(name) for name in re.findall(r"^[\w.\-]+", lines, re.MULTILINE)}
    assert {wheels.normal(name) for name in wheels.WANTED} <= bounded


def fake_pip(folder, bytes_each):
    """In place of subprocess.run: resolves by a fixed list, and downloads files of a size."""

    def run(command, **_):
        if "download" in command:
            for requirement in (word for word in command if "==" in word):
                name, version = requirement.split("==")
                (folder / f"{name}-{version}-py3-none-any.whl").write_bytes(bytes(bytes_each))
            return
        wanted = {"jax": "0.11.2", "numpy": "2.5.2"} if "flax" in command else {"numpy": "2.5.5", "pytest": "9.0"}
        report = next(word.removeprefix("--report=") for word in command if word.startswith("--report="))
        installed = [{"metadata": {"name": name, "version": version}} for name, version in wanted.items()]
        pathlib.Path(report).write_text(json.dumps({"install": installed}))

    return run


def test_collects_what_is_wanted_without_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels.subprocess, "run", fake_pip(tmp_path, 1000))
    make_wheel(tmp_path, "of_yesterday")
    assert [wheel.name for wheel in wheels.collect(tmp_path)] == ["pytest-9.0-py3-none-any.whl"]
    assert [path.name for path in tmp_path.iterdir()] == ["pytest-9.0-py3-none-any.whl"]


def test_too_much_to_carry(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels.subprocess, "run", fake_pip(tmp_path, 2 * 2**20))
    monkeypatch.setattr(wheels, "MOST", 1)
    with pytest.raises(ValueError, match=r"2.0 MiB, 1 are allowed; the largest are pytest 2.0"):
        wheels.collect(tmp_path)


def test_nothing_is_imported_that_nobody_brings():
    code = f"import importlib, sys; [importlib.import_module(name) for name in {RUN}]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {name.split(".")[0] for name in done.stdout.split()}
    heavy = {"av", "cv2", "importlib_resources", "matplotlib", "selenium", "tensorflow", "tensorflow_datasets"}
    assert not imported & heavy
