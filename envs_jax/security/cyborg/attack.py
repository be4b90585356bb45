"""What follows blue's move in a step: green's scan and red's action, and the network events they cause."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.security.cyborg.bits import bit, has, keep, once, put, row, some
from envs_jax.security.cyborg.catalogue import SSH_BIT, Profile, opened_ports
from envs_jax.security.cyborg.network import DISCOVER, ESCALATE, EXPLOIT, IMPACT, SCAN, SLEEP, Network
from envs_jax.security.cyborg.records import ONE_PRIVILEGED, PRIVILEGED, REMOVABLE, STICKY, Sessions, Setup
from envs_jax.security.cyborg.rules import Rules
from envs_jax.security.cyborg.state import FALSE, TRUE, UNKNOWN, Choices, State, set_sessions

Array = jax.Array

BRUTE_FORCE_EVENTS = 10  # password attempts, all on one port


@struct.dataclass
class Traffic:
    """Network events that one mover caused on one host in a step."""

    host: Array  # i32 []
    count: Array  # i32 []; number of events
    ports: Array  # u32 []; modelled ports among them
    other_ports: Array  # i32 []; distinct other ports of the host among them
    callback: Array  # bool []; a reverse shell was seen (one more distinct port)


@dataclasses.dataclass(frozen=True)
class Target:
    """A host as a scan or an exploit finds it."""

    profile: Profile
    setup: Setup
    opened: Array  # u32 []; ports that decoys hold open
    listening: Array  # u32 []; all open modelled ports
    down: Array  # bool []; services are down while a patch is under way

    def scanned(self, host: Array, when: Array) -> Traffic:
        """The events of a port scan: one per listening socket, real and decoy."""
        when = when & ~self.down
        sockets = self.profile.num_sockets + jax.lax.population_count(self.setup.decoys).astype(jnp.int32)
        return Traffic(
            host=host,
            count=jnp.where(when, sockets, 0),
            ports=jnp.where(when, self.listening, jnp.uint32(0)),
            other_ports=jnp.where(when, self.profile.num_other_ports, 0),
            callback=jnp.bool_(False),
        )


def look_at(state: State, host: Array, network: Network, rules: Rules) -> Target:
    profile, setup = Profile(row(network.profile, host)), Setup(row(state.setup, host))
    opened = once(opened_ports(setup.decoys, rules))
    listening, down = profile.listens | opened, jnp.bool_(False)
    if rules.patch_steps > 1:
        down = state.step < row(state.patch_ready, host).astype(jnp.int32)
        listening = jnp.where(down, jnp.uint32(0), listening)
    return Target(profile, setup, opened, listening, down)


def green_traffic(state: State, choices: Choices, network: Network, rules: Rules) -> Traffic:
    """The green agent's scan, its only effect."""
    host = jnp.maximum(choices.green_host, 0)
    scans = (choices.green_scans > 0) & ~has(state.isolated, host)
    return once(look_at(state, host, network, rules).scanned(host, scans))


