"""What blue's monitor makes of a step's network events, and the belief and memories that follow from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from envs_jax.security.cyborg.attack import Traffic
from envs_jax.security.cyborg.bits import bit, keep, once, put, select, some
from envs_jax.security.cyborg.blue import REMOVE, RESTORE, BlueMove
from envs_jax.security.cyborg.rules import Rules
from envs_jax.security.cyborg.state import State

Array = jax.Array


def activity(host: Array, blue: BlueMove, traffics: Sequence[Traffic], rules: Rules) -> tuple[Array, Array]:
    """bool [] `(active, exploited)`: what the monitor reports of one host.

    It counts events and distinct ports. Three or more events on one port pass for an exploit, three or more on three
    or more ports for a scan, whatever else happened; a decoy placed in this step counts as an event without port.
    """
    events, ports = jnp.int32(0), jnp.uint32(0)
    other_ports, callback = jnp.int32(0), jnp.bool_(False)
    for traffic in traffics:
        here = traffic.host == host
        events = events + jnp.where(here, traffic.count, 0)
        ports = ports | jnp.where(here, traffic.ports, jnp.uint32(0))
        other_ports = jnp.maximum(other_ports, jnp.where(here, traffic.other_ports, 0))
        callback = callback | (here & traffic.callback)
    placed = blue.decoy_placed & (blue.host == host)
    distinct = jax.lax.population_count(ports).astype(jnp.int32) + other_ports + callback.astype(jnp.int32)
    total = events + placed.astype(jnp.int32)
    hidden = placed & (events == 0) if rules.fix_decoy_hides else placed

    looks_like_scan = (total >= 3) & (distinct >= 3)
    exploited = ((total >= 3) & (distinct == 1)) | callback
    if not rules.fix_scan_mask:
        exploited = exploited & ~looks_like_scan
    else:
        looks_like_scan = looks_like_scan & ~callback
    active = (total > 0) & (looks_like_scan | exploited | ~hidden)
    return active, exploited


def update_belief(
    state: State, blue: BlueMove, traffics: Sequence[Traffic], red_fooled: Array, scan_tracked: Array, rules: Rules
) -> State:
    """The monitor at the end of a step.

    Args:
        state: after all have moved.
        traffics: green's (where there is a green agent), then red's.
        red_fooled: bool []; red's brute force failed in this step.
        scan_tracked: u32 `[W]`; hosts whose scans enter the scan memory.
    """
    words = state.held.shape[0]
    place = bit(blue.host, words)

    low, high = state.belief_low, state.belief_high
    restored, doubted = keep(place, blue.kind == RESTORE), keep(place & (low | high), blue.kind == REMOVE)
    low, high = (low & ~restored) | doubted, high & ~restored & ~doubted

    active = alarmed = jnp.zeros_like(low)
    for host in (*(traffic.host for traffic in traffics), blue.host):
        seen, exploited = once(activity(host, blue, traffics, rules))
        active, alarmed = active | bit(host, words, seen), alarmed | bit(host, words, exploited)

    active, alarmed = once((active, alarmed))
    taken = alarmed
    if rules.fix_ssh_decoy_belief:
        taken = taken & ~bit(traffics[-1].host, words, red_fooled)
    if rules.fix_belief_downgrade:
        taken = taken & ~(low & high)
    found = keep(place, blue.file_found)
    low, high = (low & ~taken) | found, high | taken | found

    scans = active & ~alarmed
    tracked = scans & scan_tracked
    latest = jnp.where(some(tracked), select(tracked, jnp.int32(0)), state.scan_latest.astype(jnp.int32))
    last_activity = state.last_activity
    if last_activity.shape[0]:
        for traffic in traffics:
            seen, _ = activity(traffic.host, blue, traffics, rules)
            last_activity = put(last_activity, jnp.where(seen, traffic.host, -1), state.step)
    return dataclasses.replace(
        state,
        active=active,
        alarmed=alarmed,
        belief_low=low,
        belief_high=high,
        scan_seen=state.scan_seen | tracked,
        scan_latest=latest.astype(jnp.int16),
        last_activity=last_activity,
    )
