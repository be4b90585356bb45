"""Blue's reward and its parts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_jax.core import EnvParams
from envs_jax.registry import nearest
from envs_jax.security.cyborg.bits import once, row
from envs_jax.security.cyborg.blue import PATCH, RESTORE, BlueMove
from envs_jax.security.cyborg.network import Network
from envs_jax.security.cyborg.records import Setup
from envs_jax.security.cyborg.rules import Rules
from envs_jax.security.cyborg.state import State

Array = jax.Array

REWARDS = ("base", "shaped", "potential")
_TENTHS = (np.arange(10) / 10).astype(np.float32)


@struct.dataclass
class CyborgParams(EnvParams):
    """Numbers of a game. Costs are in tenths of a reward point, so that rewards are exact."""

    network: Network
    max_steps: Array  # i32 []; an episode is cut after so many steps, or earlier by the environment's own limit
    service_cost: Array  # i32 []; per step while the jewel's service is down
    restore_cost: Array  # i32 []
    patch_cost: Array  # i32 []
    removal_bonus: Array  # f32 []; shaped reward, per user-level session ended
    eviction_bonus: Array  # f32 []; shaped reward, per privileged hold ended
    futility_cost: Array  # f32 []; shaped reward, per action without effect
    exposure_cost: Array  # f32 []; potential, while red has the jewel's ports on record
    discount: Array  # f32 []; of the potential
    red_weights: Array  # f32 [M]; how often each of the environment's red agents is drawn


@struct.dataclass
class RewardParts:
    """The base reward and its summands, f32 []; none is positive."""

    base: Array
    confidentiality: Array  # privileged hosts
    availability: Array  # service down
    action: Array  # Restore and Patch
    isolation: Array  # isolated hosts


def points(tenths: Array) -> Array:
    """f32: a number of tenths (i32, not negative), rounded once.

    Dividing by ten would not do: the compiler turns that into a multiplication, which is off by one bit at 0.9.
    """
    return (tenths // 10).astype(jnp.float32) + row(_TENTHS, tenths % 10)


def host_sum(planes: Array, hosts: Array) -> Array:
    """i32 []: the sum of a value over a set of hosts u32 `[W]`; the value is given by its bits, u32 `[V, W]`."""
    ones = jax.lax.population_count(planes & hosts[None, :]).astype(jnp.int32)
    weights = jnp.asarray([[1 << place] for place in range(planes.shape[0])], jnp.int32)
    return once(jnp.sum(ones * weights, dtype=jnp.int32))


def reward_parts(state: State, blue: BlueMove, params: CyborgParams, rules: Rules) -> RewardParts:
    """The base reward of the step that led to `state`, in parts."""
    network = params.network
    lost = host_sum(network.confidentiality, state.held if rules.fix_user_reward else state.rooted)
    down = jnp.where(state.service_alive, 0, params.service_cost)
    restore = jnp.where(blue.kind == RESTORE, params.restore_cost, 0)
    patch = jnp.where(blue.kind == PATCH, params.patch_cost, 0)
    isolation = host_sum(network.isolation_cost, state.isolated) if rules.extension else jnp.int32(0)
    parts = [lost, down, restore + patch, isolation]
    return RewardParts(-points(sum(parts)), *(-points(part) for part in parts))  # type: ignore[arg-type]


def potential(state: State, params: CyborgParams) -> Array:
    """f32 []: minus the value of hosts with any session, minus a charge while the jewel is known to red."""
    network = params.network
    value = points(host_sum(network.confidentiality, state.held))
    exposed = Setup(row(state.setup, network.jewel)).ports != 0
    return -value - jnp.where(exposed, params.exposure_cost, 0.0)


def learning_reward(mode: str, base: Array, before: State, after: State, blue: BlueMove, params: CyborgParams) -> Array:
    """f32 []: the reward that blue learns from. `base` and `potential` have the same optimal policies."""
    if mode == "shaped":
        return (
            base
            + params.removal_bonus * blue.removed.astype(jnp.float32)
            + params.eviction_bonus * blue.evicted.astype(jnp.float32)
            - params.futility_cost * blue.futile.astype(jnp.float32)
        )
    if mode == "potential":
        return base + params.discount * potential(after, params) - potential(before, params)
    return base


def check_reward(mode: str) -> str:
    if mode not in REWARDS:
        raise ValueError(f"unknown reward {mode!r}{nearest(mode, REWARDS)} Allowed: {', '.join(REWARDS)}")
    return mode
