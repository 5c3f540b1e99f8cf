"""From a source to batches of fixed shapes.

The batch of step t is a pure function of (config, seed, t). Images are grouped by orientation into at most two
shapes ("buckets"); each bucket is one endless stream of shuffled passes over its images, and the bucket of each
step is drawn in proportion to its images. To resume at step t, start reading at t.
"""

import functools
import os
import signal
import threading
import time
from collections.abc import Iterable
from typing import Any, cast

import grain
import numpy as np
from absl import flags
from jaxtyping import Int, Int64
from ml_collections import ConfigDict

from jaxdet.data import transforms
from jaxdet.data.coco import CocoSource
from jaxdet.data.resizing import Resizing, is_portrait
from jaxdet.data.synthetic.scenes import SyntheticPeople
from jaxdet.data.tfds import TfdsSource
from jaxdet.data.types import Batch, Record, Source

Slot = dict[str, np.ndarray]  # one row of a `Batch`


def open_source(split: ConfigDict, categories: Iterable[str] | None) -> Source:
    """The source that `split` (config.data.train or .val) names, restricted to its `limit` and `keep_empty`.

    Raises ValueError or FileNotFoundError, naming the file and what to do, where nothing can be read.
    """
    source: Source
    if split.source == "coco":
        source = CocoSource(split.images, split.annotations, categories)
    elif split.source == "tfds":
        source = TfdsSource(split.directory, categories, split=split.split)
    elif split.source == "synthetic":
        source = SyntheticPeople(split.scenes, split.scenes_seed, split.scenes_height, split.scenes_width)
    else:
        raise ValueError(f"data source {split.source!r}: use coco, tfds or synthetic (config.data.*.source)")
    chosen = np.arange(len(source))
    if not split.keep_empty:
        chosen = chosen[source.box_counts > 0]
    if split.limit:
        chosen = chosen[np.argsort(source.image_ids[chosen], kind="stable")][: split.limit]
    if not source.box_counts[chosen].any():
        where = split.annotations if split.source == "coco" else split.directory or "the drawn scenes"
        names = ", ".join(category["name"] for category in source.categories)
        examples = [f"{item['reason']}, image id {item.get('image_id')}" for item in source.skipped[:3]]
        skipped = f"; {len(source.skipped)} were skipped: " + "; ".join(examples) if examples else ""
        raise ValueError(
            f"the data set is empty: none of the {len(chosen) or len(source)} images of {where} has a box of {names}"
            + skipped
            + ("; ..." if len(source.skipped) > len(examples) else "")
        )
    return source if len(chosen) == len(source) else Subset(source, chosen)


