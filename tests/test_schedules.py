"""Schedules: their ends, and the learning rate that follows a divergence."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.parts.schedules import adapt_rate, cosine_decay, linear_decay, progress


def test_decays_run_from_one_to_zero_and_stay_there():
    updates = jnp.array([0, 25, 50, 100, 150])
    np.testing.assert_allclose(progress(updates, 100), [0, 0.25, 0.5, 1, 1])
    np.testing.assert_allclose(linear_decay(updates, 100), [1, 0.75, 0.5, 0, 0])
    np.testing.assert_allclose(cosine_decay(updates, 100), [1, 0.5 + 0.5**1.5, 0.5, 0, 0], atol=1e-6)
    for schedule in (linear_decay, cosine_decay):
        np.testing.assert_array_equal(schedule(updates, 0), np.ones(5))


@pytest.mark.parametrize(
    ("divergence", "expected"), [(0.05, 1 / 1.5), (0.02, 1.0), (0.004, 1.5), (0.0, 1.0), (np.nan, 1.0)]
)
def test_the_rate_follows_the_divergence(divergence, expected):
    change = adapt_rate(jnp.float32(1.0), jnp.float32(divergence), jnp.float32(0.01))
    assert change == pytest.approx(expected)
    assert adapt_rate(jnp.float32(1.0), jnp.float32(divergence), jnp.float32(0.0)) == 1.0


def test_the_factor_of_the_rate_is_bounded():
    factor = jnp.float32(1.0)
    for _ in range(20):
        factor = adapt_rate(factor, jnp.float32(1.0), jnp.float32(0.01))
    assert factor == pytest.approx(0.01)
    for _ in range(30):
        factor = adapt_rate(factor, jnp.float32(1e-4), jnp.float32(0.01))
    assert factor == pytest.approx(10.0)
