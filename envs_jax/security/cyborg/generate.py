"""Networks drawn at random, of one padded shape, so that one compiled program plays all of them.

Subnet s owns the host slots `s * K .. (s + 1) * K - 1`, K the largest subnet; the first `size[s]` of them exist.
No published generator is followed; the shapes imitate CAGE 2 (users at the edge, the jewel in the deepest subnet).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.registry import nearest
from envs_jax.security.cyborg.bits import once, uniform
from envs_jax.security.cyborg.catalogue import images, profile
from envs_jax.security.cyborg.network import ENTRY_LINK, MAX_SUBNETS, Network, assemble
from envs_jax.security.cyborg.rules import Rules

Array = jax.Array

GRAPHS = ("chain", "tree", "erdos")
# Images that some exploit opens, so that no way is blocked by a host that cannot be taken.
OPEN_IMAGES = tuple(name for name in images(Rules()) if name != "operator")


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """What random networks look like.

    Attributes:
        num_subnets: how many, or the smallest and largest number; at least 2 and at most 32.
        hosts_per_subnet: smallest and largest number of hosts of a subnet; at least 2.
        image_weights: how often each image of `OPEN_IMAGES` occurs, any positive scale; empty for equally often.
        links_per_host: addresses of hosts one step deeper that a host gives away when taken.
        graph: `"chain"`, `"tree"` (each subnet hangs on an earlier one), `"erdos"` (a tree with extra edges), or the
            firewall's rules as pairs `(a, b)`: a session in subnet a opens the way into b.
        edge_probability: of each extra edge of `"erdos"`.
        jewel_subnet: where the jewel stands; None for the subnet furthest from subnet 0, where red starts.
        seed: of the network that stands where none is drawn per episode.
    """

    num_subnets: int | tuple[int, int] = 3
    hosts_per_subnet: tuple[int, int] = (4, 5)
    image_weights: tuple[float, ...] = ()
    links_per_host: int = 1
    graph: str | tuple[tuple[int, int], ...] = "chain"
    edge_probability: float = 0.2
    jewel_subnet: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.subnet_range
        if not 2 <= low <= high <= MAX_SUBNETS:
            raise ValueError(f"num_subnets must lie in 2 .. {MAX_SUBNETS}, got {self.num_subnets}")
        if len(self.hosts_per_subnet) != 2 or not 2 <= self.hosts_per_subnet[0] <= self.hosts_per_subnet[1]:
            raise ValueError(f"hosts_per_subnet must be (low, high) with 2 <= low <= high, got {self.hosts_per_subnet}")
        if self.max_hosts > 32767:
            raise ValueError(f"a network may have at most 32767 hosts, this one may have {self.max_hosts}")
        weights = self.image_weights
        if weights and (len(weights) != len(OPEN_IMAGES) or min(weights) < 0 or sum(weights) <= 0):
            raise ValueError(f"image_weights must be {len(OPEN_IMAGES)} numbers, one per image of {OPEN_IMAGES}, not "
                             f"negative and not all zero, got {weights}")  # fmt: skip
        if self.links_per_host < 1:
            raise ValueError(f"links_per_host must be at least 1, got {self.links_per_host}")
        if not 0 <= self.edge_probability <= 1:
            raise ValueError(f"edge_probability must lie in 0 .. 1, got {self.edge_probability}")
        if self.jewel_subnet is not None and not 1 <= self.jewel_subnet < low:
            raise ValueError(f"jewel_subnet must lie in 1 .. {low - 1}, got {self.jewel_subnet}")
        if isinstance(self.graph, str):
            if self.graph not in GRAPHS:
                raise ValueError(f"unknown graph {self.graph!r}{nearest(self.graph, GRAPHS)} Allowed: "
                                 f"{', '.join(GRAPHS)}, or pairs of subnets")  # fmt: skip
            return
        if low != high:
            raise ValueError(f"a graph given as pairs needs one num_subnets, got the range {self.num_subnets}")
        self._check_pairs(low)

    def _check_pairs(self, num_subnets: int) -> None:
        assert not isinstance(self.graph, str)
        reached = {0}
        for pair in self.graph:
            if len(pair) != 2 or not all(0 <= end < num_subnets for end in pair):
                raise ValueError(f"graph: {pair} must be two subnets in 0 .. {num_subnets - 1}")
        for _ in range(num_subnets):
            reached |= {b for a, b in self.graph if a in reached}
        wanted = {self.jewel_subnet} if self.jewel_subnet is not None else set(range(1, num_subnets))
        if not wanted & reached:
            raise ValueError(f"graph: no path leads from subnet 0 to the jewel in subnet {self.jewel_subnet or 'any'}; "
                             f"within reach are {sorted(reached)}")  # fmt: skip

    @property
    def subnet_range(self) -> tuple[int, int]:
        pair = (self.num_subnets,) * 2 if isinstance(self.num_subnets, int) else tuple(self.num_subnets)
        if len(pair) != 2:
            raise ValueError(f"num_subnets must be an integer or (low, high), got {self.num_subnets}")
        return pair

    @property
    def max_hosts(self) -> int:
        return self.subnet_range[1] * self.hosts_per_subnet[1]

    def draw(self, key: Array, rules: Rules) -> Network:
        """A network; consumes `key`. Can be traced, vmapped and called once per episode."""
        low, high = self.subnet_range
        num_subnets, per_subnet, num_hosts = high, self.hosts_per_subnet[1], self.max_hosts
        chances = _Chances(key, 1 + (5 + num_subnets) * num_subnets + (1 + 2 * self.links_per_host) * num_hosts)
        ids, slots = jnp.arange(num_subnets, dtype=jnp.int32), jnp.arange(num_hosts, dtype=jnp.int32)
        present = ids < low + chances.integers((), high + 1 - low)
        fewest = self.hosts_per_subnet[0]
        sizes = fewest + chances.integers((num_subnets,), per_subnet + 1 - fewest)
        subnet = slots // per_subnet
        opens = self._draw_graph(chances, num_subnets) & present[:, None] & present[None, :]
        sizes, present, opens = once((sizes, present, opens))
        exists = (slots % per_subnet < sizes[subnet]) & present[subnet]

        depth, parent = once(_distances(opens))
        # The deepest subnet, the last of several; multiplied so that ties go by id.
        deepest = jnp.argmax(jnp.where(depth < num_subnets, depth * num_subnets + ids, -1)).astype(jnp.int32)
        target = deepest if self.jewel_subnet is None else jnp.int32(self.jewel_subnet)
        hops = depth[target]
        path, on_path = _way_back(target, depth, parent)

        # Three drawn hosts of each subnet.
        hosts = per_subnet * ids[None, :] + chances.integers((3, num_subnets), sizes)
        foothold, jewel, gateway = hosts[0, 0], hosts[1, target], hosts[2, path]
        foothold, jewel, gateway, hops, path = once((foothold, jewel, gateway, hops, path))
        links = self._draw_links(chances, subnet, opens, depth, path, on_path, sizes)
        before_jewel = jnp.where(hops > 1, gateway[jnp.maximum(hops - 1, 0)], -1)
        links = links.at[:, 0].set(jnp.where(slots == before_jewel, jewel, links[:, 0]))
        links = once(jnp.where(exists[:, None], links, -1))
        linked = links[gateway[jnp.maximum(ids - 1, 0)], 0]
        first = jnp.where(ids == hops, jewel, jnp.where(ids == 1, ENTRY_LINK, linked)).astype(jnp.int32)

        weights = np.asarray(self.image_weights or (1.0,) * len(OPEN_IMAGES))
        bounds = (weights.cumsum() / weights.sum())[:-1].astype(np.float32)
        kinds = jnp.sum(chances.uniform((num_hosts, 1)) >= bounds[None, :], axis=1, dtype=jnp.int32)
        known = images(rules)
        profiles = jnp.asarray([profile(known[name]) for name in OPEN_IMAGES], jnp.uint32)[kinds]
        # Our choice: users 0.1, then rising to 1.0 at the jewel's depth, as in CAGE 2 for its three subnets' best.
        deep = depth[subnet]
        value = jnp.where(deep == 0, 1, jnp.clip(10 * deep // jnp.maximum(hops, 1), 1, 10))
        value = jnp.where(slots == foothold, 0, jnp.where(slots == jewel, 10, value))
        isolation = jnp.where(slots == jewel, 50, jnp.where(deep == 0, 1, 5))
        exists, value, isolation, first = once((exists, value, isolation, first))
        return assemble(
            profile=jnp.where(exists, profiles, jnp.uint32(0)),
            subnet=subnet,
            exists=exists,
            pivots=exists,
            opens=opens | ((ids[:, None] == 0) & (ids[None, :] == 0)),
            confidentiality=jnp.where(exists, value, 0),
            isolation_cost=jnp.where(exists, isolation, 0),
            links=links,
            green_targets=deep <= 1,
            foothold=foothold,
            jewel=jewel,
            walk=(path, first, gateway, hops),
        )

    def _draw_graph(self, chances: _Chances, num_subnets: int) -> Array:
        """bool `[S, S]`: which subnet opens which."""
        ids = jnp.arange(num_subnets, dtype=jnp.int32)
        if not isinstance(self.graph, str):
            table = np.zeros((num_subnets, num_subnets), bool)
            for a, b in self.graph:
                table[a, b] = True
            return jnp.asarray(table)
        if self.graph == "chain":
            return jnp.abs(ids[:, None] - ids[None, :]) == 1
        parent = chances.integers((num_subnets,), ids)
        later = ids[:, None] < ids[None, :]
        edges = (parent[None, :] == ids[:, None]) & later
        if self.graph == "erdos":
            edges = edges | ((chances.uniform((num_subnets, num_subnets)) < self.edge_probability) & later)
        return edges | edges.T

    def _draw_links(
        self, chances: _Chances, subnet: Array, opens: Array, depth: Array, path: Array, on_path: Array, sizes: Array
    ) -> Array:
        """i32 `[N, L]`: hosts one step deeper, the first of them on the way to the jewel where there is one."""
        num_subnets, per_subnet, shape = sizes.shape[0], self.hosts_per_subnet[1], (len(subnet), self.links_per_host)
        deeper = opens & (depth[None, :] == depth[:, None] + 1)
        number = jnp.sum(deeper, axis=1, dtype=jnp.int32)
        # options[s, r]: the subnet with rank r among those one step deeper than s.
        options = jnp.argsort(~deeper, axis=1, stable=True).astype(jnp.int32)
        here = subnet[:, None]
        target = options[here, chances.integers(shape, number[here])]
        follows = (on_path & (deeper & on_path[None, :]).any(axis=1))[subnet]
        ahead = path[jnp.minimum(depth + 1, num_subnets - 1)][subnet]
        target = once(target.at[:, 0].set(jnp.where(follows, ahead, target[:, 0])))
        hosts = target * per_subnet + chances.integers(shape, sizes[target])
        return jnp.where(number[here] > 0, hosts, -1)


class _Chances:
    """Random numbers for one network, all from one call: each call of the generator costs a loop to compile."""

    def __init__(self, key: Array, number: int):
        self._words, self._used = jax.random.bits(key, (number,), jnp.uint32), 0

    def uniform(self, shape: tuple[int, ...]) -> Array:
        """f32 in [0, 1)."""
        first, self._used = self._used, self._used + math.prod(shape)
        return uniform(self._words[first : self._used]).reshape(shape)

    def integers(self, shape: tuple[int, ...], number: Array | int) -> Array:
        """i32 in `0 .. number - 1`, 0 where `number` is 0; `number` broadcasts from the right."""
        number = jnp.broadcast_to(jnp.asarray(number, jnp.int32), shape)
        drawn = (self.uniform(shape) * number.astype(jnp.float32)).astype(jnp.int32)
        return jnp.clip(drawn, 0, jnp.maximum(number - 1, 0))


def network_config(fields: Mapping[str, Any]) -> NetworkConfig:
    """`NetworkConfig` from its fields as a configuration file has them, with lists for tuples."""
    known = [field.name for field in dataclasses.fields(NetworkConfig)]
    for name in fields:
        if name not in known:
            raise ValueError(f"unknown network field {name!r}{nearest(name, known)} Allowed: {', '.join(known)}")
    return NetworkConfig(**{name: _as_tuple(value) for name, value in fields.items()})


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list | tuple) else value


def _distances(opens: Array) -> tuple[Array, Array]:
    """(distance from subnet 0, subnet before on a shortest way), i32 `[S]` each; unreachable ones have distance S."""
    num_subnets = opens.shape[0]

    def relax(_: Array, depth: Array) -> Array:
        through = jnp.min(jnp.where(opens, depth[:, None] + 1, num_subnets), axis=0)
        return jnp.minimum(depth, through).astype(jnp.int32)

    start = jnp.where(jnp.arange(num_subnets) == 0, 0, num_subnets).astype(jnp.int32)
    depth = jax.lax.fori_loop(0, num_subnets - 1, relax, start)
    before = opens & (depth[:, None] + 1 == depth[None, :])
    return depth, jnp.argmax(before, axis=0).astype(jnp.int32)


def _way_back(target: Array, depth: Array, parent: Array) -> tuple[Array, Array]:
    """(subnets from 0 to `target` by distance i32 `[S]`, which subnets these are bool `[S]`)."""
    ids = jnp.arange(depth.shape[0], dtype=jnp.int32)

    def back(_: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        place, path, on_path = carry
        path = jnp.where(ids == depth[place], place, path)
        return jnp.where(place == 0, 0, parent[place]), path, on_path | (ids == place)

    start = (target, jnp.zeros_like(ids), jnp.zeros(ids.shape, bool))
    return jax.lax.fori_loop(0, ids.shape[0], back, start)[1:]
