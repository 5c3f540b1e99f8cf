"""Batches the images of many callers for one detector, in one thread, in a few compiled shapes."""

import collections
import concurrent.futures
import threading
from typing import NamedTuple

import numpy as np


class Full(Exception):
    """The queue is full."""


class _Waiting(NamedTuple):
    prepared: tuple  # of Detector.prepare
    size: tuple  # of the original image
    answer: concurrent.futures.Future


class Batches:
    """`submit(image)` -> a Future of what `detector(image)` returns.

    largest: images per batch. `start` compiles batches of every power of two up to it, for both orientations; nothing
    is compiled later. waiting: length of the queue; `submit` raises Full if it is full. observe: called with the number
    of images of each batch. Waiting images are batched as soon as the network is free; none waits for a batch to fill.
    """

    def __init__(self, detector, largest, waiting, observe=lambda count: None):
        self.detector, self.waiting, self.observe = detector, waiting, observe
        self.sizes = [2**i for i in range(largest.bit_length()) if 2**i <= largest]
        self.queue, self.changed = collections.deque(), threading.Condition()
        self.closing, self.thread = False, threading.Thread(target=self._work, name="detector", daemon=True)

    def start(self):
        """Compiles and starts the thread. Returns how many shapes were compiled."""
        shapes, dtype = set(self.detector.resizing.shapes), self.detector.resizing.dtype
        for shape in shapes:
            for count in self.sizes:
                images = np.zeros((count, *shape, 3), dtype)
                self.detector.detect(self.detector.variables, images, np.zeros((count, 2), np.int32))
        self.thread.start()
        return len(shapes) * len(self.sizes)

    def submit(self, image):
        """Future of the detections of an image, uint8 [H, W, 3]. Raises Full, and ValueError like the detector."""
        item = _Waiting(self.detector.prepare(image), image.shape[:2], concurrent.futures.Future())
        with self.changed:
            if self.closing or len(self.queue) >= self.waiting:
                raise Full
            self.queue.append(item)
            self.changed.notify()
        return item.answer

    def close(self):
        """Accepts no more images; returns when all waiting images are answered."""
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join()

    def _work(self):
        while batch := self._next():
            batch = [item for item in batch if item.answer.set_running_or_notify_cancel()]
            if not batch:
                continue
            self.observe(len(batch))
            try:
                count = next(size for size in self.sizes if size >= len(batch))
                found = detect_together(self.detector, [item.prepared for item in batch], count)
            except Exception as error:  # for this batch only; the next may be fine
                for item in batch:
                    item.answer.set_exception(error)
                continue
            for row, item in enumerate(batch):
                _, _, scales = item.prepared
                item.answer.set_result(self.detector.finish((part[row] for part in found), scales, item.size))

    def _next(self):
        """The oldest image and others of its shape, up to a full batch; empty at the end."""
        with self.changed:
            self.changed.wait_for(lambda: self.queue or self.closing)
            batch, others = [], collections.deque()
            while self.queue and len(batch) < self.sizes[-1]:
                item = self.queue.popleft()
                same = not batch or item.prepared[0].shape == batch[0].prepared[0].shape
                (batch if same else others).append(item)
            self.queue.extendleft(reversed(others))
            return batch


def detect_together(detector, prepared, count):
    """Detections of several images of one shape, as `Detector.prepare` gives them, in a batch of `count` slots."""
    images = np.zeros((count, *prepared[0][0].shape), prepared[0][0].dtype)
    sizes = np.zeros((count, 2), np.int32)  # 0, 0 for a slot without an image
    for row, (padded, size, _) in enumerate(prepared):
        images[row], sizes[row] = padded, size
    return [np.asarray(part) for part in detector.detect(detector.variables, images, sizes)]
