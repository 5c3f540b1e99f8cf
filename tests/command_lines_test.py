"""train.py, eval.py and the package as a stranger calls them, and what they answer to mistakes."""

import json
import shutil
import subprocess
import sys

import pytest

from tests import tiny


def call(script, *flags, environment=tiny.ENVIRONMENT):
    return subprocess.run(
        [sys.executable, script, *map(str, flags)],
        cwd=tiny.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def refused(script, *flags):
    """What a call prints that must fail, in words and not with a traceback."""
    done = call(script, *flags)
    printed = done.stdout + done.stderr
    assert done.returncode == 1, printed
    assert "Traceback" not in printed
    return printed


DEMO = "--config=configs/person_demo.py"


@pytest.mark.parametrize(
    "override, answer",
    [
        ("train.stepz=3", "no key config.train.stepz; did you mean config.train.steps?"),
        ("trian.steps=3", "no key config.trian.steps; did you mean config.train.steps?"),
        ("learning_rate=0.1", "no key config.learning_rate; did you mean config.optimizer.learning_rate?"),
        ("images=DIR", "did you mean config.data.train.images or config.data.val.images?"),
        ("train.steps.more=3", "no key config.train.steps.more; did you mean config.train.steps"),
        ("qqq=1", "no key config.qqq; there are config.data, config.evaluation, config.init_from, config.model"),
    ],
)
def test_a_misspelt_key_names_the_nearest(tmp_path, override, answer):
    printed = refused("train.py", DEMO, f"--workdir={tmp_path / 'run'}", f"--config.{override}")
    assert answer in printed and printed.startswith("train.py: ") and printed.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_every_way_to_write_the_config_flag():
    for script, flags in (
        ("eval.py", ["--config", "configs/person_rpn.py"]),
        ("train.py", ["-config", "configs/person_demo.py"]),
    ):
        printed = refused(script, *flags, "--workdir=w", "--config.train.stepz=3")
        assert printed == f"{script}: no key config.train.stepz; did you mean config.train.steps?\n"


def test_a_section_that_a_config_switches_off(tmp_path):
    printed = refused(
        "train.py", "--config=configs/person_rpn.py", f"--workdir={tmp_path}", "--config.model.roi_head.hidden=3"
    )
    assert "no key config.model.roi_head.hidden; did you mean config.model.roi_head?" in printed


@pytest.mark.parametrize(
    "flag, answer",
    [
        (
            "--config.train.steps=abc",
            "--config.train.steps=abc: invalid literal for int() with base 10: 'abc'; a whole number, at least 1",
        ),
        ("--config.train.steps=1.5", "--config.train.steps=1.5: invalid literal for int"),
        ("--config.data.train.flip=often", "--config.data.train.flip=often: could not convert string to float"),
        ("--config.data.train.keep_empty=maybe", "--config.data.train.keep_empty=maybe"),
        ("--config.train=5", "--config.train=5"),
        ("--workdri=x", "Unknown command line flag 'workdri'. Did you mean: workdir"),
    ],
)
def test_wrong_types_and_flags(tmp_path, flag, answer):
    assert answer in refused("train.py", DEMO, f"--workdir={tmp_path}", flag)


def test_what_is_required():
    assert "--workdir must have a value" in refused("train.py", DEMO)
    assert "--config must have a value" in refused("train.py", "--workdir=w")
    assert "--workdir must have a value" in refused("eval.py")


def test_a_config_that_is_not_there(tmp_path):
    for override in ([], ["--config.train.steps=3"]):
        printed = refused("train.py", "--config=configs/nobody.py", f"--workdir={tmp_path}", *override)
        assert "configs/nobody.py" in printed and "No such file" in printed
        assert printed.endswith("the recipes are person, person_demo, person_rpn, person_small\n")
    printed = refused("train.py", "--config=configs/person_rpn.py:nobody", f"--workdir={tmp_path}")
    assert "configs.nobody" in printed
    printed = refused("train.py", "--config=configs/person.py:caffe", f"--workdir={tmp_path}")
    assert "no preset 'caffe'; detectron2, torchvision, msra" in printed


def test_the_second_stage_is_switched_off_by_a_flag(tiny_run, tiny_data):
    flags = f"--config=tests/tiny.py:{tiny_data}", f"--workdir={tiny_run.workdir}"
    printed = refused("eval.py", *flags, "--config.model.roi_head=None")
    assert "holds another model" in printed and "config.model.roi_head: absent -> None" in printed


def test_the_installed_command_finds_the_neighbours_of_a_config(tmp_path):
    """From another folder, where only jaxdet itself is on the path."""
    (tmp_path / "jaxdet").symlink_to(tiny.ROOT / "jaxdet")
    program = (
        "import sys; from jaxdet.config.command_line import load_config; before = list(sys.path)\n"
        "print(load_config(sys.argv[1]).model.num_classes); assert sys.path == before"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tiny.ROOT / "configs" / "person_rpn.py"],
        cwd=tmp_path,
        env={name: value for name, value in tiny.ENVIRONMENT.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_a_wheel_has_the_recipes(tmp_path):
    """A config of one's own in a folder with nothing else, and only the package on the path."""
    assert '"jaxdet.config.recipes": "configs"' in (tiny.ROOT / "setup.py").read_text()
    package = shutil.copytree(tiny.ROOT / "jaxdet", tmp_path / "site" / "jaxdet")
    shutil.copytree(tiny.ROOT / "configs", package / "config" / "recipes")
    (tmp_path / "own.py").write_text("from configs import person_small\nget_config = person_small.get_config\n")
    program = (
        "from jaxdet.config.command_line import load_config\n"
        "print(load_config('own.py').model.fpn.channels, load_config('person_rpn:person_demo').model.roi_head)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=tiny.ENVIRONMENT | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "96 None\n"), done.stderr


def test_the_package_has_both_commands(tmp_path):
    done = call("-m", "jaxdet")
    assert done.returncode == 0 and "train a detector" in done.stdout
    run = f"--workdir={tmp_path / 'run'}"
    printed = refused("-m", "jaxdet", "train", "--config=person_demo", run, "--config.train.stepz", "3")
    assert printed == "jaxdet train: no key config.train.stepz; did you mean config.train.steps?\n"
    printed = refused("-m", "jaxdet", "evaluate", run, "--config.train.steps=3", "street.jpg")
    assert printed.startswith(f"jaxdet evaluate: {tmp_path / 'run'} holds no run")


def test_missing_data_says_what_to_do(tmp_path):
    printed = refused("train.py", "--config=configs/person.py", f"--workdir={tmp_path / 'run'}")
    assert "no annotation file at data/coco/annotations/instances_train2017.json" in printed
    assert "https://cocodataset.org/#download" in printed
    assert "--config.data.train.images=DIR --config.data.train.annotations=FILE" in printed
    assert "python train.py --config configs/person_demo.py --workdir runs/demo" in printed
    assert not (tmp_path / "run").exists()


def test_an_empty_data_set(tmp_path):
    tiny.write_data(tmp_path / "data")
    config = f"--config=tests/tiny.py:{tmp_path / 'data'}"
    content = json.loads((tmp_path / "data" / "train.json").read_text())
    content["annotations"] = []
    (tmp_path / "data" / "train.json").write_text(json.dumps(content))
    printed = refused("train.py", config, f"--workdir={tmp_path / 'run'}")
    assert f"the data set is empty: none of the 8 images of {tmp_path}/data/train.json has a box of" in printed
    assert "a box of bicycle, person, dog" in printed
    assert not (tmp_path / "run").exists()


def test_evaluation_from_the_command_line_and_from_python(tiny_run, tiny_data, tmp_path):
    names = "ours", "theirs", "package"
    ours, theirs, package = (shutil.copytree(tiny_run.workdir, tmp_path / name) for name in names)
    done = call(
        "eval.py",
        f"--config=tests/tiny.py:{tiny_data}",
        f"--workdir={theirs}",
        "--pictures=2",
        "--config.data.val.limit=3",
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    config = tiny_run.config.copy_and_resolve_references()
    config.data.val.limit = 3
    results, printed = tiny.evaluate(config, ours)
    assert results["images"] == 3
    for name in ("eval.json", "detections.json"):
        assert (ours / name).read_text() == (theirs / name).read_text()
    assert [line for line in printed.splitlines() if line.startswith("Average")] == [
        line for line in done.stdout.splitlines() if line.startswith("Average")
    ]
    assert len(list((theirs / "pictures").iterdir())) == 3
    flags = (f"--workdir={package}", "--pictures=0", "--config.data.val.limit=3")  # and the config of the workdir
    done = call("-m", "jaxdet", "evaluate", *flags)
    assert done.returncode == 0, done.stderr
    assert (package / "eval.json").read_text() == (ours / "eval.json").read_text()


def test_evaluation_of_no_run(tmp_path):
    assert f"eval.py: {tmp_path} holds no run" in refused("eval.py", DEMO, f"--workdir={tmp_path}")
