"""What happened in an episode: both sides' moves by name, the hosts over time, and the timeline of them. Host only."""

from __future__ import annotations

import dataclasses

import numpy as np

from envs_jax.security.cyborg.actions import KINDS
from envs_jax.security.cyborg.network import DISCOVER, HOSTS, IMPACT, RED_KINDS, SUBNETS, Network
from envs_jax.security.cyborg.records import Sessions, Setup
from envs_jax.security.cyborg.state import TRUE
from envs_jax.timeline import Curve, Kind, Played, Timeline, Track

ALL_HOSTS = 40  # up to so many, every host has its bar; of larger networks those where something happened
MAX_BARS = 60
PARTS = ("confidentiality", "availability", "action_cost", "isolation_cost")
COUNTS = ("hosts_held", "hosts_rooted", "hosts_isolated")
ANSWERS = ("no", "yes", "unknown")  # by `state.FALSE`, `TRUE`, `UNKNOWN`

KINDS_SHOWN = {
    "free": Kind("", "#e8eaed", "."),
    "user": Kind("red: user session", "#f5b041", "u"),
    "privileged": Kind("red: privileged", "#e05a50", "P"),
    "isolated": Kind("isolated", "#aac4e6", "i"),
    "isolated, held": Kind("isolated with red inside", "#9a86c4", "I"),
    "up": Kind("service up", "#8ccfa4", "+"),
    "down": Kind("service down", "#202124", "-"),
    "clean": Kind("", "#f6f7f8", "."),
    "suspected": Kind("blue suspects", "#eadcf6", "?"),
    "believed user": Kind("blue believes user", "#cfb0e6", "u"),
    "believed privileged": Kind("blue believes privileged", "#b07fd6", "P"),
    "scan": Kind("scan", "#5c0f0a", "S", mark=True),
    "exploit": Kind("exploit", "#5c0f0a", "X", mark=True),
    "failed exploit": Kind("failed exploit", "#5c0f0a", "x", mark=True),
    "escalate": Kind("escalate", "#5c0f0a", "E", mark=True),
    "failed escalate": Kind("failed escalate", "#5c0f0a", "e", mark=True),
    "impact": Kind("impact", "#f4511e", "!", mark=True),
    "failed impact": Kind("failed impact", "#5c0f0a", "F", mark=True),
    "Analyse": Kind("Analyse", "#0b3b8c", "A", mark=True),
    "Remove": Kind("Remove", "#0b3b8c", "M", mark=True),
    "Decoy": Kind("Decoy", "#0b3b8c", "D", mark=True),
    "failed Decoy": Kind("failed Decoy", "#0b3b8c", "d", mark=True),
    "Restore": Kind("Restore", "#0b3b8c", "R", mark=True),
    "Patch": Kind("Patch", "#0b3b8c", "P", mark=True),
    "Isolate": Kind("Isolate", "#0b3b8c", "I", mark=True),
    "Unisolate": Kind("Unisolate", "#0b3b8c", "U", mark=True),
}
ACCESS = ("free", "user", "privileged")
BELIEFS = ("clean", "suspected", "believed user", "believed privileged")
_RED_MARKS = ("", "", "scan", "exploit", "escalate", "impact")  # by kind of red's action


@dataclasses.dataclass(frozen=True)
class Move:
    """One side's action of a step."""

    kind: int  # blue: -1 Sleep or Monitor, else of `actions.KINDS`; red: of `network.RED_KINDS`
    host: int  # -1 for none
    subnet: int  # of DiscoverRemoteSystems, else -1
    success: int  # FALSE, TRUE, UNKNOWN
    name: str  # such as "Restore Op_Server0"

    @property
    def worked(self) -> bool:
        return self.success == TRUE


def host_name(network: Network, host: int) -> str:
    """The challenge's name of a host, or for other networks `"subnet.number"`."""
    if network.num_hosts == len(HOSTS):
        return HOSTS[host]
    subnet = np.asarray(network.subnet)
    return f"{subnet[host]}.{int(np.sum(subnet[:host] == subnet[host]))}"


def subnet_name(network: Network, subnet: int) -> str:
    return SUBNETS[subnet] if network.num_hosts == len(HOSTS) else f"subnet {subnet}"


