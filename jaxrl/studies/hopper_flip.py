"""The front flip of a one-leg hopper: which reward, which actuator model and which load term make it work.

Kang, Kim, Choe, Kim and Park (arXiv 2505.12222) reward the centroidal angular velocity instead of a link's, model the
motors' operating region in training, and regularise the load of the transmission. Their weights, gains, constants and
success counts are not known to us: robot, rewards and numbers here are our choice, and all is simulation. Every
condition trains in one compiled program; policies are measured with the full actuator model unless said.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np

from envs_jax.robotics.hopper_params import CONDITIONS
from jaxrl.results.stats import Interval, mean_interval, stratified_bootstrap
from jaxrl.run.config import RunConfig, load_config
from jaxrl.studies import Study
from jaxrl.studies.hopper_flip_figures import draw_all
from jaxrl.studies.hopper_flip_protocol import FAILURES, WAYS, measure
from jaxrl.studies.hopper_flip_transfer import transfer
from jaxrl.studies.laboratory import Arrays, Laboratory
from jaxrl.studies.report import Claim, Report, Row

CONFIG = "ppo_hopper_flip"
# The conditions by name, and three of them with the landing target of exactly one turn.
ARMS: dict[str, dict[str, Any]] = CONDITIONS | {
    f"{name} absolute": {**CONDITIONS[name], "target": "absolute"} for name in ("E1", "E2", "E3")
}
MEANING = {
    "E1": "base rate rewarded",
    "E2": "centroidal rate rewarded: the method",
    "E1m": "as E1, light thigh",
    "E2m": "as E2, light thigh",
    "E2b": "momentum rewarded",
    "E3": "trained without operating region",
    "E4": "without load term",
    "E5": "foot impulse instead of load",
    "E6": "region as a penalty only",
    "E7-base": "starts in flight without momentum, base rate",
    "E7-centroidal": "starts in flight without momentum, centroidal rate",
}
NOMINAL, RANDOMISED, AS_TRAINED = range(len(WAYS))
KNEE = 0  # of the motors
BAR = 0.95  # success of the method


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the study is."""

    num_seeds: int
    num_updates: int
    num_episodes: int  # per seed and way of measuring
    arms: tuple[str, ...]
    replays: int  # episodes of each seed of E2 played by other physics
    mjx: bool  # MJX among them
    overrides: tuple[str, ...] = ()


ALL = tuple(ARMS)
SCALES = {
    "smoke": Scale(2, 20, 32, ("E1m", "E2m", "E2", "E3", "E4"), 2, False),
    "cpu": Scale(5, 200, 256, ALL, 8, True),
    "full": Scale(
        10, 240, 256, ALL, 32, True, ("config.num_envs=4096", "config.unroll_length=24", "config.num_minibatches=16"),
    ),
}  # fmt: skip


def config_of(scale: Scale) -> RunConfig:
    """What all arms share."""
    short = ("evaluation.every=0", "checkpoint.every=20", "log.every=4")
    return load_config(CONFIG, [*scale.overrides, *short, f"num_updates={scale.num_updates}"])


