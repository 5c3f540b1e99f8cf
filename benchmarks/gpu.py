"""All that a GPU is asked, in one command for a machine that is there for half an hour, has a GPU, and no network.

    make gpu-wheels                                       beforehand, where there is a network: wheels/
    make gpu GPU_FLAGS="--data DIR"                       on the machine
    python3 -m benchmarks.gpu --data DIR                  the same without make
    python3 -m benchmarks.gpu trace --minutes 5           one part, again
    python3 -m benchmarks.gpu --tiny                      everything small, to try it on a CPU

Parts, each in processes of its own: `models` (golden values of whole models, in float32 and bfloat16), `ops` (the quick
tests of the operations), `speed` (benchmarks.run beside torchvision), `trace` (where a training step's time goes),
`training` (configs/person_small.py on the images of --data for as long as --training-seconds allows) and `service`
(images a second over HTTP). After each, OUTPUT/gpu.json is written anew and OUTPUT/PART.log is what the part printed. A
part that was cut off or never begun is run by the next call; OUTPUT/work/ holds what that needs, and is nothing to
keep.
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

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Which algorithm is fastest is no matter for right values, and to find out takes half of the compilation.
EXACT = {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "XLA_FLAGS": "--xla_gpu_autotune_level=0"}
# Kernels in a CUDA graph do not say which instruction they belong to; and what is cached must have today's scopes.
TRACED = {"XLA_FLAGS": "--xla_gpu_enable_command_buffer=", "JAX_COMPILATION_CACHE_INCLUDE_METADATA_IN_KEY": "true"}
# The service and the detector that its answers are compared with share the memory.
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
    """Commands that run one after the other.

    most: seconds after which they are cut off, SECONDS in a command. least: with fewer left they are not begun.
    environment: beside the own. skipped: why the part cannot run here, empty where it can.
    """

    commands: list
    least: float
    most: float
    environment: dict
    skipped: str = ""


def parts(options):
    """{name: Part}, the most telling first."""
    work, python, data = options.output / "work", [sys.executable, "-m"], options.data
    tests = [*python, "pytest", "-v", "--color=no", "-p", "no:cacheprovider"]
    models = [*tests, "tests/models/reference_test.py", "tests/models/reference_bfloat16_test.py"]
    ops = [*tests, "-m", "not slow", "tests/ops"]
    speed = [*python, "benchmarks.run", "train_gpu", "infer_gpu_1", "infer_gpu_8", "--peer=torchvision"]
    trace = [*python, "benchmarks.trace", f"--folder={work / 'trace'}"]
    training = [*python, "benchmarks.timed_training", f"--data={data}", f"--workdir={work / 'training'}"]
    training += ["--seconds=SECONDS", f"--config.data.workers={os.cpu_count() // 2}"]
    service = [*python, "benchmarks.serve_load", "--broken=0"]
    service += [f"--pictures={data / 'val'}"] if data else []
    if options.tiny:
        models += ["-k", "resnet18"]
        speed += ["--height=256", "--width=320", "--repeats=1"]
        trace += ["--height=256", "--width=320", "--batch=2", "--steps=2"]
        training += ["--config.model.backbone.width=16", "--config.data.val.limit=40"]
        service += ["--requests=40", "--different=6"]
    if (work / "training" / "eval.json").exists():
        services = [[*service, f"--workdir={work / 'training'}"]]
    else:  # any detector will do
        demo = ["--config=configs/person_demo.py", f"--workdir={work / 'demo'}", "--config.train.steps=1"]
        demo += ["--config.data.train.scenes=16", "--config.data.val.scenes=4"]
        services = [[sys.executable, "train.py", *demo], [*service, f"--workdir={work / 'demo'}"]]
    for name, command in (("speed", speed), ("trace", trace), ("training", training), ("service", services[-1])):
        command += [f"--json={work / name}.json"]
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
    """Runs a part, what it prints going to the file `log`. Returns its state: passed, failed or cut off, with more
    words.
    """
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
            finally:  # with all that it has started
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if code:
                return f"failed with exit code {code}"
    return "passed"


def counts(log):
    """How many tests passed and failed by what pytest has printed so far, and which failed."""
    outcomes = re.findall(r"^(tests/\S+::.*) (PASSED|FAILED|ERROR|SKIPPED) ", log, re.MULTILINE)
    failed = [name for name, outcome in outcomes if outcome in ("FAILED", "ERROR")]
    return {"tests_passed": sum(outcome == "PASSED" for _, outcome in outcomes), "tests_failed": failed}


def numbers(name, output):
    """What a part has found out, as far as it came."""
    path = output / "work" / f"{name}.json"
    if name in ("models", "ops"):
        return counts((output / f"{name}.log").read_text())
    try:
        return {"numbers": json.loads(path.read_text())}
    except (FileNotFoundError, json.JSONDecodeError):  # cut off before, or while it was written
        return {}


def write(path, found):
    """A whole JSON file, or the one from before."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=2) + "\n")
    part.replace(path)


def run_all(found, options, environment, deadline):
    """Runs what `found` lacks, or the parts that are named, and writes `found` after each."""
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
            (options.output / "work" / f"{name}.json").unlink(missing_ok=True)
            started, log = time.monotonic(), options.output / f"{name}.log"
            state = run(part, log, min(part.most, left), environment)
            result = {"seconds": round(time.monotonic() - started, 1)} | numbers(name, options.output)
            print("\n".join(log.read_text(errors="replace").splitlines()[-SHOWN:]))
        found["parts"][name] = {"state": state} | result
        write(options.output / "gpu.json", found)
        print(f"{name}: {state}\n", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", help="to run whether they have run before or not (default: all that are missing)"
    )
    parser.add_argument("--output", type=pathlib.Path, default="runs/gpu", help="default: runs/gpu")
    parser.add_argument("--wheels", default="wheels", help="folder that benchmarks.wheels filled (default: wheels)")
    parser.add_argument("--data", type=pathlib.Path, help="folder with train.json, train/, val.json and val/ (COCO)")
    parser.add_argument("--minutes", type=float, default=9, help="after which nothing runs any more (default: 9)")
    parser.add_argument("--training-seconds", type=float, default=180, help="of the part `training` (default: 180)")
    parser.add_argument("--tiny", action="store_true", help="everything small, to try it on a CPU")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(parts(options)):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(parts(options))}")
    deadline = time.monotonic() + 60 * options.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    work = options.output / "work"
    work.mkdir(parents=True, exist_ok=True)
    taken = wheels.take(options.wheels, work / "packages")
    print(f"from {options.wheels}: {', '.join(taken) or 'nothing'}")
    path = os.pathsep.join([str((work / "packages").resolve()), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    environment = os.environ | {"PYTHONPATH": path, "JAX_COMPILATION_CACHE_DIR": str((work / "cache").resolve())}
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
    print(f"numbers in {results}, what each part printed in {options.output}/PART.log; called again, it goes on")
    sys.exit(any(state.startswith("failed") for state in states.values()))


if __name__ == "__main__":
    main()
