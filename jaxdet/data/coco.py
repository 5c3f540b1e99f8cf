"""COCO JSON and a folder of pictures, as a random-access source of records.

Everything that can be wrong with such a pair is found when the source is made, before a training step: what makes it
unusable is an error that names the file and the key, what spoils one picture or one box is left out and listed in
`skipped`. See docs/data.md.
"""

import concurrent.futures
import difflib
import json
import os
import posixpath
import re

import numpy as np

from jaxdet.data import images as pictures
from jaxdet.data.annotations import Annotations, Columns, summary

__all__ = ["CocoSource", "load_json", "summary"]

HOW_TO_GET_COCO = """\
COCO 2017 comes from https://cocodataset.org/#download as three archives, unpacked side by side into data/coco:
  train2017.zip                 data/coco/train2017/*.jpg
  val2017.zip                   data/coco/val2017/*.jpg
  annotations_trainval2017.zip  data/coco/annotations/instances_train2017.json and instances_val2017.json
If they lie elsewhere: --config.data.train.images=DIR --config.data.train.annotations=FILE, and data.val the same way.
Without any data: python train.py --config configs/person_demo.py --workdir runs/demo"""


class CocoSource:
    """Pictures of a folder with the boxes of a COCO JSON file.

    Attributes:
      categories: tuple of {"id", "name"}, ordered by id; a label is a position in it.
      image_ids: int64 [N], ascending.
      sizes: int32 [N, 2], height and width of the pictures after the EXIF orientation.
      box_counts: int32 [N], boxes that are not crowds.
      crowds: number of crowd regions.
      clipped: number of boxes that reached over the edge of their picture and were clipped to it.
      skipped: list of {"reason", "image_id", "annotation_id", "file", "detail"}, one for each picture or annotation
        left out, with the keys that apply.

    It can be pickled, and read from several threads.
    """

    def __init__(self, images, annotations, categories=("person",)):
        """Reads and checks the index; no picture is decoded.

        Args:
          images: folder that the `file_name` entries are relative to.
          annotations: path of the COCO JSON file.
          categories: names of the categories to keep, or None for all.

        Raises:
          FileNotFoundError: no such folder or file; the message says how to get COCO.
          ValueError: JSON that is cut, lacks a section or has values of a wrong type, an unknown category name, an
            image id twice, no images, or none that is usable; the message names the file and the key.
        """
        self.folder, self.path = os.fspath(images), os.fspath(annotations)
        if not os.path.isfile(self.path):
            raise FileNotFoundError(
                f"no annotation file at {self.path} (config keys data.train.annotations, data.val.annotations)\n"
                + HOW_TO_GET_COCO
            )
        if not os.path.isdir(self.folder):
            raise FileNotFoundError(
                f"no image folder at {self.folder} (config keys data.train.images, data.val.images)\n"
                + HOW_TO_GET_COCO
            )
        content = load_json(self.path)
        self.categories, known = choose_categories(self.path, content["categories"], categories)
        self.skipped = []
        rows = self._index_images(content["images"])
        columns = self._index_annotations(content["annotations"], rows, known)
        self.annotations = Annotations(columns, self.sizes)
        for reason, row, annotation_id in self.annotations.faults:
            self._skip_annotation(
                reason, annotation_id or None, int(self.image_ids[row]), self.file_names[row]
            )
        self.box_counts = self.annotations.box_counts
        self.crowds = int(self.annotations.crowd.sum())
        self.clipped = self.annotations.clipped

    def __len__(self):
        return len(self.image_ids)

    def __getitem__(self, i):
        """Record of picture i: image_id, image uint8 [H, W, 3], boxes, labels, crowd and area.

        `image` is None where the file cannot be decoded, or no longer has the size it had when the index was made.
        """
        i = range(len(self))[i]  # negative ones, and IndexError beyond the end
        try:
            image = pictures.decode(os.path.join(self.folder, self.file_names[i]))
        except (ValueError, OSError):
            image = None
        if image is not None and image.shape[:2] != tuple(self.sizes[i]):
            image = None
        return {"image_id": int(self.image_ids[i]), "image": image, **self.annotations.record(i)}

    def ground_truth(self):
        """The pictures, annotations and categories kept here in COCO JSON form, boxes unclipped, crowds included.

        Ids are the data set's own; only an annotation without an id, or with id 0, gets a new one, since the COCO API
        never matches an annotation whose id is 0.
        """
        return self.annotations.ground_truth(self.categories, self.image_ids, self.sizes, self.file_names)

    def _index_images(self, section):
        """Fills image_ids, sizes and file_names; returns image id -> row, None for a picture that was skipped."""
        if not section:
            raise ValueError(f"{self.path}: images: the list is empty, so there is nothing to read")
        entries = {}
        for position, entry in enumerate(section):
            image_id = _value(self.path, "images", position, entry, "id", int)
            name = _value(self.path, "images", position, entry, "file_name", str)
            told = [
                None if entry.get(key) is None else _value(self.path, "images", position, entry, key, int)
                for key in ("height", "width")
            ]
            if image_id < 0:
                raise ValueError(f"{self.path}: images[{position}].id: {image_id} is below 0")
            if image_id in entries:
                raise ValueError(f"{self.path}: images[{position}].id: {image_id} is there twice")
            entries[image_id] = (name, told)

        rows, kept, sizes = dict.fromkeys(entries), [], []
        candidates = self._present(entries)
        for image_id, size in zip(candidates, self._read_sizes(candidates, entries), strict=True):
            name, told = entries[image_id]
            if isinstance(size, str):
                self._skip_image("image unreadable or truncated", image_id, name, size)
            elif any(expected not in (None, found) for expected, found in zip(told, size, strict=True)):
                detail = f"the JSON says {told[1]}x{told[0]}, the file has {size[1]}x{size[0]}, orientation applied"
                self._skip_image("image size differs from the JSON", image_id, name, detail)
            else:
                rows[image_id] = len(kept)
                kept.append(image_id)
                sizes.append(size)
        if not kept:
            raise ValueError(f"{self.path}: none of its {len(entries)} images is usable: {self.skipped[:3]}")
        self.image_ids, self.sizes = np.array(kept, np.int64), np.array(sizes, np.int32)
        self.file_names = [entries[image_id][0] for image_id in kept]
        return rows

    def _present(self, entries):
        """Ids, ascending, of the images whose file is in the folder; each subfolder is listed once, nothing opened."""
        listings, present, root = {}, [], os.path.realpath(self.folder)
        for image_id in sorted(entries):
            name = entries[image_id][0]
            if posixpath.isabs(name) or ".." in name.split("/"):
                self._skip_image("file_name leaves the image folder", image_id, name)
                continue
            subfolder, base = posixpath.split(name)
            if subfolder not in listings:
                listings[subfolder] = _listing(os.path.join(self.folder, subfolder), root)
            if base not in listings[subfolder]:
                self._skip_image("image file missing", image_id, name)
            elif listings[subfolder][base]:
                present.append(image_id)
            else:
                self._skip_image("file_name leaves the image folder", image_id, name, "by a symbolic link")
        if not present:
            name = entries[min(entries)][0]
            inside = sorted(os.listdir(self.folder))
            nearer = [sub for sub in inside if os.path.isfile(os.path.join(self.folder, sub, name))]
            nearer = [] if posixpath.isabs(name) else nearer
            outside = [item for item in self.skipped if item["reason"] != "image file missing"][:1]
            reason = "".join(
                f"; {item['reason']} {item.get('detail', '')}".rstrip() + f": {item['file']!r}"
                for item in outside
            )
            raise ValueError(
                f"none of the {len(entries)} images of {self.path} is in the folder {self.folder} (the first would be "
                f"{name!r}; the folder holds {len(inside)} entries"
                + (f", such as {inside[0]!r}" if inside else "")
                + (f"; did you mean {os.path.join(self.folder, nearer[0])}?" if nearer else "")
                + reason
                + "). Config keys data.train.images, data.val.images"
            )
        return present

    def _read_sizes(self, ids, entries):
        """(height, width), or what is wrong as a str, of every file. Threads: a network disk answers in parallel."""
        paths = [os.path.join(self.folder, entries[image_id][0]) for image_id in ids]
        chunks = [paths[start : start + 64] for start in range(0, len(paths), 64)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            return [size for sizes in pool.map(_chunk_sizes, chunks) for size in sizes]

    def _index_annotations(self, section, rows, known):
        """`Columns` of the annotations that name an image and a category kept here and have four numbers as bbox."""
        labels = {category["id"]: label for label, category in enumerate(self.categories)}
        columns, seen = Columns(), set()
        for position, entry in enumerate(section):
            if not isinstance(entry, dict):
                raise ValueError(
                    f"{self.path}: annotations[{position}]: expected an object, got {_short(entry)}"
                )
            annotation_id, image_id, category_id = (
                _key(entry.get(k)) for k in ("id", "image_id", "category_id")
            )
            if annotation_id is not None and annotation_id in seen:
                self._skip_annotation("annotation id seen before", annotation_id, image_id)
                continue
            seen.add(annotation_id)
            if image_id not in rows:
                self._skip_annotation("annotation of an unknown image", annotation_id, image_id)
            elif category_id not in known:
                detail = f"category_id {category_id}"
                self._skip_annotation(
                    "annotation of an unknown category", annotation_id, image_id, detail=detail
                )
            elif rows[image_id] is not None and category_id in labels:
                box, row = _four_floats(entry.get("bbox")), rows[image_id]
                name, crowd = self.file_names[row], entry.get("iscrowd")
                if box is None:
                    detail = _short(entry.get("bbox"))
                    self._skip_annotation("bbox is not four numbers", annotation_id, image_id, name, detail)
                elif crowd not in (None, 0, 1):
                    detail = _short(crowd)
                    self._skip_annotation("iscrowd is neither 0 nor 1", annotation_id, image_id, name, detail)
                else:
                    columns.add(row, annotation_id, labels[category_id], box, entry.get("area"), crowd)
        return columns

    def _skip_image(self, reason, image_id, file, detail=None):
        item = {"reason": reason, "image_id": image_id, "file": file}
        self.skipped.append(item | ({"detail": detail} if detail else {}))

    def _skip_annotation(self, reason, annotation_id, image_id, file=None, detail=None):
        item = {"reason": reason, "annotation_id": annotation_id, "image_id": image_id}
        self.skipped.append(item | ({"file": file} if file else {}) | ({"detail": detail} if detail else {}))


def load_json(path):
    """Content of a COCO JSON file with its three lists, segmentations and keypoints left out to save memory.

    Raises:
      ValueError: not JSON (with the position), or a section is missing or no list; the message names file and key.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file, object_hook=_without_masks)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: no valid JSON, perhaps cut short: {error.msg} at line {error.lineno} column {error.colno} "
            f"(character {error.pos} of {len(error.doc)})"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no valid JSON: {error.reason} at byte {error.start}, not UTF-8") from None
    except (RecursionError, ValueError) as error:  # nested without end; a number of thousands of digits
        raise ValueError(f"{path}: no JSON that can be read: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict):
            raise ValueError(
                f"{path}: expected a JSON object with images, annotations and categories, got a list"
            )
        if key not in content:
            raise ValueError(f"{path}: no section {key!r}; there are {sorted(content)}")
        if not isinstance(content[key], list):
            raise ValueError(f"{path}: {key}: expected a list, got {_short(content[key])}")
    return content


def choose_categories(path, section, names):
    """The chosen categories as a tuple of {"id", "name"} ordered by id, and the set of all ids there are.

    Raises:
      ValueError: a malformed section, an id twice, a name that is not there (the nearest is suggested), or none left.
    """
    found = {}
    for position, entry in enumerate(section):
        category_id = _value(path, "categories", position, entry, "id", int)
        name = _value(path, "categories", position, entry, "name", str)
        if category_id in found:
            raise ValueError(f"{path}: categories[{position}].id: {category_id} is there twice")
        found[category_id] = name
    ids = set(found)
    names = list(found.values()) if names is None else [names] if isinstance(names, str) else list(names)
    for gap in (re.fullmatch(r"N/A (\d+)", name) for name in names):
        if gap and gap[0] not in found.values():
            # torchvision's detectors have outputs for the gaps in COCO's ids
            found.setdefault(int(gap[1]), gap[0])
    there = ", ".join(list(found.values())[:100]) + (", ..." if len(found) > 100 else "")
    for name in names:
        if name not in found.values():
            nearest = difflib.get_close_matches(name.lower(), [other.lower() for other in found.values()], 1)
            hint = [other for other in found.values() if other.lower() in nearest][:1]
            raise ValueError(
                f"{path}: categories: no category named {name!r}"
                + (f", did you mean {hint[0]!r}?" if hint else ".")
                + f" There are: {there or 'none'}"
            )
    if not names:
        raise ValueError(f"{path}: categories: none chosen. There are: {there or 'none'}")
    chosen = tuple({"id": i, "name": found[i]} for i in sorted(found) if found[i] in names)
    return chosen, ids


def _without_masks(item):
    item.pop("segmentation", None)
    item.pop("keypoints", None)
    return item


def _listing(folder, root):
    """{name: whether it lies within `root`, symbolic links followed} of the files in a folder; {} without one."""
    try:
        within = _is_within(folder, root)
        with os.scandir(folder) as entries:
            return {
                entry.name: within and (not entry.is_symlink() or _is_within(entry.path, root))
                for entry in entries
                if _is_file(entry)
            }
    except (OSError, ValueError):  # no such folder; a name that can be none, with a zero byte in it
        return {}


def _is_within(path, root):
    return os.path.commonpath([os.path.realpath(path), root]) == root


def _is_file(entry):
    """Whether a directory entry is a file, and no pipe that would be waited for; False for links in a circle."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _chunk_sizes(paths):
    sizes = []
    for path in paths:
        try:
            sizes.append(pictures.checked_size(path))
        except (ValueError, OSError) as error:
            sizes.append(str(error))
    return sizes


def _value(path, section, position, entry, key, kind):
    """entry[key], an int within 64 bits or a str, or a ValueError that says where."""
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: {section}[{position}]: expected an object, got {_short(entry)}")
    if key not in entry:
        raise ValueError(f"{path}: {section}[{position}]: no key {key!r}")
    value = entry[key]
    if type(value) is not kind or (kind is int and not -(2**63) <= value < 2**63):
        expected = "an integer" if kind is int else "a string"
        raise ValueError(f"{path}: {section}[{position}].{key}: expected {expected}, got {_short(value)}")
    return value


def _key(value):
    """An id that can be looked up; None for what cannot be one."""
    return value if type(value) in (int, float, str) else None


def _four_floats(value):
    if (
        not isinstance(value, list)
        or len(value) != 4
        or not all(type(side) in (int, float) for side in value)
    ):
        return None
    try:
        return tuple(map(float, value))
    except OverflowError:
        return None


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
