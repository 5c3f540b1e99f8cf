import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.rpn import RPN
from jaxdet.ops.anchors import pyramid_anchors
from tests.models import tiny

SHAPES = [(12, 16), (6, 8), (3, 4)]  # of an image padded to 48 x 64; three levels do


def rpn(**settings):
    few = {"anchor_sizes": (8.0, 16.0, 32.0), "pre_nms_topk": (100, 70), "post_nms_topk": (80, 25)}
    return RPN(**(tiny.config().model.rpn.to_dict() | few | settings))


def pyramid(channels=6):
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((2, *shape, channels)).astype(np.float32) for shape in SHAPES)


def heads(seed=0, spread=0.7):
    """Random logits, all different, and deltas of two images."""
    rng = np.random.default_rng(seed)
    counts = [height * width * 3 for height, width in SHAPES]
    logits = tuple(np.stack([rng.permutation(n), rng.permutation(n)]) * 8.0 / n - 4 for n in counts)
    deltas = tuple(spread * rng.standard_normal((2, n, 4)) for n in counts)
    return tuple(x.astype(np.float32) for x in logits), tuple(x.astype(np.float32) for x in deltas)


def numpy_iou(a, b):
    corners = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.clip(corners[1] - corners[0], 0, None).prod(-1)
    areas = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(-1) for x in (a, b)]
    return inter / np.maximum(areas[0][:, None] + areas[1][None] - inter, 1e-9)


def numpy_decode(deltas, anchors):
    sides = anchors[:, 2:] - anchors[:, :2]
    centres = anchors[:, :2] + sides / 2 + deltas[:, :2] * sides
    half = sides * np.exp(np.minimum(deltas[:, 2:], np.log(1000 / 16))) / 2
    return np.concatenate([centres - half, centres + half], 1)


def numpy_propose(logits, deltas, anchors, size, before, after, iou, smallest):
    """One image, box by box."""
    kept = []
    for level in range(len(SHAPES)):
        order = np.argsort(-logits[level], kind="stable")[:before]
        boxes = numpy_decode(deltas[level][order].astype(np.float64), np.asarray(anchors[level])[order])
        boxes = np.clip(boxes, 0, [size[1], size[0]] * 2)
        best = []
        for box, score in zip(boxes, logits[level][order], strict=True):
            sides = box[2:] - box[:2]
            large = (sides > 0).all() if smallest == 0 else (sides >= smallest).all()
            if large and all(numpy_iou(box[None], other[None])[0, 0] <= iou for other, _ in best):
                best.append((box, score))
        kept += best[:after]
    kept.sort(key=lambda pair: -pair[1])
    return np.array([box for box, _ in kept[:after]]).reshape(-1, 4), np.array([s for _, s in kept[:after]])


