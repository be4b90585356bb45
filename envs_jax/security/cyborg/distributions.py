"""Compares games played with this package's own random numbers with statistics of the original simulator."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.security.cyborg.bits import count, row
from envs_jax.security.cyborg.blue import RESTORE
from envs_jax.security.cyborg.catalogue import candidates
from envs_jax.security.cyborg.environment import Cyborg
from envs_jax.security.cyborg.network import EXPLOIT, HOSTS, IMPACT
from envs_jax.security.cyborg.policies import POLICIES
from envs_jax.security.cyborg.records import Setup
from envs_jax.security.cyborg.state import TRUE, State
from envs_jax.security.cyborg.traces import RED_AGENTS

Array = jax.Array

MAX_Z, USUAL_Z, USUAL_SHARE = 4.5, 3.0, 0.01
MIN_SAMPLE = 30  # means over fewer episodes are not compared: no normal approximation holds for them
MIN_CHI_SQUARE_P = 1e-3
SUBNET_RANGES = {"Operational": range(4, 8), "Enterprise": range(4), "User": range(9, 13)}


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number of `stats.json` beside ours."""

    cell: str
    name: str
    ours: float
    theirs: float
    z: float


@dataclasses.dataclass(frozen=True)
class Distributions:
    """The comparison at one key."""

    seed: int
    episodes: int  # per cell
    figures: tuple[Figure, ...]
    chi_square_p: float  # of the rule that chooses exploits
    not_checked: tuple[str, ...]

    @property
    def max_z(self) -> float:
        return max((abs(figure.z) for figure in self.figures), default=0.0)

    @property
    def share_unusual(self) -> float:
        return sum(abs(figure.z) > USUAL_Z for figure in self.figures) / max(len(self.figures), 1)

    @property
    def passed(self) -> bool:
        return self.max_z <= MAX_Z and self.share_unusual <= USUAL_SHARE and self.chi_square_p > MIN_CHI_SQUARE_P


def play(env: Cyborg, agent: Array, policy: Array, key: Array, num_steps: int) -> dict[str, Array]:
    """One episode of `num_steps` against red agent number `agent` with policy number `policy`: arrays `[T]`."""
    params = env.default_params

    def step(carry: tuple[State, Array, Array], now: Array) -> tuple[tuple[State, Array, Array], dict[str, Array]]:
        state, observation, used = carry
        key_policy, key_step = jax.random.split(jax.random.fold_in(key, now))
        options = [POLICIES[name](used, observation, now, key_policy) for name in POLICIES]
        action, used = (jax.lax.select_n(policy, *column) for column in zip(*options))
        after_blue, blue = env.blue_moves(state, action, params)
        choices, memory = env.sample(key_step, after_blue, params)
        new, shown = env.finish(state, dataclasses.replace(after_blue, memory=memory), blue, choices, params)
        ports = Setup(row(after_blue.setup, jnp.maximum(choices.red_host, 0))).ports
        options_left = candidates(ports)
        place = jax.lax.population_count(options_left & ((jnp.uint32(1) << jnp.maximum(choices.exploit, 0)) - 1))
        tried = (choices.red_kind == EXPLOIT) & (count(options_left[None]) >= 2)
        out = {
            "reward": shown.reward,
            "impact": (choices.red_kind == IMPACT) & (new.success == TRUE),
            "down": ~new.service_alive,
            "restore": blue.kind == RESTORE,
            "held": new.held[0],
            "rooted": new.rooted[0],
            "num_options": jnp.where(tried, count(options_left[None]), 0).astype(jnp.int8),
            "option": place.astype(jnp.int8),
        }
        return (new, shown.observation, used), out

    state, shown = env.reset(key, params)
    state = dataclasses.replace(state, red_agent=agent.astype(jnp.int8))
    steps = jnp.arange(num_steps, dtype=jnp.int32)
    return jax.lax.scan(step, (state, shown.observation, jnp.int32(0)), steps)[1]