def run(laboratory: Laboratory, scale: Scale, report: Report) -> None:
    """Trains all conditions in one program, measures them, and plays the method's policies again in MuJoCo."""
    settings = {name: {f"env.{key}": value for key, value in ARMS[name].items()} for name in scale.arms}
    arms = laboratory.train_together(config_of(scale), settings, scale.num_seeds)
    stacked = laboratory.measure("arms", partial(measure, arms, scale.num_episodes))
    measured = {name: {key: leaf[i] for key, leaf in stacked.items()} for i, name in enumerate(arms)}
    replayed = laboratory.measure("replays", partial(transfer, arms["E2"], scale.replays, scale.mjx))

    flips = {name: values for name, values in measured.items() if not name.startswith("E7")}
    report.table("success", [_success(name, values) for name, values in flips.items()], (
        f"Share of {scale.num_episodes} deterministic episodes that end as a flip, {scale.num_seeds} seeds: on the "
        "robot as built, on robots of the full spread with noise, and as built under the actuator model of the "
        "training. Turns, flight and failures on the robot as built."
    ))  # fmt: skip
    report.table("failures", [_failures(name, values) for name, values in flips.items()], (
        "What the episodes that fail on the robot as built come to, shares of all episodes; each counts once."
    ))  # fmt: skip
    report.table("loads", [_loads(name, values) for name, values in flips.items()], (
        "On the robot as built. Loads of the knee's gear, rated for 180 N m: A, what the contacts ask for, B, what the "
        "teeth carry. The peaks depend on the softness of the contact (time constant 0.02 s), the impulse does not."
    ))  # fmt: skip
    report.table("motors", [_motors(name, values) for name, values in flips.items()], (
        "On the robot as built: share of substeps and motors that ask for more than the operating region gives, what "
        "is cut off (of the torque cap), energy of an episode with and without the heat of the windings."
    ))  # fmt: skip
    rows = [_fake_rotation(name, values) for name, values in measured.items() if name.startswith("E7")]
    if rows:
        report.table("rotation_without_momentum", rows, (
            "Starts in flight without angular momentum (E7): what each rotation reward pays there, and what turned. "
            "Only contact changes the momentum; the net rotation until then is 0."
        ))  # fmt: skip
    report.table("other_physics", _replays(replayed), (
        f"The policies of E2, {scale.replays} episodes each, trained in the plane and played by other physics with "
        "the roll joint held, which the plane does not have."
    ))  # fmt: skip
    _claims(report, measured, scale)
    draw_all(laboratory, report, arms, measured)
    report.notes.append("Simulation only. Constants, rewards and hyper-parameters are our choice, not the paper's.")


def _of(values: Arrays, name: str, way: int = NOMINAL) -> np.ndarray:
    """`[S, ...]`."""
    return values[name][:, way]


def _cell(values: Arrays, name: str, way: int = NOMINAL) -> Interval:
    return mean_interval(_of(values, name, way))


def _meaning(name: str) -> str:
    arm, _, target = name.partition(" ")
    return MEANING[arm] + (", one turn as target" if target else "")


def _success(name: str, values: Arrays) -> Row:
    success = _of(values, "success")
    return {
        "condition": name,
        "meaning": _meaning(name),
        "success": mean_interval(success),
        f"seeds >= {BAR}": f"{int(np.sum(success >= BAR))} of {len(success)}",
        "randomised": _cell(values, "success", RANDOMISED),
        "as trained": _cell(values, "success", AS_TRAINED),
        "base turns": _cell(values, "base turns"),
        "centroidal turns": _cell(values, "centroidal turns"),
        "in flight": _cell(values, "turns in flight"),
        "flight s": _cell(values, "flight time"),
        "rise m": _cell(values, "apex rise"),
        "peak rad/s": _cell(values, "peak rate"),
        "landing error rad": _cell(values, "landing error"),
    }


def _failures(name: str, values: Arrays) -> Row:
    shares = _of(values, "failures")
    return {"condition": name} | {kind: mean_interval(shares[:, i]) for i, kind in enumerate(FAILURES)}


def _loads(name: str, values: Arrays) -> Row:
    def knee(key: str) -> Interval:
        return mean_interval(_of(values, key)[:, KNEE])

    return {
        "condition": name,
        "peak A N m": knee("peak contact load"),
        "99 % A": knee("contact load, 99 %"),
        "peak B N m": knee("peak gear load"),
        "99 % B": knee("gear load, 99 %"),
        "landing impulse N m s": knee("landing impulse"),
        "episodes with A above rated": _cell(values, "contact load above rated"),
        "B above rated": _cell(values, "gear load above rated"),
        "A above destructive": _cell(values, "contact load above destructive"),
        "B above destructive": _cell(values, "gear load above destructive"),
    }


def _motors(name: str, values: Arrays) -> Row:
    columns = {
        "outside region": "outside region", "cut off": "clipped",
        "mechanical J": "mechanical energy", "electrical J": "electrical energy",
    }  # fmt: skip
    as_trained = {"outside region, as trained": _cell(values, "outside region", AS_TRAINED)}
    return {"condition": name} | {title: _cell(values, key) for title, key in columns.items()} | as_trained


