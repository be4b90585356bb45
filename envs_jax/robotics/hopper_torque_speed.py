"""The operating regions of the hopper's motors as a table and as a picture."""

from __future__ import annotations

import numpy as np

from envs_jax.robotics import motor_region
from envs_jax.robotics.hopper_constants import Hopper
from envs_jax.svg import SvgCanvas


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


def draw_torque_speed(hopper: Hopper) -> SvgCanvas:
    """Each motor's operating region at its gear's output, side by side; the gear's rating dashed where it fits."""
    size, margin = 240, 30
    canvas = SvgCanvas((size + margin) * len(hopper.motors) + margin, size + 2 * margin, "#f7f7f5")
    region, ratios = hopper.motor_region(), hopper.table("motors", "gear_ratio")
    points = torque_speed_points(hopper)
    speeds = np.linspace(-1.3, 1.3, 131)[:, None] * np.array([[point["no_load"] for point in points.values()]])
    limits = [motor_region.torque_limits(region, speed) for speed in np.asarray(speeds * ratios, np.float32)]
    low, high = (np.stack([np.asarray(pair[i]) for pair in limits]) * ratios for i in (0, 1))
    for index, (name, motor) in enumerate(hopper.motors.items()):
        left, top = margin + index * (size + margin), margin
        tallest = 1.2 * max(high[:, index].max(), motor.rated_load)

        def place(speed: float, torque: float, index=index, left=left, top=top, tallest=tallest) -> tuple[float, float]:
            return (
                left + size / 2 * (1 + speed / speeds[-1, index]),
                top + size / 2 * (1 - torque / tallest),
            )

        edge = [place(s, t) for s, t in zip(speeds[:, index], high[:, index])]
        canvas.polygon(edge + [place(s, t) for s, t in zip(speeds[::-1, index], low[::-1, index])], "#9ec1cf")
        ends = speeds[0, index], speeds[-1, index]
        for torque, color in ((0.0, "#2f4858"), (motor.rated_load, "#d1495b"), (-motor.rated_load, "#d1495b")):
            canvas.line([place(ends[0], torque), place(ends[1], torque)], color, 1)
        canvas.line([place(0.0, -tallest), place(0.0, tallest)], "#2f4858", 1)
        point = points[name]
        label = f"{name}: {point['cap']:.0f} N m to {point['corner_speed']:.1f}, 0 at {point['no_load']:.1f} rad/s"
        canvas.text((left, 8), label, "#202124", 11)
    canvas.text((margin, size + margin + 8), "across: speed, up: torque at the output; red: rated load", "#5f6368", 11)
    return canvas
