"""Draws what one step leaves to chance, from named random streams, after blue has moved."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from envs_jax.security.cyborg import red
from envs_jax.security.cyborg.bits import draw, once, row, select, uniform
from envs_jax.security.cyborg.catalogue import bit_index, candidates, lowest
from envs_jax.security.cyborg.network import SCAN, Network
from envs_jax.security.cyborg.records import REMOVABLE, STICKY, Sessions, Setup
from envs_jax.security.cyborg.rules import Rules
from envs_jax.security.cyborg.state import Choices, RedMemory, State

Array = jax.Array

TOP_EXPLOIT = 0.75  # probability of the exploit of the highest weight, where there are several
DETECTION_PROBABILITY = 0.95


def random_words(key: Array) -> list[Array]:
    """One random u32 [] per stream of `red`; consumes `key`.

    One threefry hash gives the step's seed, and each stream mixes it with a constant of its own: no stream shifts when
    one is added, those never read cost nothing, and a hash per stream would cost a third of the whole step.
    """
    seed = jax.random.bits(key, (), jnp.uint32)
    return [_mix(seed + jnp.uint32((0x9E3779B9 * (stream + 1)) & 0xFFFFFFFF)) for stream in range(red.NUM_STREAMS)]


def _mix(word: Array) -> Array:
    """The finaliser of MurmurHash3: every input bit changes every output bit with probability one half."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def choose_exploit(ports: Array, word: Array) -> Array:
    """i32 []: red's exploit against ports on record (u32 []), -1 for none."""
    options = candidates(ports)
    top = lowest(options)
    others = options & ~top
    num_others = jax.lax.population_count(others).astype(jnp.int32)
    chance = uniform(word)
    rank = ((chance - TOP_EXPLOIT) * (1 / (1 - TOP_EXPLOIT)) * num_others.astype(jnp.float32)).astype(jnp.int32)
    other = select(others[None], jnp.clip(rank, 0, num_others - 1))
    return jnp.where((chance < TOP_EXPLOIT) | (num_others == 0), bit_index(top), other)


def propose(
    state: State, agents: Sequence[red.Agent], network: Network, rules: Rules, streams: Sequence[Array]
) -> red.Proposal:
    """What the game's red agent wants; with several agents all are asked and `state.red_agent` decides."""
    proposals = [agent.propose(state, network, rules, streams) for agent in agents]
    if len(proposals) == 1:
        return proposals[0]
    playing = state.red_agent.astype(jnp.int32)
    return jax.tree.map(lambda *options: jax.lax.select_n(playing, *options), *proposals)


def fill_in(
    state: State,
    proposal: red.Proposal,
    agents: Sequence[red.Agent],
    streams: Sequence[Array],
    network: Network,
    green: bool,
) -> tuple[Choices, RedMemory]:
    """Draws red's host and every outcome of the step."""
    proposal = once(proposal)
    host = once(draw(proposal.candidates, streams[red.RED_TARGET]))
    sessions = Sessions(row(state.sessions, host))
    num_removable, num_sticky = (sessions.count(kind).astype(jnp.float32) for kind in (REMOVABLE, STICKY))
    picked = uniform(streams[red.WHICH_SESSION]) * (num_removable + num_sticky) < num_removable
    green_scans, green_host = jnp.int32(0), jnp.int32(-1)
    if green:
        word = streams[red.GREEN]
        green_scans, green_host = (word >> 31).astype(jnp.int32), draw(network.green_targets, word << 1)
    choices = Choices(
        green_scans=green_scans,
        green_host=green_host,
        red_kind=proposal.kind,
        red_host=jnp.where(proposal.kind >= SCAN, host, -1),
        red_subnet=proposal.subnet,
        exploit=once(choose_exploit(Setup(row(state.setup, host)).ports, streams[red.WHICH_EXPLOIT])),
        detected=(uniform(streams[red.DETECTION]) < DETECTION_PROBABILITY).astype(jnp.int32),
        pick_removable=picked.astype(jnp.int32),
    )
    return choices, red.note(proposal, host, agents)
