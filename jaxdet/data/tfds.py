"""TFDS data sets in ArrayRecord form, read and written without TensorFlow.

Reads what TFDS prepares for `coco/2017` (with `file_format="array_record"`) and what `build` writes, in the same
layout, which tfds_layout.py spells out. To write one:

    python -m jaxdet.data.tfds --images DIR --annotations FILE --output DIR [--split train]
"""

import argparse
import concurrent.futures
import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxdet.data import decoding
from jaxdet.data.annotations import Annotations, Columns, summary
from jaxdet.data.coco import HOW_TO_GET_COCO, CocoSource, choose_categories
from jaxdet.data.tfds_layout import (
    CATEGORIES_FILE,
    FEATURES,
    OBJECT_FEATURES,
    category_list,
    coco_features,
    import_tfds,
)
from jaxdet.data.types import Category, Record

IMAGES_IN_A_SHARD = 1000

Objects = tuple[list[Any], ...]  # of one record: ids, areas, labels, crowds, boxes y1 x1 y2 x2 as fractions
Entry = tuple[int, int, str, tuple[int, int], Objects]  # record, image id, file name, (height, width), objects


class TfdsSource:
    """Records of a prepared TFDS directory.

    Attributes: those of `coco.CocoSource`. Category ids come from categories.json where `build` wrote it, are COCO's
    own where the names are COCO's 80, and label + 1 otherwise.

    It can be pickled, and read from several threads.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        categories: Iterable[str] | str | None = ("person",),
        split: str = "train",
    ) -> None:
        """Reads every record once, to know sizes and boxes; no image is decoded.

        Args:
          directory: folder with dataset_info.json and features.json, such as ~/tensorflow_datasets/coco/2017/1.1.0.
          categories: names of the categories to keep, or None for all.
          split: TFDS's split notation, "train[:10%]" included.

        Raises:
          FileNotFoundError: no prepared data set there, or a shard of it is missing.
          ValueError: another layout or file format, an unknown split or category name, or no usable record.
        """
        self.directory, self.split = os.fspath(directory), split
        self._records, self._features, names = _open(self.directory, split)
        listed = category_list(self.directory, names)
        self.categories, _ = choose_categories(self.directory, listed, categories)
        position = {category["id"]: i for i, category in enumerate(self.categories)}
        labels = [position.get(category["id"]) for category in listed]  # TFDS label -> ours, None for not chosen
        self.skipped: list[dict[str, Any]] = []

        entries = self._entries()
        if not entries:
            raise ValueError(f"{self.directory}: no usable record in split {split!r}: {self.skipped[:3]}")
        self._rows = np.array([entry[0] for entry in entries], np.int64)
        self.image_ids = np.array([entry[1] for entry in entries], np.int64)
        self.file_names = [entry[2] for entry in entries]
        self.sizes = np.array([entry[3] for entry in entries], np.int32)
        self.annotations = Annotations(self._columns([entry[4] for entry in entries], labels), self.sizes)
        for reason, row, annotation_id in self.annotations.faults:
            self._skip_annotation(reason, annotation_id, row)
        self.box_counts = self.annotations.box_counts
        self.crowd_counts, self.clipped_counts = (self.annotations.crowd_counts, self.annotations.clipped_counts)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, i: int) -> Record:
        """Record of image i: image_id, image uint8 [H, W, 3] or None if it cannot be decoded, boxes, ..."""
        i = range(len(self))[i]
        try:
            image = decoding.decode(_parse(self._records, self._features, int(self._rows[i]))["image"])
        except Exception:  # whatever the reader raises on a damaged shard
            image = None
        return {"image_id": int(self.image_ids[i]), "image": image, **self.annotations.record(i)}

    def ground_truth(self) -> dict[str, Any]:
        """COCO JSON form, as `CocoSource.ground_truth`; areas are the integers TFDS stores, boxes float32 fractions.

        Where the COCO JSON is at hand, score against that.
        """
        return self.annotations.ground_truth(self.categories, self.image_ids, self.sizes, self.file_names)

    def _entries(self) -> list[Entry]:
        """The usable records, by image id."""
        starts = range(0, len(self._records), 64)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            chunks = pool.map(lambda start: _scan(self._records, self._features, start, start + 64), starts)
            found = [entry for chunk in chunks for entry in chunk]
        entries: dict[int, Entry] = {}
        for entry in found:
            if isinstance(entry, dict):
                self.skipped.append(entry)
            elif entry[1] in entries:
                self.skipped.append({"reason": "image id seen before", "image_id": entry[1], "file": entry[2]})
            else:
                entries[entry[1]] = entry
        return [entries[image_id] for image_id in sorted(entries)]

    def _columns(self, objects: list[Objects], labels: list[int | None]) -> Columns:
        columns, seen = Columns(), set()
        for row, items in enumerate(objects):
            height, width = self.sizes[row].tolist()
            for annotation_id, area, label, crowd, (y1, x1, y2, x2) in zip(*items, strict=True):
                if annotation_id in seen:
                    self._skip_annotation("annotation id seen before", annotation_id, row)
                elif not 0 <= label < len(labels):
                    self._skip_annotation("annotation of an unknown category", annotation_id, row)
                elif labels[label] is not None:
                    box = (x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height)
                    columns.add(row, annotation_id, labels[label], box, area, crowd)
                if annotation_id > 0:  # TFDS has no missing ids, so 0 may stand for one
                    seen.add(annotation_id)
        return columns

    def _skip_annotation(self, reason: str, annotation_id: int, row: int) -> None:
        image_id, file = int(self.image_ids[row]), self.file_names[row]
        self.skipped.append({"reason": reason, "annotation_id": annotation_id, "image_id": image_id, "file": file})


def build(
    images: str | os.PathLike[str],
    annotations: str | os.PathLike[str],
    output: str | os.PathLike[str],
    split: str = "train",
) -> CocoSource:
    """Writes a COCO folder as a split of a TFDS data set in ArrayRecord form that TFDS itself can read.

    All categories are kept. Image files are stored byte for byte; boxes are clipped to the image, as TFDS demands;
    areas lose their fraction. A second split can be added to the same directory. Files get their final names when all
    of them are complete, so a run that was interrupted can simply be repeated.

    Args:
      images: folder of the images.
      annotations: path of the COCO JSON file.
      output: directory to write to.
      split: name of the split.

    Returns:
      The `CocoSource` that was written; its `skipped` tells what was left out.

    Raises:
      ValueError: the directory has that split already, or other categories; and what `CocoSource` raises.
    """
    tfds = import_tfds()
    from array_record.python import array_record_module

    output = os.fspath(output)
    if not split.isidentifier():
        raise ValueError(f"--split {split!r}: a split's name is made of letters, digits and underscores")
    source = CocoSource(images, annotations, categories=None)
    splits = _other_splits(output, split, source.categories)
    features = coco_features([category["name"] for category in source.categories])
    os.makedirs(output, exist_ok=True)
    shards = -(-len(source) // IMAGES_IN_A_SHARD)
    bounds = [len(source) * shard // shards for shard in range(shards + 1)]
    template = tfds.core.ShardedFileTemplate(
        dataset_name="coco", data_dir=output, split=split, filetype_suffix="array_record"
    )
    paths = [os.fspath(template.sharded_filepath(shard_index=i, num_shards=shards)) for i in range(shards)]
    written = 0
    for path, start, stop in zip(paths, bounds[:-1], bounds[1:], strict=True):
        writer = array_record_module.ArrayRecordWriter(path + ".partial", "group_size:1")
        for i in range(start, stop):
            example = features.serialize_example(_example(source, i, tfds.features.BBox))
            writer.write(example)
            written += len(example)
        writer.close()
    for path in paths:
        os.replace(path + ".partial", path)
    with open(os.path.join(output, CATEGORIES_FILE), "w", encoding="utf-8") as file:
        json.dump(source.categories, file)
    lengths = np.diff(bounds).tolist()
    info = tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=written, filename_template=template)
    infos = [*splits, info]
    tfds.folder_dataset.write_metadata(data_dir=output, features=features, split_infos=infos, check_data=False)
    return source


def _example(source: CocoSource, i: int, make_box: Callable[..., Any]) -> dict[str, Any]:
    """Record i of a `CocoSource` as TFDS's coco lays it out."""
    with open(os.path.join(source.folder, source.file_names[i]), "rb") as file:
        encoded = file.read()
    table = source.annotations
    height, width = source.sizes[i].tolist()
    objects = []
    for row in range(table.offsets[i], table.offsets[i + 1]):
        x1, y1, x2, y2 = table.boxes[row].tolist()
        objects.append(
            {
                "area": int(table.area[row]),
                "bbox": make_box(ymin=y1 / height, xmin=x1 / width, ymax=y2 / height, xmax=x2 / width),
                "id": int(table.ids[row]),
                "is_crowd": bool(table.crowd[row]),
                "label": int(table.labels[row]),
            }
        )
    image_id = int(source.image_ids[i])
    return {"image": encoded, "image/filename": source.file_names[i], "image/id": image_id, "objects": objects}


