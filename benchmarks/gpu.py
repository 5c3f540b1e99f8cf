"""Checks and benchmarks on a GPU in one command, for a machine without a network that is available for half an hour.

    make gpu-wheels                                       beforehand, with a network: fills wheels/
    make gpu GPU_FLAGS="--data DIR"                       on the machine
    python3 -m benchmarks.gpu --data DIR                  the same without make
    python3 -m benchmarks.gpu trace --minutes 5           one part, again
    python3 -m benchmarks.gpu --tiny                      small sizes, to try it on a CPU

Each part runs in its own processes: `models` (golden values of whole models, in float32 and bfloat16), `ops` (the quick
tests of the operations), `speed` (benchmarks.run beside torchvision), `trace` (where the time of a training step goes),
`training` (configs/person_small.py on the images of --data, for --training-seconds) and `service` (images a second over
HTTP). After each part, OUTPUT/gpu.json is written again; OUTPUT/PART.log has the output of the part. The next call runs
the parts that were cut off or not begun. OUTPUT/scratch/ holds installed wheels, compiled programs and runs; delete it
afterwards.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from benchmarks import wheels
from jaxdet.runs.files import write_whole

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Tests need right values, not the fastest algorithm; searching for it takes half of the compilation.
EXACT = {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "XLA_FLAGS": "--xla_gpu_autotune_level=0"}
# Kernels in a CUDA graph do not name their instruction. Cached programs must have the current scopes.
TRACED = {"XLA_FLAGS": "--xla_gpu_enable_command_buffer=", "JAX_COMPILATION_CACHE_INCLUDE_METADATA_IN_KEY": "true"}
# The service shares the memory with the detector that its answers are compared with.
SHARED = {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".4"}
MACHINE = """
import importlib.metadata, json, platform, jax
packages = ("jax", "jaxlib", "flax", "numpy", "torch", "torchvision")
there = [name for name in packages if any(importlib.metadata.distributions(name=name))]
versions = {name: importlib.metadata.version(name) for name in there}
device = jax.devices()[0]
machine = {"platform": device.platform, "device": device.device_kind, "python": platform.python_version()}
print(json.dumps(machine | versions))
"""

SHOWN = 30  # lines of each part's log


class Part(NamedTuple):
    """Commands that run in sequence.

    least: the part is not begun if fewer seconds are left. most: it is cut off after so many; a command has them for
    SECONDS. environment: additional variables. skipped: why the part cannot run here, empty if it can.
    """

    commands: list
    least: float
    most: float
    environment: dict
    skipped: str = ""


def parts(options):
    """{name: Part}, the most important first."""
    scratch, python, data = options.output / "scratch", [sys.executable, "-m"], options.data
    tests = [*python, "pytest", "-v", "--color=no", "-p", "no:cacheprovider"]
    models = [*tests, "tests/models/reference_test.py", "tests/models/reference_bfloat16_test.py"]
    ops = [*tests, "-m", "not slow", "tests/ops"]
    speed = [*python, "benchmarks.run", "train_gpu", "infer_gpu_1", "infer_gpu_8", "--peer=torchvision"]
    trace = [*python, "benchmarks.trace", f"--folder={scratch / 'trace'}"]
    training = [*python, "benchmarks.timed_training", f"--data={data}", f"--workdir={scratch / 'training'}"]
    training += ["--seconds=SECONDS", f"--config.data.workers={os.cpu_count() // 2}"]
    service = [*python, "benchmarks.serve_load", "--broken=0"]
    service += [f"--images={data / 'val'}"] if data else []
    if options.tiny:
        models += ["-k", "resnet18"]
        speed += ["--height=256", "--width=320", "--repeats=1"]
        trace += ["--height=256", "--width=320", "--batch=2", "--steps=2"]
        training += ["--config.model.backbone.width=16", "--config.data.val.limit=40"]
        service += ["--requests=40", "--different=6"]
    if (scratch / "training" / "eval.json").exists():
        services = [[*service, f"--workdir={scratch / 'training'}"]]
    else:  # any detector serves the purpose
        demo = ["--config=configs/person_demo.py", f"--workdir={scratch / 'demo'}", "--config.train.steps=1"]
        demo += ["--config.data.train.scenes=16", "--config.data.val.scenes=4"]
        services = [[sys.executable, "train.py", *demo], [*service, f"--workdir={scratch / 'demo'}"]]
    for name, command in (("speed", speed), ("trace", trace), ("training", training), ("service", services[-1])):
        command += [f"--json={scratch / name}.json"]
    no_data = "" if data else "no --data, a folder with train.json, train/, val.json and val/"
    patience = 4 if options.tiny else 1  # with a CPU
    return {
        "models": Part([models], 60, patience * 150, EXACT),
        "ops": Part([ops], 30, patience * 90, EXACT),
        "speed": Part([speed], 60, patience * 180, {}),
        "trace": Part([trace], 45, patience * 120, TRACED),
        "training": Part([training], 120, options.training_seconds, {}, no_data),
        "service": Part(services, 30, patience * 90, SHARED),
    }


def run(part, log, seconds, environment):
    """Runs a part with its output in the file `log`. Returns its state: "passed", "failed ..." or "cut off ..."."""
    environment = environment | part.environment
    end = time.monotonic() + seconds
    with log.open("w") as file:
        for command in part.commands:
            command = [word.replace("SECONDS", f"{seconds:.0f}") for word in command]
            print("$", shlex.join(command), file=file, flush=True)
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code = process.wait(max(end - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                return f"cut off after {seconds:.0f} s"
            finally:  # ends the processes that it started too
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if code:
                return f"failed with exit code {code}"
    return "passed"


def counts(log):
    """How many tests passed and which failed, from the output of pytest so far."""
    outcomes = re.findall(r"^(tests/\S+::.*) (PASSED|FAILED|ERROR|SKIPPED) ", log, re.MULTILINE)
    failed = [name for name, outcome in outcomes if outcome in ("FAILED", "ERROR")]
    return {"tests_passed": sum(outcome == "PASSED" for _, outcome in outcomes), "tests_failed": failed}


def numbers(name, output):
    """The results of a part, also of one that was cut off."""
    path = output / "scratch" / f"{name}.json"
    if name in ("models", "ops"):
        return counts((output / f"{name}.log").read_text())
    try:
        return {"numbers": json.loads(path.read_text())}
    except (FileNotFoundError, json.JSONDecodeError):  # cut off before or while the file was written
        return {}


def run_all(found, options, environment, deadline):
    """Runs the parts that `found` lacks, or those that are named, and writes `found` to gpu.json after each."""
    for name in options.parts or list(parts(options)):
        part, left = parts(options)[name], deadline - time.monotonic()
        state = found["parts"].get(name, {}).get("state", "")
        if not options.parts and state.startswith(("passed", "failed")):
            print(f"{name}: {state}, in an earlier call")
            continue
        result = {}
        if part.skipped or left < part.least:
            state = f"skipped: {part.skipped}" if part.skipped else f"not begun: {left:.0f} s left"
        else:
            (options.output / "scratch" / f"{name}.json").unlink(missing_ok=True)
            started, log = time.monotonic(), options.output / f"{name}.log"
            state = run(part, log, min(part.most, left), environment)
            result = {"seconds": round(time.monotonic() - started, 1)} | numbers(name, options.output)
            print("\n".join(log.read_text(errors="replace").splitlines()[-SHOWN:]))
        found["parts"][name] = {"state": state} | result
        write_whole(options.output / "gpu.json", json.dumps(found, indent=2) + "\n")
        print(f"{name}: {state}\n", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="to run, even if they have run before (default: all that are missing)")
    parser.add_argument("--output", type=pathlib.Path, default="runs/gpu", help="default: runs/gpu")
    parser.add_argument("--wheels", default="wheels", help="folder that benchmarks.wheels filled (default: wheels)")
    parser.add_argument("--data", type=pathlib.Path, help="folder with train.json, train/, val.json and val/ (COCO)")
    parser.add_argument("--minutes", type=float, default=9, help="time for all parts (default: 9)")
    parser.add_argument("--training-seconds", type=float, default=180, help="for the part `training` (default: 180)")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try it on a CPU")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(parts(options)):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(parts(options))}")
    deadline = time.monotonic() + 60 * options.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))
    scratch = options.output / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    taken = wheels.take(options.wheels, scratch / "packages")
    print(f"from {options.wheels}: {', '.join(taken) or 'nothing'}")
    path = os.pathsep.join([str((scratch / "packages").resolve()), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    environment = os.environ | {"PYTHONPATH": path, "JAX_COMPILATION_CACHE_DIR": str((scratch / "cache").resolve())}
    done = subprocess.run([sys.executable, "-c", MACHINE], env=environment, capture_output=True, text=True, check=True)
    machine = json.loads(done.stdout.splitlines()[-1])
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    if machine["platform"] == "cpu" and not options.tiny:
        sys.exit("jax sees no GPU here; --tiny tries everything on a CPU")
    results = options.output / "gpu.json"
    found = json.loads(results.read_text()) if results.exists() else {"parts": {}}
    found["machine"] = machine
    run_all(found, options, environment, deadline)
    states = {name: each["state"] for name, each in found["parts"].items()}
    print("\n".join(f"{name:10} {state}" for name, state in states.items()))
    print(f"numbers in {results}, output of each part in {options.output}/PART.log; call it again for missing parts")
    sys.exit(any(state.startswith("failed") for state in states.values()))


if __name__ == "__main__":
    main()
