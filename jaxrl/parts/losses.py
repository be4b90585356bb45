"""Losses as formula code: one sample, no batch axis; the caller averages."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def clipped_surrogate_loss(log_ratio: Array, advantage: Array, clip_epsilon: Array | float) -> Array:
    """`-min(r A, clip(r, 1 - e, 1 + e) A)` with `r = exp(log_ratio)` (Schulman et al. 2017, eq. 7)."""
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip_epsilon, 1.0 + clip_epsilon)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def clipped_value_loss(value: Array, old_value: Array, target: Array, clip_epsilon: Array | float) -> Array:
    """Half the larger of the squared errors of `value` and of its change clipped to `clip_epsilon` (PPO practice)."""
    clipped = old_value + jnp.clip(value - old_value, -clip_epsilon, clip_epsilon)
    return 0.5 * jnp.maximum(jnp.square(value - target), jnp.square(clipped - target))


def huber_loss(error: Array, threshold: Array | float = 1.0) -> Array:
    """Huber (1964): `error^2 / 2` up to `threshold`, linear beyond."""
    absolute = jnp.abs(error)
    quadratic = jnp.minimum(absolute, threshold)
    return 0.5 * quadratic**2 + threshold * (absolute - quadratic)
