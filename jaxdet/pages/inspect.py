"""A look at a data set before training: what is in it, what is wrong with it, how the network will see it."""

import collections
import concurrent.futures
import json

import numpy as np
import tqdm

from jaxdet.config.checks import check_config
from jaxdet.data import pipeline
from jaxdet.data.coco import summary
from jaxdet.evaluation.curves import SIZES
from jaxdet.inference import drawing
from jaxdet.pages import plots
from jaxdet.pages.anchors import anchor_statistics
from jaxdet.pages.page import fresh_folder, render
from jaxdet.runs.files import write_whole
from jaxdet.training.validation import check_class_count, check_same_categories

SAMPLES = {"train": 24, "val": 8}  # drawn images


def inspect(config, output):
    """Inspects both splits of a config; returns what is broken, one text each, with the image ids.

    Prints the numbers and writes OUTPUT/index.html with plots and drawn samples, and OUTPUT/inspect.json. A split that
    cannot be opened is one of the broken things; that `model.num_classes` does not fit is only noted. Raises ValueError
    if the config itself is wrong or OUTPUT holds something else.
    """
    check_config(config)
    output = fresh_folder(output, "inspect.json", "samples")
    faults, notes, splits, categories = [], [], [], None
    for name in ("train", "val"):
        split = config.data[name]
        try:
            source = pipeline.open_source(split, config.data.categories or None)
        except (OSError, ValueError) as error:
            faults.append(f"{name}: {error}")
            continue
        print(f"{name}: {summary(source)}")
        categories = categories or source.categories
        for texts, check, *given in (
            (notes, check_class_count, config, source),
            (faults, check_same_categories, source, categories),
        ):
            try:
                check(*given)
            except ValueError as error:
                texts.append(f"{name}: {error}")
        found = faults_of(source)
        faults += [f"{name}: {fault}" for fault in found]
        numbers = split_numbers(source)
        anchors = anchor_statistics(config, source, split)
        print(numbers_text(numbers, anchors))
        samples = draw_samples(config, source, name, output)
        view = {"name": name, "numbers": numbers, "anchors": anchors, "samples": samples}
        splits.append(view | {"faults": found, "panels": _panels(numbers)})
    page = render(
        "inspect.html",
        title="Data of this training",
        sections=[(view["name"], view["name"]) for view in splits],
        splits=splits,
        faults=faults,
        notes=notes,
    )
    numbers = {
        view["name"]: {k: v for k, v in view["numbers"].items() if k not in ("ratios", "per_picture")}
        | {"anchors": view["anchors"]["rows"]}
        for view in splits
    }
    text = json.dumps(numbers | {"broken": faults, "notes": notes}, indent=1)
    write_whole(output / "inspect.json", text + "\n")
    write_whole(output / "index.html", page)  # last: what it shows is there
    for note in notes:
        print(f"training would refuse this: {note}")
    print(f"page with plots and drawn samples at {output / 'index.html'}")
    return faults


def faults_of(source):
    """Texts: what was left out and why, and images that do not decode (all are tried), with their image ids."""
    by_reason = {}
    for item in source.skipped:
        by_reason.setdefault(item["reason"], []).append(item)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        whole = pool.map(lambda i: source[i]["image"] is not None, range(len(source)))
        whole = list(tqdm.tqdm(whole, total=len(source), unit="image", desc="decoding", leave=False))
    broken = np.asarray(source.image_ids)[~np.array(whole, bool)].tolist()
    if broken:
        by_reason["image does not decode"] = [{"image_id": image_id} for image_id in broken]
    texts = []
    for reason, items in by_reason.items():
        ids = sorted({item["image_id"] for item in items if item.get("image_id") is not None}, key=str)
        shown = ", ".join(map(str, ids[:20])) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")
        texts.append(f"{len(items)} x {reason}" + (f", image ids {shown}" if ids else ""))
    return texts


