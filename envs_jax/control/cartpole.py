"""CartPole: push a cart left or right so that the pole hinged on it stays upright."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_jax.core import Array, Environment, EnvParams, TimeStep, constant, positive_integer, time_step
from envs_jax.spaces import Box, Discrete


@struct.dataclass
class State:
    position: Array  # f32 []; of the cart, m
    velocity: Array  # f32 []; m/s
    angle: Array  # f32 []; of the pole from upright, clockwise positive, rad
    angular_velocity: Array  # f32 []; rad/s
    step: Array  # i32 []; steps played


@struct.dataclass
class Params(EnvParams):
    gravity: Array = constant(9.8)  # m/s^2
    cart_mass: Array = constant(1.0)  # kg
    pole_mass: Array = constant(0.1)  # kg
    pole_half_length: Array = constant(0.5)  # m
    force: Array = constant(10.0)  # N, of one push
    time_step: Array = constant(0.02)  # s
    position_limit: Array = constant(2.4)  # m; beyond it the episode terminates
    angle_limit: Array = constant(12 * math.pi / 180)  # rad; beyond it the episode terminates
    start_range: Array = constant(0.05)  # each state variable starts uniformly in [-start_range, start_range]


class CartPole(Environment[State, Params]):
    """Equal to Gymnasium's `CartPole-v1`, step by step (dynamics of Barto, Sutton and Anderson, 1983).

    Observation: f32 [4] = position (m), velocity (m/s), angle (rad), angular velocity (rad/s); position and angle
        within twice their limits, velocities unbounded.
    Action: i32, 0 pushes to the left and 1 to the right.
    Reward: 1 at every step, the last one included.
    Ending: terminated when the cart or the pole leaves its limits; truncated after `max_steps` steps. Both may be
        true at once.

    Args:
        max_steps: the time limit (500 as in `CartPole-v1`).
    """

    def __init__(self, max_steps: int = 500):
        self.max_steps = positive_integer("max_steps", max_steps)

    @property
    def default_params(self) -> Params:
        return Params()

    def reset(self, key: Array, params: Params) -> tuple[State, TimeStep]:
        start = jax.random.uniform(key, (4,), jnp.float32, -params.start_range, params.start_range)
        state = State(start[0], start[1], start[2], start[3], jnp.zeros((), jnp.int32))
        return state, time_step(observe(state))

    def step(self, key: Array, state: State, action: Array, params: Params) -> tuple[State, TimeStep]:
        acceleration, angular_acceleration = accelerations(state, jnp.where(action == 1, 1.0, -1.0), params)
        # Explicit Euler: positions move with the velocities from before the push.
        after = State(
            position=state.position + params.time_step * state.velocity,
            velocity=state.velocity + params.time_step * acceleration,
            angle=state.angle + params.time_step * state.angular_velocity,
            angular_velocity=state.angular_velocity + params.time_step * angular_acceleration,
            step=state.step + 1,
        )
        outside = (jnp.abs(after.position) > params.position_limit) | (jnp.abs(after.angle) > params.angle_limit)
        return after, time_step(observe(after), 1.0, outside, self.time_is_up(after.step))

    def observation_space(self, params: Params) -> Box:
        # The largest limit, so that swept (vmapped) parameters share one space.
        position, angle = np.max(params.position_limit), np.max(params.angle_limit)
        high = np.array([2 * position, np.inf, 2 * angle, np.inf], np.float32)
        return Box(-high, high, (4,))

    def action_space(self, params: Params) -> Discrete:
        return Discrete(2)

    def render(self, state: State) -> Any:
        """u8 [200, 300, 3]: cart and pole of the default size on a track of +-2.4 m."""
        from envs_jax.render import Canvas

        width, height, metre = 300, 200, 55.0  # pixels
        cart = width / 2 + metre * float(state.position)
        track, hinge = 158.0, 138.0
        tip = (cart + metre * math.sin(float(state.angle)), hinge - metre * math.cos(float(state.angle)))

        canvas = Canvas(width, height, background="#f7f7f5")
        canvas.line([(0, track), (width, track)], "#c9ccd1", 2)
        for limit in (-2.4, 2.4):
            canvas.line([(width / 2 + metre * limit, track - 6), (width / 2 + metre * limit, track + 6)], "#d1495b", 2)
        canvas.rectangle((cart - 24, hinge - 8, cart + 24, hinge + 12), "#2f4858", radius=5)
        for wheel in (-13, 13):
            canvas.circle((cart + wheel, track - 6), 6, "#16242d")
        canvas.line([(cart, hinge), tip], "#edae49", 7)
        canvas.circle((cart, hinge), 4, "#f7f7f5")
        return canvas.pixels()


def observe(state: State) -> Array:
    """f32 [4]."""
    return jnp.stack([state.position, state.velocity, state.angle, state.angular_velocity])


def accelerations(state: State, direction: Array, params: Params) -> tuple[Array, Array]:
    """Accelerations of cart (m/s^2) and pole (rad/s^2) under a push in `direction` (-1 or +1).

    R. V. Florian, "Correct equations for the dynamics of the cart-pole system" (2007), the case without friction.
    """
    sine, cosine = jnp.sin(state.angle), jnp.cos(state.angle)
    total_mass = params.cart_mass + params.pole_mass
    pole_moment = params.pole_mass * params.pole_half_length
    push = (params.force * direction + pole_moment * state.angular_velocity**2 * sine) / total_mass
    angular = (params.gravity * sine - cosine * push) / (
        params.pole_half_length * (4.0 / 3.0 - params.pole_mass * cosine**2 / total_mass)
    )
    return push - pole_moment * angular * cosine / total_mass, angular
