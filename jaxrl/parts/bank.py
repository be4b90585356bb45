"""A bank of policies of two sorts as data: heuristics, which an environment gives, and trained networks.

Both sorts are computed and one is selected, which is what `vmap` would make of a choice anyway; heuristics are a few
integer operations. So members can be stacked, drawn from and batched whatever they are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.core import Array, PyTree, TimeStep
from jaxrl.parts.roles import Policy


@struct.dataclass
class Member:
    """One policy, or a stack of them; the half that does not count holds anything finite."""

    learned: Array  # bool []; plays `network`, else `heuristic`
    heuristic: PyTree  # policy parameters of the environment's heuristics
    network: PyTree  # policy parameters of the oracle


def choose_member(heuristic: Policy, network: Policy) -> Policy:
    """`Member` as a policy."""

    def start(member: Member, key: Array) -> tuple[PyTree, PyTree]:
        # One key for both: only one of them plays.
        return heuristic[0](member.heuristic, key), network[0](member.network, key)

    def act(member: Member, carry: tuple, time_step: TimeStep, key: Array, deterministic: bool) -> tuple:
        chosen, heuristic_carry, _ = heuristic[1](member.heuristic, carry[0], time_step, key, deterministic)
        learned, network_carry, _ = network[1](member.network, carry[1], time_step, key, deterministic)
        return jnp.where(member.learned, learned, chosen), (heuristic_carry, network_carry), {}

    return start, act


def append(bank: PyTree, slot: Array, members: PyTree) -> PyTree:
    """`bank` `[A, M, ...]` with `members` `[A, ...]` in `slot` i32 [] of every role."""
    return jax.tree.map(lambda leaf, new: leaf.at[:, slot].set(new), bank, members)


def flip_roles(tree: PyTree) -> PyTree:
    """Leaves `[2, ...]` with the two roles exchanged: whom each role meets."""
    return jax.tree.map(lambda leaf: leaf[::-1], tree)
