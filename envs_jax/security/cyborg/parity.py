"""Replays recorded games of the original simulator and compares every field of every step.

Each row is played by the functions that play the game for training: red proposes, the recorded host and outcomes are
injected, and what results must equal the record. Replay needs no policy, so any blue policy and any seed will do.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.security.cyborg import chance, red
from envs_jax.security.cyborg.bits import has, unpack
from envs_jax.security.cyborg.distributions import (
    MAX_Z,
    USUAL_SHARE,
    USUAL_Z,
    Distributions,
    compare_distributions,
)
from envs_jax.security.cyborg.environment import Cyborg
from envs_jax.security.cyborg.records import PRIVILEGED, REMOVABLE, STICKY, Sessions, Setup
from envs_jax.security.cyborg.rewards import CyborgParams
from envs_jax.security.cyborg.state import Choices, State
from envs_jax.security.cyborg.traces import INPUTS, MORE_RESULTS, RED_AGENTS, RESULTS, Traces, read_traces

Array = jax.Array

REWARD_TOLERANCE = 1e-6
HOST_FIELDS = (
    "n_user_removable", "n_user_sticky", "n_priv", "decoys", "red_ports", "malware_files", "access", "bt_activity",
    "bt_compromised",
)  # fmt: skip


def replay(env: Cyborg, params: CyborgParams, agent: Array, rows: dict[str, Array]) -> dict[str, Array]:
    """Plays one recorded episode.

    Args:
        env: an environment whose red agents are those of the record.
        agent: i32 [], which of them plays.
        rows: the record's `INPUTS`, each i32 `[T]`.

    Returns:
        What the environment makes of it, named as in the record, each `[T, ...]`.
    """

    def step(state: State, row: dict[str, Array]) -> tuple[State, dict[str, Array]]:
        after_blue, blue = env.blue_moves(state, row["blue_action"], params)
        streams = [jnp.uint32(0)] * red.NUM_STREAMS
        proposal = chance.propose(after_blue, env.agents, params.network, env.rules, streams)
        memory = red.note(proposal, row["red_host"], env.agents)
        choices = Choices(
            green_scans=row["green_action"],
            green_host=row["green_host"],
            red_kind=row["red_class"],
            red_host=row["red_host"],
            red_subnet=row["red_subnet"],
            exploit=row["red_exploit"],
            detected=row["red_detected"],
            pick_removable=row["red_esc_removable"],
        )
        new, shown = env.finish(state, dataclasses.replace(after_blue, memory=memory), blue, choices, params)
        sessions, setup, memory = Sessions(new.sessions), Setup(new.setup), new.memory
        hosts = functools.partial(unpack, num_hosts=env.num_hosts)
        host_named = (proposal.candidates != 0).any()
        in_candidates = has(proposal.candidates, jnp.maximum(row["red_host"], 0))
        return new, {
            "obs": shown.observation.reshape(-1, 4).astype(jnp.uint8),
            "reward": shown.reward,
            "red_success": new.success,
            "n_user_removable": sessions.count(REMOVABLE),
            "n_user_sticky": sessions.count(STICKY),
            "n_priv": sessions.count(PRIVILEGED),
            "decoys": setup.decoys,
            "red_ports": setup.ports,
            "red_known_ip": hosts(new.known_ip),
            "red_known_host": hosts(new.known_host),
            "red_known_subnet": new.known_subnet,
            "red_ot_known": new.service_known,
            "ot_alive": new.service_alive,
            "ot_service_active": new.service_active,
            "ot_pid_linked": new.service_linked,
            "bline": jnp.stack([memory.pointer.astype(jnp.uint32), memory.history[0]]),
            "meander_subnets": memory.scanned_subnets,
            "meander_hosts": hosts(jnp.stack([memory.scanned, memory.exploited, memory.escalated, memory.mapped])),
            "red_choice_mask": hosts(proposal.candidates),
            "red_class": proposal.kind,
            "red_subnet": proposal.subnet,
            "red_host": jnp.where(host_named, in_candidates, row["red_host"] < 0),
            "blue_success": blue.success,
            "malware_files": hosts(new.malware),
            "access": jnp.where(sessions.privileged, 2, sessions.any.astype(jnp.int32)),
            "rew_conf": shown.info["confidentiality"],
            "rew_avail": shown.info["availability"],
            "rew_cost": shown.info["action_cost"],
            "bt_activity": hosts(new.active).astype(jnp.int32) + hosts(new.alarmed),
            "bt_compromised": hosts(new.belief_low) + 2 * hosts(new.belief_high).astype(jnp.int32),
            "tt_scanned": setup.ports != 0,
        }

    return jax.lax.scan(step, env.initial_state(params, agent), rows)[1]


def as_recorded(
    traces: Traces, played: dict[str, np.ndarray], slots: Sequence[int] = tuple(range(13))
) -> dict[str, np.ndarray]:
    """The replay in the layout of the record: host sets as numbers, one memory of five numbers for all agents.

    Args:
        traces: what was replayed.
        played: `replay`'s results, each `[T, B, ...]`.
        slots: where the replay's network keeps the 13 hosts.
    """
    places = np.asarray(slots)
    powers = 1 << np.arange(13)
    out = dict(played)
    for name in ("red_known_ip", "red_known_host", "red_choice_mask", "tt_scanned"):
        out[name] = played[name][..., places] @ powers
    for name in HOST_FIELDS:
        out[name] = played[name][..., places]
    out["obs"] = played["obs"][..., places, :].reshape(*played["obs"].shape[:2], 52)
    names = [RED_AGENTS[name] for name in traces.legend["red_agents"]]
    agent = np.asarray(names)[traces.arrays["ep_red"]][None, :, None]
    meander = np.concatenate(
        [played["meander_subnets"][..., None], played["meander_hosts"][..., places] @ powers], axis=-1
    )
    bline = np.pad(played["bline"], [(0, 0), (0, 0), (0, 3)])
    out["red_agent"] = np.where(agent == "bline", bline, np.where(agent == "meander", meander, 0))
    return out


def compare(traces: Traces, played: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """bool `[T, B]` by field: where a replay, given `as_recorded`, differs from the record."""
    mask = traces.mask()
    wrong = {}
    for name in (*RESULTS, *MORE_RESULTS, "red_class", "red_subnet", "red_host"):
        if name not in traces.arrays:
            continue
        mine, theirs = played[name], traces.padded(name)
        if name == "red_host":  # the replay says whether the recorded host was among its candidates
            different = ~mine.astype(bool)
        elif name == "malware_files":
            different = (mine > 0) != (theirs > 0)
        elif theirs.dtype.kind == "f":
            different = ~(np.abs(mine.astype(np.float64) - theirs.astype(np.float64)) <= REWARD_TOLERANCE)
        else:
            different = mine.astype(np.int64) != theirs.astype(np.int64)
        different = different.reshape(*mask.shape, -1).any(-1)
        wrong[name] = different & mask
    return wrong


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """What a folder of traces was checked for, and the outcome."""

    episodes: int
    transitions: int
    mismatches: dict[str, int]  # by field: rows that differ
    examples: dict[str, tuple[int, int]]  # by field: the first (episode, step) that differs
    distributions: tuple[Distributions, ...]  # one per seed; empty without `stats.json`
    not_checked: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not any(self.mismatches.values()) and all(part.passed for part in self.distributions)

    def __str__(self) -> str:
        lines = [f"{self.episodes} episodes, {self.transitions} transitions and red decisions replayed"]
        lines += [f"  {'field':<20}{'checked':>10}{'mismatches':>12}"]
        for name, number in self.mismatches.items():
            where = "   first at episode {}, step {}".format(*self.examples[name]) if number else ""
            lines.append(f"  {name:<20}{self.transitions:>10}{number:>12}{where}")
        for part in self.distributions:
            lines.append(
                f"distributions, seed {part.seed}: {len(part.figures)} figures from {part.episodes} episodes per cell, "
                f"largest |z| {part.max_z:.2f} (bar {MAX_Z}), {part.share_unusual:.2%} above {USUAL_Z:g} "
                f"(bar {USUAL_SHARE:.0%}), exploit rule p = {part.chi_square_p:.3f}: {verdict(part.passed)}"
            )
            worst = sorted(part.figures, key=lambda figure: -abs(figure.z))[:3]
            lines += [f"  {f.cell} {f.name}: {f.ours:.4g}, original {f.theirs:.4g}, z {f.z:+.2f}" for f in worst]
        lines += [f"not checked: {what}" for what in self.not_checked]
        return "\n".join([*lines, verdict(self.passed)])


def verdict(passed: bool) -> str:
    return "PASS" if passed else "FAIL"


def replay_traces(traces: Traces) -> dict[str, np.ndarray]:
    """All episodes at once, whatever their red agents, policies and lengths, in the layout of the record."""
    env = trace_environment(traces)
    params = env.default_params
    rows = {name: jnp.asarray(traces.padded(name), jnp.int32) for name in INPUTS}
    play_all = jax.jit(jax.vmap(lambda agent, episode: replay(env, params, agent, episode), (0, 1), 1))
    played = play_all(jnp.asarray(traces.arrays["ep_red"], jnp.int32), rows)
    return as_recorded(traces, jax.tree.map(np.asarray, played))


def trace_environment(traces: Traces) -> Cyborg:
    """The environment that a record's episodes were played in; its red agents are numbered as in the record."""
    return Cyborg(red=tuple(RED_AGENTS[name] for name in traces.legend["red_agents"]), green=True)


