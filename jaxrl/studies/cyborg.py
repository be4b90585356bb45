"""Defenders of CybORG CAGE 2, with and without the operator actions Patch, Isolate and Unisolate.

Tholl, El Mezouar, Taylor and Al Mallah (arXiv 2508.19278) extend CAGE 2 by the three actions, modify reward and
features, and state that the extended environment still gives informative training signals to DQN and PPO agents. No
figure of theirs is known to us; what the actions do, what they cost, and the rewards and features are our choice. All
arms are scored by the base reward of the rules they play by, on the same episodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import envs_jax
from envs_jax.security.cyborg import scripted
from envs_jax.security.cyborg.actions import KINDS
from envs_jax.security.cyborg.blue import ISOLATE, PATCH, UNISOLATE
from envs_jax.timeline import save
from jaxrl.parts.roles import take
from jaxrl.results.figures import draw_bars
from jaxrl.results.plot import curve, draw_curves
from jaxrl.results.stats import Interval, mean_interval, stratified_bootstrap
from jaxrl.rollout import episodes
from jaxrl.run.config import RunConfig, load_config
from jaxrl.run.program import load_data, make_algorithm, make_env
from jaxrl.run.replay import play_episode
from jaxrl.studies import Study
from jaxrl.studies.laboratory import Arm, Arrays, Laboratory, over_seeds
from jaxrl.studies.report import Claim, Report

REDS = ("bline", "meander")  # whom every defender is measured against
LENGTHS = (30, 50, 100)
CONDITIONS = tuple((red, length) for red in REDS for length in LENGTHS)
MAIN = CONDITIONS.index(("bline", 100))
WINNER = -36.9  # the challenge's winning entry against B_line in 100 steps, scored on the present code of the original
NEW_KINDS = (PATCH, ISOLATE, UNISOLATE)


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the study is."""

    num_seeds: int
    num_episodes: int  # per seed and condition
    shorter: int  # the configurations' updates are divided by this
    algorithms: tuple[str, ...]
    reds: tuple[str, ...]  # that defenders are trained against
    rewards: tuple[str, ...]  # of the factorial with and without the three actions, against B_line
    observations: tuple[str, ...]
    factorial: tuple[str, ...]  # algorithms of the factorial


SCALES = {
    "smoke": Scale(2, 64, 10, ("ppo", "dqn"), ("bline",), ("base",), ("challenge",), ("ppo",)),
    "cpu": Scale(
        4, 512, 1, ("ppo", "dqn"), ("bline", "meander", "mix"), ("base", "shaped", "potential"),
        ("challenge", "extended"), ("ppo",),
    ),
    "full": Scale(
        10, 1024, 1, ("ppo", "dqn"), ("bline", "meander", "mix"), ("base", "shaped", "potential"),
        ("challenge", "extended"), ("ppo", "dqn"),
    ),
}  # fmt: skip


def arms_of(scale: Scale) -> dict[str, RunConfig]:
    """The defenders by name: each configuration as it is shipped, then the factorial against B_line."""
    arms = {
        f"{algorithm} {red}": _shortened(f"{algorithm}_cyborg_{red}", scale, [])
        for algorithm in scale.algorithms
        for red in scale.reds
    }
    for algorithm in scale.factorial:
        for reward in scale.rewards:
            for observation in scale.observations:
                for extension in (False, True):
                    overrides = [
                        f"env.reward={reward}",
                        f"env.observation={observation}",
                        f"env.extension={str(extension).lower()}",
                        "env.actions=full",
                    ]
                    arms[factorial_name(algorithm, reward, observation, extension)] = _shortened(
                        f"{algorithm}_cyborg_bline", scale, overrides
                    )
    return arms


def factorial_name(algorithm: str, reward: str, observation: str, extension: bool) -> str:
    return f"{algorithm}, {reward} reward, {observation} features, {'14' if extension else '11'} kinds of action"


