"""The ground rules of the test suite hold."""

import jax
import jax.numpy as jnp
import pytest


def test_tests_run_under_the_stated_rules():
    if jax.default_backend() == "cpu":
        assert len(jax.devices()) == 4
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones(3) + jnp.ones((2, 3))
