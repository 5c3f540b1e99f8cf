import numpy as np
import pytest

from jaxdet.inference import batching
from tests.inference.serve_test import Corners


def test_batches_keep_images_of_one_shape_together():
    detector = Corners()
    batches = batching.Batches(detector, largest=3, waiting=7)
    assert batches.sizes == [1, 2]
    assert batches.start() == 4
    detector.batches.clear()
    detector.gate.clear()
    images = [np.full((h, w, 3), 30 * i, np.uint8) for i, (h, w) in enumerate([(60, 90), (90, 60)] * 4)]
    detector.entered.clear()
    first = batches.submit(images[0])
    assert detector.entered.wait(20)
    others = [batches.submit(image) for image in images[1:]]
    with pytest.raises(batching.Full):
        batches.submit(images[0])
    others[0].cancel()
    detector.gate.set()
    batches.close()
    with pytest.raises(batching.Full):
        batches.submit(images[0])
    for i, (image, answer) in enumerate(zip(images, [first, *others], strict=True)):
        if i != 1:
            found = answer.result(0)
            np.testing.assert_allclose(found["scores"], [30 * i / 255], rtol=1e-5)
            np.testing.assert_allclose(found["boxes"], [[0, 0, image.shape[1], image.shape[0]]], rtol=1e-5)
    assert detector.batches[:3] == [(1, 64, 96, 3), (1, 96, 64, 3), (2, 64, 96, 3)]
