"""Losses against hand-computed values, and where their gradients vanish."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.parts.losses import clipped_surrogate_loss, clipped_value_loss, huber_loss

modes = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])


@modes
@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, -2.0),
        (1.1, 2.0, -2.2),  # inside the interval
        (1.5, 2.0, -2.4),  # clipped at 1.2: no reward for going further
        (1.5, -2.0, 3.0),  # not clipped: the way back stays open
        (0.5, -2.0, 1.6),  # clipped at 0.8
        (0.5, 2.0, -1.0),
    ],
)
def test_clipped_surrogate_by_hand(mode, ratio, advantage, expected):
    log_ratio = jnp.log(jnp.float32(ratio))
    value, slope = mode(jax.value_and_grad(clipped_surrogate_loss))(log_ratio, jnp.float32(advantage), 0.2)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    # No gradient where the clipped term is the smaller one, the policy gradient -r A elsewhere.
    np.testing.assert_allclose(slope, 0.0 if abs(expected) in (2.4, 1.6) else -ratio * advantage, rtol=1e-6)


@modes
@pytest.mark.parametrize(
    ("value", "old_value", "target", "expected"),
    [
        (1.1, 1.0, 2.0, 0.5 * 0.9**2),  # the change is within the interval
        (1.9, 1.0, 2.0, 0.5 * 0.8**2),  # moved too far towards the target: the clipped error is the larger
        (0.0, 1.0, 2.0, 0.5 * 2.0**2),  # moved away: the plain error is the larger
    ],
)
def test_clipped_value_loss_by_hand(mode, value, old_value, target, expected):
    loss = mode(clipped_value_loss)(jnp.float32(value), jnp.float32(old_value), jnp.float32(target), 0.2)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_huber_is_quadratic_then_linear_and_smooth_between():
    errors = np.array([0.0, 0.5, -0.5, 2.0, -2.0, 5.0], np.float32)
    np.testing.assert_allclose(huber_loss(jnp.asarray(errors), 2.0), [0.0, 0.125, 0.125, 2.0, 2.0, 8.0])
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(huber_loss), (0, None)))(errors, 2.0)
    np.testing.assert_allclose(values, [0.0, 0.125, 0.125, 2.0, 2.0, 8.0])
    np.testing.assert_allclose(slopes, np.clip(errors, -2.0, 2.0))
