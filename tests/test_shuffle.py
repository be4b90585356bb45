"""The order without a sort is a permutation, and minibatches made with it are as mixed as a sort's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl.parts.shuffle import random_order


def orders(size, num_keys):
    keys = jax.random.split(jax.random.key(0), num_keys)
    return np.asarray(jax.jit(jax.vmap(lambda key: random_order(key, size)))(keys))


@pytest.mark.parametrize("size", [1, 2, 6, 8, 1024])  # 6: sorted, as it is no power of two
def test_every_number_once_and_anywhere(size):
    num_keys = 4000 if size < 1024 else 100
    drawn = orders(size, num_keys)
    assert drawn.dtype == np.int32
    np.testing.assert_array_equal(np.sort(drawn, axis=1), np.broadcast_to(np.arange(size), drawn.shape))
    if 1 < size < 1024:
        for position in range(size):
            assert stats.chisquare(np.bincount(drawn[:, position], minlength=size)).pvalue > 1e-4


def test_minibatches_are_as_mixed_as_a_sort_makes_them():
    """Of 1024 samples (32 steps of 32 environments) a minibatch of 256 has 8 of each environment and of each step,
    with the variance of drawing without replacement."""
    size, part, group = 1024, 256, 32
    minibatches = orders(size, 500).reshape(-1, part)
    share = group / size
    variance = part * share * (1 - share) * (size - part) / (size - 1)
    for members in (minibatches % group, minibatches // group):
        counts = np.asarray(jax.vmap(lambda row: jnp.bincount(row, length=group))(jnp.asarray(members)))
        np.testing.assert_allclose(counts.mean(0), part * share, rtol=0.03)
        np.testing.assert_allclose(counts.var(), variance, rtol=0.05)
    neighbours = np.abs(np.diff(minibatches, axis=1)) == 1
    assert neighbours.mean() < 2 * 2 / size  # of those in order, or in reverse, a sort leaves 2 / size
