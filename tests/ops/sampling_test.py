import functools

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from jaxdet.ops.sampling import sample

jitted = functools.partial(jax.jit, static_argnames=("count", "positive_fraction"))(sample)


def chosen(result):
    return np.asarray(result.index)[np.asarray(result.valid)]


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    hypothesis.extra.numpy.arrays(np.int32, 40, elements=st.integers(-1, 1)),
    st.sampled_from([(16, 0.5), (16, 0.25), (16, 1.0), (16, 0.0), (64, 0.5), (64, 1.0)]),
    st.integers(0, 2**31 - 1),
)
def test_what_is_chosen(label, settings, seed):
    count, fraction = settings
    result = jitted(jax.random.key(seed), label, count=count, positive_fraction=fraction)
    assert result.index.shape == result.valid.shape == (count,)
    assert result.index.dtype == np.int32 and result.valid.dtype == bool
    assert ((np.asarray(result.index) >= 0) & (np.asarray(result.index) < 40)).all()

    positives = min(int(count * fraction), (label == 1).sum())
    negatives = min(count - positives, (label == 0).sum())
    index = chosen(result)
    assert len(index) == len(set(index)) == positives + negatives
    np.testing.assert_array_equal(label[index], [1] * positives + [0] * negatives)
    np.testing.assert_array_equal(result.valid, np.arange(count) < positives + negatives)


def test_all_are_taken_where_all_fit():
    label = np.array([1, 0, -1, 1, 1, 0, -1, 1])
    result = jitted(jax.random.key(3), label, count=8, positive_fraction=1.0)
    assert set(chosen(result)) == {0, 1, 3, 4, 5, 7}


@pytest.mark.parametrize("label", [-1, 0, 1])
def test_one_kind_only(label):
    result = jitted(jax.random.key(0), np.full(10, label), count=6, positive_fraction=0.5)
    assert len(chosen(result)) == {-1: 0, 0: 6, 1: 3}[label]


def test_the_part_of_positives_is_rounded_down():
    result = jitted(jax.random.key(0), np.array([1] * 10 + [0] * 10), count=7, positive_fraction=0.25)
    assert (chosen(result) < 10).sum() == 1


def test_every_row_is_equally_likely_and_pairs_are_independent():
    label = np.array([1] * 8 + [-1] * 3 + [0] * 12)
    keys = jax.random.split(jax.random.key(7), 4000)
    result = jax.jit(jax.vmap(lambda key: sample(key, label, 8, 0.5)))(keys)
    assert np.asarray(result.valid).all()
    hits = np.zeros((4000, len(label)))
    np.put_along_axis(hits, np.asarray(result.index), 1, axis=1)
    for rows, probability in ((slice(0, 8), 4 / 8), (slice(8, 11), 0), (slice(11, 23), 4 / 12)):
        deviation = np.sqrt(probability * (1 - probability) / 4000)
        assert (np.abs(hits[:, rows].mean(0) - probability) <= 5 * deviation).all()
    together = (hits[:, 0] * hits[:, 1]).mean()
    assert abs(together - 4 / 8 * 3 / 7) < 0.04


def test_a_key_always_gives_the_same_sample_and_vmap_changes_nothing():
    label = np.random.default_rng(0).integers(-1, 2, (3, 50))
    keys = jax.random.split(jax.random.key(1), 3)
    together = jax.jit(jax.vmap(lambda key, row: sample(key, row, 12, 0.5)))(keys, label)
    alone = [jitted(key, row, count=12, positive_fraction=0.5) for key, row in zip(keys, label, strict=True)]
    for image, result in enumerate(alone):
        np.testing.assert_array_equal(together.index[image], result.index)
        np.testing.assert_array_equal(together.valid[image], result.valid)
    other = jitted(jax.random.key(2), label[0], count=12, positive_fraction=0.5)
    assert set(chosen(other)) != set(chosen(alone[0]))