def _other_splits(output: str, split: str, categories: Iterable[Category]) -> list[Any]:
    """SplitInfos that an existing data set in `output` keeps."""
    tfds = import_tfds()
    if not os.path.exists(os.path.join(output, "dataset_info.json")):
        return []
    builder = tfds.builder_from_directory(output)
    if split in builder.info.splits:
        raise ValueError(f"{output} already has a split {split!r}; delete the directory or choose another --split")
    if category_list(output, builder.info.features["objects"]["label"].names) != list(categories):
        raise ValueError(f"{output} has a data set of other categories; choose another --output")
    return list(builder.info.splits.values())


def _open(directory: str, split: str) -> tuple[Any, Any, list[str]]:
    """Raw records of a split, the features that are read from them, and the label names."""
    tfds = import_tfds()
    if not os.path.exists(os.path.join(directory, "dataset_info.json")):
        raise FileNotFoundError(
            f"no prepared TFDS data set at {directory} (config keys data.train.directory, data.val.directory): "
            "it lacks dataset_info.json, which lies in a folder such as ~/tensorflow_datasets/coco/2017/1.1.0. "
            "Make one with python -m jaxdet.data.tfds --images DIR --annotations FILE --output DIR\n" + HOW_TO_GET_COCO
        )
    _check_classes(os.path.join(directory, "features.json"))
    try:
        builder = tfds.builder_from_directory(directory)
        features = builder.info.features
        records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        shards = [instruction.filename for instruction in builder.info.splits[split].file_instructions]
    except NotImplementedError as error:
        raise ValueError(
            f"{directory}: prepared in a format without random access; prepare it with "
            'file_format="array_record", or build it with python -m jaxdet.data.tfds'
        ) from error
    except Exception as error:  # TFDS raises many types for damaged metadata
        raise ValueError(f"{directory}: TFDS cannot open split {split!r}: {error}") from error
    for shard in shards:
        if not os.path.exists(shard):
            raise FileNotFoundError(f"{directory}: the shard {shard} is missing")
        if os.path.dirname(os.path.realpath(shard)) != os.path.realpath(directory):
            raise ValueError(f"{directory}: the shard {shard} lies outside of it")
    there = [key for key in FEATURES if key in features]
    missing = sorted(set(FEATURES) - set(there))
    if "objects" in there:
        missing += [f"objects/{key}" for key in OBJECT_FEATURES if key not in features["objects"]]
    if missing:
        raise ValueError(f"{directory}: not the layout of coco/2017: it lacks the features {missing}")
    chosen = tfds.features.FeaturesDict({key: features[key] for key in FEATURES})
    return records, chosen, features["objects"]["label"].names


