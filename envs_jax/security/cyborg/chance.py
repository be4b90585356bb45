"""Draws what one step leaves to chance, from named random streams, after blue has moved."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from envs_jax.security.cyborg import red
from envs_jax.security.cyborg.bits import draw, once, row, select, uniform
from envs_jax.security.cyborg.catalogue import bit_index, candidates, lowest
from envs_jax.security.cyborg.network import SCAN, Network
from envs_jax.security.cyborg.rules import Rules
from envs_jax.security.cyborg.state import REMOVABLE, STICKY, Choices, RedMemory, State

Array = jax.Array

TOP_EXPLOIT = 0.75  # probability of the exploit of the highest weight, where there are several
DETECTION_PROBABILITY = 0.95


def random_words(key: Array, green: bool, random_red: bool) -> Array:
    """u32 `[<= 6]`, one word per stream of `red`; consumes `key`.

    Threefry hashes the position, so a word does not depend on how many are drawn; those not needed are left out.
    """
    used = red.RED_KIND + 1 if random_red else red.GREEN + 1 if green else red.GREEN
    return jax.random.bits(key, (used,), jnp.uint32)


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


def propose(state: State, agents: Sequence[red.Agent], network: Network, rules: Rules, streams: Array) -> red.Proposal:
    """What the game's red agent wants; with several agents all are asked and `state.red_agent` decides."""
    proposals = [agent(state, network, rules, streams) for agent in agents]
    if len(proposals) == 1:
        return proposals[0]
    return jax.tree.map(
        lambda *options: (
            jax.lax.select_n(state.red_agent.astype(jnp.int32), *options)
            if options[0].ndim == 0
            else jax.lax.select_n(jnp.broadcast_to(state.red_agent.astype(jnp.int32), ()), *options)
        ),
        *proposals,
    )


def fill_in(state: State, proposal: red.Proposal, streams: Array, network: Network) -> tuple[Choices, RedMemory]:
    """Draws red's host and every outcome of the step."""
    proposal = once(proposal)
    host = once(draw(proposal.candidates, streams[red.RED_TARGET]))
    names_host = proposal.kind >= SCAN
    num_removable, num_sticky = [row(state.sessions, host)[kind].astype(jnp.float32) for kind in (REMOVABLE, STICKY)]
    picked = uniform(streams[red.WHICH_SESSION]) * (num_removable + num_sticky) < num_removable
    if streams.shape[0] > red.GREEN:
        word = streams[red.GREEN]
        green_scans, green_host = (word >> 31).astype(jnp.int32), draw(network.green_targets, word << 1)
    else:
        green_scans, green_host = jnp.int32(0), jnp.int32(-1)
    choices = Choices(
        green_scans=green_scans,
        green_host=green_host,
        red_kind=proposal.kind,
        red_host=jnp.where(names_host, host, -1),
        red_subnet=proposal.subnet,
        exploit=choose_exploit(row(state.ports, host).astype(jnp.uint32), streams[red.WHICH_EXPLOIT]),
        detected=(uniform(streams[red.DETECTION]) < DETECTION_PROBABILITY).astype(jnp.int32),
        pick_removable=picked.astype(jnp.int32),
    )
    return once(choices), red.note(proposal, host)
