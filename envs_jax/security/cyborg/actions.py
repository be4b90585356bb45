"""Blue's action spaces: the 145 actions of the challenge, the extended ones, reduced and factorised sets, and masks.

Every set is translated into the one layout that the game plays: 0 Sleep, 1 Monitor, `2 + N * kind + host`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.registry import nearest
from envs_jax.security.cyborg.bits import once, row, unpack
from envs_jax.security.cyborg.blue import (
    ANALYSE,
    FIRST_DECOY,
    ISOLATE,
    NUM_EXTENDED_KINDS,
    NUM_KINDS,
    PATCH,
    REMOVE,
    RESTORE,
    UNISOLATE,
)
from envs_jax.security.cyborg.catalogue import DECOYS, NUM_DECOYS, PORTS, Profile, opened_ports, placeable_decoys
from envs_jax.security.cyborg.network import Network
from envs_jax.security.cyborg.observations import free_decoys
from envs_jax.security.cyborg.records import Setup
from envs_jax.security.cyborg.rules import Rules
from envs_jax.security.cyborg.state import State
from envs_jax.spaces import Discrete, MultiDiscrete

Array = jax.Array

KINDS = ("Analyse", "Remove", *(f"Decoy{decoy.name}" for decoy in DECOYS), "Restore", "Patch", "Isolate", "Unisolate")
ACTION_SETS = ("full", "merged", "winner", "factorised")

# The decoy that a merged decoy action places: the first that fits, in the order of the exploits they catch.
GREEDY_DECOYS = tuple(sorted(range(NUM_DECOYS), key=lambda index: PORTS.index(DECOYS[index].opens)))

_MERGED = -1  # kind of a merged decoy action
_CORE_HOSTS, _USERS = (1, 2, 3, 7), (9, 10, 11, 12)
_WINNER = (
    [(RESTORE, host) for host in _CORE_HOSTS]
    + [(ANALYSE, host) for host in _CORE_HOSTS]
    + [(REMOVE, host) for host in _CORE_HOSTS]
    + [(ANALYSE, host) for host in _USERS]
    + [(RESTORE, host) for host in _USERS]
    + [(RESTORE, 0), (ANALYSE, 0), (REMOVE, 0)]
    + [(REMOVE, host) for host in _USERS]
    + [(_MERGED, host) for host in (1, 2, 3, *_USERS, 0, 7)]
)


def describe(action: int, num_hosts: int = 13, hosts: tuple[str, ...] | None = None) -> str:
    """The name of an action of the full set, such as `"Restore Op_Server0"`."""
    if action < 2:
        return ("Sleep", "Monitor")[action]
    kind, host = divmod(action - 2, num_hosts)
    return f"{KINDS[kind]} {hosts[host] if hosts else host}"


def full_mask(state: State, network: Network, rules: Rules, all_legal: bool = False) -> Array:
    """bool `[2 + N K]`: actions of the full set that may change something.

    The original accepts every action; masked are those that blue can know to fail: a decoy that does not fit, a patch
    with nothing left, Isolate or Unisolate where it is so already, and padding. With `all_legal`, padding alone.
    """
    num_hosts = network.num_hosts
    num_kinds = NUM_EXTENDED_KINDS if rules.extension else NUM_KINDS
    exists = unpack(network.hosts, num_hosts)
    # Per host a word with one bit per kind of action.
    if all_legal:
        legal = jnp.full(num_hosts, (1 << num_kinds) - 1, jnp.uint32)
    else:
        always = 1 << ANALYSE | 1 << REMOVE | 1 << RESTORE
        legal = free_decoys(state, network, rules) << FIRST_DECOY | jnp.uint32(always)
        if rules.extension:
            unpatched = Profile(network.profile).vulnerable & ~Setup(state.setup).patched != 0
            isolated = unpack(state.isolated, num_hosts)
            fixed = jnp.arange(num_hosts, dtype=jnp.int32) == network.foothold
            open_ = ~isolated & (rules.allow_isolate_foothold | ~fixed)
            for kind, flag in ((PATCH, unpatched), (ISOLATE, open_), (UNISOLATE, isolated)):
                legal = legal | flag.astype(jnp.uint32) << kind
    legal = once(jnp.where(exists, legal, jnp.uint32(0)))
    by_kind = [(legal >> kind) & 1 == 1 for kind in range(num_kinds)]
    return jnp.concatenate([jnp.ones(2, bool), *by_kind])


@dataclasses.dataclass(frozen=True, eq=False)
class ActionSet:
    """One way to name blue's actions. `translate` maps an action to the full layout, `mask` says which are legal."""

    space: Discrete | MultiDiscrete
    translate: Callable[[State, Array, Network, Rules], Array]
    mask: Callable[[State, Network, Rules], Array]


