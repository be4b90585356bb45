"""Returns and advantages: formula code, one trajectory, no batch axis (vmap over B)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def generalized_advantages(
    rewards: Array,
    values: Array,
    next_values: Array,
    terminated: Array,
    ended: Array,
    discount: Array | float,
    gae_lambda: Array | float,
) -> Array:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16), with termination and truncation kept apart.

    `delta_t = r_t + discount * (1 - terminated_t) * v(s'_t) - v(s_t)` and
    `A_t = delta_t + discount * gae_lambda * (1 - ended_t) * A_{t+1}`: a terminated episode has no further value, a
    truncated one is bootstrapped from its true last observation, and neither leaks into the next episode.

    Args:
        rewards: f32 `[T]`.
        values: f32 `[T]`, of the observations.
        next_values: f32 `[T]`, of the true successors.
        terminated: bool `[T]`.
        ended: bool `[T]`, terminated or truncated.
        discount: f32 [].
        gae_lambda: f32 [].

    Returns:
        Advantages f32 `[T]`.
    """
    deltas = rewards + discount * jnp.where(terminated, 0.0, next_values) - values
    decay = discount * gae_lambda * jnp.where(ended, 0.0, 1.0)

    def backward(advantage: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, factor = step
        advantage = delta + factor * advantage
        return advantage, advantage

    _, advantages = jax.lax.scan(backward, jnp.zeros_like(deltas[0]), (deltas, decay), reverse=True, unroll=8)
    return advantages


def discounted_returns(rewards: Array, ended: Array, start: Array, discount: Array | float) -> tuple[Array, Array]:
    """Running discounted returns `G_t = discount * G_{t-1} + r_t`, begun anew after an ending.

    Args:
        rewards: f32 `[T]`.
        ended: bool `[T]`.
        start: f32 [], `G` before the first reward.
        discount: f32 [].

    Returns:
        `G` after each step, f32 `[T]`, and the value to start the next call with.
    """

    def forward(running: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, end = step
        running = discount * running + reward
        return jnp.where(end, 0.0, running), running

    last, returns = jax.lax.scan(forward, start, (rewards, ended), unroll=8)
    return returns, last


def n_step_targets(
    rewards: Array, terminated: Array, ended: Array, discount: Array | float
) -> tuple[Array, Array, Array]:
    """The n-step return of a window's first step, cut where an episode ends (Sutton and Barto 2018, eq. 7.1).

    Args:
        rewards: f32 `[n]`.
        terminated: bool `[n]`.
        ended: bool `[n]`.
        discount: f32 [].

    Returns:
        The discounted sum of rewards up to and with the first ending; the factor of the bootstrap value (0 after a
        termination); the index of the step whose successor is bootstrapped from, i32.
    """
    step = jnp.arange(rewards.shape[0], dtype=jnp.int32)
    last = jnp.min(jnp.where(ended, step, step[-1]))
    factor = discount ** (last + 1).astype(jnp.float32) * jnp.where(terminated[last], 0.0, 1.0)
    return jnp.sum(jnp.where(step <= last, discount**step * rewards, 0.0)), factor, last
