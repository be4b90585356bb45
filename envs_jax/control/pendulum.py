"""Pendulum: swing a pendulum up and hold it there with a motor too weak to lift it directly."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_jax.core import Array, Environment, EnvParams, TimeStep, constant, positive_integer, time_step
from envs_jax.spaces import Box


@struct.dataclass
class State:
    angle: Array  # f32 []; from upright, anticlockwise positive, not wrapped, rad
    angular_velocity: Array  # f32 []; rad/s
    torque: Array  # f32 []; the last one applied, N m; only the picture shows it
    step: Array  # i32 []; steps played


@struct.dataclass
class Params(EnvParams):
    gravity: Array = constant(10.0)  # m/s^2
    mass: Array = constant(1.0)  # kg
    length: Array = constant(1.0)  # m
    time_step: Array = constant(0.05)  # s
    max_speed: Array = constant(8.0)  # rad/s
    max_torque: Array = constant(2.0)  # N m
    start_angle: Array = constant(math.pi)  # rad; the angle starts uniformly in [-start_angle, start_angle]
    start_speed: Array = constant(1.0)  # rad/s; likewise the angular velocity


class Pendulum(Environment[State, Params]):
    """Equal to Gymnasium's `Pendulum-v1`, step by step.

    Observation: f32 [3] = cos(angle), sin(angle), angular velocity (rad/s) in [-8, 8].
    Action: f32 [1], the torque in [-2, 2] N m; what lies outside is clipped.
    Reward: f32, `-(angle^2 + 0.1 angular_velocity^2 + 0.001 torque^2)` of the state before the step and the clipped
        torque, the angle wrapped to [-pi, pi); between about -16.3 and 0.
    Ending: truncated after `max_steps` steps, never terminated.

    Args:
        max_steps: the time limit (200 as in `Pendulum-v1`).
    """

    def __init__(self, max_steps: int = 200):
        self.max_steps = positive_integer("max_steps", max_steps)

    @property
    def default_params(self) -> Params:
        return Params()

    def reset(self, key: Array, params: Params) -> tuple[State, TimeStep]:
        angle, speed = jax.random.uniform(key, (2,), jnp.float32, -1.0, 1.0)
        zero = jnp.zeros((), jnp.float32)
        state = State(angle * params.start_angle, speed * params.start_speed, zero, jnp.zeros((), jnp.int32))
        return state, time_step(observe(state))

    def step(self, key: Array, state: State, action: Array, params: Params) -> tuple[State, TimeStep]:
        torque = jnp.clip(action[0], -params.max_torque, params.max_torque)
        reward = -(wrap_angle(state.angle) ** 2 + 0.1 * state.angular_velocity**2 + 0.001 * torque**2)
        # A rod of moment of inertia m l^2 / 3, hinged at its end.
        pull = 3.0 * params.gravity / (2.0 * params.length) * jnp.sin(state.angle)
        drive = 3.0 / (params.mass * params.length**2) * torque
        speed = state.angular_velocity + (pull + drive) * params.time_step
        speed = jnp.clip(speed, -params.max_speed, params.max_speed)
        # Semi-implicit Euler: the angle moves with the new velocity.
        after = State(state.angle + speed * params.time_step, speed, torque, state.step + 1)
        return after, time_step(observe(after), reward, False, self.time_is_up(after.step))

    def observation_space(self, params: Params) -> Box:
        # The largest limit, so that swept (vmapped) parameters share one space; so for the torque.
        high = np.array([1.0, 1.0, np.max(params.max_speed)], np.float32)
        return Box(-high, high, (3,))

    def action_space(self, params: Params) -> Box:
        max_torque = np.max(params.max_torque)
        return Box(-max_torque, max_torque, (1,))

    def render(self, state: State) -> Any:
        """u8 [200, 200, 3]: the rod, and an arc as long as the torque is large (at its default limit a half circle)."""
        from envs_jax.render import Canvas

        size, radius = 200, 75.0  # pixels
        centre, angle, torque = size / 2, float(state.angle), float(state.torque)
        tip = (centre - radius * math.sin(angle), centre - radius * math.cos(angle))

        canvas = Canvas(size, size, background="#f7f7f5")
        canvas.circle((centre, centre), radius + 12, "#ecedf0")
        canvas.line([(centre, centre), tip], "#2f4858", 13)
        canvas.circle(tip, 5, "#edae49")
        if abs(torque) > 1e-3:
            # From the rod's own direction, turned the way the motor turns it.
            turn = [angle + math.pi * torque / 2.0 * part / 24 for part in range(25)]
            canvas.line([(centre - 28 * math.sin(a), centre - 28 * math.cos(a)) for a in turn], "#d1495b", 4)
        canvas.circle((centre, centre), 5, "#f7f7f5")
        return canvas.pixels()


def observe(state: State) -> Array:
    """f32 [3]."""
    return jnp.stack([jnp.cos(state.angle), jnp.sin(state.angle), state.angular_velocity])


def wrap_angle(angle: Array) -> Array:
    """The same angle in [-pi, pi)."""
    return (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
