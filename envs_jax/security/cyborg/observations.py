"""What blue sees, in several layouts, and the graph of a network."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_jax.registry import nearest
from envs_jax.security.cyborg.bits import num_words, unpack
from envs_jax.security.cyborg.catalogue import NUM_DECOYS, Profile, opened_ports, placeable_decoys
from envs_jax.security.cyborg.network import Network
from envs_jax.security.cyborg.records import Setup
from envs_jax.security.cyborg.rewards import CyborgParams
from envs_jax.security.cyborg.rules import Rules
from envs_jax.security.cyborg.state import State
from envs_jax.spaces import Box

Array = jax.Array

OBSERVATIONS = ("challenge", "extended", "winner", "minicage")
WINNER_HOSTS = (0, 1, 2, 3, 7, 8, 9, 10, 11, 12)  # whose scans the challenge's winning entry remembered
ACTIVITY_HORIZON = 20  # steps after which an activity counts as long ago


def check_observation(kind: str, num_hosts: int) -> str:
    if kind not in OBSERVATIONS:
        raise ValueError(
            f"unknown observation {kind!r}{nearest(kind, OBSERVATIONS)} Allowed: {', '.join(OBSERVATIONS)}"
        )
    if kind == "winner" and num_hosts != 13:
        raise ValueError(f"observation 'winner' is defined for the 13 hosts of CAGE 2, this network has {num_hosts}")
    return kind


def observation_space(kind: str, num_hosts: int) -> Box:
    """The space of an observation layout: all values lie in [0, 1] but counts (at most 2, or the number of decoys)."""
    high = {
        "challenge": [1.0] * (4 * num_hosts),
        "extended": [1.0] * (16 * num_hosts + 2),
        "winner": [1.0] * (4 * num_hosts) + [2.0] * len(WINNER_HOSTS),
        "minicage": [1.0] * (4 * num_hosts) + [2.0] * num_hosts + [float(NUM_DECOYS)] * num_hosts,
    }[kind]
    return Box(0.0, np.asarray(high, np.float32), (len(high),))


def scan_tracked(kind: str, num_hosts: int) -> np.ndarray:
    """u32 `[W]`: hosts whose scans the layout remembers."""
    if kind != "winner":
        return np.full(num_words(num_hosts), 0xFFFFFFFF, np.uint32)
    return np.array([sum(1 << host for host in WINNER_HOSTS)], np.uint32)


def challenge_bits(state: State, num_hosts: int) -> Array:
    """f32 `[4 N]`: per host activity (00 none, 10 scan, 11 exploit) and belief (00 no, 10 unknown, 01 user, 11 all)."""
    columns = jnp.stack([state.active, state.alarmed, state.belief_low, state.belief_high])
    index = np.arange(4 * num_hosts)
    host, column = index // 4, index % 4
    words = columns[:, 0][column] if num_hosts <= 32 else columns[column, host // 32]
    return ((words >> jnp.asarray(host % 32, jnp.uint32)) & 1).astype(jnp.float32)


def scan_memory(state: State, num_hosts: int) -> Array:
    """f32 `[N]`: 0 never scanned, 1 earlier, 2 the latest."""
    seen = unpack(state.scan_seen, num_hosts).astype(jnp.float32)
    latest = jnp.arange(num_hosts, dtype=jnp.int32) == state.scan_latest.astype(jnp.int32)
    return seen + latest.astype(jnp.float32)


def free_decoys(state: State, network: Network, rules: Rules) -> Array:
    """u32 `[N]`: the decoys that each host would accept, bit order of `catalogue.DECOYS`."""
    profile = Profile(network.profile)
    listening = profile.listens | opened_ports(Setup(state.setup).decoys, rules)
    exists = unpack(network.hosts, network.num_hosts)
    return jnp.where(exists, placeable_decoys(listening, profile.windows), jnp.uint32(0))


def host_features(state: State, network: Network) -> Array:
    """f32 `[N, 12]`: isolated; share of patches left; the 8 decoys; scan memory / 2; time since the last activity."""
    num_hosts = network.num_hosts
    vulnerable, setup = Profile(network.profile).vulnerable, Setup(state.setup)
    total = jax.lax.population_count(vulnerable).astype(jnp.float32)
    left = jax.lax.population_count(vulnerable & ~setup.patched).astype(jnp.float32)
    decoys = (setup.decoys[:, None] >> jnp.arange(NUM_DECOYS, dtype=jnp.uint32)[None, :]) & 1
    last = state.last_activity.astype(jnp.int32)
    age = jnp.minimum((state.step - last).astype(jnp.float32) / ACTIVITY_HORIZON, 1.0)
    columns = [
        unpack(state.isolated, num_hosts).astype(jnp.float32)[:, None],
        (left / jnp.maximum(total, 1.0))[:, None],
        decoys.astype(jnp.float32),
        (scan_memory(state, num_hosts) / 2)[:, None],
        jnp.where(last < 0, 1.0, age)[:, None],
    ]
    return jnp.concatenate(columns, axis=-1)


def observe(kind: str, state: State, params: CyborgParams, rules: Rules) -> Array:
    """Blue's observation, f32: see `observation_space`."""
    network = params.network
    base = challenge_bits(state, network.num_hosts)
    if kind == "winner":
        return jnp.concatenate([base, scan_memory(state, network.num_hosts)[jnp.asarray(WINNER_HOSTS)]])
    if kind == "minicage":
        left = jax.lax.population_count(free_decoys(state, network, rules))
        return jnp.concatenate([base, scan_memory(state, network.num_hosts), left.astype(jnp.float32)])
    if kind == "extended":
        progress = state.step.astype(jnp.float32) / params.max_steps.astype(jnp.float32)
        overall = jnp.stack([jnp.minimum(progress, 1.0), (~state.service_alive).astype(jnp.float32)])
        return jnp.concatenate([base, host_features(state, network).reshape(-1), overall])
    return base


@struct.dataclass
class Graph:
    """A network as a graph for message passing; E = N L edges."""

    nodes: Array  # f32 [N, 4 + F]; the challenge bits and `host_features` by host
    node_mask: Array  # bool [N]
    senders: Array  # i32 [E]
    receivers: Array  # i32 [E]
    edge_mask: Array  # bool [E]


def graph(state: State, network: Network) -> Graph:
    """The graph view: nodes are hosts, edges the addresses that a host knows (`Network.links`).

    Needs an environment that tracks activity (observation `"extended"`).
    """
    num_hosts, num_links = network.links.shape
    nodes = jnp.concatenate([challenge_bits(state, num_hosts).reshape(num_hosts, 4), host_features(state, network)], -1)
    receivers = network.links.astype(jnp.int32).reshape(-1)
    return Graph(
        nodes=nodes,
        node_mask=unpack(network.hosts, num_hosts),
        senders=jnp.repeat(jnp.arange(num_hosts, dtype=jnp.int32), num_links),
        receivers=jnp.maximum(receivers, 0),
        edge_mask=receivers >= 0,
    )
