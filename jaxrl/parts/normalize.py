"""Running mean and variance of observations and returns, updated from batches inside compiled code."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

Array = jax.Array


@struct.dataclass
class RunningStatistics:
    """Mean and sum of squared deviations of everything seen (Chan et al. 1979)."""

    count: Array  # f32 []
    mean: Array  # f32, the shape of one sample
    squares: Array  # f32; sum of squared deviations from the mean


def init_statistics(shape: tuple[int, ...]) -> RunningStatistics:
    """Statistics of nothing; normalising with them changes nothing."""
    return RunningStatistics(jnp.zeros(()), jnp.zeros(shape), jnp.zeros(shape))


def update_statistics(statistics: RunningStatistics, samples: Array) -> RunningStatistics:
    """Adds `samples`, whose leading axes are batch axes."""
    axes = tuple(range(samples.ndim - statistics.mean.ndim))
    count = jnp.asarray(samples.size // max(statistics.mean.size, 1), jnp.float32)
    mean = jnp.mean(samples, axes)
    squares = jnp.sum(jnp.square(samples - jax.lax.expand_dims(mean, axes)), axes)
    total = statistics.count + count
    delta = mean - statistics.mean
    return RunningStatistics(
        total,
        statistics.mean + delta * count / total,
        statistics.squares + squares + jnp.square(delta) * statistics.count * count / total,
    )


def standard_deviation(statistics: RunningStatistics) -> Array:
    """Population standard deviation, 1 before the first sample and where nothing varies."""
    variance = statistics.squares / jnp.maximum(statistics.count, 1.0)
    return jnp.where(variance > 1e-12, jnp.sqrt(jnp.maximum(variance, 1e-12)), 1.0)


def normalize(statistics: RunningStatistics, sample: Array, limit: float = 10.0) -> Array:
    """`(sample - mean) / std`, clipped to +- `limit`; batch axes may lead."""
    axes = tuple(range(sample.ndim - statistics.mean.ndim))
    mean, std = (jax.lax.expand_dims(x, axes) for x in (statistics.mean, standard_deviation(statistics)))
    return jnp.clip((sample - mean) / std, -limit, limit)


def normalized(statistics: RunningStatistics | None, sample: Any) -> Array:
    """`sample` as f32, normalised where there are statistics."""
    sample = jnp.asarray(sample, jnp.float32)
    return sample if statistics is None else normalize(statistics, sample)
