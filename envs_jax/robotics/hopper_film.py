"""The film of a hopper's episode: the robot in space, and beside it what its motors were asked for and gave."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from envs_jax.render import Canvas, Frame
from envs_jax.robotics.hopper_mjcf import mjcf
from envs_jax.robotics.hopper_render import picture
from envs_jax.robotics.hopper_replay import PHASES, Trace, trace
from envs_jax.robotics.hopper_torque_speed import COLORS, draw_region
from envs_jax.robotics.offscreen import render_offscreen
from envs_jax.timeline import unstack

if TYPE_CHECKING:
    from envs_jax.robotics.hopper_flip import HopperFlip
    from envs_jax.timeline import Played

SIZE = (320, 240)  # of the robot's picture; the motors take half as much beside it
SLOW = 4  # times slower than life during the flight
INK, PALE = "#202124", "#5f6368"


def film(env: HopperFlip, played: Played) -> list[Frame]:
    """Pictures u8 [240, 480, 3] of an episode at `env.frames_per_second`, the flight four times slower.

    MuJoCo draws the robot where a graphics back end is at hand; a stick figure takes its place elsewhere.
    """
    episode = trace(env, played)
    shown = shown_states(episode, 1 / (env.clock.control_step * env.frames_per_second))
    robot = render_offscreen(
        mjcf(env.hopper), episode.qpos[shown], episode.com[shown], episode.centroidal_rate[shown], *SIZE
    )
    if robot is None:
        states = unstack(played.states)
        robot = np.stack([picture(env, states[index]) for index in shown])
    motors = motor_panels(env, episode, shown)
    return [
        np.concatenate([overlay(env, episode, index, pixels), panel], axis=1)
        for index, pixels, panel in zip(shown, robot, motors)
    ]


def shown_states(episode: Trace, stride: float) -> list[int]:
    """Which states a film shows: every `stride`-th, in flight more by `SLOW`, and the last."""
    shown, due = [], 0.0
    for index, phase in enumerate(episode.phase):
        if due < 1e-6:
            shown.append(index)
            due += stride
        due -= SLOW if PHASES[phase] == "flight" else 1
    last = len(episode.phase) - 1
    return shown if shown[-1] == last else [*shown, last]


def overlay(env: HopperFlip, episode: Trace, index: int, pixels: Frame) -> Frame:
    """The picture with clock, phase, turns and the load of each gear over its rating."""
    width, height = SIZE
    canvas = Canvas(width, height)
    canvas.picture(pixels)
    # A stick figure says all this but the loads itself, in the same place.
    canvas.rectangle((0, 0, width, 24), "#f7f7f5")
    phase = PHASES[episode.phase[index]]
    slow = f" (1/{SLOW} speed)" if phase == "flight" else ""
    base, whole = episode.turns[index]
    canvas.text((8, 5), f"{episode.time[index]:.2f} s  {phase}{slow}", INK, 12, bold=True)
    canvas.text((width - 8, 6), f"turns: base {base:.2f}, whole {whole:.2f}", INK, 11, "right")
    for number, name in enumerate(env.hopper.motors):
        top, load = height - 14 * (len(env.hopper.motors) - number) - 4, float(episode.load[index, number])
        canvas.text((8, top), name.replace("_", " "), INK, 10)
        canvas.rectangle((70, top + 2, 130, top + 10), "#ffffff", 2)
        if load > 0.02:
            color = COLORS[2] if load > 1 else COLORS[0]
            canvas.rectangle((70, top + 2, 70 + 60 * min(load, 1.0), top + 10), color, 2)
        canvas.text((135, top), f"{load:.0%} of rated load", INK if load <= 1 else COLORS[2], 10)
    return canvas.pixels()


def motor_panels(env: HopperFlip, episode: Trace, shown: list[int]) -> list[Frame]:
    """Each motor's operating region with the points of all substeps up to each shown state."""
    width, height = SIZE[0] // 2, SIZE[1]
    canvas = Canvas(width, height, "#f7f7f5")
    each, places = height / len(env.hopper.motors), []
    for number, (name, motor) in enumerate(env.hopper.motors.items()):
        top = number * each
        cap = np.abs(episode.edges[number, :, 1]).max()
        canvas.text((8, top + 3), f"{name.replace('_', ' ')}: ±{cap:.0f} N m over speed", INK, 9)
        box = (8, top + 15, width - 8, top + each - 2)
        places.append(draw_region(canvas, box, episode.edges[number], motor.rated_load, 1.6))
    panels, drawn = [], 0
    for index in shown:
        for name, color in (("command", "#9aa0a6"), ("applied", None)):
            torques = getattr(episode, name)[drawn:index]
            for number, place in enumerate(places):
                points = zip(episode.speed[drawn:index, :, number].ravel(), torques[:, :, number].ravel())
                for speed, torque in points:
                    canvas.circle(place(float(speed), float(torque)), 0.9, color or COLORS[number % len(COLORS)])
        drawn = index
        panels.append(canvas.pixels())
    return panels
