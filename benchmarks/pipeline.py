"""How fast images become batches, beside the floor: Pillow's decoding and resizing alone, in a plain loop.

    python -m benchmarks.pipeline --config configs/person_small.py --config.data.train.images=DIR \
        --config.data.train.annotations=FILE
    python -m benchmarks.pipeline --config configs/person.py --drawn 64      # JPEGs of drawn scenes, no data needed

Both work on the same files to the same sizes, by turns, in this process. What counts is the time that the CPU worked,
whichever thread: images a second a core. The floor keeps nothing; the pipeline also reads the annotations, mirrors,
pads and makes batches.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time

from PIL import Image

from jaxdet.config.command_line import load_config, override
from jaxdet.data import pipeline
from jaxdet.data.coco import CocoSource
from jaxdet.data.synthetic.scenes import SyntheticPeople


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--images", type=int, default=160, help="how many to read in each round, at least")
    parser.add_argument("--rounds", type=int, default=7, help="how often")
    parser.add_argument("--drawn", type=int, help="so many drawn JPEGs of 480x640 in place of the config's data")
    options, overrides = parser.parse_known_args()
    config = load_config(options.config)
    override(config, overrides)
    with tempfile.TemporaryDirectory() as folder:
        if options.drawn:
            draw(pathlib.Path(folder), options.drawn)
            config.data.categories = ("person",)
            config.data.train.update(source="coco", images=folder, annotations=f"{folder}/annotations.json")
        measure(config, options.images, options.rounds)


def measure(config, images, rounds):
    source = pipeline.open_source(config.data.train, config.data.categories or None)
    files = source.source if isinstance(source, pipeline.Subset) else source
    if not isinstance(files, CocoSource):
        raise SystemExit("the floor needs image files: config.data.train.source=coco, or --drawn")
    path = dict(zip(files.image_ids.tolist(), files.file_names, strict=True))
    size, split = config.train.batch_size, config.data.train
    batches = pipeline.TrainingBatches(source, split, config.seed, size, pipeline.max_boxes(source))
    steps = -(-images // size)
    seconds = {"floor": [], "pipeline": []}
    for start in range(0, rounds * steps, steps):
        work = []
        for batch in batches.read(start, start + steps, 0):  # brings the files into memory, too
            rows = zip(batch["image_ids"].tolist(), batch["image_sizes"].tolist(), strict=True)
            work += [(os.path.join(files.folder, path[i]), (w, h)) for i, (h, w) in rows if h]

        def floor(work=work):
            for file, width_and_height in work:
                with Image.open(file) as image:
                    image.convert("RGB").resize(width_and_height, Image.Resampling.BILINEAR)

        def whole(start=start):
            for _ in batches.read(start, start + steps, 0):
                pass

        for name, run in (("floor", floor), ("pipeline", whole)):
            before = time.process_time()
            run()
            seconds[name].append((time.process_time() - before) / len(work))
    print(f"{rounds} rounds of {steps} batches of {size}, shapes {batches.shapes}")
    for name, each in seconds.items():
        print(f"{name:10} {1 / statistics.median(each):7.0f} images a second a core")
    ratios = [whole / floor for whole, floor in zip(seconds["pipeline"], seconds["floor"], strict=True)]
    print(f"the pipeline takes {statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f}) times the floor")


def draw(folder, count):
    """Writes `count` scenes as JPEGs, with their annotations."""
    source = SyntheticPeople(count, 0, 480, 640)
    truth = source.ground_truth()
    for index, image in enumerate(truth["images"]):
        image["file_name"] = image["file_name"].replace(".png", ".jpg")
        Image.fromarray(source[index]["image"]).save(folder / image["file_name"], quality=90)
    (folder / "annotations.json").write_text(json.dumps(truth))


if __name__ == "__main__":
    main()
