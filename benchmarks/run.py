"""How fast the parts and the whole are, beside torchvision where that is installed.

    python -m benchmarks.run                              every row
    python -m benchmarks.run roi_align_512 nms_spread     some
    python -m benchmarks.run --peer torchvision --json benchmark.json
    python -m benchmarks.run train_gpu infer_gpu_1 infer_gpu_8 --peer torchvision      on a GPU, only when named

Each row runs in a process of its own: compiled or warmed up once, then timed. `units` are multiples of one product of
two 2048 x 2048 float32 matrices in NumPy, timed before and after, since machines drift. Weights are random, inputs
fixed by seed. `memory` is the most that the process held (on an accelerator: that the device held).
"""

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

from benchmarks.operations import PEAK, total

# row -> the function of rows.py that builds it, and its arguments
ROWS = {
    "infer_800": ("infer", 800, 1088),
    "infer_512": ("infer", 512, 512),
    "train_512": ("train", 512, 512),
    "roi_align_512": ("roi_align", 512, False),
    "roi_align_512_grad": ("roi_align", 512, True),
    "roi_align_1000_grad": ("roi_align", 1000, True),
    "nms_spread": ("nms", False),
    "nms_clustered": ("nms", True),
}
# Only where named: in bfloat16, images of --height x --width, (builder, batch)
GPU_ROWS = {"train_gpu": ("train", 16), "infer_gpu_1": ("infer", 1), "infer_gpu_8": ("infer", 8)}
LIBRARIES = ("jaxdet", "torchvision")


def measure(library, row, repeats, size):
    """One row as a dict: seconds (median, least, most), units, compilation in seconds, memory in MiB.

    size: height and width of the images of GPU_ROWS.
    """
    if library == "jaxdet":
        from benchmarks import rows
    else:
        from benchmarks import rows_torchvision as rows
    before = matmul_seconds()
    started = time.perf_counter()
    if row in GPU_ROWS:
        build, batch = GPU_ROWS[row]
        run = getattr(rows, build)(*size, batch, "bfloat16")
    else:
        build, *arguments = ROWS[row]
        run = getattr(rows, build)(*arguments)
    run()
    first = time.perf_counter() - started
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    after = matmul_seconds()
    median = statistics.median(seconds)
    return {
        "row": row,
        "library": library,
        "median_s": median,
        "least_s": min(seconds),
        "most_s": max(seconds),
        "unit_s": (before + after) / 2,
        "units": median / ((before + after) / 2),
        "compile_s": first - median,
        **(throughput(build, batch, median, rows.device(), size) if row in GPU_ROWS else {}),
        "memory_mib": rows.peak_memory() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def throughput(build, batch, seconds, device, size):
    """Images and operations a second, and their share of the chip's peak where that is known."""
    training = build == "train"
    work, _ = total(*size, 512 if training else 1000, training)
    peak = next((peak for name, peak in PEAK.items() if name in device), None)
    rate = batch * work / seconds
    return {
        "device": device,
        "images_per_s": batch / seconds,
        "tflop_per_s": rate / 1e12,
        "peak_share": peak and rate / peak,
    }


def matmul_seconds():
    """One unit: the median of several products."""
    a = np.random.default_rng(0).standard_normal((2048, 2048), dtype=np.float32)
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="ROW",
        help=f"of {', '.join(ROWS | GPU_ROWS)}; all but the last {len(GPU_ROWS)} where none is given",
    )
    parser.add_argument("--peer", choices=LIBRARIES[1:], help="time this library in the same run")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there as well")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--height", type=int, default=800, help="of the rows of a GPU (default: 800)")
    parser.add_argument("--width", type=int, default=1344, help="likewise (default: 1344)")
    parser.add_argument("--measure", choices=LIBRARIES, help=argparse.SUPPRESS)  # in the process of one row
    options = parser.parse_args()
    unknown = [row for row in options.rows if row not in ROWS | GPU_ROWS]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS | GPU_ROWS)}")
    if options.measure:
        size = options.height, options.width
        print(json.dumps(measure(options.measure, options.rows[0], options.repeats, size)))
        return
    libraries = ["jaxdet"]
    if options.peer:
        if importlib.util.find_spec(options.peer):
            libraries.append(options.peer)
        else:
            print(f"{options.peer} is not installed: jaxdet alone")
    results = []
    print(f"{'row':20} {'library':12} {'median':>9} {'spread':>19} {'units':>7} {'compile':>9} {'memory':>10}")
    for row in options.rows or ROWS:
        for library in libraries:
            command = [sys.executable, "-m", "benchmarks.run", row, "--measure", library]
            command += [f"--{name}={getattr(options, name)}" for name in ("repeats", "height", "width")]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(f"{library} {row} failed with exit code {done.returncode}")
            result = json.loads(done.stdout.splitlines()[-1])
            results.append(result)
            median, least, most = (1000 * result[name] for name in ("median_s", "least_s", "most_s"))
            print(
                f"{row:20} {library:12} {median:6.0f} ms {least:7.0f}..{most:.0f} ms {result['units']:8.2f} "
                f"{result['compile_s']:7.1f} s {result['memory_mib']:6.0f} MiB",
                flush=True,
            )
            if "images_per_s" in result:
                share = f", {result['peak_share']:.0%} of its peak" if result["peak_share"] else ""
                print(
                    f"{'':20} {result['images_per_s']:.1f} images a second, {result['tflop_per_s']:.1f} TFLOP/s{share} "
                    f"({result['device']})",
                    flush=True,
                )
            if options.json:
                with open(options.json, "w") as file:
                    json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