def _check_classes(path: str) -> None:
    """Raises ValueError if features.json names a class that is not TFDS's own: TFDS would import its module."""

    def names(value: Any) -> list[str]:
        if isinstance(value, list):
            return [name for item in value for name in names(item)]
        if not isinstance(value, dict):
            return []
        found = [value[key] for key in ("pythonClassName", "python_class_name", "type") if key in value]
        found = [name for name in found if isinstance(name, str)]
        inner = [json.loads(v) if k == "json" and isinstance(v, str) else v for k, v in value.items()]
        return found + [name for item in inner for name in names(item)]

    try:
        with open(path, encoding="utf-8") as file:
            foreign = [name for name in names(json.load(file)) if not name.startswith("tensorflow_datasets.")]
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path}: no valid JSON: {error}") from None
    if foreign:
        raise ValueError(f"{path}: the feature {foreign[0]} is none of TFDS's own and will not be imported")


def _parse(records: Any, features: Any, position: int) -> dict[str, Any]:
    tfds = import_tfds()
    example: dict[str, Any] = features.deserialize_example_np(
        records[position], decoders={"image": tfds.decode.SkipDecoding()}
    )
    return example


def _scan(records: Any, features: Any, start: int, stop: int) -> list[Entry | dict[str, Any]]:
    """The entries of some records, or for a bad one a dict of what is wrong."""
    entries: list[Entry | dict[str, Any]] = []
    for position in range(start, min(stop, len(records))):
        try:
            example = _parse(records, features, position)
            image_id, name = (int(example["image/id"]), bytes(example["image/filename"]).decode(errors="replace"))
            objects = example["objects"]
            boxes = np.asarray(objects["bbox"], np.float64).reshape(-1, 4).tolist()
            columns = [np.asarray(objects[key]).tolist() for key in ("id", "area", "label", "is_crowd")]
            if {len(column) for column in columns} != {len(boxes)}:
                raise ValueError("the columns of its objects differ in length")
            if image_id < 0:
                raise ValueError(f"image id {image_id} is below 0")
        except Exception as error:  # protobuf's, TFDS's and the reader's own
            entries.append({"reason": "malformed record", "record": position, "detail": str(error)[:200]})
            continue
        try:
            size = decoding.checked_size(example["image"])
        except ValueError as error:
            item = {"reason": "image unreadable or truncated", "image_id": image_id, "file": name}
            entries.append(item | {"detail": str(error)})
            continue
        entries.append((position, image_id, name, size, (*columns, boxes)))
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m jaxdet.data.tfds", description=str(build.__doc__).split("\n")[0])
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--annotations", required=True, help="COCO JSON file")
    parser.add_argument("--output", required=True, help="directory of the data set")
    parser.add_argument("--split", default="train")
    arguments = parser.parse_args()
    try:
        source = build(arguments.images, arguments.annotations, arguments.output, arguments.split)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"jaxdet.data.tfds: {error}")
    print(summary(source))


if __name__ == "__main__":
    main()