def test_rows_of_the_output_are_y_x_ratio():
    head, maps = rpn(), pyramid()
    params = jax.tree.map(
        lambda s: np.random.default_rng(s.size).standard_normal(s.shape).astype(np.float32),
        jax.eval_shape(head.init, jax.random.key(0), maps)["params"],
    )
    logits, deltas = tiny.jit(head.apply)({"params": params}, maps)
    assert [x.shape for x in logits] == [(2, h * w * 3) for h, w in SHAPES]
    assert [x.shape for x in deltas] == [(2, h * w * 3, 4) for h, w in SHAPES]
    # at one cell of one level by hand: the 3x3 convolution, ReLU, the two 1x1 ones
    level, y, x = 1, 2, 5
    window = maps[level][1, y - 1 : y + 2, x - 1 : x + 2]
    hidden = np.maximum(np.tensordot(window, params["conv0"]["kernel"], 3) + params["conv0"]["bias"], 0)
    rows = (y * 8 + x) * 3 + np.arange(3)
    expected = hidden @ params["objectness_logits"]["kernel"][0, 0] + params["objectness_logits"]["bias"]
    np.testing.assert_allclose(logits[level][1, rows], expected, rtol=1e-4, atol=1e-4)
    expected = hidden @ params["box_deltas"]["kernel"][0, 0] + params["box_deltas"]["bias"]
    np.testing.assert_allclose(deltas[level][1, rows].reshape(-1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_convs", [0, 1, 2])
def test_levels_share_their_parameters(num_convs):
    params = jax.eval_shape(rpn(num_convs=num_convs).init, jax.random.key(0), pyramid())["params"]
    assert set(params) == {"objectness_logits", "box_deltas", *(f"conv{i}" for i in range(num_convs))}


@pytest.mark.parametrize("num_convs", [0, 1, 2])
def test_sampled_anchors_are_predicted_as_all_are(num_convs):
    """Values and gradients, of parameters and of features, for corners, repeated anchors and every level."""
    head, maps = rpn(num_convs=num_convs), pyramid()
    params = jax.tree.map(
        lambda s: np.random.default_rng(s.size).standard_normal(s.shape).astype(np.float32),
        jax.eval_shape(head.init, jax.random.key(0), maps)["params"],
    )
    count = sum(height * width * 3 for height, width in SHAPES)
    index = np.array([[0, 1, 50, 50, 575, 576, 700, count - 1], [2, 47, 48, 300, 719, 720, 755, 733]], np.int32)
    weights = np.random.default_rng(1).standard_normal((2, 8, 5)).astype(np.float32)

    def everywhere(params, maps):
        logits, deltas = head.apply({"params": params}, maps)
        logits = jnp.take_along_axis(jnp.concatenate(logits, 1), index, 1)
        deltas = jnp.take_along_axis(jnp.concatenate(deltas, 1), index[..., None], 1)
        return jnp.sum(weights * jnp.concatenate([logits[..., None], deltas], -1)), (logits, deltas)

    def sampled(params, maps):
        logits, deltas = head.apply({"params": params}, maps, index)
        return jnp.sum(weights * jnp.concatenate([logits[..., None], deltas], -1)), (logits, deltas)

    results = [tiny.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, maps) for loss in (everywhere, sampled)]
    for expected, found in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_a_loss_over_all_anchors_has_its_whole_gradient():
    """Against the same convolution in float64: no gradient is left out, whatever the platform."""
    head, maps = rpn(samples_per_image=2), pyramid()
    params = head.init(jax.random.key(0), maps)["params"]

    def loss(params):
        return sum(jnp.sum(x) for x in head.apply({"params": params}, maps)[1])

    found = tiny.jit(jax.grad(loss))(params)["conv0"]["kernel"]
    expected = np.zeros(found.shape)
    kernel, predictor = (np.asarray(params[n]["kernel"], float) for n in ("conv0", "box_deltas"))
    for x in maps:
        padded = np.pad(x.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)))
        height, width = x.shape[1:3]
        taps = [(i, j, padded[:, i : i + height, j : j + width]) for i in range(3) for j in range(3)]
        hidden = sum(part @ kernel[i, j] for i, j, part in taps) + np.asarray(params["conv0"]["bias"])
        cotangent = (hidden > 0) * predictor[0, 0].sum(-1)
        for i, j, part in taps:
            expected[i, j] += np.einsum("bhwi,bhwo->io", part, cotangent)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_strides_of_the_anchors():
    maps = [np.zeros((1, *shape, 1)) for shape in [(25, 34), (13, 17), (7, 9)]]  # of 100 x 136
    # the first anchor of the second row and of the second column, less the very first
    strides = {
        False: [(4, 4), (8, 8), (16, 16)],
        True: [(4, 4), (7, 8), (14, 15)],  # padded size // grid
    }
    for grid, expected in strides.items():
        anchors = tiny.jit(lambda grid=grid: rpn(grid_strides=grid).anchors((100, 136), maps))()
        for level, (vertical, horizontal) in enumerate(expected):
            width, anchor = maps[level].shape[2], np.asarray(anchors[level])
            np.testing.assert_allclose(anchor[3] - anchor[0], [horizontal, 0, horizontal, 0], atol=1e-4)
            np.testing.assert_allclose(anchor[3 * width] - anchor[0], [0, vertical, 0, vertical], atol=1e-4)


@functools.cache
def propose_in_training():
    head = rpn(smallest_side=0.5)
    anchors = head.anchors((48, 64), pyramid())
    return anchors, tiny.jit(lambda *x: head.propose(*x[:2], anchors, x[2], train=True))


def test_proposals_against_a_slow_loop():
    sizes, (anchors, propose) = np.array([[48, 64], [37, 41]]), propose_in_training()
    for seed in range(3):
        logits, deltas = heads(seed)
        boxes, scores, valid = jax.device_get(propose(logits, deltas, sizes))
        for i in range(2):
            one = [x[i] for x in logits], [x[i] for x in deltas]
            expected = numpy_propose(*one, anchors, sizes[i], 100, 80, 0.7, 0.5)
            count = len(expected[0])
            assert 20 < count <= 80 and valid[i].sum() == count and valid[i, :count].all()
            np.testing.assert_allclose(boxes[i, :count], expected[0], atol=1e-3)
            np.testing.assert_array_equal(scores[i, :count], expected[1].astype(np.float32))


def test_an_empty_slot_and_nonsense_give_no_proposals():
    (logits, deltas), (_, propose) = heads(), propose_in_training()
    for level in range(len(SHAPES)):
        logits[level][1, ::2] = np.nan  # every other row of the second image
        deltas[level][1, 1::2] = np.nan
    _, _, valid = propose(logits, deltas, np.array([[48, 64], [48, 64]]))
    assert valid[0].any() and not valid[1].any()
    assert not np.any(propose(logits, deltas, np.array([[0, 0], [48, 64]]))[2])


