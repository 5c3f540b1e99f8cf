import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.losses import box_losses, rpn_losses, smooth_l1

rpn_jitted = functools.partial(jax.jit, static_argnames="beta")(rpn_losses)
box_jitted = functools.partial(jax.jit, static_argnames="beta")(box_losses)
LEARNED = ("objectness_logits", "class_logits", "box_deltas")
RPN = functools.partial(rpn_losses, beta=0.1)
BETA = {"d2": 0.0, "tv": 1 / 9}


def load(golden, case):
    return {
        name.split("/")[1]: value
        for name, value in np.load(golden / "losses.npz").items()
        if name.startswith(case + "/")
    }


def gradients(losses, *arguments):
    """Of each loss by the first two arguments, logits and deltas, as a NumPy tree."""
    return jax.tree.map(np.asarray, jax.jit(jax.jacrev(losses, argnums=(0, 1)))(*arguments))


def slow_deltas(box, anchor, weights):
    (x1, y1, x2, y2), (u1, v1, u2, v2) = box.astype(np.float64), anchor.astype(np.float64)
    width, height = u2 - u1, v2 - v1
    shift = ((x1 + x2 - u1 - u2) / 2 / width, (y1 + y2 - v1 - v2) / 2 / height)
    return np.array([*shift, np.log((x2 - x1) / width), np.log((y2 - y1) / height)]) * weights


def slow_smooth_l1(difference, beta):
    return sum(0.5 * d * d / beta if d < beta else d - 0.5 * beta for d in abs(difference))


def random_boxes(rng, n):
    corner = rng.uniform(0, 100, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(5, 50, (n, 2))], -1).astype(np.float32)


