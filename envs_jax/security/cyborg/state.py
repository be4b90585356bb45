"""The state of one game, red's memory, and the chance outcomes of one step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.security.cyborg.bits import bit, keep, put
from envs_jax.security.cyborg.network import Network
from envs_jax.security.cyborg.records import ONE_PRIVILEGED, Sessions

Array = jax.Array

FALSE, TRUE, UNKNOWN = range(3)  # what an action reports


@struct.dataclass
class RedMemory:
    """What the scripted red agents remember, beside what red knows of the network."""

    pointer: Array  # i16 []; B_line: place in its script
    history: Array  # u32 [WP]; B_line: pointers already executed
    entry: Array  # i16 []; B_line: the user host it drew, -1 before
    scanned_subnets: Array  # u32 []; Meander, bit per subnet
    scanned: Array  # u32 [W]; Meander
    exploited: Array  # u32 [W]; Meander
    escalated: Array  # u32 [W]; Meander
    mapped: Array  # u32 [W]; Meander
    last_host: Array  # i16 []; Meander: target of an Escalate or Impact just tried, -1 for none
    last_exploit: Array  # i16 []; Meander: target of an exploit just tried, -1 for none


@struct.dataclass
class State:
    """One game. N hosts, W words of a host set (see `bits`). About 210 bytes for 13 hosts."""

    sessions: Array  # u32 [N]; red's sessions, see `records.Sessions`
    setup: Array  # u32 [N]; red's record of ports, decoys and patches, see `records.Setup`
    held: Array  # u32 [W]; hosts with any session
    rooted: Array  # u32 [W]; hosts with a privileged session
    patch_ready: Array  # i16 [N]; first step after a patch under way; [0] unless patches take time
    malware: Array  # u32 [W]
    isolated: Array  # u32 [W]
    active: Array  # u32 [W]; blue saw activity in the last step ...
    alarmed: Array  # u32 [W]; ... and it was an exploit
    belief_low: Array  # u32 [W]; blue's belief 0 no, 1 unknown, 2 user, 3 privileged, as two bits
    belief_high: Array  # u32 [W]
    scan_seen: Array  # u32 [W]; hosts that ever showed a scan
    scan_latest: Array  # i16 []; the last of them, -1 for none
    last_activity: Array  # i16 [N]; step of the last activity, -1 for none; [0] unless the observation needs it
    known_ip: Array  # u32 [W]; red's knowledge
    known_host: Array  # u32 [W]
    known_subnet: Array  # u32 []; bit per subnet
    service_known: Array  # bool []; red knows the jewel's service
    service_alive: Array  # bool []
    service_active: Array  # bool []
    service_linked: Array  # bool []
    success: Array  # i8 []; what red's last action reported: FALSE, TRUE, UNKNOWN
    nonempty: Array  # bool []; whether it returned anything
    memory: RedMemory
    red_agent: Array  # i8 []; index into the environment's red agents
    step: Array  # i32 []


@struct.dataclass
class Choices:
    """Everything random or chosen in one step after blue's move, all i32 []. Without these a step needs no key."""

    green_scans: Array  # 0 or 1
    green_host: Array
    red_kind: Array  # index into `network.RED_KINDS`
    red_host: Array  # -1 where there is none
    red_subnet: Array  # -1 unless DiscoverRemoteSystems
    exploit: Array  # index into `catalogue.EXPLOITS`, -1 for none
    detected: Array  # 1 if blue saw the reverse shell open
    pick_removable: Array  # 1 if Escalate picked a removable session


def initial_state(
    network: Network, red_agent: Array, *, timed_patches: bool = False, track_activity: bool = False
) -> State:
    """The start of an episode: red holds its foothold and knows nothing else."""
    num_hosts, words = network.num_hosts, network.num_words
    foothold = bit(network.foothold, words)
    nothing = jnp.zeros(words, jnp.uint32)
    at_foothold = jnp.arange(num_hosts, dtype=jnp.int32) == network.foothold
    memory = RedMemory(
        pointer=jnp.int16(0),
        history=jnp.zeros(-(-network.script.shape[0] // 32), jnp.uint32),
        entry=jnp.int16(-1),
        scanned_subnets=jnp.uint32(0),
        scanned=nothing,
        exploited=nothing,
        escalated=nothing,
        mapped=nothing,
        last_host=jnp.int16(-1),
        last_exploit=jnp.int16(-1),
    )
    return State(
        sessions=jnp.where(at_foothold, jnp.uint32(ONE_PRIVILEGED), jnp.uint32(0)),
        setup=jnp.zeros(num_hosts, jnp.uint32),
        held=foothold,
        rooted=foothold,
        patch_ready=jnp.zeros(num_hosts if timed_patches else 0, jnp.int16),
        malware=nothing,
        isolated=nothing,
        active=nothing,
        alarmed=nothing,
        belief_low=nothing,
        belief_high=nothing,
        scan_seen=nothing,
        scan_latest=jnp.int16(-1),
        last_activity=jnp.full(num_hosts if track_activity else 0, -1, jnp.int16),
        known_ip=foothold,
        known_host=foothold,
        known_subnet=jnp.uint32(1),
        service_known=jnp.bool_(False),
        service_alive=jnp.bool_(True),
        service_active=jnp.bool_(True),
        service_linked=jnp.bool_(True),
        success=jnp.int8(UNKNOWN),
        nonempty=jnp.bool_(True),
        memory=memory,
        red_agent=jnp.asarray(red_agent, jnp.int8),
        step=jnp.int32(0),
    )


def set_sessions(state: State, host: Array, place: Array, sessions: Sessions) -> State:
    """Writes one host's sessions and keeps the two sets that summarise them; `place` is `bit(host)`."""
    return dataclasses.replace(
        state,
        sessions=put(state.sessions, host, sessions.word),
        held=(state.held & ~place) | keep(place, sessions.any),
        rooted=(state.rooted & ~place) | keep(place, sessions.privileged),
    )