@pytest.mark.parametrize("library", ["d2", "tv"])
def test_proposals_of_the_libraries(shared, library):
    z = np.load(shared / "golden" / f"proposals_{library}.npz")
    head = rpn(
        smallest_side=float(z["smallest_side"]),
        nms_iou=float(z["nms_threshold"]),
        pre_nms_topk=(int(z["pre_nms_topk"]),) * 2,
        post_nms_topk=(int(z["post_nms_topk"]),) * 2,
    )
    ends = np.cumsum(z["counts"])[:-1]
    anchors, logits, deltas = np.split(z["anchors"], ends), np.split(z["logits"], ends, 1), z["deltas"]
    propose = tiny.jit(lambda *x: head.propose(*x, z["image_sizes"], train=False))
    boxes, scores, valid = propose(logits, np.split(deltas, ends, 1), anchors)
    for i in range(2):
        count = len(z[f"{i}/boxes"])
        assert valid[i].sum() == count
        np.testing.assert_allclose(boxes[i, :count], z[f"{i}/boxes"], atol=1e-3)
        found = jax.nn.sigmoid(scores) if library == "tv" else scores
        np.testing.assert_allclose(found[i, :count], z[f"{i}/scores"], atol=1e-6)


def truth():
    """Two images of up to three boxes; the rest is garbage."""
    boxes = np.full((2, 4, 4), np.nan, np.float32)
    boxes[0, :3] = [[5, 5, 22, 36], [30, 10, 60, 25], [40, 33, 44, 38]]
    boxes[1, :1] = [[3, 2, 35, 44]]
    valid = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
    return {"gt_boxes": boxes, "gt_valid": valid, "image_sizes": np.array([[48, 64], [48, 64]], np.int32)}


def numpy_losses(logits, deltas, anchors, batch, normalizer, beta, low=0.3, high=0.7):
    """Objectness and box loss with every labelled anchor sampled, and the labels."""
    logits, deltas = np.concatenate(logits, 1).astype(float), np.concatenate(deltas, 1).astype(float)
    anchors, objectness, box, labels = np.concatenate(anchors).astype(float), 0, 0, []
    for i in range(2):
        gt = batch["gt_boxes"][i][batch["gt_valid"][i]].astype(float)
        iou = numpy_iou(gt, anchors)
        best, index = iou.max(0), iou.argmax(0)
        positive = (best >= high) | (iou > iou.max(1, keepdims=True) - 1e-6).any(0)
        sampled = positive | (best < low)
        labels.append(np.where(positive, 1, np.where(sampled, 0, -1)))
        entropy = np.log1p(np.exp(-np.abs(logits[i]))) + np.maximum(logits[i], 0) - logits[i] * positive
        objectness += entropy[sampled].sum()
        target, sides = gt[index], anchors[:, 2:] - anchors[:, :2]
        gt_sides = target[:, 2:] - target[:, :2]
        shift = (target[:, :2] + gt_sides / 2 - anchors[:, :2] - sides / 2) / sides
        difference = np.abs(deltas[i] - np.concatenate([shift, np.log(gt_sides / sides)], 1))
        if beta:
            difference = np.where(difference < beta, difference**2 / (2 * beta), difference - beta / 2)
        box += difference[positive].sum()
    total = sum((label >= 0).sum() for label in labels) if normalizer is None else normalizer
    return objectness / total, box / total, labels


def losses_of(head, logits, deltas, anchors, batch, keys):
    """The losses and counts of a batch, from the logits and deltas of all anchors."""
    sampled = head.sample(anchors, batch, keys)
    logits, deltas = jnp.concatenate(logits, 1), jnp.concatenate(deltas, 1)
    logits = jnp.take_along_axis(logits, sampled.index, 1)
    deltas = jnp.take_along_axis(deltas, sampled.index[..., None], 1)
    return head.losses(logits, deltas, anchors, sampled, jnp.sum(batch["image_sizes"][:, 0] > 0))


@pytest.mark.parametrize(("by_sampled", "beta"), [(False, 0.0), (True, 1 / 9)])
def test_losses_against_plain_numpy(by_sampled, beta):
    head = rpn(samples_per_image=1000, positive_fraction=1.0, normalize_by_sampled=by_sampled, box_beta=beta)
    batch, (logits, deltas) = truth(), heads(spread=0.2)
    anchors = head.anchors((48, 64), pyramid())
    keys = jax.random.split(jax.random.key(0), 2)
    losses, counts = tiny.jit(losses_of, static_argnums=0)(head, logits, deltas, anchors, batch, keys)
    *expected, labels = numpy_losses(logits, deltas, anchors, batch, None if by_sampled else 2000, beta)
    np.testing.assert_allclose([losses.objectness, losses.box], expected, rtol=1e-4)
    assert counts["rpn_positives"] == np.mean([(label == 1).sum() for label in labels])
    assert all((label == -1).sum() >= 3 for label in labels)  # between the two thresholds: in no loss