def split_numbers(source):
    """Counts of a source, in JSON's types; "ratios" (height / width) and "per_picture" are arrays for plots."""
    truth = source.ground_truth()
    rows = [row for row in truth["annotations"] if not row["iscrowd"]]
    areas = np.array([row["area"] for row in rows], float)
    sides = np.array([row["bbox"][2:] for row in rows], float).reshape(-1, 2)
    owners = [row["image_id"] for row in rows]
    places = {image_id: i for i, image_id in enumerate(np.asarray(source.image_ids).tolist())}
    per_picture = np.bincount([places[image_id] for image_id in owners], minlength=len(source))
    heights, widths = np.asarray(source.sizes).T
    of_category = collections.Counter(row["category_id"] for row in rows)
    by_name = collections.defaultdict(int)  # two ids may have one name
    for category in truth["categories"]:
        by_name[category["name"]] += of_category[category["id"]]
    return {
        "pictures": len(source),
        "without boxes": int(np.sum(per_picture == 0)),
        "smallest picture": [int(widths.min()), int(heights.min())],
        "largest picture": [int(widths.max()), int(heights.max())],
        "boxes": len(rows),
        "crowd regions": int(source.crowd_counts.sum()),
        "boxes reaching over the edge": int(source.clipped_counts.sum()),
        "most boxes in a picture": int(per_picture.max(initial=0)),
        "sizes": {
            size: int(np.sum((areas >= low) & (areas < high))) for size, (low, high) in SIZES.items() if size != "all"
        },
        "categories": dict(by_name),
        "ratios": sides[:, 1] / sides[:, 0],
        "per_picture": per_picture,
    }


def numbers_text(numbers, anchors):
    """The numbers for a terminal."""
    ratios = np.percentile(numbers["ratios"], [5, 50, 95]) if len(numbers["ratios"]) else [np.nan] * 3
    sizes = ", ".join(f"{count} {size}" for size, count in numbers["sizes"].items())
    best = anchors["rows"][0]
    shares = ", ".join(
        f"{100 * share:.1f}% at IoU {iou}" for iou, share in zip(anchors["ious"], best["shares"], strict=True)
    )
    return (
        f"  boxes: {sizes}; height / width {ratios[0]:.2f}, {ratios[1]:.2f}, {ratios[2]:.2f} "
        f"(5%, half, 95%); at most {numbers['most boxes in a picture']} in an image\n"
        f"  anchors reach {shares}; median of the best IoU {best['median']:.2f}"
    )


def _panels(numbers):
    edges = np.arange(0, max(numbers["most boxes in a picture"], 10) + 2) - 0.5
    return [plots.histogram("Boxes in an image", "boxes", numbers["per_picture"], edges)]


def draw_samples(config, source, name, output):
    """Draws the first images of a split as they come out of the pipeline; returns [{"file", "id", "size"}].

    Resized, flipped and padded, with the boxes that are trained on.
    """
    split, boxes = config.data[name], pipeline.max_boxes(source)
    if name == "train":
        batches = pipeline.TrainingBatches(source, split, config.seed, config.train.batch_size, boxes)
        steps = -(-SAMPLES[name] // config.train.batch_size)
        read = batches.read(0, steps, 0)
    else:
        read = pipeline.EvaluationBatches(source, split, config.evaluation.batch_size, boxes).read(0)
    names = [category["name"] for category in source.categories]
    samples = []
    for batch in read:
        for row in range(len(batch["image_ids"])):
            image_id, size = int(batch["image_ids"][row]), batch["image_sizes"][row].tolist()
            if not size[0] or len(samples) == SAMPLES[name]:
                continue
            valid = batch["gt_valid"][row]
            several = len(names) > 1
            image = drawing.draw(
                np.clip(np.rint(batch["images"][row]), 0, 255).astype(np.uint8),
                batch["gt_boxes"][row][valid],
                labels=batch["gt_labels"][row][valid] if several else None,
                names=names if several else None,
            )
            file = f"samples/{name}-{len(samples):02d}.jpg"
            image.save(output / file, quality=85)
            samples.append({"file": file, "id": image_id, "size": size, "shape": list(image.size)})
        if len(samples) == SAMPLES[name]:
            break
    read.close()
    return samples
