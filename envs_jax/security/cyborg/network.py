"""Networks as tables of fixed shape, and the network of CAGE Challenge 2.

Letters: N hosts (padded), S subnets (at most 32), W = words of a host set, L addresses a host knows, P pointers of the
B_line script, V = `VALUE_BITS`. Nothing is N x N.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_jax.security.cyborg.bits import pack
from envs_jax.security.cyborg.catalogue import images, profile
from envs_jax.security.cyborg.rules import Rules

Array = jax.Array

# Red's kinds of action, in the order of the golden records.
SLEEP, DISCOVER, SCAN, EXPLOIT, ESCALATE, IMPACT = range(6)
RED_KINDS = ("Sleep", "DiscoverRemoteSystems", "DiscoverNetworkServices", "ExploitRemoteService", "PrivilegeEscalate",
             "Impact")  # fmt: skip

# Targets in the B_line script that depend on the user host drawn at its start.
ENTRY, ENTRY_LINK = -1, -2
_TARGET_OFFSET = 2

MAX_SUBNETS = 32
VALUE_BITS = 6


@struct.dataclass
class Network:
    """One network. Subnet 0 is red's; ids grow with the distance from it.

    Values are in tenths of a reward point and kept by their bits: plane v holds the hosts whose value has bit v set.
    """

    profile: Array  # u32 [N]; what runs on the host, see `catalogue.Profile`
    subnet: Array  # i8 [N]
    confidentiality: Array  # u32 [V, W]; paid per step while red is privileged there
    isolation_cost: Array  # u32 [V, W]; paid per step while isolated
    links: Array  # i16 [N, L]; addresses red learns by escalating there, -1 for none
    members: Array  # u32 [S, W]; the subnet's hosts
    pivots: Array  # u32 [S, W]; those a session on which counts for routes
    gateways: Array  # u32 [S, W]; a session on one of these opens the subnet
    hosts: Array  # u32 [W]; the hosts that exist, the rest is padding
    entries: Array  # u32 [W]; whom B_line may attack first
    green_targets: Array  # u32 [W]; whom the green agent may scan
    foothold: Array  # i32 []; red's first host, never lost
    jewel: Array  # i32 []; the host of the service that Impact stops
    script: Array  # i32 [P]; the B_line walk, see `script_entry`
    script_end: Array  # i32 []; its last pointer

    @property
    def num_hosts(self) -> int:
        return self.profile.shape[-1]

    @property
    def num_subnets(self) -> int:
        return self.members.shape[-2]

    @property
    def num_words(self) -> int:
        return self.hosts.shape[-1]


def script_length(num_subnets: int) -> int:
    """Pointers of the longest walk through `num_subnets` subnets."""
    return 8 + 7 * (num_subnets - 2)


def script_entry(word: Array) -> tuple[Array, Array, Array, Array]:
    """(kind, target, jump, restarts) of a script word: what to do to which host or subnet, where a failure leads."""
    restarts = (word >> 3) & 1 == 1
    return word & 7, (word >> 12) - _TARGET_OFFSET, (word >> 4) & 0xFF, restarts


def make_script(path: Array, first: Array, gateway: Array, depth: Array) -> tuple[Array, Array]:
    """The B_line walk from subnet `path[0]` to the jewel in `path[depth]`, as `(script [P], last pointer [])`.

    The pointer table of CAGE 2's B_line, repeated per hop: enter subnet k through host `first[k]`, list the subnet,
    take `gateway[k]`, go on; at the end take the jewel, `first[depth]`, and stop its service.

    Args:
        path: i32 `[S]`, subnets along the way.
        first, gateway: i32 `[S]`, hosts by position on the way; `first[1]` may be `ENTRY_LINK`.
        depth: i32 [], number of hops, at least 1.
    """
    num_subnets = path.shape[0]
    pointer = jnp.arange(script_length(num_subnets), dtype=jnp.int32)
    block = jnp.clip((pointer - 4) // 7 + 1, 1, num_subnets - 1)  # the hop that a pointer belongs to
    place = pointer - 4 - 7 * (block - 1)  # 0..2 first host, 3 listing (or Impact), 4..6 gateway
    base = pointer - place
    last_block = block == depth
    previous_exploit = jnp.where(block == 1, 2, base - 2)
    hop_kind = jnp.asarray([SCAN, EXPLOIT, ESCALATE, DISCOVER, SCAN, EXPLOIT, ESCALATE], jnp.int32)[place % 7]
    hop_target = jnp.where(place < 3, first[block], jnp.where(place == 3, path[block], gateway[block]))
    # By place: a lost first host is retaken from the hop before, everything else from the nearest foothold.
    hop_jump = jnp.stack([previous_exploit, previous_exploit, base + 1, base + 1, base + 1, base + 1, base + 5])
    hop_jump = jnp.take_along_axis(hop_jump, (place % 7)[None], axis=0)[0]
    impact = last_block & (place == 3)
    kind = jnp.where(impact, IMPACT, hop_kind)
    target = jnp.where(impact, first[depth], hop_target)
    jump = jnp.where(impact, base + 2, hop_jump)
    # An exploit never tried before, after a scan that returned nothing, starts the whole walk again.
    restarts = (place == 1) & (block >= 2)

    opening = pointer < 4
    kind = jnp.where(opening, jnp.asarray([DISCOVER, SCAN, EXPLOIT, ESCALATE], jnp.int32)[pointer % 4], kind)
    target = jnp.where(opening, jnp.where(pointer == 0, path[0], ENTRY), target)
    jump = jnp.where(opening, jnp.minimum(pointer, 2), jump)
    restarts = restarts & ~opening
    words = kind | restarts.astype(jnp.int32) << 3 | jump << 4 | (target + _TARGET_OFFSET) << 12
    return words, 7 + 7 * (depth - 1)


def assemble(
    *,
    profile: Array,
    subnet: Array,
    exists: Array,
    pivots: Array,
    opens: Array,
    confidentiality: Array,
    isolation_cost: Array,
    links: Array,
    green_targets: Array,
    foothold: Array,
    jewel: Array,
    walk: tuple[Array, Array, Array, Array],
) -> Network:
    """Derives a network's masks and script from its plain description.

    Args:
        profile, subnet, links: as in `Network`.
        confidentiality, isolation_cost: i32 `[N]`, tenths of a point, at most 63.
        exists, pivots, green_targets: bool `[N]`.
        opens: bool `[S, S]`, `opens[a, b]`: a session in subnet a opens the way into b.
        foothold, jewel: i32 [].
        walk: `make_script`'s arguments.
    """
    num_subnets, num_hosts = opens.shape[0], profile.shape[0]
    in_subnet = (subnet[None, :] == jnp.arange(num_subnets, dtype=subnet.dtype)[:, None]) & exists[None, :]
    pivot_masks = pack(in_subnet & pivots[None, :])
    gateways = jnp.zeros_like(pivot_masks)
    for source in range(num_subnets):
        gateways = gateways | jnp.where(opens[source][:, None], pivot_masks[source][None, :], jnp.uint32(0))
    script, script_end = make_script(*walk)
    is_foothold = jnp.arange(num_hosts, dtype=jnp.int32) == foothold
    return Network(
        profile=profile.astype(jnp.uint32),
        subnet=subnet.astype(jnp.int8),
        confidentiality=_planes(confidentiality),
        isolation_cost=_planes(isolation_cost),
        links=links.astype(jnp.int16),
        members=pack(in_subnet),
        pivots=pivot_masks,
        gateways=gateways,
        hosts=pack(exists),
        entries=pack(in_subnet[0] & pivots & ~is_foothold),
        green_targets=pack(green_targets & exists),
        foothold=jnp.asarray(foothold, jnp.int32),
        jewel=jnp.asarray(jewel, jnp.int32),
        script=script,
        script_end=jnp.asarray(script_end, jnp.int32),
    )


def _planes(values: Array) -> Array:
    places = jnp.arange(VALUE_BITS, dtype=jnp.int32)
    return pack((values.astype(jnp.int32)[None, :] >> places[:, None]) & 1 == 1)


HOSTS = ("Defender", "Enterprise0", "Enterprise1", "Enterprise2", "Op_Host0", "Op_Host1", "Op_Host2", "Op_Server0",
         "User0", "User1", "User2", "User3", "User4")  # fmt: skip
SUBNETS = ("User", "Enterprise", "Operational")
_CAGE2_IMAGES = (
    "operator", "linux-server", "windows-server", "windows-server", "linux-server", "linux-server", "linux-server",
    "linux-server", "ftp-desktop", "ftp-desktop", "smb-desktop", "mail-desktop", "mail-ssh-desktop",
)  # fmt: skip


@functools.lru_cache
def cage2_network(
    rules: Rules, slots: tuple[int, ...] = tuple(range(13)), num_hosts: int = 13, num_subnets: int = 3
) -> Network:
    """The 13 hosts of CAGE Challenge 2, Scenario 2, in the order of its observation and of its 145 actions.

    Args:
        rules: some fixes change services of hosts.
        slots: where the 13 hosts stand.
        num_hosts, num_subnets: size that the network is padded to, so that a program for larger ones can play it.
    """
    if sorted(set(slots)) != sorted(slots) or len(slots) != 13 or not set(slots) <= set(range(num_hosts)):
        raise ValueError(f"slots must be 13 different places in 0 .. {num_hosts - 1}, got {slots}")
    if not 3 <= num_subnets <= MAX_SUBNETS:
        raise ValueError(f"num_subnets must lie in 3 .. {MAX_SUBNETS}, got {num_subnets}")
    known = {name: profile(image) for name, image in images(rules).items()}
    place = np.asarray(slots)

    def spread(values: Sequence[int], padding: int = 0, dtype: Any = np.int32) -> np.ndarray:
        out = np.full(num_hosts, padding, dtype)
        out[place] = values
        return out

    links = spread([-1] * 13, -1)
    links[place[[9, 10]]], links[place[[11, 12]]], links[place[3]] = slots[2], slots[1], slots[7]
    opens = np.zeros((num_subnets, num_subnets), bool)
    opens[0, 0] = opens[0, 1] = opens[1, 2] = True
    path, first, gateway = np.zeros((3, num_subnets), np.int32)
    path[:3], first[:3], gateway[:3] = (0, 1, 2), (0, ENTRY_LINK, slots[7]), (0, slots[3], 0)
    return jax.jit(assemble)(
        profile=spread([known[name] for name in _CAGE2_IMAGES], 0, np.uint32),
        subnet=spread([1] * 4 + [2] * 4 + [0] * 5),
        exists=spread([1] * 13, 0, bool),
        pivots=spread([0] + [1] * 12, 0, bool),  # a session on Defender opens nothing
        opens=opens,
        confidentiality=spread([1, 10, 10, 10, 1, 1, 1, 10, 0, 1, 1, 1, 1]),
        isolation_cost=spread([1, 5, 5, 5, 1, 1, 1, 50, 1, 1, 1, 1, 1]),
        links=links[:, None],
        green_targets=spread([0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1], 0, bool),
        foothold=np.int32(slots[8]),
        jewel=np.int32(slots[7]),
        walk=(path, first, gateway, np.int32(2)),
    )


def check_network(network: Network) -> None:
    """Refuses a concrete network that red cannot cross.

    Raises:
        ValueError: no chain of sessions leads from the foothold to the jewel, or a host named does not exist.
    """
    members, gateways = np.asarray(network.members), np.asarray(network.gateways)
    exists = np.asarray(network.hosts)
    for name in ("foothold", "jewel"):
        host = int(getattr(network, name))
        if not (0 <= host < network.num_hosts and exists[host // 32] >> (host % 32) & 1):
            raise ValueError(f"the network's {name} is host {host}, which does not exist")
    subnet = np.asarray(network.subnet)
    pivots = np.asarray(network.pivots)
    reached = {int(subnet[int(network.foothold)])}
    while True:
        held = np.bitwise_or.reduce(pivots[sorted(reached)], axis=0)
        opened = {s for s in range(len(members)) if (gateways[s] & held).any()} - reached
        if not opened:
            break
        reached |= opened
    target = int(subnet[int(network.jewel)])
    if target not in reached:
        raise ValueError(
            f"the network has no path from the foothold (host {int(network.foothold)}) to the jewel (host "
            f"{int(network.jewel)}, subnet {target}): subnets within reach are {sorted(reached)}"
        )
