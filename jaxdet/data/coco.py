"""COCO JSON and a folder of images, as a random-access source of records.

Everything that can be wrong with such a pair is found when the source is made, before a training step: what makes it
unusable is an error that names the file and the key, what spoils one image or one box is left out and listed in
`skipped`. See docs/data.md.
"""

import os
from collections.abc import Iterable
from typing import Any

from jaxdet.data import decoding
from jaxdet.data.annotations import Annotations, Columns, summary
from jaxdet.data.coco_images import index_images
from jaxdet.data.coco_json import choose_categories, load_json, short
from jaxdet.data.types import Record

__all__ = ["CocoSource", "choose_categories", "load_json", "summary"]

HOW_TO_GET_COCO = """\
COCO 2017 comes from https://cocodataset.org/#download as three archives, unpacked side by side into data/coco:
  train2017.zip                 data/coco/train2017/*.jpg
  val2017.zip                   data/coco/val2017/*.jpg
  annotations_trainval2017.zip  data/coco/annotations/instances_train2017.json and instances_val2017.json
If they lie elsewhere: --config.data.train.images=DIR --config.data.train.annotations=FILE, and data.val the same way.
Without any data: python train.py --config configs/person_demo.py --workdir runs/demo"""


class CocoSource:
    """Images of a folder with the boxes of a COCO JSON file.

    Attributes:
      categories: tuple of {"id", "name"}, ordered by id; a label is a position in it.
      image_ids: int64 [N], ascending.
      sizes: int32 [N, 2], height and width of the images after the EXIF orientation.
      box_counts, crowd_counts: int32 [N], boxes of each image that are not crowds, and those that are.
      clipped_counts: int32 [N], boxes of each image that reached over its edge and were clipped to it.
      skipped: list of {"reason", "image_id", "annotation_id", "file", "detail"}, one for each image or annotation
        left out, with the keys that apply.

    It can be pickled, and read from several threads.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        annotations: str | os.PathLike[str],
        categories: Iterable[str] | str | None = ("person",),
    ) -> None:
        """Reads and checks the index; no image is decoded.

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
                f"no image folder at {self.folder} (config keys data.train.images, data.val.images)\n" + HOW_TO_GET_COCO
            )
        content = load_json(self.path)
        self.categories, known = choose_categories(self.path, content["categories"], categories)
        found = index_images(content["images"], self.folder, self.path)
        self.image_ids, self.sizes, self.file_names, rows, self.skipped = found
        columns = self._index_annotations(content["annotations"], rows, known)
        self.annotations = Annotations(columns, self.sizes)
        for reason, row, annotation_id in self.annotations.faults:
            self._skip_annotation(reason, annotation_id or None, int(self.image_ids[row]), self.file_names[row])
        self.box_counts = self.annotations.box_counts
        self.crowd_counts, self.clipped_counts = (self.annotations.crowd_counts, self.annotations.clipped_counts)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, i: int) -> Record:
        """Record of image i: image_id, image uint8 [H, W, 3], boxes, labels, crowd and area.

        `image` is None where the file cannot be decoded, or no longer has the size it had when the index was made.
        """
        i = range(len(self))[i]  # negative ones, and IndexError beyond the end
        try:
            image = decoding.decode(os.path.join(self.folder, self.file_names[i]))
        except (ValueError, OSError):
            image = None
        if image is not None and image.shape[:2] != tuple(self.sizes[i]):
            image = None
        return {"image_id": int(self.image_ids[i]), "image": image, **self.annotations.record(i)}

    def ground_truth(self) -> dict[str, Any]:
        """The images, annotations and categories kept here in COCO JSON form, boxes unclipped, crowds included.

        Ids are the data set's own; only an annotation without an id, or with id 0, gets a new one, since the COCO API
        never matches an annotation whose id is 0.
        """
        return self.annotations.ground_truth(self.categories, self.image_ids, self.sizes, self.file_names)

    def _index_annotations(self, section: list[Any], rows: dict[int, int | None], known: set[int]) -> Columns:
        """`Columns` of the annotations that name an image and a category kept here and have four numbers as bbox."""
        labels = {category["id"]: label for label, category in enumerate(self.categories)}
        columns, seen = Columns(), set()
        for position, entry in enumerate(section):
            if not isinstance(entry, dict):
                raise ValueError(f"{self.path}: annotations[{position}]: expected an object, got {short(entry)}")
            annotation_id, image_id, category_id = (_key(entry.get(k)) for k in ("id", "image_id", "category_id"))
            if annotation_id is not None and annotation_id in seen:
                self._skip_annotation("annotation id seen before", annotation_id, image_id)
                continue
            seen.add(annotation_id)
            if image_id not in rows:
                self._skip_annotation("annotation of an unknown image", annotation_id, image_id)
            elif category_id not in known:
                detail = f"category_id {category_id}"
                self._skip_annotation("annotation of an unknown category", annotation_id, image_id, detail=detail)
            elif (row := rows[image_id]) is not None and category_id in labels:
                box = _four_floats(entry.get("bbox"))
                name, crowd = self.file_names[row], entry.get("iscrowd")
                if box is None:
                    detail = short(entry.get("bbox"))
                    self._skip_annotation("bbox is not four numbers", annotation_id, image_id, name, detail)
                elif crowd not in (None, 0, 1):
                    detail = short(crowd)
                    self._skip_annotation("iscrowd is neither 0 nor 1", annotation_id, image_id, name, detail)
                else:
                    columns.add(row, annotation_id, labels[category_id], box, entry.get("area"), crowd)
        return columns

    def _skip_annotation(
        self, reason: str, annotation_id: Any, image_id: Any, file: str | None = None, detail: str | None = None
    ) -> None:
        item = {"reason": reason, "annotation_id": annotation_id, "image_id": image_id}
        self.skipped.append(item | ({"file": file} if file else {}) | ({"detail": detail} if detail else {}))


def _key(value: Any) -> Any:
    """An id that can be looked up; None for what cannot be one."""
    return value if type(value) in (int, float, str) else None


def _four_floats(value: Any) -> tuple[float, ...] | None:
    if not isinstance(value, list) or len(value) != 4 or not all(type(side) in (int, float) for side in value):
        return None
    try:
        return tuple(map(float, value))
    except OverflowError:
        return None
