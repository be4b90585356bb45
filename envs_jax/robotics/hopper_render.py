"""A stick figure of the hopper."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from envs_jax.robotics import hopper_planar

if TYPE_CHECKING:
    from envs_jax.robotics.hopper_flip import HopperFlip, State

WIDTH, HEIGHT, SCALE, FLOOR = 320, 240, 130.0, 205.0  # pixels, pixels per m, the floor's line
PHASES = ("take-off", "flight", "landing")


def picture(env: HopperFlip, state: State) -> Any:
    """u8 [240, 320, 3] of one state."""
    from envs_jax.render import Canvas

    robot, motion = env.params.robot, jax.device_get(state.motion)
    joints = np.asarray(hopper_planar.joint_positions(robot, motion))
    base, knee, ankle, _ = joints
    top = base + np.asarray(hopper_planar.turn(motion.angles[0], robot.guards[1]))
    soles = [ankle + np.asarray(hopper_planar.turn(motion.angles[2], point)) for point in robot.sole]
    centre = np.asarray(motion.com)
    left = centre[0]

    def place(point: Any) -> tuple[float, float]:
        return WIDTH / 2 + SCALE * float(point[0] - left), FLOOR - SCALE * float(point[1])

    canvas = Canvas(WIDTH, HEIGHT, background="#f7f7f5")
    canvas.rectangle((0, FLOOR, WIDTH, HEIGHT), "#dfe1e5")
    spacing = 0.25  # m between the marks on the floor, which show that the camera moves
    first = math.floor((left - WIDTH / 2 / SCALE) / spacing)
    for index in range(first, first + math.ceil(WIDTH / SCALE / spacing) + 2):
        x, _ = place((index * spacing, 0.0))
        canvas.line([(x, FLOOR), (x - 6, FLOOR + 8)], "#bdc1c6", 1)
    canvas.line([place(top), place(base), place(knee)], "#2f4858", 12)
    canvas.line([place(knee), place(ankle)], "#33658a", 9)
    canvas.polygon([place(ankle), place(soles[0]), place(soles[1])], "#86bbd8")
    canvas.line([place(point) for point in soles], "#2f4858", 4)
    for joint in (knee, ankle):
        canvas.circle(place(joint), 4, "#f7f7f5")
    canvas.circle(place(centre), 5, "#edae49")
    step = int(state.step)
    phase = PHASES[int(np.argmax([bool(p) for p in env._phases(state.step)]))]
    turns = float(state.rotation) / (2 * math.pi)
    time = step * env.clock.control_step
    canvas.text((8, 8), f"{time:.2f} s  {phase}  {turns:.2f} turns of the whole", "#202124", 12)
    return canvas.pixels()
