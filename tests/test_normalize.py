"""Running statistics against NumPy over everything seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl.parts.normalize import init_statistics, normalize, standard_deviation, update_statistics

update, deviation, scaled = jax.jit(update_statistics), jax.jit(standard_deviation), jax.jit(normalize)


def statistics_of(batches, shape):
    statistics = init_statistics(shape)
    for batch in batches:
        statistics = update(statistics, jnp.asarray(batch))
    return statistics


@pytest.mark.parametrize("shape", [(3,), (2, 2, 1)], ids=str)
def test_unequal_batches_equal_their_concatenation(shape):
    generator = np.random.default_rng(0)
    batches = [
        generator.normal(mean, std, (*leading, *shape)).astype(np.float32)
        for leading, mean, std in [((5,), 0.0, 1.0), ((1,), 7.0, 1.0), ((3, 4), -2.0, 5.0), ((2, 3), 100.0, 0.1)]
    ]
    everything = np.concatenate([batch.reshape(-1, *shape) for batch in batches]).astype(np.float64)
    statistics = statistics_of(batches, shape)
    assert float(statistics.count) == len(everything)
    np.testing.assert_allclose(statistics.mean, everything.mean(0), rtol=1e-5)
    np.testing.assert_allclose(deviation(statistics), everything.std(0), rtol=1e-5)
    centred = scaled(statistics, jnp.asarray(batches[2]))
    np.testing.assert_allclose(centred, (batches[2] - everything.mean(0)) / everything.std(0), rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4), min_size=1, max_size=5))
def test_the_order_of_batches_does_not_matter(batches):
    arrays = [np.asarray(batch, np.float32) for batch in batches]
    one_way, other_way = statistics_of(arrays, ()), statistics_of(arrays[::-1], ())
    everything = np.concatenate(arrays).astype(np.float64)
    for statistics in (one_way, other_way):
        np.testing.assert_allclose(statistics.mean, everything.mean(), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(statistics.squares, 4 * len(batches) * everything.var(), rtol=1e-3, atol=1e-2)


def test_a_large_offset_does_not_drown_the_spread():
    generator = np.random.default_rng(1)
    batches = [(1000.0 + generator.normal(size=256)).astype(np.float32) for _ in range(200)]
    spread = np.concatenate(batches).astype(np.float64).std()
    np.testing.assert_allclose(deviation(statistics_of(batches, ())), spread, rtol=1e-2)


def test_normalising_by_nothing_changes_nothing():
    sample = jnp.array([-3.0, 0.0, 9.5])
    np.testing.assert_array_equal(scaled(init_statistics((3,)), sample), sample)


def test_what_never_varies_is_only_centred_and_results_are_clipped():
    statistics = statistics_of([np.array([[5.0, 0.0], [5.0, 2.0]], np.float32)], (2,))
    np.testing.assert_allclose(deviation(statistics), [1.0, 1.0])
    np.testing.assert_allclose(scaled(statistics, jnp.array([5.5, 1e6])), [0.5, 10.0])
    np.testing.assert_allclose(scaled(statistics, jnp.array([5.0, -1e6]), limit=3.0), [0.0, -3.0])


def test_bytes_are_counted_as_numbers():
    images = np.array([[[0], [255]], [[10], [5]]], np.uint8)  # two samples of shape [2, 1]
    statistics = statistics_of([images], (2, 1))
    np.testing.assert_allclose(statistics.mean, [[5.0], [130.0]])
    np.testing.assert_allclose(deviation(statistics), [[5.0], [125.0]])
