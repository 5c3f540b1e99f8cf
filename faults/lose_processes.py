"""Ends processes of a training at random steps, starts it on other processes and devices each time, and compares the
curve.

    python -m faults.lose_processes --config configs/person_demo.py --workdir runs/lost --tries 20 \
        --config.train.steps=120 --config.train.checkpoint_every=5

A training in one process with one device, W/undisturbed, and others, W/disturbed-1 and so on, in one, two or four
processes of this machine, where either one of them gets SIGKILL, or one of them or all get SIGTERM; started again after
each until it is through, then the next. After SIGTERM every process must have ended with exit code 75 and the last step
of the log must be a checkpoint; after SIGKILL the others must have ended by themselves. Exits with 1 where that, or a
loss of a curve, is not so. Other flags go to train.py.
"""

import argparse
import collections
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

from jaxdet.runs.workdir import Workdir

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYOUTS = (1, 4), (2, 1), (2, 2), (4, 1)  # processes, devices of each
HEARTBEAT = 20  # seconds
THROUGH = "through"
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
    return {line["step"]: line["loss"] for line in Workdir(workdir).metrics() if "loss" in line}


def disturb(command, workdir, moments, steps):
    """One start of a run of so many steps and what happened to it: (what, a complaint or "")."""
    processes, devices = moments.choice(LAYOUTS)
    target = last_step(workdir) + moments.randint(1, 6)
    run = Processes(command, processes, devices)
    if not run.wait_for_step(workdir, min(target, steps)) or target > steps:
        codes, printed = run.wait()
        return THROUGH, "" if codes == [0] * processes else f"exit codes {codes}: {printed}"
    time.sleep(moments.uniform(0, 0.3))
    kind = moments.choice(("SIGKILL to one", "SIGTERM to one", "SIGTERM to all"))
    told = run.running if kind == "SIGTERM to all" else [moments.choice(run.running)]
    for process in told:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL if kind == "SIGKILL to one" else signal.SIGTERM)
    started = time.monotonic()
    codes, printed = run.wait()
    what = f"{kind} of {processes} x {devices} at step {last_step(workdir)}"
    if codes == [0] * processes:
        return THROUGH, "" if target > steps - 6 else f"{what}, and nobody heard it: {printed}"
    if kind == "SIGKILL to one":
        expected = all(code not in (0, 75) for code in codes)
    else:
        saved = (Workdir(workdir).checkpoints / str(last_step(workdir))).is_dir()
        expected = codes == [75] * processes and saved
    print(f"{what}, all ended {time.monotonic() - started:.1f} s later", flush=True)
    return kind, "" if expected else f"{what}: exit codes {codes}: {printed}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="an empty folder, or none yet")
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--seed", type=int, help="of the moments (default: others each time)")
    options, overrides = parser.parse_known_args()
    if options.workdir.exists() and any(options.workdir.iterdir()):
        sys.exit(f"{options.workdir} is not empty")
    undisturbed = options.workdir.resolve() / "undisturbed"
    command = [sys.executable, "train.py", f"--config={options.config}", "--config.train.log_every=1"]
    command += ["--config.train.batch_size=4", "--config.data.workers=0", *overrides]
    codes, printed = Processes([*command, f"--workdir={undisturbed}"], 1, 1).wait()
    if codes != [0]:
        sys.exit(printed[0])

    expected, moments = losses(undisturbed), random.Random(options.seed)
    counts, complaints, worst, runs = collections.Counter(), [], 0.0, 0
    while counts.total() - counts[THROUGH] < options.tries and not complaints:
        runs += 1
        workdir, what = undisturbed.with_name(f"disturbed-{runs}"), ""
        while what != THROUGH and not complaints:
            what, complaint = disturb([*command, f"--workdir={workdir}"], workdir, moments, len(expected))
            counts[what] += 1
            complaints += [complaint] * bool(complaint)
        found = losses(workdir)
        worst = max([worst, *(abs(found.get(step, 0) / loss - 1) for step, loss in expected.items())])
    print(f"{dict(counts)}; losses within {worst:.1e} of the undisturbed run's in all {len(expected)} steps")
    print("\n".join(complaints))
    sys.exit(bool(complaints) or worst > SAME)


if __name__ == "__main__":
    main()
