"""The one compiled loop: every training run is `scan_updates` over an algorithm's `update`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.types import Algorithm, Data, Metrics, PyTree


def scan_updates(
    agent: Algorithm, state: PyTree, hparams: PyTree, num_updates: int, data: Data, log_every: int = 1
) -> tuple[PyTree, Metrics]:
    """Runs `num_updates` updates as one `lax.scan`.

    Args:
        agent: any algorithm.
        state: from `agent.init` or an earlier call.
        hparams: floats as f32 arrays; may be vmapped.
        num_updates: how many.
        data: what the algorithm reads.
        log_every: updates per row of metrics; must divide `num_updates`.

    Returns:
        The new state and metrics, every leaf `[num_updates // log_every]`.

    Raises:
        ValueError: `log_every` is not a positive number that divides `num_updates`.
    """
    if log_every < 1 or num_updates % log_every:
        raise ValueError(f"log_every={log_every} must divide num_updates={num_updates}")

    def update(state: PyTree, _: None) -> tuple[PyTree, Metrics]:
        return agent.update(state, hparams, data)

    def row(state: PyTree, _: None) -> tuple[PyTree, Metrics]:
        state, metrics = jax.lax.scan(update, state, None, log_every)
        return state, reduce_metrics(metrics)

    if log_every == 1:
        return jax.lax.scan(update, state, None, num_updates)
    return jax.lax.scan(row, state, None, num_updates // log_every)


def reduce_metrics(metrics: Metrics) -> Metrics:
    """One row from many (leading axis): counts are summed, `episode/*` weighted by them, the rest averaged."""
    count = metrics.get("episode/count")

    def reduce(name: str, values: jax.Array) -> jax.Array:
        if name in ("episode/count", "env_steps"):
            return jnp.sum(values, axis=0)
        if name.startswith("episode/") and count is not None:
            return jnp.sum(values * count, axis=0) / jnp.maximum(jnp.sum(count, axis=0), 1)
        return jnp.mean(values, axis=0)

    return {name: reduce(name, values) for name, values in metrics.items()}