def apply_red(state: State, choices: Choices, network: Network, rules: Rules) -> tuple[State, Traffic, Array]:
    """Plays red's action.

    Returns:
        `(state, traffic, fooled)`; fooled, bool []: a brute force failed.
    """
    kind, words = choices.red_kind, network.num_words
    discover, scan = kind == DISCOVER, kind == SCAN
    host = once(jnp.where(kind == IMPACT, network.jewel, jnp.maximum(choices.red_host, 0)))
    subnet = jnp.where(discover, choices.red_subnet, row(network.subnet, host).astype(jnp.int32))

    # Every action starts at the foothold; a host that is cut off neither reaches nor is reached.
    cut_off = has(state.isolated, network.foothold)
    host_cut_off = cut_off | has(state.isolated, host)
    open_sessions = state.held & ~state.isolated
    route = once(some(row(network.gateways, subnet) & open_sessions) & ~cut_off)
    discovered, reached = discover & route, route & ~host_cut_off
    target = look_at(state, host, network, rules)
    scanned = scan & reached

    tried = (kind == EXPLOIT) & reached & ~target.down & (choices.exploit >= 0)
    attack = jnp.where(tried, jnp.uint32(1), jnp.uint32(0)) << jnp.maximum(choices.exploit, 0).astype(jnp.uint32)
    attack = once(attack)
    taken, immune, trapped, brute_force = _meet(attack, target, rules)
    taken = once(taken)
    by_ssh = attack & SSH_BIT != 0
    shell_seen = taken & ~by_ssh & (choices.detected > 0)

    sessions = Sessions(row(state.sessions, host))
    works_there = sessions.any & ~host_cut_off
    escalated = (kind == ESCALATE) & works_there
    picked = escalated & ~sessions.privileged
    impacted = (kind == IMPACT) & works_there & state.service_known
    killable = shell_seen | by_ssh if rules.fix_ssh_remove else shell_seen
    sort = jnp.where(killable, jnp.uint32(REMOVABLE), jnp.uint32(STICKY))
    sort = jnp.where(attack & target.profile.privileged != 0, jnp.uint32(PRIVILEGED), sort)
    source = jnp.where(choices.pick_removable > 0, jnp.uint32(REMOVABLE), jnp.uint32(STICKY))
    promoted = sessions.word + jnp.uint32(ONE_PRIVILEGED) - (jnp.uint32(1) << source)
    after = jnp.where(taken, sessions.added(sort), jnp.where(picked, promoted, sessions.word))

    escalated, discovered, picked = once((escalated, discovered, picked))
    place = bit(host, words)
    learnt = keep(place, escalated) | keep(row(network.members, subnet) & ~state.isolated, discovered)
    links = row(network.links, host).astype(jnp.int32)
    for index in range(links.shape[0]):
        learnt = learnt | bit(jnp.maximum(links[index], 0), words, escalated & (links[index] >= 0))
    new_subnet = jnp.where(discovered | escalated, jnp.uint32(1), jnp.uint32(0)) << subnet.astype(jnp.uint32)
    worked = discovered | taken | escalated | impacted | (scanned if rules.fix_empty_scan else scan)
    success = jnp.where(kind == SLEEP, UNKNOWN, jnp.where(worked, TRUE, FALSE))
    state = dataclasses.replace(
        set_sessions(state, host, place, Sessions(once(after))),
        setup=put(state.setup, jnp.where(scanned, host, -1), target.setup.with_ports(target.listening)),
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

    # A reverse shell that is seen adds its callback; password attempts come in tens; a decoy answers twice.
    exploit_events = jnp.where(trapped, 2, (taken | immune).astype(jnp.int32) + shell_seen.astype(jnp.int32))
    exploit_events = once(exploit_events + jnp.where(brute_force, BRUTE_FORCE_EVENTS, 0))
    traffic = target.scanned(host, scanned)
    traffic = dataclasses.replace(
        traffic,
        count=traffic.count + exploit_events,
        ports=traffic.ports | jnp.where(exploit_events > 0, attack, jnp.uint32(0)),
        callback=shell_seen,
    )
    return state, once(traffic), brute_force & ~taken


def _meet(attack: Array, target: Target, rules: Rules) -> tuple[Array, Array, Array, Array]:
    """bool [] each: how an exploit (one bit of u32 [], or none) ends on the socket that it meets.

    `taken`: a real service gives way. `immune`: it is patched. `trapped`: only a decoy listens. `brute_force`:
    passwords are tried; port 22 answers whoever tries them, with a weak account behind it or not.
    """
    real, by_ssh = attack & target.profile.vulnerable, attack & SSH_BIT != 0
    patched = target.setup.patched if rules.extension else jnp.uint32(0)
    taken, immune = real & ~patched != 0, real & patched != 0
    trapped = (real == 0) & ~by_ssh & (attack & target.opened != 0)
    brute_force = by_ssh & (attack & target.listening != 0) & ~immune
    return taken, immune, trapped, brute_force