def members(mask: object, num_hosts: int) -> np.ndarray:
    """bool `[..., N]` from a host set u32 `[..., W]`."""
    words, hosts = np.asarray(mask), np.arange(num_hosts)
    return words[..., hosts // 32] >> (hosts % 32).astype(np.uint32) & 1 == 1


def moves(played: Played) -> list[tuple[Move, Move]]:
    """Blue's and red's move of each of the T steps."""
    network, info = played.params.network, _info(played)
    blue = ("blue_kind", "blue_host", "blue_success")
    red = ("red_kind", "red_host", "red_subnet", "red_success")
    rows = zip(*(info[name].tolist() for name in blue + red))
    found = []
    for kind, host, success, red_kind, red_host, red_subnet, red_success in rows:
        name = "Sleep" if kind < 0 else f"{KINDS[kind]} {host_name(network, host)}"
        target = subnet_name(network, red_subnet) if red_kind == DISCOVER else ""
        target = host_name(network, red_host) if red_host >= 0 else target
        red_name = f"{RED_KINDS[red_kind]} {target}".strip()
        found.append((Move(kind, host, -1, success, name), Move(red_kind, red_host, red_subnet, red_success, red_name)))
    return found


def base_rewards(played: Played) -> np.ndarray:
    """f64 `[T]`: blue's reward of each step in mode "base", whoever learns."""
    return _info(played)["base_reward"].astype(np.float64)


def timeline(played: Played) -> Timeline:
    """A pair of bars per host: red's access with red's actions, below it what blue believes with blue's.

    Above them the running reward and the jewel's service. Capital letters are actions that worked.
    """
    network, states, both = played.params.network, played.states, moves(played)
    num_hosts, length = network.num_hosts, played.length
    sessions = Sessions(states.sessions[1:])
    access = np.where(sessions.privileged, 2, sessions.any)  # [T, N]
    isolated = members(np.asarray(states.isolated)[1:], num_hosts)
    low, high = (members(np.asarray(mask)[1:], num_hosts) for mask in (states.belief_low, states.belief_high))
    belief = low + 2 * high
    rewards, info, alive = base_rewards(played), _info(played), np.asarray(states.service_alive)[1:]

    tracks: list[Track | Curve] = [
        Curve("total reward", np.cumsum(rewards).tolist(), "#202124"),
        Track("service", np.where(alive, "up", "down").tolist(), _service_marks(both), height=14, gap=6),
    ]
    last_subnet = -1
    for host in _hosts_shown(network, access, both):
        cells = [
            ("isolated, held" if level else "isolated") if away else ACCESS[level]
            for level, away in zip(access[:, host], isolated[:, host])
        ]
        red_marks = [
            (step, ("" if red.worked else "failed ") + _RED_MARKS[red.kind])
            for step, (_, red) in enumerate(both)
            if red.host == host and red.kind not in (DISCOVER, IMPACT) and _RED_MARKS[red.kind]
        ]
        blue_marks = [(step, _blue_mark(blue)) for step, (blue, _) in enumerate(both) if blue.host == host]
        subnet = int(np.asarray(network.subnet)[host])
        name = host_name(network, host)
        tracks.append(Track(name, cells, red_marks, height=13, gap=12 if subnet != last_subnet else 4))
        tracks.append(Track("", [BELIEFS[level] for level in belief[:, host]], blue_marks, height=11, gap=0))
        last_subnet = subnet

    lost = np.flatnonzero(~alive)
    service = f"service down for {len(lost)} of {length} steps" if len(lost) else "service never down"
    title = (
        f"CybORG    {length} steps, reward {rewards.sum():.1f}, at most {access.astype(bool).sum(1).max()} hosts held"
    )
    columns = {
        "step": np.arange(length),
        "blue_action": [blue.name for blue, _ in both],
        "blue_success": [ANSWERS[blue.success] for blue, _ in both],
        "red_action": [red.name for _, red in both],
        "red_success": [ANSWERS[red.success] for _, red in both],
        "reward": rewards,
        **{name: info[name] for name in PARTS + COUNTS},
        "service_alive": alive.astype(int),
        "access": access,
        "belief": belief,
        "decoys": np.bitwise_count(np.asarray(Setup(states.setup[1:]).decoys)),
        "isolated": isolated.astype(int),
    }
    return Timeline(f"{title}, {service}", KINDS_SHOWN, tracks, columns)


def _info(played: Played) -> dict[str, np.ndarray]:
    """The game's info, `[T]` each: of two agents both hold the same."""
    info = {name: np.asarray(leaf) for name, leaf in played.time_steps.info.items()}
    return {name: leaf[:, 0] if leaf.ndim == 2 else leaf for name, leaf in info.items()}


def _blue_mark(move: Move) -> str:
    name = KINDS[move.kind]
    if not name.startswith("Decoy"):
        return name
    return "Decoy" if move.worked else "failed Decoy"


def _service_marks(both: list[tuple[Move, Move]]) -> list[tuple[int, str]]:
    return [
        (step, "impact" if red.worked else "failed impact") for step, (_, red) in enumerate(both) if red.kind == IMPACT
    ]


def _hosts_shown(network: Network, access: np.ndarray, both: list[tuple[Move, Move]]) -> list[int]:
    """Hosts that exist, by subnet; of many only those that red held or that somebody dealt with."""
    exists = members(network.hosts, network.num_hosts)
    subnet = np.asarray(network.subnet)
    hosts = sorted(np.flatnonzero(exists).tolist(), key=lambda host: (subnet[host], host))
    if len(hosts) <= ALL_HOSTS:
        return hosts
    met = set(np.flatnonzero(access.any(axis=0))) | {move.host for pair in both for move in pair}
    return [host for host in hosts if host in met][:MAX_BARS]