def check_folder(folder: str | Path, *, seeds: Sequence[int] = (0, 1, 2), episodes: int = 2000) -> ParityReport:
    """Checks every trace of a folder, and the distributions where it has statistics.

    Args:
        folder: holds `traces.npz` and `legend.json`, and perhaps `stats.json`.
        seeds: one comparison of distributions for each; empty to skip it.
        episodes: played per cell of the statistics and seed.

    Returns:
        The report; print it, and read `passed`.

    Raises:
        ValueError: a file is missing or of another format.

    Example:
        >>> report = check_folder("tests/golden/cyborg", seeds=())
        >>> report.passed
        True
    """
    traces = read_traces(folder)
    wrong = compare(traces, replay_traces(traces))
    examples = {}
    for name, where in wrong.items():
        if where.any():
            episode, step = np.argwhere(where.T)[0]
            examples[name] = (int(episode), int(step))
    parts: list[Distributions] = []
    not_checked: list[str] = []
    if traces.stats is None:
        not_checked.append("distributions (no stats.json)")
    else:
        parts = compare_distributions(traces.stats["cells"], seeds, episodes)
        cells = parts[0].not_checked if parts else tuple(traces.stats["cells"])
        not_checked += [f"distribution of {cell}" for cell in cells]
    return ParityReport(
        episodes=traces.num_episodes,
        transitions=int(traces.mask().sum()),
        mismatches={name: int(where.sum()) for name, where in wrong.items()},
        examples=examples,
        distributions=tuple(parts),
        not_checked=tuple(not_checked),
    )