@pytest.mark.parametrize("library", ["d2", "tv"])
@pytest.mark.parametrize("case", ["rpn", "rpn_no_positive"])
def test_golden_rpn(golden, case, library):
    z = load(golden, case)
    by_library = {"d2": z["sampled_per_image"] * len(z["label"]), "tv": (z["label"] >= 0).sum()}

    def losses(logits, deltas):
        return rpn_losses(logits, deltas, z["anchors"], z["label"], z["gt_boxes"], by_library[library], BETA[library])

    value = jax.jit(losses)(z["objectness_logits"], z["deltas"])
    np.testing.assert_allclose(value.objectness, z[f"{library}_objectness"], rtol=1e-5)
    np.testing.assert_allclose(value.box, z[f"{library}_box"], rtol=1e-5)
    gradient = gradients(losses, z["objectness_logits"], z["deltas"])
    np.testing.assert_allclose(gradient.objectness[0], z[f"{library}_logits_grad"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(gradient.box[1], z[f"{library}_deltas_grad"], rtol=0, atol=1e-6)
    assert not gradient.objectness[1].any() and not gradient.box[0].any()


@pytest.mark.parametrize("library", ["d2", "tv"])
@pytest.mark.parametrize("case", ["box", "box_no_positive", "box_person"])
def test_golden_box(golden, case, library):
    z = load(golden, case)
    valid = np.ones(len(z["label"]), bool)

    def losses(logits, deltas):
        return box_losses(
            *(logits, deltas, z["proposals"], z["label"], z["gt_boxes"], valid, z["weights"], BETA[library])
        )

    value = jax.jit(losses)(z["class_logits"], z["box_deltas"])
    np.testing.assert_allclose(value.classification, z[f"{library}_class"], rtol=1e-5)
    np.testing.assert_allclose(value.box, z[f"{library}_box"], rtol=1e-5)
    gradient = gradients(losses, z["class_logits"], z["box_deltas"])
    np.testing.assert_allclose(gradient.classification[0], z[f"{library}_logits_grad"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(gradient.box[1], z[f"{library}_deltas_grad"], rtol=0, atol=1e-6)


def rpn_example(seed=0, images=2, anchors=30):
    rng = np.random.default_rng(seed)
    return {
        "objectness_logits": rng.normal(0, 3, (images, anchors)).astype(np.float32),
        "box_deltas": rng.normal(0, 1, (images, anchors, 4)).astype(np.float32),
        "anchors": random_boxes(rng, anchors),
        "label": rng.integers(-1, 2, (images, anchors)),
        "gt_boxes": np.stack([random_boxes(rng, anchors) for _ in range(images)]),
        "normalizer": 17.0,
    }


def box_example(seed=0, images=2, samples=20, classes=3, sets=3):
    rng = np.random.default_rng(seed)
    return {
        "class_logits": rng.normal(0, 2, (images, samples, classes + 1)).astype(np.float32),
        "box_deltas": rng.normal(0, 1, (images, samples, sets, 4)).astype(np.float32),
        "proposals": np.stack([random_boxes(rng, samples) for _ in range(images)]),
        "label": rng.integers(0, classes + 1, (images, samples)),
        "gt_boxes": np.stack([random_boxes(rng, samples) for _ in range(images)]),
        "valid": rng.random((images, samples)) < 0.7,
    }


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_rpn_against_loops(beta):
    example, weights = rpn_example(), (1.0, 2.0, 3.0, 4.0)
    objectness = box = 0.0
    for image, anchor in np.argwhere(example["label"] >= 0):
        logit, positive = float(example["objectness_logits"][image, anchor]), example["label"][image, anchor]
        objectness -= np.log(1 / (1 + np.exp(-logit if positive else logit)))
        if positive:
            target = slow_deltas(example["gt_boxes"][image, anchor], example["anchors"][anchor], weights)
            box += slow_smooth_l1(example["box_deltas"][image, anchor] - target, beta)
    value = rpn_jitted(**example, beta=beta, weights=weights)
    np.testing.assert_allclose(value, [objectness / 17, box / 17], rtol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("sets", [3, 1])
def test_box_against_loops(beta, sets):
    example, weights = box_example(sets=sets), (10.0, 9.0, 5.0, 4.0)
    classification = box = 0.0
    for image, row in np.argwhere(example["valid"]):
        logits, label = example["class_logits"][image, row].astype(np.float64), example["label"][image, row]
        classification += np.log(np.exp(logits).sum()) - logits[label]
        if label < 3:
            target = slow_deltas(example["gt_boxes"][image, row], example["proposals"][image, row], weights)
            deltas = example["box_deltas"][image, row, label if sets == 3 else 0]
            box += slow_smooth_l1(deltas - target, beta)
    total = example["valid"].sum()
    value = box_jitted(**example, weights=weights, beta=beta)
    np.testing.assert_allclose(value, [classification / total, box / total], rtol=1e-5)


@functools.partial(jax.jit, static_argnames=("losses", "logits"))
def value_and_gradients(losses, logits, example):
    """Both losses of an example, and the gradients of their sum by the logits and the deltas."""

    def total(learned):
        value = losses(**{**example, **learned})
        return sum(value), value

    learned = {name: example[name] for name in (logits, "box_deltas")}
    (_, value), gradient = jax.value_and_grad(total, has_aux=True)(learned)
    return value, (gradient[logits], gradient["box_deltas"])


def of_rpn(example):
    return jax.tree.map(np.asarray, value_and_gradients(RPN, "objectness_logits", example))


def of_box(example):
    return jax.tree.map(np.asarray, value_and_gradients(box_losses, "class_logits", example))


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30])
def test_rpn_rows_not_taken_may_hold_garbage(garbage):
    example = rpn_example()
    clean_value, clean_gradient = of_rpn(example)
    example["objectness_logits"][example["label"] < 0] = garbage
    for name in ("gt_boxes", "box_deltas"):
        example[name][example["label"] != 1] = garbage
    value, gradient = of_rpn(example)
    np.testing.assert_array_equal(value, clean_value)
    for got, expected, taken in zip(gradient, clean_gradient, (0, 1), strict=True):
        np.testing.assert_array_equal(got, expected)
        assert not got[example["label"] < taken].any() and got.any()


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30])
@pytest.mark.parametrize("sets", [3, 1])
def test_box_rows_not_taken_may_hold_garbage(garbage, sets):
    example = box_example(sets=sets)
    clean_value, clean_gradient = of_box(example)
    unused = ~example["valid"]
    background = unused | (example["label"] == 3)
    example["class_logits"][unused], example["proposals"][unused] = garbage, garbage
    example["gt_boxes"][background], example["box_deltas"][background] = garbage, garbage
    example["label"][unused] = 99
    value, gradient = of_box(example)
    np.testing.assert_array_equal(value, clean_value)
    for got, expected, left_out in zip(gradient, clean_gradient, (unused, background), strict=True):
        np.testing.assert_array_equal(got, expected)
        assert not got[left_out].any() and got.any()


def test_only_the_true_class_has_a_box_gradient():
    example = box_example()
    _, (_, gradient) = of_box(example)
    touched = np.abs(gradient).max(-1) > 0
    expected = (example["label"][..., None] == np.arange(3)) & example["valid"][..., None]
    np.testing.assert_array_equal(touched, expected)


def test_nothing_to_learn_from_gives_zero():
    example = rpn_example()
    example["label"][:], example["normalizer"] = -1, 0.0
    value, gradient = of_rpn(example)
    assert value == (0, 0) and not any(g.any() for g in gradient)

    example = box_example()
    example["valid"][:] = False
    example["gt_boxes"][:] = np.nan
    value, gradient = of_box(example)
    assert value == (0, 0) and not any(g.any() for g in gradient)


def test_degenerate_boxes_keep_the_losses_finite():
    rpn, box = rpn_example(), box_example()
    rpn["gt_boxes"][:, ::2, 2:] = rpn["gt_boxes"][:, ::2, :2]
    box["proposals"][:, ::2, 2:] = box["proposals"][:, ::2, :2]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((of_rpn(rpn), of_box(box))))


