"""How numbers change over a training: functions of the update counter, and of how far the policy moved."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def progress(num_updates: Array, duration: Array | float) -> Array:
    """How much of a schedule of `duration` updates is over, f32 in [0, 1]; 0 for ever where the duration is 0."""
    share = jnp.asarray(num_updates, jnp.float32) / jnp.maximum(duration, 1.0)
    return jnp.where(duration > 0, jnp.minimum(share, 1.0), 0.0)


def linear_decay(num_updates: Array, duration: Array | float) -> Array:
    """From 1 to 0 in a straight line over `duration` updates; 1 for ever where the duration is 0."""
    return 1.0 - progress(num_updates, duration)


def cosine_decay(num_updates: Array, duration: Array | float) -> Array:
    """From 1 to 0 along half a cosine over `duration` updates; 1 for ever where the duration is 0."""
    return 0.5 * (1.0 + jnp.cos(jnp.pi * progress(num_updates, duration)))


def adapt_rate(factor: Array, divergence: Array, target: Array) -> Array:
    """The factor of a learning rate after one step: smaller where the policy moved too far, larger where too little.

    Thresholds and steps as in legged_gym's PPO (Rudin et al. 2022, arXiv 2109.11978).

    Args:
        factor: f32 []; the one so far.
        divergence: f32 []; of the policy from the one that collected.
        target: f32 []; the wanted divergence; 0 leaves the factor alone.

    Returns:
        f32 [] in [0.01, 10].
    """
    change = jnp.where(divergence > 2 * target, 1 / 1.5, jnp.where(divergence < target / 2, 1.5, 1.0))
    # The first step after collecting has no divergence yet: that says nothing.
    change = jnp.where((target > 0) & (divergence > 0), change, 1.0)
    return jnp.clip(factor * change, 1e-2, 10.0)
