"""The scripted red agents as pure functions: what they want to do, the hosts they would take, what they remember.

An agent proposes, a host is drawn uniformly from the proposal's candidates (by the environment, or a record), and the
memory takes note of it. Agents see the result of their last action and what red knows, never the true state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.security.cyborg.bits import bit, draw, has, keep, once, pack, row, some
from envs_jax.security.cyborg.catalogue import lowest
from envs_jax.security.cyborg.network import (
    DISCOVER,
    ENTRY,
    ENTRY_LINK,
    ESCALATE,
    EXPLOIT,
    IMPACT,
    SCAN,
    SLEEP,
    Network,
    script_entry,
)
from envs_jax.security.cyborg.records import Setup
from envs_jax.security.cyborg.rules import Rules
from envs_jax.security.cyborg.state import TRUE, RedMemory, State

Array = jax.Array


# Random words of a step by name, see `chance.random_words`.
RED_TARGET, WHICH_EXPLOIT, DETECTION, WHICH_SESSION, GREEN, RED_KIND = range(6)
NUM_STREAMS = 6


@struct.dataclass
class Proposal:
    kind: Array  # i32 []; index into `network.RED_KINDS`
    subnet: Array  # i32 []; for DiscoverRemoteSystems, else -1
    candidates: Array  # u32 [W]; hosts to draw from, empty where the action has no host
    memory: RedMemory  # before the host is noted


def sleep(state: State, network: Network, rules: Rules, streams: Sequence[Array]) -> Proposal:
    """Never does anything."""
    del network, rules, streams
    return Proposal(jnp.int32(SLEEP), jnp.int32(-1), jnp.zeros_like(state.held), state.memory)


def bline(state: State, network: Network, rules: Rules, streams: Sequence[Array]) -> Proposal:
    """Walks straight to the jewel along `network.script`, falling back by its jump table after a failure."""
    del streams
    memory, words = state.memory, state.held.shape[0]
    succeeded = state.success == TRUE
    before = memory.pointer.astype(jnp.int32)
    _, _, jump, _ = script_entry(row(network.script, before))
    pointer = jnp.where(succeeded, jnp.minimum(before + 1, network.script_end), jump)
    _, _, _, restarts = script_entry(row(network.script, pointer))
    restarts = restarts & ~has(memory.history, pointer) & ~state.nonempty
    pointer = jnp.where(restarts, succeeded.astype(jnp.int32), pointer)
    pointer = once(pointer)
    kind, target, _, _ = script_entry(row(network.script, pointer))

    drawn = memory.entry.astype(jnp.int32)
    if rules.fix_stale_ports:  # an exploit without a scan on record goes back to the scan, once
        host = _script_host(target, drawn, network)
        rescan = (kind == EXPLOIT) & (Setup(row(state.setup, host)).ports == 0) & (before != pointer - 1)
        pointer = jnp.where(rescan, pointer - 1, pointer)
        kind, target, _, _ = script_entry(row(network.script, pointer))
    draws = (target == ENTRY) & (drawn < 0) & (kind != DISCOVER)
    open_entries = network.entries & ~state.isolated
    entries = jnp.where(some(open_entries), open_entries, network.entries)
    fixed = bit(_script_host(target, drawn, network), words)
    candidates = keep(jnp.where(draws, entries, fixed), kind != DISCOVER)
    memory = dataclasses.replace(
        memory,
        pointer=pointer.astype(jnp.int16),
        history=memory.history | bit(pointer, memory.history.shape[0]),
    )
    return Proposal(kind, jnp.where(kind == DISCOVER, target, -1), candidates, memory)


def _script_host(target: Array, entry: Array, network: Network) -> Array:
    entry = jnp.maximum(entry, 0)
    link = row(network.links, entry)[0].astype(jnp.int32)
    return jnp.maximum(jnp.where(target == ENTRY, entry, jnp.where(target == ENTRY_LINK, link, target)), 0)


def meander(state: State, network: Network, rules: Rules, streams: Sequence[Array]) -> Proposal:
    """Takes every host it can find, subnet by subnet, in random order."""
    del rules, streams
    memory, words = state.memory, state.held.shape[0]
    succeeded = state.success == TRUE
    mapped, exploited, escalated = memory.mapped, memory.exploited, memory.escalated

    last = jnp.maximum(memory.last_exploit.astype(jnp.int32), 0)
    tried = memory.last_exploit >= 0
    place = bit(last, words)
    mapped = mapped | keep(place, tried & succeeded)
    lost = tried & ~succeeded
    exploited = exploited & ~keep(place, lost)
    # A failed exploit makes it forget its footholds in the deepest subnet where it has any.
    forgotten = jnp.zeros_like(exploited)
    for subnet in range(1, network.num_subnets):
        footholds = network.pivots[subnet] & escalated
        forgotten = jnp.where(some(footholds), footholds, forgotten)
    forgotten = keep(forgotten, lost)
    escalated, exploited = escalated & ~forgotten, exploited & ~forgotten

    last = jnp.maximum(memory.last_host.astype(jnp.int32), 0)
    place = keep(bit(last, words), (memory.last_host >= 0) & ~succeeded)
    escalated = escalated & ~place
    exploited = exploited & ~(place & mapped)

    unscanned = state.known_subnet & ~memory.scanned_subnets
    others = unscanned & ~jnp.uint32(1)  # red's own subnet comes last
    subnet = jnp.int32(31) - jax.lax.clz(jnp.where(others != 0, lowest(others), jnp.uint32(1))).astype(jnp.int32)
    to_scan = state.known_ip & ~memory.scanned
    to_escalate = state.known_host & ~escalated & ~(mapped & ~exploited)
    to_exploit = state.known_ip & ~exploited

    impacts = has(escalated, network.jewel)
    kind = jnp.where(some(to_exploit), EXPLOIT, SLEEP)
    kind = jnp.where(some(to_escalate), ESCALATE, kind)
    kind = jnp.where(some(to_scan), SCAN, kind)
    kind = jnp.where(unscanned != 0, DISCOVER, kind)
    kind = jnp.where(impacts, IMPACT, kind).astype(jnp.int32)
    discovers = kind == DISCOVER
    candidates = jnp.where(kind == SCAN, to_scan, jnp.where(kind == ESCALATE, to_escalate, to_exploit))
    candidates = jnp.where(impacts, bit(network.jewel, words), keep(candidates, ~discovers))
    scanned_subnets = memory.scanned_subnets | (
        jnp.where(discovers, jnp.uint32(1), jnp.uint32(0)) << subnet.astype(jnp.uint32)
    )
    memory = dataclasses.replace(
        memory, scanned_subnets=scanned_subnets, mapped=mapped, exploited=exploited, escalated=escalated
    )
    return Proposal(kind, jnp.where(discovers, subnet, -1), candidates, memory)


def random(state: State, network: Network, rules: Rules, streams: Sequence[Array]) -> Proposal:
    """Draws a kind of action that makes sense, uniformly; the host is drawn by the environment. Not in the original."""
    del rules
    scanned = pack(Setup(state.setup).ports != 0)
    possible = [
        jnp.bool_(True),  # DiscoverRemoteSystems of some known subnet
        some(state.known_ip),
        some(scanned),
        some(state.known_host),
        state.service_known,
    ]
    flags = sum(jnp.where(flag, jnp.uint32(1 << place), jnp.uint32(0)) for place, flag in enumerate(possible))
    kind = draw(jnp.asarray(flags)[None], streams[RED_KIND]) + DISCOVER
    discovers = kind == DISCOVER
    subnet = draw(state.known_subnet[None], streams[RED_TARGET])
    options = jnp.where(kind == SCAN, state.known_ip, jnp.where(kind == EXPLOIT, scanned, state.known_host))
    options = jnp.where(kind == IMPACT, bit(network.jewel, state.held.shape[0]), keep(options, ~discovers))
    return Proposal(kind, jnp.where(discovers, subnet, -1), options, state.memory)


def note_entry(proposal: Proposal, host: Array) -> RedMemory:
    """B_line keeps the host of its first scan."""
    memory = proposal.memory
    drawn = (memory.entry < 0) & (proposal.kind == SCAN)
    return dataclasses.replace(memory, entry=jnp.where(drawn, host.astype(jnp.int16), memory.entry))


def note_target(proposal: Proposal, host: Array) -> RedMemory:
    """Meander counts a host as done with before it knows how the action ends."""
    memory, kind = proposal.memory, proposal.kind
    host = jnp.maximum(host, 0)
    place = bit(host, memory.scanned.shape[0])
    here, none = host.astype(jnp.int16), jnp.int16(-1)
    escalates, exploits = kind == ESCALATE, kind == EXPLOIT
    return dataclasses.replace(
        memory,
        scanned=memory.scanned | keep(place, kind == SCAN),
        escalated=memory.escalated | keep(place, escalates),
        exploited=memory.exploited | keep(place, exploits),
        last_host=jnp.where(escalates | (kind == IMPACT), here, none),
        last_exploit=jnp.where(exploits, here, none),
    )


def note_nothing(proposal: Proposal, host: Array) -> RedMemory:
    del host
    return proposal.memory


class Agent(NamedTuple):
    """A scripted red agent. Agents write different fields of the memory, so all may note what one of them does."""

    propose: Callable[[State, Network, Rules, Sequence[Array]], Proposal]  # the last: random words by stream
    note: Callable[[Proposal, Array], RedMemory]  # the memory once the host is known (i32 [], any value where none)


AGENTS: dict[str, Agent] = {
    "bline": Agent(bline, note_entry),
    "meander": Agent(meander, note_target),
    "sleep": Agent(sleep, note_nothing),
    "random": Agent(random, note_nothing),
}


def note(proposal: Proposal, host: Array, agents: Sequence[Agent]) -> RedMemory:
    """The memory after a proposal was carried out against `host`."""
    for agent in agents:
        proposal = dataclasses.replace(proposal, memory=agent.note(proposal, host))
    return proposal.memory
