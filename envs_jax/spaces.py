"""Action and observation spaces: what an environment emits and accepts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Integers `0 .. num_values - 1`, a scalar i32."""

    num_values: int

    def __post_init__(self) -> None:
        if self.num_values < 1:
            raise ValueError(f"Discrete.num_values must be at least 1, got {self.num_values}")

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def dtype(self) -> Any:
        return jnp.int32

    @property
    def mask_size(self) -> int:
        """Length of a `legal_actions` mask."""
        return self.num_values

    def sample(self, key: jax.Array) -> jax.Array:
        """Draws uniformly; consumes `key`."""
        return jax.random.randint(key, (), 0, self.num_values, jnp.int32)

    def contains(self, value: Any) -> bool:
        value = np.asarray(value)
        return value.shape == () and np.issubdtype(value.dtype, np.integer) and bool(0 <= value < self.num_values)


@dataclasses.dataclass(frozen=True)
class MultiDiscrete:
    """A vector of integers, component i in `0 .. num_values[i] - 1`, i32 `[len(num_values)]`."""

    num_values: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_values", tuple(int(n) for n in self.num_values))
        if not self.num_values or min(self.num_values) < 1:
            raise ValueError(f"MultiDiscrete.num_values must be positive integers, got {self.num_values}")

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.num_values),)

    @property
    def dtype(self) -> Any:
        return jnp.int32

    @property
    def mask_size(self) -> int:
        """Length of a `legal_actions` mask: the components' masks one after the other."""
        return sum(self.num_values)

    def sample(self, key: jax.Array) -> jax.Array:
        """Draws uniformly; consumes `key`."""
        return jax.random.randint(key, self.shape, 0, jnp.asarray(self.num_values), jnp.int32)

    def contains(self, value: Any) -> bool:
        value = np.asarray(value)
        if value.shape != self.shape or not np.issubdtype(value.dtype, np.integer):
            return False
        return bool(np.all((value >= 0) & (value < np.asarray(self.num_values))))


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """Arrays of a fixed shape with every element in `[low, high]`.

    `low` and `high` are scalars or arrays that broadcast to `shape`; infinite bounds are allowed.
    """

    low: Any
    high: Any
    shape: tuple[int, ...] = ()
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        low, high = (np.broadcast_to(np.asarray(x, self.dtype), self.shape) for x in (self.low, self.high))
        if np.any(low > high):
            raise ValueError(f"Box.low must not exceed Box.high, got low={self.low}, high={self.high}")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        object.__setattr__(self, "shape", tuple(self.shape))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Box)
            and self.shape == other.shape
            and np.dtype(self.dtype) == np.dtype(other.dtype)
            and np.array_equal(self.low, other.low)
            and np.array_equal(self.high, other.high)
        )

    def __hash__(self) -> int:
        return hash((self.shape, np.dtype(self.dtype), self.low.tobytes(), self.high.tobytes()))

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bounded(self) -> bool:
        """Whether every element has a finite lower and upper bound."""
        return bool(np.all(np.isfinite(self.low)) and np.all(np.isfinite(self.high)))

    def sample(self, key: jax.Array) -> jax.Array:
        """Draws uniformly where bounded, a standard normal (clipped to the bounds) elsewhere; consumes `key`.

        "Bounded" is a finite width: limits of +-3.4e38, as Gymnasium has them, stand for no limit.
        """
        if np.issubdtype(np.dtype(self.dtype), np.integer):
            return jax.random.randint(key, self.shape, self.low, self.high.astype(np.int64) + 1, self.dtype)
        with np.errstate(over="ignore"):
            finite = np.isfinite(self.high - self.low)
        low, high = np.where(finite, self.low, 0.0), np.where(finite, self.high, 1.0)
        key_uniform, key_normal = jax.random.split(key)
        uniform = jax.random.uniform(key_uniform, self.shape, self.dtype, low, high)
        normal = jnp.clip(jax.random.normal(key_normal, self.shape, self.dtype), self.low, self.high)
        return jnp.where(finite, uniform, normal)

    def contains(self, value: Any) -> bool:
        value = np.asarray(value)
        return value.shape == self.shape and bool(np.all((value >= self.low) & (value <= self.high)))


Space = Discrete | MultiDiscrete | Box
