"""A data set of COCO's size: how long the index takes, how soon the first batch comes, and whether memory stays flat.

    python faults/data_scale.py --workdir runs/scale

draws 118,000 file names (hard links to 64 JPEGs of 640x480) and 860,000 boxes with polygons into W, once, and prints:
time and memory of the index, time to the first batch, and the memory of this process and every worker at each tenth of
the batches. Exits with 1 where a worker's memory grew by more than 5 % over the second half.
"""

import argparse
import json
import os
import pathlib
import resource
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from configs import person  # noqa: E402
from jaxdet.data import pipeline  # noqa: E402
from jaxdet.data.coco import summary  # noqa: E402

IMAGES = 64


def draw(folder, images, boxes):
    """Writes FOLDER/images and FOLDER/data.json."""
    rng = np.random.default_rng(0)
    (folder / "drawn").mkdir(parents=True)
    (folder / "images").mkdir()
    sizes = [(640, 480) if i % 3 else (480, 640) for i in range(IMAGES)]
    for i, (width, height) in enumerate(sizes):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / "drawn" / f"{i}.jpg", quality=90)
    for i in range(images):
        os.link(folder / "drawn" / f"{i % IMAGES}.jpg", folder / "images" / f"{i:012d}.jpg")
    with (folder / "data.json").open("w") as file:
        entries = (
            {"id": i, "file_name": f"{i:012d}.jpg", "width": sizes[i % IMAGES][0], "height": sizes[i % IMAGES][1]}
            for i in range(images)
        )
        file.write('{"categories": [{"id": 1, "name": "person"}], "images": [\n')
        file.write(",\n".join(map(json.dumps, entries)) + '\n], "annotations": [\n')
        owners = rng.integers(0, images, boxes)
        corners = rng.uniform(0, 380, (boxes, 2)).round(2)
        sides = rng.uniform(8, 95, (boxes, 2)).round(2)
        for i, (owner, corner, side) in enumerate(zip(owners.tolist(), corners.tolist(), sides.tolist(), strict=True)):
            polygon = [round(corner[k % 2] + side[k % 2] * (k % 5) / 5, 2) for k in range(24)]
            entry = {"id": i + 1, "image_id": owner, "category_id": 1, "bbox": corner + side, "iscrowd": 0}
            entry |= {"area": round(side[0] * side[1], 2), "segmentation": [polygon]}
            file.write((",\n" if i else "") + json.dumps(entry))
        file.write("\n]}\n")


def memory(process="self"):
    """MiB that a process holds."""
    try:
        pages = int(pathlib.Path(f"/proc/{process}/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def workers():
    """Ids of this process's children that read data, oldest first."""
    tasks = pathlib.Path("/proc/self/task").glob("*/children")
    names = {
        pid: pathlib.Path(f"/proc/{pid}/cmdline").read_text() for task in tasks for pid in task.read_text().split()
    }
    return [pid for pid, name in names.items() if "resource_tracker" not in name]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--boxes", type=int, default=860_000)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    folder = options.workdir / f"{options.images}-{options.boxes}"
    if not (folder / "data.json").exists():
        draw(folder, options.images, options.boxes)
    print(f"data.json: {(folder / 'data.json').stat().st_size / 2**20:.0f} MiB", flush=True)

    split = person.get_config().data.train
    split.update(images=str(folder / "images"), annotations=str(folder / "data.json"))
    before, started, busy = memory(), time.perf_counter(), time.process_time()
    source = pipeline.open_source(split, ("person",))
    took, busy = time.perf_counter() - started, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(summary(source))
    print(
        f"index: {took:.1f} s ({busy:.1f} s of processor), {peak - before:.0f} MiB at most, "
        f"{memory() - before:.0f} MiB after",
        flush=True,
    )

    started = time.perf_counter()
    boxes = pipeline.max_boxes(source)
    batches = pipeline.TrainingBatches(source, split, 0, options.batch_size, boxes)
    read = batches.read(0, options.batches, options.workers)
    held = []
    for number, _ in enumerate(read, 1):
        if number == 1:
            print(f"first batch after {time.perf_counter() - started:.1f} s", flush=True)
        if number % max(options.batches // 10, 1) == 0:
            held.append([memory(), *map(memory, workers())])
            print(f"batch {number}: MiB here and in each worker {[round(m) for m in held[-1]]}", flush=True)
            if number + options.batches // 10 >= options.batches:
                break  # the workers end with the last batch
    print(f"{number * options.batch_size / (time.perf_counter() - started):.1f} images a second")
    read.close()
    half, last = np.array(held[len(held) // 2]), np.array(held[-1])
    growth = (last / half - 1).max()
    print(f"most growth from batch {options.batches // 2} on: {100 * growth:.1f} %")
    sys.exit(int(growth > 0.05))


if __name__ == "__main__":
    main()
