"""Ends processes of a training at random steps, starts it on other processes and devices each time, and compares the curve.

    python -m benchmarks.lose_processes --config configs/person_demo.py --workdir runs/lost --tries 20 \
        --config.train.steps=120 --config.train.checkpoint_every=5

Two trainings: W/undisturbed in one process with one device, and W/disturbed in one, two or four processes of this machine,
where either one of them gets SIGKILL, or one of them or all get SIGTERM. After SIGTERM every process must have ended with exit
code 75 and the last step of the log must be a checkpoint; after SIGKILL the others must have ended by themselves. Exits with 1
where that, or a loss of the curve, is not so. Other flags go to train.py.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYOUTS = (1, 4), (2, 1), (2, 2), (4, 1)  # processes, devices of each
HEARTBEAT = 20  # seconds
SAME = 1e-4  # relative; sums over devices come in another order


class Processes:
    """A command in several processes, each with some CPU devices of its own."""

    def __init__(self, command, processes, devices, environment=os.environ):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        environment = environment | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
        }
        self.running = []
        for process in range(processes):
            cluster = [f"--coordinator=localhost:{port}", f"--processes={processes}", f"--process={process}"]
            cluster += [f"--heartbeat_seconds={HEARTBEAT}"]
            self.running.append(
                subprocess.Popen(
                    command + (cluster if processes > 1 else []),
                    cwd=ROOT,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )

    def wait(self):
        """Exit codes and what each printed."""
        printed = [process.communicate(timeout=900)[0] for process in self.running]
        return [process.returncode for process in self.running], printed

    def wait_for_step(self, workdir, step):
        """Whether that step stands in the log before all processes have ended."""
        while last_step(workdir) < step:
            if all(process.poll() is not None for process in self.running):
                return False
            time.sleep(0.01)
        return True


def last_step(workdir):
    """Last step in the log of a run, 0 without one."""
    return max(losses(workdir), default=0)


def losses(workdir):
    """{step: loss} of the log."""
    try:
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    except (OSError, json.JSONDecodeError):
        return {}
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def disturb(command, workdir, moments):
    """One start of the run and what happened to it: (what, a complaint or "")."""
    processes, devices = moments.choice(LAYOUTS)
    target = last_step(workdir) + moments.randint(1, 6)
    run = Processes(command, processes, devices)
    if not run.wait_for_step(workdir, target):
        codes, printed = run.wait()
        return "finished", "" if codes == [0] * processes else f"exit codes {codes}: {printed[0][-2000:]}"
    time.sleep(moments.uniform(0, 0.3))
    kind = moments.choice(("SIGKILL to one", "SIGTERM to one", "SIGTERM to all"))
    told = run.running if kind == "SIGTERM to all" else [moments.choice(run.running)]
    for process in told:
        os.kill(process.pid, signal.SIGKILL if kind == "SIGKILL to one" else signal.SIGTERM)
    started = time.monotonic()
    codes, printed = run.wait()
    what = f"{kind} of {processes} x {devices}"
    if codes == [0] * processes:
        return "finished", ""
    if kind == "SIGKILL to one":
        expected = all(code not in (0, 75) for code in codes)
    else:
        saved = (workdir / "checkpoints" / str(last_step(workdir))).is_dir()
        expected = codes == [75] * processes and saved
    print(
        f"{what} at step {last_step(workdir)}, all ended {time.monotonic() - started:.1f} s later", flush=True
    )
    return kind, "" if expected else f"{what}: exit codes {codes}: {printed}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="an empty folder, or none yet")
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--seed", type=int, help="of the moments (default: others each time)")
    options, overrides = parser.parse_known_args()
    if options.workdir.exists() and any(options.workdir.iterdir()):
        sys.exit(f"{options.workdir} is not empty")
    undisturbed, disturbed = (options.workdir.resolve() / name for name in ("undisturbed", "disturbed"))
    command = [sys.executable, "train.py", f"--config={options.config}", "--config.train.log_every=1"]
    command += ["--config.train.batch_size=4", "--config.data.workers=0", *overrides]
    codes, printed = Processes([*command, f"--workdir={undisturbed}"], 1, 1).wait()
    if codes != [0]:
        sys.exit(printed[0])

    moments, counts, complaints = random.Random(options.seed), collections.Counter(), []
    command.append(f"--workdir={disturbed}")
    for _ in range(options.tries):
        what, complaint = disturb(command, disturbed, moments)
        counts[what] += 1
        complaints += [complaint] * bool(complaint)
        if what == "finished":
            break
    else:
        codes, printed = Processes(command, 1, 1).wait()
        complaints += printed * (codes != [0])
    expected, found = losses(undisturbed), losses(disturbed)
    worst = max((abs(found.get(step, 0) / loss - 1) for step, loss in expected.items()), default=0)
    print(
        f"{dict(counts)}; {len(found)} of {len(expected)} steps, losses within {worst:.1e} of the undisturbed run's"
    )
    print("\n".join(complaints))
    sys.exit(bool(complaints) or found.keys() != expected.keys() or worst > SAME)


if __name__ == "__main__":
    main()