def test_both_losses_are_over_the_samples_of_real_images():
    head = rpn(samples_per_image=8)
    batch, (logits, deltas) = truth(), heads()
    anchors = head.anchors((48, 64), pyramid())

    def total(logits, deltas, batch, keys):
        return sum(losses_of(head, logits, deltas, anchors, batch, keys)[0])

    run = tiny.jit(jax.value_and_grad(total, (0, 1)))
    keys = jax.random.split(jax.random.key(3), 2)
    _, (by_logits, by_deltas) = run(logits, deltas, batch, keys)
    taken = np.concatenate(by_logits, 1) != 0
    assert taken.sum(1).tolist() == [8, 8]
    moved = (np.concatenate(by_deltas, 1) != 0).all(-1)
    assert (moved.sum(1) >= 1).all() and (moved.sum(1) <= 4).all() and not (moved & ~taken).any()
    # with the second slot empty only the first image counts, and by its own 8 samples
    half = batch | {"image_sizes": np.array([[48, 64], [0, 0]], np.int32)}
    value, (by_logits, _) = run(logits, deltas, half, keys)
    by_logits = np.concatenate(by_logits, 1)
    assert np.count_nonzero(by_logits[0]) == 8 and not by_logits[1].any()
    other = batch | {"image_sizes": np.array([[0, 0], [48, 64]], np.int32)}
    both, second = run(logits, deltas, batch, keys)[0], run(logits, deltas, other, keys)[0]
    np.testing.assert_allclose(both, (value + second) / 2, rtol=1e-5)
    none = batch | {"image_sizes": np.zeros((2, 2), np.int32)}
    value, gradient = run(logits, deltas, none, keys)
    assert value == 0 and not any(np.any(x) for x in jax.tree.leaves(gradient))


def test_a_box_that_no_anchor_meets_is_counted_and_matches_none():
    head, (logits, deltas) = rpn(samples_per_image=1000, positive_fraction=1.0), heads()
    anchors = head.anchors((48, 64), pyramid())
    batch = {
        "gt_boxes": np.array([[[500, 500, 510, 520]], [[0, 0, 9, 9]]], np.float32),
        "gt_valid": np.ones((2, 1), bool),
        "image_sizes": np.array([[48, 64]] * 2, np.int32),
    }
    keys = jax.random.split(jax.random.key(0), 2)
    _, counts = tiny.jit(losses_of, static_argnums=0)(head, logits, deltas, anchors, batch, keys)
    assert counts["boxes_no_anchor_meets"] == 1 and 1 <= counts["rpn_positives"] * 2 < 40


def test_anchors_are_those_of_the_operation():
    head = rpn()
    expected = pyramid_anchors(SHAPES, [(4, 4), (8, 8), (16, 16)], head.anchor_sizes, head.anchor_ratios)
    for actual, wanted in zip(head.anchors((48, 64), pyramid()), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_bfloat16_stays_inside():
    head, maps = rpn(dtype=jnp.bfloat16), pyramid()
    out = jax.eval_shape(functools.partial(head.init_with_output, jax.random.key(0)), maps)[0]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(out))


@pytest.mark.parametrize("library", ["d2", "tv"])
def test_proposals_are_those_of_the_libraries(golden, library):
    z = np.load(golden / f"proposals_{library}.npz")
    ends = np.cumsum(z["counts"])[:-1]
    logits, deltas = (tuple(np.split(z[name], ends, axis=1)) for name in ("logits", "deltas"))
    head = rpn(
        pre_nms_topk=(int(z["pre_nms_topk"]),) * 2,
        post_nms_topk=(int(z["post_nms_topk"]),) * 2,
        nms_iou=float(z["nms_threshold"]),
        smallest_side=float(z["smallest_side"]),
    )
    propose = functools.partial(
        head.propose, anchors=tuple(map(jnp.asarray, np.split(z["anchors"], ends))), train=False
    )
    found = tiny.jit(lambda *heads: propose(*heads, image_sizes=z["image_sizes"]))(logits, deltas)
    for image, (boxes, scores, valid) in enumerate(zip(*map(np.asarray, found), strict=True)):
        assert valid.sum() == len(z[f"{image}/boxes"])
        scores = scores[valid] if library == "d2" else 1 / (1 + np.exp(-scores[valid]))
        np.testing.assert_allclose(boxes[valid], z[f"{image}/boxes"], atol=1e-3)
        np.testing.assert_allclose(scores, z[f"{image}/scores"], atol=1e-6)