def compare_distributions(cells: dict[str, Any], seeds: Sequence[int], episodes: int = 2000) -> list[Distributions]:
    """Plays every cell whose agents and policy are known, green asleep, and compares all its figures, once per seed."""
    reds, policies = list(RED_AGENTS), list(POLICIES)

    def plays(cell: dict[str, Any]) -> bool:
        return cell.get("red") in reds and cell.get("blue") in policies and cell.get("green") == "sleep"

    known = {name: cell for name, cell in cells.items() if plays(cell)}
    unknown = tuple(name for name in cells if name not in known)
    if not known:
        return [Distributions(seed, episodes, (), 1.0, unknown) for seed in seeds]
    env = Cyborg(red=tuple(RED_AGENTS[name] for name in reds))
    num_steps = max(int(cell["steps"]) for cell in known.values())
    agents = np.repeat([reds.index(cell["red"]) for cell in known.values()], episodes)
    blues = np.repeat([policies.index(cell["blue"]) for cell in known.values()], episodes)
    game = jax.jit(jax.vmap(lambda agent, blue, key: play(env, agent, blue, key, num_steps), out_axes=1))

    results = []
    for seed in seeds:
        keys = jax.random.split(jax.random.key(seed), len(agents))
        played = jax.tree.map(np.asarray, game(jnp.asarray(agents, jnp.int32), jnp.asarray(blues, jnp.int32), keys))
        figures: list[Figure] = []
        for index, (name, cell) in enumerate(known.items()):
            rows = slice(index * episodes, (index + 1) * episodes)
            figures += _figures(name, cell, {field: values[:, rows] for field, values in played.items()})
        results.append(Distributions(seed, episodes, tuple(figures), _exploit_rule(played), unknown))
    return results


def _figures(name: str, cell: dict[str, Any], played: dict[str, np.ndarray]) -> list[Figure]:
    theirs, ours = int(cell["episodes"]), played["reward"].shape[1]
    figures = []

    def mean(label: str, sample: np.ndarray, value: float, error: float) -> None:
        own = float(sample.std(ddof=1) / math.sqrt(len(sample))) if len(sample) > 1 else 0.0
        figures.append(_figure(name, label, float(sample.mean()), value, math.hypot(own, error)))

    def share(label: str, hits: Any, value: float) -> None:
        pooled = (hits.sum() + value * theirs) / (ours + theirs)
        error = math.sqrt(max(pooled * (1 - pooled), 0.0) * (1 / ours + 1 / theirs))
        figures.append(_figure(name, label, float(hits.mean()), value, error))

    for label, record in cell.items():
        if label.startswith("return_"):
            sample = played["reward"][: int(label.split("_")[1])].astype(np.float64).sum(0)
            mean(label, sample, record["mean"], record["se"])
        elif label in ("first_successful_impact", "first_step_otservice_down"):
            events = played["impact" if "impact" in label else "down"]
            happened = events.any(0)
            share(f"{label} share", happened, record["fraction_of_episodes"])
            if min(happened.sum(), record["fraction_of_episodes"] * theirs) >= MIN_SAMPLE:
                mean(f"{label} step", events.argmax(0)[happened] + 1.0, record["mean_step"], record["se"])
        elif label.startswith("access_at_step_"):
            held, rooted = (played[field][int(label.split("_")[-1]) - 1] for field in ("held", "rooted"))
            for host, shares in record.items():
                place = HOSTS.index(host)
                any_, root = (held >> place & 1).astype(bool), (rooted >> place & 1).astype(bool)
                for level, hits in (("none", ~any_), ("user", any_ & ~root), ("privileged", root)):
                    share(f"{label} {host} {level}", hits, shares[level])
        elif label.startswith("furthest_subnet_at_step_"):
            held = played["held"][int(label.split("_")[-1]) - 1]
            left = np.ones(ours, bool)
            for subnet, hosts in SUBNET_RANGES.items():
                reached = left & (held & sum(1 << host for host in hosts) != 0)
                share(f"{label} {subnet}", reached, record.get(subnet, 0.0))
                left &= ~reached
            share(f"{label} User0_only", left, record.get("User0_only", 0.0))
    return figures


def _figure(cell: str, name: str, ours: float, theirs: float, error: float) -> Figure:
    # Statistics are printed with three or four decimals; without spread, that is all that can be compared.
    z = (ours - theirs) / error if error > 0 else 0.0 if abs(ours - theirs) < 1e-3 else math.inf
    return Figure(cell, name, ours, theirs, z)


def _exploit_rule(played: dict[str, np.ndarray]) -> float:
    """P value of a chi-square test: the best of several exploits in 3 of 4 cases, else one of the others uniformly."""
    statistic, freedom = 0.0, 0
    for options in range(2, 9):
        chosen = played["option"][played["num_options"] == options]
        expected = len(chosen) * np.array([0.75] + [0.25 / (options - 1)] * (options - 1))
        if expected.min() < 5:  # too few for the approximation
            continue
        observed = np.bincount(chosen, minlength=options)
        statistic += float(((observed - expected) ** 2 / expected).sum())
        freedom += options - 1
    return float(jax.scipy.special.gammaincc(freedom / 2, statistic / 2)) if freedom else 1.0
