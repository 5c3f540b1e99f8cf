"""Mistakes that detectors of this kind were published with, each held off by a test of its own."""

import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs import person
from jaxdet.data import pipeline
from jaxdet.data.resizing import original_boxes
from jaxdet.evaluation.coco import evaluate, to_results
from jaxdet.models import FasterRCNN
from jaxdet.models.box_head import STRIDES, BoxHead
from jaxdet.models.faster_rcnn import final_stage
from jaxdet.models.rpn import RPN
from jaxdet.training.optimizer import learning_rate, optimizer
from jaxdet.training.step import create_state, train_step
from tests.models import tiny

# ---- proposals that are not scaled to the feature map, or read as x y width height --------------------------------


def test_the_box_head_sees_what_lies_in_the_box():
    """Every cell of the pyramid tells its own place in pixels, so the mean of a crop is the middle of its box."""
    height, width = 512, 640
    maps = []
    for stride in STRIDES:
        y, x = np.mgrid[0 : height // stride, 0 : width // stride] * stride + stride / 2
        maps.append(np.stack([x, y], -1)[None].astype(np.float32))
    # one to three of every level, off the centre, so that no wrong reading of the four numbers has the same middle
    boxes = [[40, 30, 80, 60], [300, 200, 350, 280], [60, 300, 210, 420], [330, 40, 610, 220]]
    boxes = np.array([[*boxes, [80, 60, 600, 500], [500, 10, 620, 90]]], np.float32)
    settings = tiny.config().model.roi_head.to_dict() | {"num_fcs": 0, "class_agnostic": True}
    head = BoxHead(num_classes=1, **settings)
    mean = np.zeros((7 * 7, 2, 4), np.float32)
    mean[:, 0, 0] = mean[:, 1, 1] = 1 / 49
    params = {
        "class_logits": {"kernel": np.zeros((98, 2), np.float32), "bias": np.zeros(2, np.float32)},
        "box_deltas": {"kernel": mean.reshape(98, 4), "bias": np.zeros(4, np.float32)},
    }
    _, deltas = tiny.jit(head.apply)({"params": params}, (*maps, maps[-1][:, ::2, ::2]), boxes)
    middles = (boxes[..., :2] + boxes[..., 2:]) / 2
    np.testing.assert_allclose(deltas[:, :, 0, :2], middles, atol=0.5)


def test_boxes_of_a_data_set_come_through_training_and_evaluation(tmp_path):
    """x y width height in the file, x1 y1 x2 y2 in the batch, and the same numbers again in the results."""
    Image.fromarray(np.zeros((48, 96, 3), np.uint8)).save(tmp_path / "a.png")
    truth = {
        "images": [{"id": 7, "file_name": "a.png", "height": 48, "width": 96}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "bbox": [40, 10, 30, 20], "area": 600, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [5, 6, 20, 40], "area": 800, "iscrowd": 0},
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(truth))
    split = person.get_config().data.train
    split.update(images=str(tmp_path), annotations=str(tmp_path / "a.json"), short_sides=(96,), flip=0.0)
    source = pipeline.open_source(split, ("person",))
    batch = next(pipeline.TrainingBatches(source, split, 0, 1, 8).read(0, 1, workers=0))
    boxes = batch["gt_boxes"][0][batch["gt_valid"][0]]
    np.testing.assert_allclose(sorted(boxes.tolist()), [[10, 12, 50, 92], [80, 20, 140, 60]])  # twice as large

    boxes = original_boxes(boxes, batch["scales"][0], source.sizes[0])
    found = to_results(7, boxes, np.array([0.9, 0.8]), np.array([0, 0]), source.categories)
    assert sorted(item["bbox"] for item in found) == [[5, 6, 20, 40], [40, 10, 30, 20]]
    assert evaluate(source.ground_truth(), found)["AP"] == pytest.approx(1)


# ---- boxes that clipping empties ------------------------------------------------------------------------------------


def test_boxes_emptied_by_clipping_get_no_further():
    """The best anchors and some class boxes are moved out of the image: none is proposed, pooled or detected."""
    config, batch = tiny.config(num_classes=1).model, tiny.batch()
    rpn = RPN(**(config.rpn.to_dict() | {"anchor_sizes": (8.0, 16.0), "post_nms_topk": (30, 30)}))
    head = BoxHead(num_classes=1, **config.roi_head)
    rng = np.random.default_rng(0)
    shapes = [(16, 24), (8, 12)]
    anchors = rpn.anchors((tiny.HEIGHT, tiny.WIDTH), [np.zeros((2, *shape, 1)) for shape in shapes])
    logits = [rng.standard_normal((2, len(level))).astype(np.float32) for level in anchors]
    deltas = [0.1 * rng.standard_normal((2, len(level), 4)).astype(np.float32) for level in anchors]
    for level in range(2):
        logits[level][:, :90:3] += 20
        deltas[level][:, :90:3, :2] = [30, 0]  # thirty widths to the right: clipped to a width of 0
    # a true box without an area joins the proposals in training
    batch = batch | {"gt_boxes": batch["gt_boxes"].copy(), "gt_valid": batch["gt_valid"].copy()}
    batch["gt_boxes"][:, -1], batch["gt_valid"][:, -1] = [7, 20, 7, 30], True
    class_deltas = np.tile(np.float32([0, 0, 0, 0, 900, 0, 0, 0]).reshape(1, 2, 1, 4), (2, 15, 1, 1))

    def run(logits, deltas):
        proposals = [rpn.propose(logits, deltas, anchors, batch["image_sizes"], train=train) for train in (True, False)]
        keys = jax.random.split(jax.random.key(0), 2)
        boxes, _, _, valid = head.sample(*proposals[0][::2], batch, keys)
        _, decoded = head.decode(np.zeros((2, 30, 2)), class_deltas, proposals[1][0])
        final = functools.partial(final_stage, **config.test)
        scores = np.ones((2, 30, 1), np.float32)
        found = jax.vmap(final)(decoded, scores, proposals[1][2], batch["image_sizes"])
        return [proposals[0][::2], proposals[1][::2], (boxes, valid), (found.boxes, found.valid)]

    for boxes, valid in jax.device_get(tiny.jit(run)(logits, deltas)):
        assert valid.any(1).all() and (boxes[valid][:, 2:] > boxes[valid][:, :2]).all()
        assert np.isfinite(boxes).all()


# ---- the RoI matcher with the low-quality rule of the RPN -----------------------------------------------------------


def test_the_best_proposal_of_a_box_is_background_below_the_threshold():
    head = BoxHead(num_classes=1, **(tiny.config().model.roi_head.to_dict() | {"add_ground_truth": False}))
    batch = {
        "gt_boxes": np.array([[[10, 10, 50, 50]]], np.float32),
        "gt_labels": np.zeros((1, 1), np.int32),
        "gt_valid": np.ones((1, 1), bool),
    }
    boxes = np.array([[[10, 10, 50, 29], [10, 10, 50, 26], [60, 60, 80, 80]]], np.float32)  # IoU .475, .4, 0
    keys = jax.random.split(jax.random.key(0), 1)
    _, labels, _, valid = tiny.jit(head.sample)(boxes, np.ones((1, 3), bool), batch, keys)
    assert valid.sum() == 3 and (labels[valid] == 1).all()  # 1 is the background of one class


# ---- a warmup that is not wired in, frozen layers that cost memory --------------------------------------------------


@functools.cache
def compiled_step(freeze_at):
    """Config, state and the compiled train_step of a ResNet-18 whose lower stages are frozen."""
    config = tiny.config(num_classes=1, norm="frozen_batch_norm", freeze_at=freeze_at)
    config.model.roi_head = None  # half the time in the compiler
    config.train.update(batch_size=2)
    config.optimizer.update(learning_rate=0.08, warmup_steps=10, momentum=0.0, weight_decay=0.0)
    model, update = FasterRCNN(**config.model), optimizer(config)
    state = jax.eval_shape(lambda: create_state(model, update, config))
    state = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), state).replace(
        trainable=tiny.fill(state.trainable), frozen=tiny.fill(state.frozen), constants=tiny.fill(state.constants)
    )
    batch = tiny.batch() | {"gt_labels": np.zeros_like(tiny.batch()["gt_labels"])}
    step = functools.partial(train_step, model=model, optimizer=update, config=config)
    return config, state, batch, tiny.jit(step).lower(state, batch).compile()


