"""The roles of a game as policies: one for each role played together, and mixtures drawn once per episode.

A policy is a pair `(start, act)` as in `jaxrl.types.Algorithm`: one role, no batch axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.core import Array, PyTree, TimeStep, draw_index

Policy = tuple[Callable[..., Any], Callable[..., Any]]


def play_together(policy: Policy) -> Policy:
    """All roles of a game as one policy of it: parameters, carries and actions lead with A."""
    start, act = policy
    # What of a time step leads with A: all but the endings.
    axes = TimeStep(0, 0, None, None, 0, 0, 0)  # type: ignore[arg-type]

    def start_all(policy_params: PyTree, key: Array) -> PyTree:
        num_roles = jax.tree.leaves(policy_params)[0].shape[0]
        return jax.vmap(start)(policy_params, jax.random.split(key, num_roles))

    def act_all(policy_params: PyTree, carry: PyTree, time_step: TimeStep, key: Array, deterministic: bool) -> tuple:
        keys = jax.random.split(key, time_step.reward.shape[0])
        return jax.vmap(act, (0, 0, axes, 0, None))(policy_params, carry, time_step, keys, deterministic)

    return start_all, act_all


@struct.dataclass
class Mixture:
    """A mixed strategy over M policies."""

    members: PyTree  # policy parameters, leaves [M, ...]
    weights: Array  # f32 [M]; any positive scale; members of weight 0 are never drawn


def mix(policy: Policy) -> Policy:
    """A `Mixture` as a policy: a member is drawn at an episode's start, kept in the carry and played throughout."""
    start, act = policy

    def start_one(mixture: Mixture, key: Array) -> tuple[Array, PyTree]:
        key_draw, key_start = jax.random.split(key)
        member = draw_index(key_draw, mixture.weights)
        return member, start(take(mixture.members, member), key_start)

    def act_one(mixture: Mixture, carry: tuple, time_step: TimeStep, key: Array, deterministic: bool) -> tuple:
        member, memory = carry
        action, memory, extras = act(take(mixture.members, member), memory, time_step, key, deterministic)
        return action, (member, memory), extras

    return start_one, act_one


def systematic_draw(key: Array, weights: Array, num_draws: int) -> Array:
    """Systematic resampling: i32 [n] indices into `weights` f32 [M], each about n w_j / sum(w) times.

    One uniform number shifts n evenly spaced positions along the cumulated weights, so that index j comes
    floor or ceil of n w_j / sum(w) times, on average exactly that often; an index of weight 0 never comes.
    Consumes `key`. Source: Carpenter, Clifford, Fearnhead 1999.
    """
    # As in `draw_index`: a parallel sum need not be flat where 0 is added, nor may rounding reach its end.
    cumulative = jnp.where(weights > 0, jnp.cumsum(weights), 0.0)
    total = jnp.max(cumulative)
    positions = (jnp.arange(num_draws) + jax.random.uniform(key)) / num_draws * total
    positions = jnp.minimum(positions, jnp.nextafter(total, 0.0))
    return jnp.argmax(cumulative[None, :] > positions[:, None], axis=1).astype(jnp.int32)


def take(tree: PyTree, index: Any) -> PyTree:
    """`leaf[index]` of every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