def _shortened(name: str, scale: Scale, overrides: Sequence[str]) -> RunConfig:
    run = load_config(name)
    num_updates = max(run.num_updates // scale.shorter // 20 * 20, 20)
    return load_config(name, [*overrides, f"num_updates={num_updates}", "evaluation.num_episodes=64"])


def _settings(run: RunConfig) -> str:
    """All that decides what is trained."""
    options = {"reward": "base", "extension": False, "observation": "challenge", "actions": "full", **run.env.options}
    env = dataclasses.replace(run.env, options=dict(sorted(options.items())))
    return repr(dataclasses.replace(run, env=env, source={}, name="", num_devices=1))


def measure(run: RunConfig, states: Any, scale: Scale) -> Arrays:
    """Plays every condition: returns of the base reward, isolation and use of actions, `[S, conditions, ...]`."""
    agent, data = make_algorithm(run), load_data(run)
    policies = jax.device_get(jax.jit(jax.vmap(agent.policy, (0, None)))(states, data))  # type: ignore[arg-type]
    options = {key: value for key, value in run.env.options.items() if key != "red"}
    env, params = envs_jax.make(run.env.name, **options, red=list(REDS))
    play = partial(_play, env, (agent.start, agent.act), params, scale.num_episodes, run.evaluation.deterministic)
    return over_seeds(play, (0,), policies)


def _play(env: Any, policy: Any, params: Any, num_episodes: int, deterministic: bool, weights: Any) -> Any:
    """One policy in every condition."""
    key_reset, key_noise = jax.random.split(jax.random.key(0))
    reset_keys = jax.random.split(key_reset, num_episodes)

    def condition(red: jax.Array, length: jax.Array) -> dict[str, jax.Array]:
        chosen = dataclasses.replace(params, red_weights=jax.nn.one_hot(red, len(REDS)), max_steps=length)

        def record(state: Any, before: Any, action: Any, after: Any, extras: Any) -> tuple:
            return after.info["hosts_isolated"] > 0, after.info["blue_kind"]

        played = episodes(
            env, policy, weights, chosen, reset_keys, key_noise, max(LENGTHS), deterministic=deterministic,
            record=record,
        )  # fmt: skip
        (isolated, kinds), steps = played.record, jnp.sum(played.mask)  # type: ignore[misc,arg-type]
        used = jnp.arange(-1, len(KINDS))  # -1: Sleep or Monitor
        counts = jnp.sum(played.mask[..., None] & (kinds[..., None] == used[None, None, :]), axis=(0, 1))  # type: ignore[index]
        parts = ("base_reward", "confidentiality", "availability", "action_cost", "isolation_cost")
        sums = {name: jnp.mean(played.info[name] * played.episode_length) for name in parts}
        return sums | {"isolated": jnp.sum(played.mask & isolated) / steps, "kinds": counts / steps}

    reds, lengths = (jnp.asarray(column) for column in zip(*[(REDS.index(red), length) for red, length in CONDITIONS]))
    return jax.lax.map(lambda at: condition(*at), (reds, lengths.astype(jnp.int32)))


def run(laboratory: Laboratory, scale: Scale, report: Report) -> None:
    """Trains all defenders, scores them, and compares playing with and without the three actions."""
    arms: dict[str, Arm] = {}
    measured: dict[str, Arrays] = {}
    for name, arm_run in arms_of(scale).items():
        same = next((other for other in arms if _settings(arms[other].run) == _settings(arm_run)), None)
        if same is not None:  # a corner of the factorial that is shipped
            measured[name] = measured[same]
            continue
        arms[name] = laboratory.train(name, arm_run, scale.num_seeds)
        measured[name] = laboratory.measure(name, partial(measure, arm_run, arms[name].states, scale))
    known = laboratory.measure("known defenders", lambda: known_defenders(scale))
    rows: list[dict[str, Any]] = [
        {"defender": name, **_by_condition(values["base_reward"])} for name, values in measured.items()
    ]
    rows += [{"defender": name, **_by_condition(values[None])} for name, values in known.items()]
    report.table(
        "returns",
        rows,
        "Mean return of the base reward by red agent and number of steps. Trained defenders: the configuration's red "
        f"agent or B_line, 100 steps; {scale.num_seeds} seeds of {scale.num_episodes} common episodes each.",
    )
    rows = [_behaviour(name, values) for name, values in measured.items()]
    report.table(
        "behaviour", rows, "Against B_line in 100 steps: where the reward is lost, and what is done, in % of steps."
    )
    for algorithm in scale.algorithms:
        _claim_of_learning(report, algorithm, measured[f"{algorithm} bline"], scale)
    for algorithm in scale.factorial:
        _extension(report, algorithm, measured, scale)
    _figures(laboratory, report, arms, measured, known)


def known_defenders(scale: Scale) -> Arrays:
    """Returns of defenders that learn nothing, f32 `[conditions]` each: Sleep, random, and one that knows B_line."""

    def no_memory(policy_params: Any, key: Any) -> tuple:
        return ()

    def sleep(policy_params: Any, carry: Any, time_step: Any, key: Any, deterministic: bool) -> tuple:
        return jnp.int32(0), carry, {}

    def random(policy_params: Any, carry: Any, time_step: Any, key: Any, deterministic: bool) -> tuple:
        return jax.random.randint(key, (), 0, 145), carry, {}

    env, params = envs_jax.make("cyborg-cage2", red=list(REDS))
    policies = {
        "sleep": (no_memory, sleep),
        "random": (no_memory, random),
        "scripted, knows B_line": (scripted.start, scripted.act),
    }
    play = {
        name: jax.jit(partial(_play, env, policy, params, scale.num_episodes, True))
        for name, policy in policies.items()
    }
    return {name: function(())["base_reward"] for name, function in play.items()}


def _by_condition(returns: np.ndarray) -> dict[str, Interval]:
    return {f"{red} {length}": mean_interval(returns[:, i]) for i, (red, length) in enumerate(CONDITIONS)}


def _behaviour(name: str, values: Arrays) -> dict[str, Any]:
    at = {key: array[:, MAIN] for key, array in values.items()}
    row: dict[str, Any] = {"defender": name}
    for part in ("confidentiality", "availability", "action_cost", "isolation_cost"):
        row[part.replace("_", " ")] = float(at[part].mean())
    kinds = 100 * at["kinds"].mean(axis=0)
    row |= {"a host isolated %": mean_interval(100 * at["isolated"]), "idle %": float(kinds[0])}
    decoys = [i + 1 for i, kind in enumerate(KINDS) if kind.startswith("Decoy")]
    row |= {"decoys %": float(kinds[decoys].sum())}
    others = ("Analyse", "Remove", "Restore", "Patch", "Isolate", "Unisolate")
    return row | {f"{kind} %": float(kinds[KINDS.index(kind) + 1]) for kind in others}


def _claim_of_learning(report: Report, algorithm: str, values: Arrays, scale: Scale) -> None:
    bar = {"ppo": -30.0, "dqn": -45.0}[algorithm]
    value = mean_interval(values["base_reward"][:, MAIN])
    report.claims.append(
        Claim(
            f"{algorithm.upper()} learns to defend against B_line in 100 steps", f"no figure; winning entry {WINNER}",
            f"{value.estimate:.1f} [{value.low:.1f}, {value.high:.1f}]", f"at least {bar:g}",
            bool(value.estimate >= bar) if scale.shorter == 1 else None,
        )
    )  # fmt: skip


def _extension(report: Report, algorithm: str, measured: dict[str, Arrays], scale: Scale) -> None:
    """What the three actions change, reward by reward and with either features."""
    rows = []
    for reward in scale.rewards:
        for observation in scale.observations:
            without, given = (
                measured[factorial_name(algorithm, reward, observation, extension)]["base_reward"][:, MAIN]
                for extension in (False, True)
            )
            gain = stratified_bootstrap(lambda ours, theirs: ours.mean() - theirs.mean(), given, without)
            rows.append(
                {
                    "trained for": reward, "features": observation, "without": mean_interval(without),
                    "with": mean_interval(given), "gain": gain,
                }
            )  # fmt: skip
    report.table(
        f"three_actions_{algorithm}",
        rows,
        "Mean base return against B_line in 100 steps, without and with Patch, Isolate and Unisolate.",
    )
    best = {key: max(rows, key=lambda row: row[key].estimate) for key in ("without", "with")}
    difference = best["with"]["with"].estimate - best["without"]["without"].estimate
    report.claims.append(
        Claim(
            f"With the three actions {algorithm.upper()} does at least as well", "no figure",
            f"best with {best['with']['with'].estimate:.1f} ({best['with']['trained for']} reward, "
            f"{best['with']['features']} features), best without {best['without']['without'].estimate:.1f}: "
            f"{difference:+.1f}", "difference >= 0", bool(difference >= 0) if scale.shorter == 1 else None,
        )
    )  # fmt: skip


def _figures(
    laboratory: Laboratory, report: Report, arms: dict[str, Arm], measured: dict[str, Arrays], known: Arrays
) -> None:
    folder = laboratory.out / "figures"
    groups = {
        name: {
            f"{red} 100": mean_interval(measured[name]["base_reward"][:, CONDITIONS.index((red, 100))]) for red in REDS
        }
        for name in arms
        if "," not in name
    }
    draw_bars(groups, folder / "returns.png", ylabel="base return, 100 steps", line=WINNER)
    report.figure("returns.png", f"Shipped configurations; the line is the winning entry against B_line ({WINNER}).")
    curves = {
        name: [curve(laboratory.out, columns, "episode/return", "env_steps") for columns in arm.metrics]
        for name, arm in arms.items()
        if "," not in name
    }
    draw_curves(curves, folder / "learning.png", xlabel="environment steps", ylabel="return of the episodes met")
    # The best of the shipped defenders against B_line, in the first evaluation episode.
    name = max(groups, key=lambda name: groups[name]["bline 100"].estimate)
    env = make_env(arms[name].run)[0]
    save(env.timeline(play_episode(arms[name].run, take(arms[name].states, 0))), folder / "episode.png")
    report.figure("episode.png", f"One episode of {name}.")
    report.figure("learning.png", "Learning curves of the shipped configurations, each against its own red agent.")


STUDY = Study(
    "CybORG CAGE 2: learned defenders, with and without Patch, Isolate and Unisolate",
    'Tholl, El Mezouar, Taylor, Al Mallah, "Towards Production-Worthy Simulation for Autonomous Cyber Operations" '
    "(arXiv 2508.19278). Its figures are not known to us; the meaning of the actions and all numbers are our choice.",
    SCALES,
    run,
)
