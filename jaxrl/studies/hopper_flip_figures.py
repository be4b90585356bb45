"""Figures of the hopper study."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from envs_jax.robotics.hopper_replay import trace
from jaxrl.parts.roles import take
from jaxrl.results.plot import COLOURS, curve, draw_curves, new_axes, save_figure
from jaxrl.run.program import make_env
from jaxrl.run.replay import play_episode
from jaxrl.studies.hopper_flip_protocol import BINS
from jaxrl.studies.laboratory import Arm, Arrays, Laboratory
from jaxrl.studies.report import Report

PAIRS = (("E1", "E2"), ("E1m", "E2m"))  # base's rate rewarded, centroidal rate rewarded
KNEE_RATING = 180.0  # N m


def draw_all(laboratory: Laboratory, report: Report, arms: Mapping[str, Arm], measured: Mapping[str, Arrays]) -> None:
    """Draws every figure into `figures/` and adds it to the report."""
    folder = laboratory.out / "figures"
    step = make_env(arms["E2"].run)[0].unwrapped.clock.control_step  # type: ignore[attr-defined]

    for base, whole in PAIRS:
        if base in arms and whole in arms:
            file = f"rotation_{base}_{whole}.png"
            _rotation(measured, (base, whole), step, folder / file)
            report.figure(file, f"Turns of the base and of the whole in {base} and {whole}, means.")
    _histograms(measured, folder / "knee_load.png")
    report.figure("knee_load.png", "Load that the teeth of the knee's gear carry (definition B), and their rating.")
    curves = {
        name: [curve(laboratory.out, columns, "episode/return", "env_steps") for columns in arm.metrics]
        for name, arm in arms.items()
        if name in ("E1m", "E2m", "E1", "E2", "E3", "E4")
    }
    draw_curves(curves, folder / "learning.png", xlabel="control steps", ylabel="return of the episodes trained on")
    report.figure("learning.png", "Learning curves; rewards differ between conditions, so only shapes compare.")
    for name in ("E2", "E3"):
        file = f"torque_speed_{name}.png"
        _torque_speed(arms[name], folder / file)
        report.figure(file, f"Torque over speed in one episode of {name}: asked for in grey, given in colour.")


def _rotation(measured: Mapping[str, Arrays], pair: tuple[str, str], step: float, path: Path) -> None:
    axes = new_axes(xlabel="time, s", ylabel="turns")
    for colour, name in zip(COLOURS, pair):
        for kind, line in (("base", "--"), ("centroidal", "-")):
            turns = measured[name][f"{kind} over time"][:, 0].mean(axis=0)
            time = step * np.arange(1, len(turns) + 1)
            axes.plot(time, turns, line, color=colour, linewidth=1.8, label=f"{name}, {kind}")
    axes.axhline(1.0, color="0.7", linewidth=0.8, zorder=0)
    axes.legend(frameon=False, fontsize="small")
    save_figure(axes.figure, path)


def _histograms(measured: Mapping[str, Arrays], path: Path) -> None:
    axes = new_axes(xlabel="largest load of a control step, N m", ylabel="share of steps")
    middles = (BINS[1:] + BINS[:-1]) / 2
    names = [name for name in ("E2", "E4", "E5", "E3") if name in measured]
    for colour, name in zip(COLOURS, names):
        shares = measured[name]["knee load histogram"][:, 0].mean(axis=0)
        axes.step(middles, np.maximum(shares, 1e-6), where="mid", color=colour, linewidth=1.5, label=name)
    axes.axvline(KNEE_RATING, color="0.5", linewidth=0.8, linestyle="--")
    axes.set(yscale="log", ylim=(1e-5, 1.0))
    axes.legend(frameon=False, fontsize="small")
    save_figure(axes.figure, path)


def _torque_speed(arm: Arm, path: Path) -> None:
    env = make_env(arm.run)[0].unwrapped
    played = play_episode(arm.run, take(arm.states, 0))
    episode = trace(env, dataclasses.replace(played, states=played.states.inner))  # type: ignore[arg-type]
    axes = new_axes(xlabel="speed at the gear's output, rad/s", ylabel="torque, N m")
    motors = list(env.hopper.motors)  # type: ignore[attr-defined]
    for index, (name, colour) in enumerate(zip(motors, COLOURS)):
        edges = episode.edges[index]
        axes.fill(edges[:, 0], edges[:, 1], facecolor=colour, alpha=0.12, edgecolor=colour, linewidth=1.0)
        speed = episode.speed[..., index].ravel()
        axes.plot(speed, episode.command[..., index].ravel(), ".", color="0.6", markersize=2, zorder=2)
        axes.plot(speed, episode.applied[..., index].ravel(), ".", color=colour, markersize=2, zorder=3, label=name)
    reach = np.abs(episode.edges).max(axis=(0, 1)) * 1.3
    axes.set(xlim=(-reach[0], reach[0]), ylim=(-reach[1], reach[1]))
    axes.legend(frameon=False, fontsize="small", markerscale=4)
    save_figure(axes.figure, path)