def test_large_logits_are_exact():
    label, zeros = np.array([1, 0, 1, 0]), np.zeros((4, 4), np.float32)
    unit = np.tile(np.float32([0, 0, 1, 1]), (4, 1))
    logits = np.float32([200, -200, -200, 200])
    assert rpn_jitted(logits, zeros, unit, label, unit, 1).objectness == 400
    class_logits = np.float32([[500, 0], [0, 500]])
    value = box_jitted(class_logits, zeros[:2, None], unit[:2], np.array([1, 1]), unit[:2], np.ones(2, bool))
    assert value.classification == 250


def test_arithmetic_is_float32_for_bfloat16_outputs():
    for losses, example in ((rpn_jitted, rpn_example()), (box_jitted, box_example())):
        half = {name: jnp.asarray(value, jnp.bfloat16) if name in LEARNED else value for name, value in example.items()}
        rounded = {name: np.asarray(value, np.float32) if name in LEARNED else value for name, value in half.items()}
        value = losses(**half)
        assert all(loss.dtype == jnp.float32 for loss in value)
        np.testing.assert_allclose(value, losses(**rounded), rtol=1e-6)


def test_images_may_be_given_together_or_one_by_one():
    example = rpn_example()
    together = rpn_jitted(**example)
    shared = ("anchors", "normalizer")
    separately = [
        rpn_jitted(**{name: v if name in shared else v[image] for name, v in example.items()}) for image in range(2)
    ]
    np.testing.assert_allclose(together, np.sum(separately, axis=0), rtol=1e-6)

    example = box_example()
    together = box_jitted(**example)
    flat = {name: v.reshape(-1, *v.shape[2:]) for name, v in example.items()}
    np.testing.assert_allclose(together, box_jitted(**flat), rtol=1e-6)


def test_boxes_carry_no_gradient():
    example = box_example()
    gradient = jax.jit(jax.grad(lambda p, g: box_losses(**{**example, "proposals": p, "gt_boxes": g}).box, (0, 1)))(
        example["proposals"], example["gt_boxes"]
    )
    assert not np.asarray(gradient[0]).any() and not np.asarray(gradient[1]).any()


def test_smooth_l1():
    difference = np.float32([-2, -0.5, -0.1, 0, 0.1, 0.5, 2])
    np.testing.assert_allclose(smooth_l1(difference, 0.5), [1.75, 0.25, 0.01, 0, 0.01, 0.25, 1.75], rtol=1e-6)
    np.testing.assert_array_equal(smooth_l1(difference, 0), np.abs(difference))
    slope = jax.vmap(jax.grad(smooth_l1), (0, None))
    np.testing.assert_allclose(slope(difference, 0.5), [-1, -1, -0.2, 0, 0.2, 1, 1], rtol=1e-6)
    np.testing.assert_array_equal(jax.vmap(jax.grad(lambda d: smooth_l1(d, 0)))(difference), np.sign(difference))