def make_action_set(name: str, num_hosts: int, extension: bool, all_legal: bool = False) -> ActionSet:
    """An action set by name.

    `full`: 2 + 11 N actions, 145 for 13 hosts (2 + 14 N with the extension). `merged`: Sleep, then Analyse, one decoy,
    Remove, Restore per host (53; MiniCAGE's set). `winner`: the 36 actions of the challenge's winning entry.
    `factorised`: a kind and a host, without Sleep.

    Raises:
        ValueError: the name is unknown, or the set does not exist for this network.
    """
    num_kinds = NUM_EXTENDED_KINDS if extension else NUM_KINDS

    def mask(state: State, network: Network, rules: Rules) -> Array:
        return full_mask(state, network, rules, all_legal)

    if name == "full":
        space = Discrete(2 + num_hosts * num_kinds)
        return ActionSet(space, lambda state, action, network, rules: action, mask)
    if name == "factorised":
        return ActionSet(
            MultiDiscrete((num_kinds, num_hosts)), _from_pair, lambda *args: _pair_mask(mask(*args), num_hosts)
        )
    if name == "merged":
        kinds = [ANALYSE, _MERGED, REMOVE, RESTORE] + list(range(PATCH, num_kinds))
        pairs = [(kind, host) for kind in kinds for host in range(num_hosts)]
        return _listed(pairs, num_hosts, mask, sleep=True)
    if name == "winner":
        if num_hosts != 13:
            raise ValueError(f"action set 'winner' is defined for the 13 hosts of CAGE 2, this network has {num_hosts}")
        pairs = _WINNER + [(kind, host) for kind in range(PATCH, num_kinds) for host in range(13)]
        return _listed(pairs, num_hosts, mask, sleep=False)
    raise ValueError(f"unknown action set {name!r}{nearest(name, ACTION_SETS)} Allowed: {', '.join(ACTION_SETS)}")


def _from_pair(state: State, action: Array, network: Network, rules: Rules) -> Array:
    del state, rules
    return 2 + network.num_hosts * action[0] + action[1]


def _pair_mask(mask: Array, num_hosts: int) -> Array:
    table = mask[2:].reshape(-1, num_hosts)
    return jnp.concatenate([table.any(axis=1), table.any(axis=0)])


def _listed(pairs: list[tuple[int, int]], num_hosts: int, mask: Callable, sleep: bool) -> ActionSet:
    """A set given by its (kind, host) pairs, after Sleep where wanted."""
    kinds, hosts = (np.array(column, np.int32) for column in zip(*pairs))

    def translate(state: State, action: Array, network: Network, rules: Rules) -> Array:
        place = jnp.maximum(action - sleep, 0)
        kind, host = row(kinds, place), row(hosts, place)
        decoy = greedy_decoy(state, host, network, rules)
        idle = ((kind == _MERGED) & (decoy < 0)) | (action < sleep)
        kind = jnp.where(kind == _MERGED, FIRST_DECOY + decoy, kind)
        return jnp.where(idle, 0, 2 + num_hosts * kind + host)

    def listed_mask(state: State, network: Network, rules: Rules) -> Array:
        full = mask(state, network, rules)
        table = full[2:].reshape(-1, num_hosts)
        decoys = table[FIRST_DECOY : FIRST_DECOY + NUM_DECOYS].any(axis=0)
        legal = jnp.where(kinds == _MERGED, decoys[hosts], table[np.maximum(kinds, 0), hosts])
        return jnp.concatenate([jnp.ones(1, bool), legal]) if sleep else legal

    return ActionSet(Discrete(len(pairs) + sleep), translate, listed_mask)


def greedy_decoy(state: State, host: Array, network: Network, rules: Rules) -> Array:
    """i32 []: the decoy that a merged decoy action places on a host, -1 where none fits."""
    profile = Profile(row(network.profile, host))
    listening = profile.listens | opened_ports(Setup(row(state.setup, host)).decoys, rules)
    fits = placeable_decoys(listening, profile.windows)
    chosen = jnp.int32(-1)
    for index in reversed(GREEDY_DECOYS):
        chosen = jnp.where(fits & (1 << index) != 0, index, chosen)
    return chosen