def _fake_rotation(name: str, values: Arrays) -> Row:
    columns = ("rotation reward", "base turns", "centroidal turns", "turns in flight", "flight time")
    return {"condition": name, "meaning": _meaning(name)} | {key: _cell(values, key) for key in columns}


def _replays(replayed: Arrays) -> list[Row]:
    """One row per physics; `[S, episodes]` each."""
    names = sorted({key.partition("/")[0] for key in replayed})
    return [
        {"physics": name} | {
            key: mean_interval(replayed[f"{name}/{key}"].mean(axis=1))
            for key in ("success", "base turns", "centroidal turns", "peak knee load N m")
        }
        for name in names
    ]  # fmt: skip


def _difference(ours: np.ndarray, theirs: np.ndarray) -> Interval:
    return stratified_bootstrap(lambda a, b: a.mean() - b.mean(), ours, theirs)


def _text(value: Interval) -> str:
    return f"{value.estimate:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _claims(report: Report, measured: dict[str, Arrays], scale: Scale) -> None:
    decided = scale.num_updates >= SCALES["cpu"].num_updates and scale.num_seeds >= SCALES["cpu"].num_seeds

    def add(statement: str, ours: str, bar: str, holds: bool) -> None:
        report.claims.append(Claim(statement, "no figures known", ours, bar, holds if decided else None))

    success = {name: _of(values, "success") for name, values in measured.items()}
    good = int(np.sum(success["E2"] >= BAR))
    add(
        "The centroidal reward learns the flip", f"{_text(mean_interval(success['E2']))}, {good} seeds >= {BAR}",
        f"success >= {BAR} in 4 of 5 seeds", good >= 0.8 * scale.num_seeds,
    )  # fmt: skip
    for ours, theirs, robot in (("E2m", "E1m", "light thigh, primary"), ("E2", "E1", "heavy thigh")):
        if theirs in measured:
            gain = _difference(success[ours], success[theirs])
            add(
                f"1. Rewarding the base's rate does not turn the whole body, the centroidal rate does ({robot})",
                f"success {success[ours].mean():.2f} against {success[theirs].mean():.2f}, gain {_text(gain)}",
                "gain above 0 with its interval", bool(gain.low > 0),
            )  # fmt: skip
    if "E7-base" in measured:
        base, whole = (_of(measured[name], "rotation reward").mean() for name in ("E7-base", "E7-centroidal"))
        turned = np.abs(_of(measured["E7-base"], "turns in flight")).max()
        add(
            "1. Without momentum the base's rate can be collected all the same, the centroidal rate cannot",
            f"rotation reward {base:.0f} against {whole:.1f}; net turns in flight at most {turned:.2f}",
            "base above 50, centroidal below 5, turns below 0.05", bool(base > 50 and whole < 5 and turned < 0.05),
        )  # fmt: skip
    without, clipped = (_of(measured["E3"], "success", way) for way in (AS_TRAINED, NOMINAL))
    drop = _difference(without, clipped)
    add(
        "2. A policy trained without the operating region fails under it",
        f"success {without.mean():.2f} without it, {_text(mean_interval(clipped))} with it, drop {_text(drop)}; "
        f"trained with it {success['E2'].mean():.2f}", "drop above 0 with its interval", bool(drop.low > 0),
    )  # fmt: skip
    for kind, title in (("contact load", "A"), ("gear load", "B")):
        shares = [_of(measured[name], f"{kind} above rated") for name in ("E4", "E2")]
        less = _difference(*shares)
        add(
            f"3. The load term keeps the gears below their rating (load {title})",
            f"episodes above it {shares[0].mean():.2f} without the term, {shares[1].mean():.2f} with it, "
            f"difference {_text(less)}", "difference above 0 with its interval", bool(less.low > 0),
        )  # fmt: skip


STUDY = Study(
    "One-leg hopper: a front flip by centroidal reward, motor operating regions and transmission load",
    'Kang, Kim, Choe, Kim, Park, "Learning Impact-Rich Rotational Maneuvers via Centroidal Velocity Rewards and '
    'Sim-to-Real Techniques" (arXiv 2505.12222). Its weights, constants and counts are not known to us; robot and '
    "numbers are our choice, and nothing here was tried on hardware.",
    SCALES,
    run,
)
