"""Networks drawn at random, of one padded shape, so that one compiled program plays all of them.

Subnet s owns the host slots `s * K .. (s + 1) * K - 1`, K the largest subnet; the first `size[s]` of them exist.
No published generator is followed; the shapes imitate CAGE 2 (users at the edge, the jewel in the deepest subnet).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.registry import nearest
from envs_jax.security.cyborg.bits import row, select, uniform
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
        keys = jax.random.split(key, 8)
        ids, slots = jnp.arange(num_subnets, dtype=jnp.int32), jnp.arange(num_hosts, dtype=jnp.int32)
        present = ids < jax.random.randint(keys[0], (), low, high + 1, jnp.int32)
        sizes = jax.random.randint(keys[1], (num_subnets,), self.hosts_per_subnet[0], per_subnet + 1, jnp.int32)
        subnet = slots // per_subnet
        exists = (slots % per_subnet < sizes[subnet]) & present[subnet]
        opens = self._draw_graph(keys[2], num_subnets) & present[:, None] & present[None, :]

        depth, parent = _distances(opens)
        reached = depth < num_subnets
        # The deepest subnet, the last of several; multiplied so that ties go by id.
        deepest = jnp.argmax(jnp.where(reached & present, depth * num_subnets + ids, -1)).astype(jnp.int32)
        target = deepest if self.jewel_subnet is None else jnp.int32(self.jewel_subnet)
        hops = depth[target]
        path, place = jnp.zeros(num_subnets, jnp.int32), target
        on_path = jnp.zeros(num_subnets, bool)
        for _ in range(num_subnets):
            path, on_path = path.at[depth[place]].set(place), on_path.at[place].set(True)
            place = jnp.where(place == 0, 0, parent[place])

        words = jax.random.bits(keys[3], (3, num_subnets), jnp.uint32)
        foothold = _host_in(jnp.int32(0), words[0, 0], sizes, per_subnet)
        jewel = _host_in(target, words[1, 0], sizes, per_subnet)
        gateway = _host_in(path, words[2], sizes, per_subnet)
        links = self._draw_links(keys[4], subnet, opens, depth, path, on_path, sizes)
        before_jewel = jnp.where(hops > 1, gateway[jnp.maximum(hops - 1, 0)], -1)
        links = links.at[:, 0].set(jnp.where(slots == before_jewel, jewel, links[:, 0]))
        links = jnp.where(exists[:, None], links, -1)
        linked = links[gateway[jnp.maximum(ids - 1, 0)], 0]
        first = jnp.where(ids == hops, jewel, jnp.where(ids == 1, ENTRY_LINK, linked)).astype(jnp.int32)

        weights = np.asarray(self.image_weights or (1.0,) * len(OPEN_IMAGES), np.float32)
        kinds = jax.random.categorical(keys[5], jnp.log(weights), shape=(num_hosts,))
        known = images(rules)
        profiles = jnp.asarray([profile(known[name]) for name in OPEN_IMAGES], jnp.uint32)[kinds]
        # Our choice: users 0.1, then rising to 1.0 at the jewel's depth, as in CAGE 2 for its three subnets' best.
        deep = depth[subnet]
        value = jnp.where(deep == 0, 1, jnp.clip(10 * deep // jnp.maximum(hops, 1), 1, 10))
        value = jnp.where(slots == foothold, 0, jnp.where(slots == jewel, 10, value))
        isolation = jnp.where(slots == jewel, 50, jnp.where(deep == 0, 1, 5))
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

    def _draw_graph(self, key: Array, num_subnets: int) -> Array:
        """bool `[S, S]`: which subnet opens which."""
        ids = jnp.arange(num_subnets, dtype=jnp.int32)
        if not isinstance(self.graph, str):
            table = np.zeros((num_subnets, num_subnets), bool)
            for a, b in self.graph:
                table[a, b] = True
            return jnp.asarray(table)
        if self.graph == "chain":
            return jnp.abs(ids[:, None] - ids[None, :]) == 1
        key_tree, key_extra = jax.random.split(key)
        parent = (jax.random.uniform(key_tree, (num_subnets,)) * ids).astype(jnp.int32)
        edges = (parent[None, :] == ids[:, None]) & (ids[:, None] < ids[None, :])
        if self.graph == "erdos":
            extra = jax.random.uniform(key_extra, (num_subnets, num_subnets)) < self.edge_probability
            edges = edges | (extra & (ids[:, None] < ids[None, :]))
        return edges | edges.T

    def _draw_links(
        self, key: Array, subnet: Array, opens: Array, depth: Array, path: Array, on_path: Array, sizes: Array
    ) -> Array:
        """i32 `[N, L]`: hosts one step deeper, the first of them on the way to the jewel where there is one."""
        num_subnets, per_subnet = sizes.shape[0], self.hosts_per_subnet[1]
        words = jax.random.bits(key, (2, subnet.shape[0], self.links_per_host), jnp.uint32)
        deeper = opens & (depth[None, :] == depth[:, None] + 1)
        ids = jnp.arange(num_subnets, dtype=jnp.uint32)
        masks = jnp.sum(jnp.where(deeper, jnp.uint32(1) << ids[None, :], jnp.uint32(0)), axis=1, dtype=jnp.uint32)
        options = masks[subnet][:, None]
        number = jax.lax.population_count(options).astype(jnp.int32)
        rank = (uniform(words[0]) * number.astype(jnp.float32)).astype(jnp.int32)
        pick = jax.vmap(jax.vmap(lambda mask, place: select(mask[None], place), (None, 0)))
        target = pick(options[:, 0], jnp.minimum(rank, jnp.maximum(number - 1, 0)))
        follows = (on_path & (deeper & on_path[None, :]).any(axis=1))[subnet]
        ahead = path[jnp.minimum(depth + 1, num_subnets - 1)][subnet]
        target = target.at[:, 0].set(jnp.where(follows, ahead, target[:, 0]))
        hosts = _host_in(jnp.minimum(target, num_subnets - 1), words[1], sizes, per_subnet)
        return jnp.where(number > 0, hosts, -1)


def network_config(fields: Mapping[str, Any]) -> NetworkConfig:
    """`NetworkConfig` from its fields as a configuration file has them, with lists for tuples."""
    known = [field.name for field in dataclasses.fields(NetworkConfig)]
    for name in fields:
        if name not in known:
            raise ValueError(f"unknown network field {name!r}{nearest(name, known)} Allowed: {', '.join(known)}")
    return NetworkConfig(**{name: _as_tuple(value) for name, value in fields.items()})


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list | tuple) else value


def _host_in(subnet: Array, word: Array, sizes: Array, per_subnet: int) -> Array:
    """i32: a uniformly drawn host of a subnet; `subnet` and `word` have one shape."""
    size = row(sizes, subnet) if subnet.ndim == 0 else sizes[subnet]
    rank = (uniform(word) * size.astype(jnp.float32)).astype(jnp.int32)
    return subnet * per_subnet + jnp.minimum(rank, size - 1)


def _distances(opens: Array) -> tuple[Array, Array]:
    """(distance from subnet 0, subnet before on a shortest way), i32 `[S]` each; unreachable ones have distance S."""
    num_subnets = opens.shape[0]
    depth = jnp.where(jnp.arange(num_subnets) == 0, 0, num_subnets).astype(jnp.int32)
    for _ in range(num_subnets - 1):
        through = jnp.min(jnp.where(opens, depth[:, None] + 1, num_subnets), axis=0).astype(jnp.int32)
        depth = jnp.minimum(depth, through)
    before = opens & (depth[:, None] + 1 == depth[None, :])
    return depth, jnp.argmax(before, axis=0).astype(jnp.int32)
