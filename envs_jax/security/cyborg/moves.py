"""One step of the game, without any random number: blue moves, then green, then red, each on what the other left.

All host-wise effects of a mover fall on one host, so a move reads one row of each table and writes it back.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.security.cyborg.bits import bit, has, keep, once, put, row, some
from envs_jax.security.cyborg.catalogue import (
    GUARDS,
    NUM_DECOYS,
    ON_LINUX,
    ON_WINDOWS,
    SSH_BIT,
    Profile,
    lowest,
    opened_ports,
)
from envs_jax.security.cyborg.network import DISCOVER, ESCALATE, EXPLOIT, IMPACT, SCAN, SLEEP, Network
from envs_jax.security.cyborg.rules import Rules
from envs_jax.security.cyborg.state import (
    FALSE,
    PRIVILEGED,
    REMOVABLE,
    STICKY,
    TRUE,
    UNKNOWN,
    Choices,
    State,
    set_sessions,
)

Array = jax.Array

# Blue's kinds of action: action = 2 + num_hosts * kind + host; 0 is Sleep and 1 is Monitor.
ANALYSE, REMOVE, FIRST_DECOY, RESTORE, PATCH, ISOLATE, UNISOLATE = 0, 1, 2, 2 + NUM_DECOYS, 11, 12, 13
NUM_KINDS, NUM_EXTENDED_KINDS = 11, 14
BRUTE_FORCE_EVENTS = 10


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


@struct.dataclass
class Traffic:
    """Network events that one mover caused on one host in a step."""

    host: Array  # i32 []
    count: Array  # i32 []; number of events
    ports: Array  # u32 []; modelled ports among them
    other_ports: Array  # i32 []; distinct other ports of the host among them
    callback: Array  # bool []; a reverse shell was seen (one more distinct port)


def apply_blue(state: State, action: Array, network: Network, rules: Rules) -> tuple[State, BlueMove]:
    """Plays blue's action, an i32 [] as laid out above."""
    num_hosts, words = network.num_hosts, network.num_words
    idle = action < 2
    host = jnp.where(idle, 0, (action - 2) % num_hosts)
    idle = idle | ~has(network.hosts, host)
    kind, host = once((jnp.where(idle, -1, (action - 2) // num_hosts), host))
    place = bit(host, words)
    here = Profile(row(network.profile, host))

    remove, restore = kind == REMOVE, kind == RESTORE
    is_decoy = (kind >= FIRST_DECOY) & (kind < RESTORE)
    decoy = jnp.clip(kind - FIRST_DECOY, 0, NUM_DECOYS - 1)
    decoys = row(state.decoys, host).astype(jnp.uint32)
    listening = here.listens | opened_ports(decoys, rules)
    system_fits = jnp.where(here.windows, row(ON_WINDOWS, decoy), row(ON_LINUX, decoy))
    decoy_placed = is_decoy & system_fits & (listening & row(GUARDS, decoy) == 0)
    new_decoy = jnp.where(decoy_placed, jnp.uint32(1), jnp.uint32(0)) << decoy.astype(jnp.uint32)

    patched = row(state.patched, host).astype(jnp.uint32)
    unpatched = here.vulnerable & ~patched
    patches = (kind == PATCH) & (unpatched != 0)
    new_patch = jnp.where(patches, lowest(unpatched), jnp.uint32(0))
    was_isolated = has(state.isolated, host)
    may_isolate = ~was_isolated & (rules.allow_isolate_foothold | (host != network.foothold))
    isolates, unisolates = (kind == ISOLATE) & may_isolate, (kind == UNISOLATE) & was_isolated

    old = row(state.sessions, host)
    zero = jnp.int16(0)
    new = jnp.stack(
        [
            jnp.where(remove | restore, zero, old[REMOVABLE]),
            jnp.where(restore, zero, old[STICKY]),
            jnp.where(restore, (host == network.foothold).astype(jnp.int16), old[PRIVILEGED]),
        ]
    )
    cleaned = restore
    if rules.fix_analyse_stale:
        cleaned = cleaned | (remove & (new == 0).all())

    found_file = (kind == ANALYSE) & has(state.malware, host)
    killed = remove & (old[REMOVABLE] > 0)
    fallible = is_decoy | (kind >= PATCH)
    worked = decoy_placed | patches | isolates | unisolates
    if rules.fix_remove_success:
        fallible, worked = fallible | remove, worked | killed
    success = jnp.where(action == 0, UNKNOWN, jnp.where(fallible & ~worked, FALSE, TRUE)).astype(jnp.int32)
    move = BlueMove(
        kind=kind,
        host=host,
        success=success,
        decoy_placed=decoy_placed,
        file_found=found_file,
        removed=(old[REMOVABLE] + old[STICKY] - new[REMOVABLE] - new[STICKY]).astype(jnp.int32),
        evicted=(old[PRIVILEGED] > 0) & (new[PRIVILEGED] == 0),
        futile=(is_decoy & ~decoy_placed) | ((kind == PATCH) & ~patches) | (remove & ~killed),
    )

    move, new, patches, isolates, unisolates = once((move, new, patches, isolates, unisolates))
    state = set_sessions(state, host, place, new)
    reverted = restore if rules.restore_unpatches else jnp.bool_(False)
    serves_jewel = restore & (host == network.jewel)
    memory, ports, patch_ready = state.memory, state.ports, state.patch_ready
    if rules.fix_stale_ports:
        ports = put(ports, jnp.where(restore, host, -1), jnp.uint8(0))
        memory = dataclasses.replace(memory, scanned=memory.scanned & ~keep(place, restore))
    if rules.patch_steps > 1:
        ready = jnp.where(restore, 0, state.step + rules.patch_steps - 1)
        patch_ready = put(patch_ready, jnp.where(patches | restore, host, -1), ready)
    state = dataclasses.replace(
        state,
        decoys=put(state.decoys, host, jnp.where(restore, jnp.uint32(0), decoys | new_decoy)),
        patched=put(state.patched, host, jnp.where(reverted, jnp.uint32(0), patched | new_patch)),
        patch_ready=patch_ready,
        ports=ports,
        memory=memory,
        malware=state.malware & ~keep(place, cleaned),
        isolated=(state.isolated & ~keep(place, restore | unisolates)) | keep(place, isolates),
        service_alive=state.service_alive | serves_jewel,
        service_active=state.service_active | serves_jewel,
        service_linked=state.service_linked if rules.fix_impact_relink else state.service_linked & ~serves_jewel,
    )
    return state, move


def listening_ports(state: State, host: Array, network: Network, rules: Rules) -> tuple[Array, Array, Profile, Array]:
    """(open modelled ports, ports opened by decoys, profile, whether services are down for a patch) of a host."""
    here = Profile(row(network.profile, host))
    opened = opened_ports(row(state.decoys, host).astype(jnp.uint32), rules)
    down = jnp.bool_(False)
    if rules.patch_steps > 1:
        down = state.step < row(state.patch_ready, host).astype(jnp.int32)
    return jnp.where(down, jnp.uint32(0), here.listens | opened), opened, here, down


def scan_traffic(state: State, host: Array, when: Array, network: Network, rules: Rules) -> Traffic:
    """The events of a port scan: one per listening socket, real and decoy."""
    ports, _, here, down = listening_ports(state, host, network, rules)
    when = when & ~down
    sockets = here.num_sockets + jax.lax.population_count(row(state.decoys, host)).astype(jnp.int32)
    return Traffic(
        host=host,
        count=jnp.where(when, sockets, 0),
        ports=jnp.where(when, ports, jnp.uint32(0)),
        other_ports=jnp.where(when, here.num_other_ports, 0),
        callback=jnp.bool_(False),
    )


def green_traffic(state: State, choices: Choices, network: Network, rules: Rules) -> Traffic:
    """The green agent's scan, its only effect."""
    host = jnp.maximum(choices.green_host, 0)
    return scan_traffic(state, host, (choices.green_scans > 0) & ~has(state.isolated, host), network, rules)


def apply_red(state: State, choices: Choices, network: Network, rules: Rules) -> tuple[State, Traffic, Array]:
    """Plays red's action.

    Returns:
        `(state, traffic, brute_force_failed)`.
    """
    words = network.num_words
    kind = choices.red_kind
    discover, scan, exploit = kind == DISCOVER, kind == SCAN, kind == EXPLOIT
    host = jnp.where(kind == IMPACT, network.jewel, jnp.maximum(choices.red_host, 0))
    place = bit(host, words)
    subnet = jnp.where(discover, choices.red_subnet, row(network.subnet, host).astype(jnp.int32))

    # Every action starts at the foothold; a host cut off neither reaches nor is reached.
    cut_off = has(state.isolated, network.foothold)
    host_cut_off = cut_off | has(state.isolated, host)
    host, subnet = once((host, subnet))
    place = bit(host, words)
    route = once(some(row(network.gateways, subnet) & state.held & ~state.isolated))
    discovered = discover & route & ~cut_off
    reached = route & ~host_cut_off

    ports, opened, here, down = listening_ports(state, host, network, rules)
    ports, opened, reached = once((ports, opened, reached))
    scanned = scan & reached
    scan_events = scan_traffic(state, host, scanned, network, rules)

    # The socket that the exploit meets: a real service before a decoy; port 22 answers whoever tries passwords.
    tried = exploit & reached & ~down & (choices.exploit >= 0)
    attack = jnp.where(tried, jnp.uint32(1), jnp.uint32(0)) << jnp.maximum(choices.exploit, 0).astype(jnp.uint32)
    patched = row(state.patched, host).astype(jnp.uint32)
    immune = attack & here.vulnerable & patched != 0
    taken = attack & here.vulnerable & ~patched != 0
    by_ssh = attack & SSH_BIT != 0
    brute_force = by_ssh & (attack & ports != 0) & ~immune
    trapped = ~by_ssh & (attack & ~here.vulnerable & opened != 0)
    detected = choices.detected > 0
    shell_seen = taken & ~by_ssh & detected
    became_privileged = taken & (attack & here.privileged != 0)
    killable = jnp.bool_(rules.fix_ssh_remove) & by_ssh | shell_seen

    attack, immune, taken, by_ssh, brute_force, trapped, shell_seen = once(
        (attack, immune, taken, by_ssh, brute_force, trapped, shell_seen)
    )
    old = row(state.sessions, host)
    escalated = (kind == ESCALATE) & (old != 0).any() & ~host_cut_off
    picked = escalated & (old[PRIVILEGED] == 0)
    picked_removable = choices.pick_removable > 0
    as_user = taken & ~became_privileged
    change = jnp.stack(
        [
            (as_user & killable).astype(jnp.int16) - (picked & picked_removable).astype(jnp.int16),
            (as_user & ~killable).astype(jnp.int16) - (picked & ~picked_removable).astype(jnp.int16),
            (became_privileged | picked).astype(jnp.int16),
        ]
    )
    impacted = (kind == IMPACT) & (old != 0).any() & state.service_known & ~host_cut_off

    change, escalated, picked, impacted, discovered = once((change, escalated, picked, impacted, discovered))
    learnt = keep(place, escalated)
    links = row(network.links, host).astype(jnp.int32)
    for index in range(links.shape[0]):
        learnt = learnt | bit(jnp.maximum(links[index], 0), words, escalated & (links[index] >= 0))
    learnt = learnt | keep(row(network.members, subnet) & ~state.isolated, discovered)
    new_subnet = jnp.where(discovered | escalated, jnp.uint32(1), jnp.uint32(0)) << subnet.astype(jnp.uint32)
    worked = discovered | taken | escalated | impacted | (scanned if rules.fix_empty_scan else scan)
    success = jnp.where(kind == SLEEP, UNKNOWN, jnp.where(worked, TRUE, FALSE))

    state = set_sessions(state, host, place, old + change)
    state = dataclasses.replace(
        state,
        ports=put(state.ports, jnp.where(scanned, host, -1), ports),
        malware=state.malware | keep(place, (taken & ~by_ssh) | picked),
        known_ip=state.known_ip | learnt,
        known_host=state.known_host | keep(place, taken),
        known_subnet=state.known_subnet | new_subnet,
        service_known=state.service_known | (escalated & (host == network.jewel)),
        service_alive=state.service_alive & ~(impacted & state.service_active & state.service_linked),
        service_active=state.service_active & ~impacted,
        success=success.astype(jnp.int8),
        nonempty=~(scan & ~reached),
    )
    one = jnp.int32(1)
    exploit_events = jnp.where(
        brute_force,
        BRUTE_FORCE_EVENTS + taken.astype(jnp.int32),
        jnp.where(taken, one + shell_seen.astype(jnp.int32), jnp.where(trapped, 2, immune.astype(jnp.int32))),
    )
    traffic = dataclasses.replace(
        scan_events,
        count=scan_events.count + exploit_events,
        ports=scan_events.ports | jnp.where(exploit_events > 0, attack, jnp.uint32(0)),
        callback=shell_seen,
    )
    return state, once(traffic), brute_force & ~taken
