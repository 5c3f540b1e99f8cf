import argparse
import json
import pathlib
import sys
import time

import pytest

from benchmarks import gpu

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def options(tmp_path):
    (tmp_path / "scratch").mkdir()
    settings = {"parts": [], "output": tmp_path, "data": None, "tiny": False, "training_seconds": 180}
    return argparse.Namespace(**settings)


def python(code):
    return [sys.executable, "-c", code]


def run_all(monkeypatch, options, parts, seconds=60):
    """The states of some parts, and the JSON."""
    monkeypatch.setattr(gpu, "parts", lambda _: parts)
    path = options.output / "gpu.json"
    found = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    gpu.run_all(found, options, {"PATH": "", "OWN": "own"}, time.monotonic() + seconds)
    found = json.loads(path.read_text())
    return {name: part["state"] for name, part in found["parts"].items()}, found


def test_each_part_has_its_state_numbers_and_log(monkeypatch, options):
    numbers = f"open({str(options.output / 'scratch' / 'first.json')!r}, 'w').write('[1, 2]'); print('hello')"
    after = f"import json; print(json.load(open({str(options.output / 'gpu.json')!r}))['parts']['first']['state'])"
    environment = "import os; print(os.environ['OWN'], os.environ['MORE'], 'SECONDS'); 1 / 0"
    states, found = run_all(
        monkeypatch,
        options,
        {
            "first": gpu.Part([python("print('before')"), python(numbers)], 1, 50, {}),
            "second": gpu.Part([python(after)], 1, 50, {}),  # sees what the first left
            "third": gpu.Part([python(environment), python("print('never')")], 1, 50, {"MORE": "more"}),
            "fourth": gpu.Part([python("0")], 1, 50, {}, "no images"),
        },
    )
    assert states == {
        "first": "passed",
        "second": "passed",
        "third": "failed with exit code 1",
        "fourth": "skipped: no images",
    }
    assert found["parts"]["first"]["numbers"] == [1, 2] and found["parts"]["first"]["seconds"] < 50
    logs = {name: (options.output / f"{name}.log").read_text() for name in ("first", "second", "third")}
    assert "before\n" in logs["first"] and "hello\n" in logs["first"]
    assert logs["second"].endswith("\npassed\n")
    assert "\nown more 50\n" in logs["third"] and "\nnever\n" not in logs["third"]


def test_goes_on_with_what_is_missing(monkeypatch, options):
    """What was cut off, with the processes that it had started, what never began, and what is named."""
    count = options.output / "count"
    counting = python(f"open({str(count)!r}, 'a').write('x')")
    sleeping = (
        "import subprocess, sys, time; sleep = [sys.executable, '-c', 'import time; time.sleep(99)']; "
        "print(subprocess.Popen(sleep).pid, flush=True); time.sleep(99)"
    )
    parts = {
        "counted": gpu.Part([counting], 1, 50, {}),
        "slow": gpu.Part([python(sleeping)], 1, 2, {}),
        "long": gpu.Part([python("0")], 100, 200, {}),
    }
    states, _ = run_all(monkeypatch, options, parts)
    assert states["slow"] == "cut off after 2 s" and states["long"].startswith("not begun: ")
    assert not alive(int((options.output / "slow.log").read_text().split("\n")[1]))
    parts["slow"] = parts["slow"]._replace(commands=[python("0")])
    states, _ = run_all(monkeypatch, options, parts, seconds=150)
    assert states == dict.fromkeys(parts, "passed") and count.read_text() == "x"
    options.parts = ["counted"]
    run_all(monkeypatch, options, parts)
    assert count.read_text() == "xx"


def alive(pid):
    """Whether a process runs; one that is dead and was not waited for does not."""
    status = pathlib.Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().split(")")[-1].split()[0] != "Z"


def test_counts_of_tests_cut_off_in_the_middle():
    log = """tests/ops/nms_test.py::test_a PASSED                    [  1%]
tests/ops/nms_test.py::test_b[x y-1] FAILED              [  2%]
tests/ops/nms_test.py::test_c SKIPPED (no)               [  3%]
tests/ops/nms_test.py::test_d"""
    assert gpu.counts(log) == {"tests_passed": 1, "tests_failed": ["tests/ops/nms_test.py::test_b[x y-1]"]}


@pytest.mark.parametrize("tiny", [False, True])
def test_commands_name_what_there_is(options, tiny, tmp_path):
    """Files of tests, modules, and flags that their parsers have: on the machine it would be too late."""
    options.tiny, options.data = tiny, tmp_path
    for part in gpu.parts(options).values():
        assert part.least <= part.most and not part.skipped
        for _, *command in part.commands:
            if command[0] == "train.py":
                continue
            module = command[1]
            if module == "pytest":
                assert all((ROOT / word).exists() for word in command if word.startswith("tests/"))
                continue
            source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text()
            flags = [word.split("=")[0] for word in command if word.startswith("--")]
            assert all(f'"{flag}"' in source for flag in flags if not flag.startswith("--config.")), flags


def test_without_images_nothing_is_trained(options):
    parts = gpu.parts(options)
    assert "--data" in parts["training"].skipped
    assert not any(part.skipped for name, part in parts.items() if name != "training")
    assert len(parts["service"].commands) == 2  # a detector is made first
    (options.output / "scratch" / "training").mkdir()
    (options.output / "scratch" / "training" / "eval.json").touch()
    assert len(gpu.parts(options)["service"].commands) == 1