class Subset:
    """Some records of a source, as a source."""

    def __init__(self, source: Source, chosen: Int[np.ndarray, " n"]) -> None:
        self.source, self.chosen = source, chosen
        self.categories, self.skipped = source.categories, source.skipped
        self.image_ids, self.sizes = source.image_ids[chosen], source.sizes[chosen]
        self.box_counts, self.crowd_counts = source.box_counts[chosen], source.crowd_counts[chosen]
        self.clipped_counts = source.clipped_counts[chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> Record:
        return self.source[int(self.chosen[i])]

    def ground_truth(self) -> dict[str, Any]:
        """COCO JSON of the chosen images."""
        truth, kept = dict(self.source.ground_truth()), set(self.image_ids.tolist())
        truth["images"] = [image for image in truth["images"] if image["id"] in kept]
        truth["annotations"] = [item for item in truth["annotations"] if item["image_id"] in kept]
        return truth


def buckets(source: Source, split: ConfigDict) -> tuple[tuple[tuple[int, int], ...], Int[np.ndarray, " N"]]:
    """Shapes of the batches, and the shape of each image: tuple of (H, W), int [N].

    Landscape and square images share one shape, portrait ones the other; both hold every scale of `split`.
    """
    resizing = Resizing.of(split)
    portrait = is_portrait(*np.array([resizing.size(size) for size in source.sizes]).T)
    shapes = resizing.shapes
    if shapes[0] == shapes[1] or not portrait.any():
        return shapes[:1], np.zeros(len(source), int)
    if portrait.all():
        return shapes[1:], np.zeros(len(source), int)
    return shapes, portrait.astype(int)


class Loader:
    """Makes one slot of a batch: picks the record, augments it, pads it. Picklable, for Grain's workers."""

    def __init__(self, source: Source, split: ConfigDict, seed: int, max_boxes: int) -> None:
        self.source, self.split, self.seed, self.max_boxes = source, split, seed, max_boxes
        self.resizing = Resizing.of(split)
        self.shapes, bucket = buckets(source, split)
        self.members = [np.flatnonzero(bucket == b) for b in range(len(self.shapes))]

    def chosen(self, bucket: int, position: int) -> int:
        """Record at `position` of the endless stream of a bucket, reshuffled on each pass."""
        members = self.members[bucket]
        passes, place = divmod(position, len(members))
        return int(members[_permutation(self.seed, bucket, passes, len(members))[place]])

    def training_slot(self, bucket: int, position: int, slot: Slot | None = None) -> Slot:
        """Slot `position` of the endless stream of a bucket, flipped and scaled at random.

        It is written into `slot` where one is given, an empty one, such as a row of a batch.
        """
        index = self.chosen(bucket, position)
        rng = np.random.default_rng((self.seed, bucket, position))
        short_side = self.resizing.short_sides[rng.integers(len(self.resizing.short_sides))]
        return self._slot(slot, bucket, index, short_side, rng.random() < self.split.flip)

    def evaluation_slot(self, bucket: int, index: int, slot: Slot | None = None) -> Slot:
        """Record `index` as it is; -1 is padding. `slot` as above."""
        return self._slot(slot, bucket, index, self.resizing.short_side, flip=False)

    def empty_batch(self, batch_size: int, bucket: int) -> Batch:
        """A batch of empty slots."""
        return empty_batch(batch_size, self.shapes[bucket], self.max_boxes, self.resizing.dtype)

    def examples(self, batch_size: int) -> list[Batch]:
        """An empty batch of each shape."""
        return [self.empty_batch(batch_size, bucket) for bucket in range(len(self.shapes))]

    def _slot(self, slot: Slot | None, bucket: int, index: int, short_side: int, flip: bool) -> Slot:
        slot = slot or row_of(self.empty_batch(1, bucket), 0)
        if index < 0:
            return slot
        record = self.source[int(index)]
        slot["image_ids"][...] = record["image_id"]
        if record["image"] is None:  # its slot stays empty; the id tells which
            return slot
        size = self.resizing.size(record["image"].shape[:2], short_side)
        target = ~record["crowd"]
        image, boxes, slot["scales"][:] = transforms.resize(
            record["image"], record["boxes"][target], size, self.resizing.kind
        )
        if flip:
            image, boxes = transforms.flip(image, boxes)
        slot["images"][: size[0], : size[1]] = image
        slot["image_sizes"][:] = size
        count = len(boxes)
        slot["gt_boxes"][:count] = boxes
        slot["gt_labels"][:count] = record["labels"][target]
        slot["gt_valid"][:count] = True
        return slot


def empty_batch(batch_size: int, shape: tuple[int, int], boxes: int, dtype: type[np.generic] = np.uint8) -> Batch:
    """A batch of slots without an image, to be filled or as an example of what comes. dtype: of the pixels."""
    return {
        "images": np.zeros((batch_size, *shape, 3), dtype),
        "image_sizes": np.zeros((batch_size, 2), np.int32),
        "gt_boxes": np.zeros((batch_size, boxes, 4), np.float32),
        "gt_labels": np.zeros((batch_size, boxes), np.int32),
        "gt_valid": np.zeros((batch_size, boxes), bool),
        "image_ids": np.full(batch_size, -1, np.int64),
        "scales": np.ones((batch_size, 2), np.float32),
    }


def row_of(batch: Batch, row: int) -> Slot:
    """One slot of a batch, as views."""
    return {name: value[row, ...] for name, value in cast(dict[str, np.ndarray], batch).items()}


@functools.lru_cache(maxsize=16)
def _permutation(seed: int, bucket: int, passes: int, count: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng((seed, bucket, passes, count)).permutation(count)


def max_boxes(*sources: Source) -> int:
    """Rows of padded ground truth that hold every image of the sources: the largest count, in steps of 8."""
    most = max(int(np.max(source.box_counts, initial=1)) for source in sources)
    return -(-most // 8) * 8


class TrainingBatches:
    """Batches of a training split; `shapes` are those they come in."""

    def __init__(self, source: Source, split: ConfigDict, seed: int, batch_size: int, max_boxes: int) -> None:
        self.loader = Loader(source, split, seed, max_boxes)
        self.shapes, self.seed, self.batch_size = self.loader.shapes, seed, batch_size

    def examples(self, shards: int = 1) -> list[Batch]:
        """An empty batch of each shape, as one host of `shards` reads it."""
        return self.loader.examples(self.batch_size // shards)

    def plan(self, steps: int) -> tuple[Int[np.ndarray, " steps"], Int[np.ndarray, " steps"]]:
        """Bucket of each of the first `steps` steps and how many steps of that bucket came before: int [steps] each."""
        sizes = np.array([len(members) for members in self.loader.members])
        draws = np.random.default_rng((self.seed, len(sizes))).random(steps)
        bucket = np.searchsorted(np.cumsum(sizes) / sizes.sum(), draws, side="right")
        before = np.zeros(steps, int)
        for b in range(len(sizes)):
            before[bucket == b] = np.arange(np.count_nonzero(bucket == b))
        return bucket, before

    def image_ids(self, step: int) -> Int64[np.ndarray, " B"]:
        """Ids of the images of the whole batch of `step`, whichever process reads them: int64 [batch_size]."""
        bucket, before = (int(of_steps[step]) for of_steps in self.plan(step + 1))
        first = before * self.batch_size
        chosen = [self.loader.chosen(bucket, first + slot) for slot in range(self.batch_size)]
        return np.asarray(self.loader.source.image_ids)[chosen]

    def read(self, start: int, stop: int, workers: int, shard: int = 0, shards: int = 1) -> grain.DatasetIterator:
        """Iterator over the batches of steps start..stop-1; host `shard` of `shards` reads its part of each batch.

        Its `close()` ends the workers.
        """
        buckets, before = self.plan(stop)
        load = functools.partial(self._load, buckets, before, self.batch_size // shards, shard)
        return _iterate(grain.MapDataset.range(start, stop).map(load), workers)

    def _load(
        self, buckets: Int[np.ndarray, " steps"], before: Int[np.ndarray, " steps"], local: int, shard: int, step: int
    ) -> Batch:
        """The `local` slots of the batch of `step` that host `shard` reads; for `plan`'s buckets and counts."""
        bucket, first = int(buckets[step]), int(before[step]) * self.batch_size + shard * local
        batch = self.loader.empty_batch(local, bucket)
        for row in range(local):
            self.loader.training_slot(bucket, first + row, row_of(batch, row))
        return batch


class EvaluationBatches:
    """Every image of a split once, bucket after bucket; the last batch of each is padded."""

    def __init__(self, source: Source, split: ConfigDict, batch_size: int, max_boxes: int) -> None:
        self.loader = Loader(source, split, 0, max_boxes)
        self.shapes, self.batch_size = self.loader.shapes, batch_size
        self.slots = []
        for bucket, members in enumerate(self.loader.members):
            padding = [-1] * (-len(members) % batch_size)
            self.slots += [(bucket, int(index)) for index in (*members, *padding)]

    def __len__(self) -> int:
        return len(self.slots) // self.batch_size

    def examples(self, shards: int = 1) -> list[Batch]:
        """An empty batch of each shape, as one host of `shards` reads it."""
        return self.loader.examples(self.batch_size // shards)

    def image_ids(self) -> Int64[np.ndarray, "batches B"]:
        """Ids of the images of each batch, -1 for padding: int64 [batches, batch_size]."""
        ids = [-1 if index < 0 else self.loader.source.image_ids[index] for _, index in self.slots]
        return np.array(ids, np.int64).reshape(len(self), self.batch_size)

    def read(self, workers: int, shard: int = 0, shards: int = 1) -> grain.DatasetIterator:
        """Iterator over the batches; host `shard` of `shards` reads its part. Its `close()` ends the workers."""
        load = functools.partial(self._load, self.batch_size // shards, shard)
        return _iterate(grain.MapDataset.range(len(self)).map(load), workers)

    def _load(self, local: int, shard: int, number: int) -> Batch:
        """The `local` slots of batch `number` that host `shard` reads."""
        first = number * self.batch_size + shard * local
        batch = self.loader.empty_batch(local, self.slots[first][0])
        for row in range(local):
            self.loader.evaluation_slot(*self.slots[first + row], row_of(batch, row))
        return batch


def _iterate(dataset: grain.MapDataset, workers: int) -> grain.DatasetIterator:
    # two threads read ahead; with `workers` each of so many processes has its own two
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own flags, which a notebook has not parsed
        options = grain.MultiprocessingOptions(num_workers=workers)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_end_with_parent)
    return iter(dataset)


def _end_with_parent(*_: object) -> None:
    """Run in a worker process: a thread ends it once the parent is gone. Without, those of a killed run stay forever.

    A SIGTERM to the whole group is for the parent, which still wants a batch or two.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
