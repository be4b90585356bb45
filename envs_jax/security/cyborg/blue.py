"""Blue's move, the first third of a step. All of it falls on one host."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.security.cyborg.bits import bit, has, keep, once, put, row
from envs_jax.security.cyborg.catalogue import NUM_DECOYS, Profile, lowest, opened_ports, placeable_decoys
from envs_jax.security.cyborg.network import Network
from envs_jax.security.cyborg.records import ALL_REMOVABLE, ONE_PRIVILEGED, REMOVABLE, STICKY, Sessions, Setup
from envs_jax.security.cyborg.rules import Rules
from envs_jax.security.cyborg.state import FALSE, TRUE, UNKNOWN, State, set_sessions

Array = jax.Array

# Kinds of action: action = 2 + num_hosts * kind + host; 0 is Sleep and 1 is Monitor.
ANALYSE, REMOVE, FIRST_DECOY, RESTORE, PATCH, ISOLATE, UNISOLATE = 0, 1, 2, 2 + NUM_DECOYS, 11, 12, 13
NUM_KINDS, NUM_EXTENDED_KINDS = 11, 14


@struct.dataclass
class BlueMove:
    """What blue did in a step, and what it got."""

    kind: Array  # i32 []; -1 for Sleep and Monitor
    host: Array  # i32 []; 0 where there is none
    success: Array  # i32 []; FALSE, TRUE, UNKNOWN
    decoy_placed: Array  # bool []
    file_found: Array  # bool []; Analyse saw a malware file
    removed: Array  # i32 []; red user-level sessions ended
    evicted: Array  # bool []; a privileged hold ended
    futile: Array  # bool []; an action that changed nothing: decoy or patch refused, Remove of nothing


def apply_blue(state: State, action: Array, network: Network, rules: Rules) -> tuple[State, BlueMove]:
    """Plays blue's action, an i32 [] as laid out above."""
    num_hosts = network.num_hosts
    idle = action < 2
    target = jnp.where(idle, 0, action - 2)
    host = target % num_hosts
    kind = jnp.where(idle | ~has(network.hosts, host), -1, target // num_hosts)
    kind, host = once((kind, host))
    profile = Profile(row(network.profile, host))
    setup = Setup(row(state.setup, host))
    sessions = Sessions(row(state.sessions, host))

    remove, restore = kind == REMOVE, kind == RESTORE
    is_decoy = (kind >= FIRST_DECOY) & (kind < RESTORE)
    decoy = jnp.clip(kind - FIRST_DECOY, 0, NUM_DECOYS - 1).astype(jnp.uint32)
    listening = profile.listens | opened_ports(setup.decoys, rules)
    placeable = (placeable_decoys(listening, profile.windows) >> decoy) & 1
    new_decoy = once(jnp.where(is_decoy, placeable, jnp.uint32(0)) << decoy)
    decoy_placed = new_decoy != 0

    patches = isolates = unisolates = jnp.bool_(False)
    new_patch = jnp.uint32(0)
    if rules.extension:
        new_patch = jnp.where(kind == PATCH, lowest(profile.vulnerable & ~setup.patched), jnp.uint32(0))
        patches = new_patch != 0
        was_isolated = has(state.isolated, host)
        may_isolate = ~was_isolated & (rules.allow_isolate_foothold | (host != network.foothold))
        isolates, unisolates = (kind == ISOLATE) & may_isolate, (kind == UNISOLATE) & was_isolated

    permanent = jnp.where(host == network.foothold, jnp.uint32(ONE_PRIVILEGED), jnp.uint32(0))
    left = jnp.where(remove, sessions.word & ~jnp.uint32(ALL_REMOVABLE), sessions.word)
    left = Sessions(jnp.where(restore, permanent, left))
    reset = setup.restored(keep_ports=not rules.fix_stale_ports, keep_patches=not rules.restore_unpatches)
    new_setup = jnp.where(restore, reset, setup.with_more(new_decoy, new_patch))

    killed = remove & sessions.killable
    fallible = is_decoy | (kind >= PATCH)
    worked = decoy_placed | patches | isolates | unisolates
    if rules.fix_remove_success:
        fallible, worked = fallible | remove, worked | killed
    removed = [sessions.count(sort) - left.count(sort) for sort in (REMOVABLE, STICKY)]
    move = BlueMove(
        kind=kind,
        host=host,
        success=jnp.where(action == 0, UNKNOWN, jnp.where(fallible & ~worked, FALSE, TRUE)).astype(jnp.int32),
        decoy_placed=decoy_placed,
        file_found=(kind == ANALYSE) & has(state.malware, host),
        removed=removed[0] + removed[1],
        evicted=sessions.privileged & ~left.privileged,
        futile=(is_decoy & ~decoy_placed) | ((kind == PATCH) & ~patches) | (remove & ~killed),
    )

    place = bit(host, network.num_words)
    cleaned = restore | (remove & ~left.any) if rules.fix_analyse_stale else restore
    serves_jewel = restore & (host == network.jewel)
    memory, patch_ready = state.memory, state.patch_ready
    if rules.fix_stale_ports:
        memory = dataclasses.replace(memory, scanned=memory.scanned & ~keep(place, restore))
    if rules.patch_steps > 1:
        ready = jnp.where(restore, 0, state.step + rules.patch_steps - 1)
        patch_ready = put(patch_ready, jnp.where(patches | restore, host, -1), ready)
    isolated = (state.isolated & ~keep(place, restore | unisolates)) | keep(place, isolates)
    state = dataclasses.replace(
        set_sessions(state, host, place, left),
        setup=put(state.setup, host, new_setup),
        patch_ready=patch_ready,
        memory=memory,
        malware=state.malware & ~keep(place, cleaned),
        isolated=isolated if rules.extension else state.isolated,
        service_alive=state.service_alive | serves_jewel,
        service_active=state.service_active | serves_jewel,
        service_linked=state.service_linked if rules.fix_impact_relink else state.service_linked & ~serves_jewel,
    )
    return state, move
