"""Time from the command line to the end of the first training step, with and without JAX's persistent compilation
cache.

    python -m benchmarks.startup --config configs/person_demo.py

train.py is run in processes of their own, which end after their first step: without a cache, with an empty one, and
with the one that this filled. Besides the time on the clock, how long the processor worked. Other flags go to train.py.
"""

import argparse
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Put before train.py's own code: when the first step has run, its result is waited for and the process ends.
FIRST_STEP_ONLY = """
import os, runpy, sys
from jaxdet.training import loop
def lap(self, waited):
    import jax
    jax.block_until_ready(jax.live_arrays())
    os._exit(0)
loop.Progress.lap = lap
runpy.run_path("train.py", run_name="__main__")
"""


def first_step(flags, cache):
    """Seconds until the first step has run, on the clock and of the processor; `cache`: a folder, or None."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache or "")}
    with tempfile.TemporaryDirectory() as workdir:
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", FIRST_STEP_ONLY, f"--workdir={workdir}/run", *flags]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"train.py failed with {done.returncode}:\n{done.stdout}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    options, overrides = parser.parse_known_args()
    flags = [f"--config={options.config}", *overrides]
    seconds = {"no cache": [], "empty cache": [], "filled cache": []}
    size = 0
    for _ in range(options.repeats):  # by turns, since machines drift
        with tempfile.TemporaryDirectory() as folder:
            for name, cache in zip(seconds, (None, folder, folder), strict=True):
                seconds[name].append(first_step(flags, cache))
            size = sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())
    for name, each in seconds.items():
        clock, work = (statistics.median(kind) for kind in zip(*each, strict=True))
        least, most = min(each)[0], max(each)[0]
        print(f"{name:12} {clock:6.1f} s to the first step ({least:.1f}..{most:.1f}), {work:.1f} s of the processor")
    print(f"the cache holds {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
