"""The operating regions of the hopper's motors as a table and as a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.robotics import motor_region
from envs_jax.robotics.hopper_constants import Hopper
from envs_jax.svg import SvgCanvas

if TYPE_CHECKING:
    from envs_jax.render import Canvas
    from envs_jax.robotics.hopper_replay import Trace

COLORS = ("#00798c", "#edae49", "#d1495b")  # of what the motors gave; what was asked for is grey
Box = tuple[float, float, float, float]  # left, top, right, bottom


def torque_speed_points(hopper: Hopper) -> dict[str, dict[str, float]]:
    """The corners of each motor's operating region at the gear's output, N m and rad/s."""
    points = {}
    for name, motor in hopper.motors.items():
        no_load = hopper.voltage / (motor.torque_constant * motor.gear_ratio)
        stall = motor.gear_ratio * motor.torque_constant * hopper.voltage / motor.resistance
        cap = motor.gear_ratio * motor.torque_constant * motor.current_limit
        points[name] = {"cap": cap, "stall": stall, "corner_speed": no_load * (1 - cap / stall), "no_load": no_load}
    return points


def torque_speed_table(hopper: Hopper) -> str:
    """Each motor's limits at its gear's output, as text."""
    header = ("motor", "torque cap N m", "corner rad/s", "no-load rad/s", "stall N m", "gear rated / destructive N m")
    rows: list[tuple[str, ...]] = [header]
    for name, point in torque_speed_points(hopper).items():
        gear = hopper.motors[name]
        numbers = [point[key] for key in ("cap", "corner_speed", "no_load", "stall")]
        rows.append((name, *(f"{x:.1f}" for x in numbers), f"{gear.rated_load:.0f} / {gear.destructive_load:.0f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)


def region_edges(motors: motor_region.Motors, reach: float = 1.25, num_points: int = 101) -> np.ndarray:
    """Outlines of the operating regions at the gears' outputs, up to `reach` times the no-load speeds.

    Returns:
        f32 [M, 2 num_points, 2]: (speed rad/s, torque N m), the upper edge from left to right and the lower one back.
    """
    ratio, no_load = np.asarray(motors.gear_ratio), np.asarray(motors.voltage / motors.torque_constant)
    speeds = np.linspace(-reach, reach, num_points, dtype=np.float32)[:, None] * no_load
    limits = jax.vmap(motor_region.torque_limits, (None, 0))(motors, jnp.asarray(speeds))
    low, high = (np.asarray(edge) for edge in limits)
    around = np.stack([np.concatenate([speeds, speeds[::-1]]) / ratio, np.concatenate([high, low[::-1]]) * ratio], -1)
    return np.swapaxes(around, 0, 1)


def draw_region(
    canvas: Canvas | SvgCanvas, box: Box, outline: np.ndarray, rated_load: float, beyond: float = 1.2
) -> Callable[[float, float], tuple[float, float]]:
    """One motor's operating region, filled, with its axes, and the gear's rating as two red lines.

    Args:
        canvas: what to draw on.
        box: left, top, right, bottom on it.
        outline: of `region_edges`, [N, 2].
        rated_load: N m.
        beyond: how far the vertical axis goes, in the larger of cap and rating.

    Returns:
        The place of a speed and a torque on the canvas, held inside the box.
    """
    left, top, right, bottom = box
    fastest, tallest = np.abs(outline[:, 0]).max(), beyond * max(np.abs(outline[:, 1]).max(), rated_load)

    def place(speed: float, torque: float) -> tuple[float, float]:
        across, up = (min(max(share, -1.0), 1.0) for share in (speed / fastest, torque / tallest))
        return (left + right + (right - left) * across) / 2, (top + bottom - (bottom - top) * up) / 2

    canvas.rectangle(box, "#eceff1")
    canvas.polygon([place(*point) for point in outline.tolist()], "#b9d3dd")
    for torque, color in ((0.0, "#2f4858"), (rated_load, "#d1495b"), (-rated_load, "#d1495b")):
        canvas.line([place(-fastest, torque), place(fastest, torque)], color, 0.8)
    canvas.line([place(0.0, -tallest), place(0.0, tallest)], "#2f4858", 0.8)
    return place


def draw_torque_speed(hopper: Hopper, episode: Trace | None = None) -> SvgCanvas:
    """Each motor's operating region at its gear's output, side by side, with the gear's rating.

    Of an episode (`hopper_replay.trace`) each substep is a grey point where the torque was asked for, and a coloured
    one where it was given; the regions are then those of its motors and voltage.
    """
    size, margin = 240, 30
    canvas = SvgCanvas((size + margin) * len(hopper.motors) + margin, size + 2 * margin, "#f7f7f5")
    outlines = region_edges(hopper.motor_region()) if episode is None else episode.edges
    points = torque_speed_points(hopper)
    for index, (name, motor) in enumerate(hopper.motors.items()):
        left, point = margin + index * (size + margin), points[name]
        box = (left, margin, left + size, margin + size)
        place = draw_region(canvas, box, outlines[index], motor.rated_load, 1.2 if episode is None else 1.6)
        if episode is not None:
            for torque, color in ((episode.command, "#9aa0a6"), (episode.applied, COLORS[index % len(COLORS)])):
                for pair in zip(episode.speed[..., index].ravel(), torque[..., index].ravel()):
                    canvas.circle(place(*map(float, pair)), 1.2, color)
        label = f"{name}: {point['cap']:.0f} N m to {point['corner_speed']:.1f}, 0 at {point['no_load']:.1f} rad/s"
        canvas.text((left, 8), label, "#202124", 11)
    canvas.text((margin, size + margin + 8), "across: speed, up: torque at the output; red: rated load", "#5f6368", 11)
    return canvas
