"""Distributions over actions, chosen by the action space.

Written out here because training needs four short formulas of each and importing a distribution library takes longer
than a warm start; the tests hold them against distrax.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.core import draw_index
from envs_jax.spaces import Box, Discrete, MultiDiscrete, Space

Array = jax.Array
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


@struct.dataclass
class Categorical:
    """Over `0 .. N - 1`; illegal values have probability exactly 0."""

    log_probs: Array  # f32 [..., N]; the smallest float where illegal

    @classmethod
    def from_logits(cls, logits: Array, legal: Array | None = None) -> Categorical:
        if legal is not None:
            logits = jnp.where(legal, logits, jnp.finfo(logits.dtype).min)
        return cls(jax.nn.log_softmax(logits))

    def sample(self, key: Array) -> Array:
        """One draw (no batch axis), i32 []; consumes `key`."""
        return draw_index(key, jnp.exp(self.log_probs))

    def mode(self) -> Array:
        return jnp.argmax(self.log_probs, axis=-1).astype(jnp.int32)

    def log_prob(self, value: Array) -> Array:
        # A product with a one-hot row: cheaper than a gather, forward and backward, for the N of action spaces.
        chosen = value[..., None] == jnp.arange(self.log_probs.shape[-1], dtype=value.dtype)
        return jnp.sum(jnp.where(chosen, self.log_probs, 0.0), axis=-1)

    def entropy(self) -> Array:
        probs = jnp.exp(self.log_probs)
        return -jnp.sum(probs * jnp.where(probs > 0, self.log_probs, 0.0), axis=-1)


@struct.dataclass
class MultiCategorical:
    """Independent categoricals, one for each component of a `MultiDiscrete` action."""

    parts: tuple[Categorical, ...]

    def sample(self, key: Array) -> Array:
        keys = jax.random.split(key, len(self.parts))
        return jnp.stack([part.sample(k) for part, k in zip(self.parts, keys)], axis=-1)

    def mode(self) -> Array:
        return jnp.stack([part.mode() for part in self.parts], axis=-1)

    def log_prob(self, value: Array) -> Array:
        return sum((part.log_prob(value[..., i]) for i, part in enumerate(self.parts)), jnp.zeros(()))

    def entropy(self) -> Array:
        return sum((part.entropy() for part in self.parts), jnp.zeros(()))


@struct.dataclass
class DiagonalNormal:
    """A normal distribution with independent components, summed over the last axis."""

    mean: Array  # f32 [..., n]
    log_std: Array  # f32, broadcasts to the mean

    def sample(self, key: Array) -> Array:
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def mode(self) -> Array:
        return self.mean

    def log_prob(self, value: Array) -> Array:
        scaled = (value - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * jnp.square(scaled) - self.log_std - _LOG_SQRT_2PI, axis=-1)

    def entropy(self) -> Array:
        log_std = jnp.broadcast_to(self.log_std, self.mean.shape)
        return jnp.sum(log_std + 0.5 + _LOG_SQRT_2PI, axis=-1)


class ActionHead(NamedTuple):
    """How a network's output becomes actions of one space."""

    num_outputs: int  # outputs of the network
    continuous: bool  # a log standard deviation is learned beside the outputs
    distribution: Callable[..., Any]  # (outputs, log_std, legal_actions) -> distribution
    to_env: Callable[[Array], Array]  # what was sampled -> an action of the space


def action_head(space: Space) -> ActionHead:
    """The head for an action space; continuous actions are normal, scaled from [-1, 1] to the bounds and clipped.

    Raises:
        ValueError: the space is neither discrete nor a vector of floats.
    """
    if isinstance(space, Discrete):
        return ActionHead(
            space.num_values, False, lambda outputs, _, legal: Categorical.from_logits(outputs, legal), lambda a: a
        )
    if isinstance(space, MultiDiscrete):
        sizes = space.num_values
        starts = [sum(sizes[:i]) for i in range(len(sizes))]

        def multi(outputs: Array, _: Any, legal: Array | None) -> MultiCategorical:
            def part(i: int) -> Categorical:
                where = slice(starts[i], starts[i] + sizes[i])
                return Categorical.from_logits(outputs[..., where], None if legal is None else legal[..., where])

            return MultiCategorical(tuple(part(i) for i in range(len(sizes))))

        return ActionHead(sum(sizes), False, multi, lambda a: a)
    if isinstance(space, Box) and len(space.shape) == 1 and jnp.issubdtype(space.dtype, jnp.floating):
        return ActionHead(
            space.size, True, lambda outputs, log_std, _: DiagonalNormal(outputs, log_std), scale_to_bounds(space)
        )
    raise ValueError(f"actions must be Discrete, MultiDiscrete or a Box of floats with one axis, got {space}")


def scale_to_bounds(space: Box) -> Callable[[Array], Array]:
    """Maps [-1, 1] onto the bounds of a bounded box and clips to them; without finite bounds it only clips."""
    low, high = space.low, space.high
    if not space.bounded:
        return lambda action: jnp.clip(action, low, high)
    middle, half = (high + low) / 2.0, (high - low) / 2.0
    return lambda action: jnp.clip(action * half + middle, low, high)


def scale_from_bounds(space: Box) -> Callable[[Array], Array]:
    """Maps the bounds of a bounded box onto [-1, 1]; ValueError without finite bounds."""
    if not space.bounded:
        raise ValueError(f"actions must have finite bounds, got {space}")
    middle, half = (space.high + space.low) / 2.0, (space.high - space.low) / 2.0
    return lambda action: (action - middle) / half


def to_distrax(distribution: Any) -> Any:
    """The same distribution as a distrax object (imports distrax, which takes seconds)."""
    import distrax

    if isinstance(distribution, Categorical):
        return distrax.Categorical(logits=distribution.log_probs)
    if isinstance(distribution, MultiCategorical):
        return distrax.Joint([to_distrax(part) for part in distribution.parts])
    if isinstance(distribution, DiagonalNormal):
        scale = jnp.broadcast_to(jnp.exp(distribution.log_std), distribution.mean.shape)
        return distrax.MultivariateNormalDiag(distribution.mean, scale)
    raise TypeError(f"not a distribution of this module: {type(distribution).__name__}")