def test_the_warmup_moves_the_parameters():
    config, state, batch, step = compiled_step(0)
    schedule, peak = learning_rate(config), 0.08 * 2 / 16
    for number in range(3):
        new, metrics = step(state, batch)
        assert metrics["finite"] and new.step == number + 1
        expected = peak * (0.001 + 0.999 * number / 10)
        np.testing.assert_allclose(metrics["learning_rate"], expected, rtol=1e-4)
        np.testing.assert_allclose(schedule(number), expected, rtol=1e-4)
        # plain gradient descent: the step is the rate times the gradient
        moved = [
            np.float64(a) - b for a, b in zip(*map(jax.tree.leaves, (new.trainable, state.trainable)), strict=True)
        ]
        length = np.sqrt(sum((x**2).sum() for x in moved))
        np.testing.assert_allclose(length, expected * metrics["gradient_norm"], rtol=1e-2)
        state = new


def test_frozen_stages_save_memory():
    def cost(freeze_at):
        _, state, _, step = compiled_step(freeze_at)
        sizes = [sum(x.nbytes for x in jax.tree.leaves(part)) for part in (state.optimizer, state.trainable)]
        return step.memory_analysis().temp_size_in_bytes, *sizes, state

    (temporary, *sizes, _), (temporary_frozen, *sizes_frozen, state) = cost(0), cost(3)
    assert temporary_frozen < 0.8 * temporary
    kept = sum(x.nbytes for x in jax.tree.leaves(state.frozen))
    assert kept > 0
    assert [now - before for now, before in zip(sizes_frozen, sizes, strict=True)] == [-kept, -kept]
