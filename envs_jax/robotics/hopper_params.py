"""Parameters of the hopper's flip: robot, actuators, reward weights, conditions of the experiment, randomisation.

A condition (which reward, which actuator model, which load term) is a traced number among the parameters: every one of
them runs in the same compiled program. `CONDITIONS` names those of the comparison, as options of the environment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_jax.core import Array, EnvParams, constant
from envs_jax.registry import nearest
from envs_jax.robotics.hopper_constants import Hopper
from envs_jax.robotics.hopper_planar import Robot, make_robot
from envs_jax.robotics.motor_region import Motors

# Options that choose among alternatives; a parameter of the same name holds the index.
CHOICES: dict[str, tuple[str, ...]] = {
    # what the rotation reward reads: the base's rate, the centroidal rate, or momentum over a fixed inertia
    "reward": ("base", "centroidal", "momentum"),
    # the landing's pitch: exactly one turn, or any whole number of turns
    "target": ("absolute", "wrapped"),
    # torques are clipped to the motors' region, to a rectangle without a speed limit, or not at all (a penalty only)
    "actuator": ("region", "rectangle", "penalty"),
    # what is penalised above its rating: nothing, the load of the gears, or the impulse at the foot
    "load": ("off", "joint", "foot"),
    # which load: A, what the contacts ask for, or B, what the teeth carry
    "load_definition": ("contact", "gear"),
    # standing only, sometimes in flight, or always in flight without angular momentum
    "start": ("stance", "mixed", "swing"),
}

CONDITIONS: dict[str, dict[str, Any]] = {
    "E1": {"reward": "base"},
    "E2": {"reward": "centroidal"},
    "E1m": {"reward": "base", "variant": "light_thigh"},
    "E2m": {"reward": "centroidal", "variant": "light_thigh"},
    "E2b": {"reward": "momentum"},
    "E3": {"actuator": "rectangle"},
    "E4": {"load": "off"},
    "E5": {"load": "foot"},
    "E6": {"actuator": "penalty"},
    "E7-base": {"reward": "base", "load": "off", "start": "swing"},
    "E7-centroidal": {"reward": "centroidal", "load": "off", "start": "swing"},
}


@struct.dataclass
class Weights:
    """Of the reward terms, all our choice; the total is multiplied by `scale`."""

    rotation: Array = constant(1.0)
    momentum: Array = constant(0.5)
    launch: Array = constant(0.5)
    stance: Array = constant(1.0)
    upright: Array = constant(3.0)
    height: Array = constant(1.0)
    stillness: Array = constant(0.5)
    foot_contact: Array = constant(0.5)
    off_axis: Array = constant(0.05)
    drift: Array = constant(0.2)
    alive: Array = constant(1.0)
    action_rate: Array = constant(0.02)
    action_jerk: Array = constant(0.01)
    torque: Array = constant(0.02)
    joint_limit: Array = constant(5.0)
    motor_region: Array = constant(0.5)
    load: Array = constant(0.5)
    failure: Array = constant(1.0)
    scale: Array = constant(0.1)


@struct.dataclass
class Params(EnvParams):
    robot: Robot
    motors: Motors
    weights: Weights
    nominal: Array  # f32 [3]; joint angles of the nominal stance, rad
    action_scale: Array  # f32 [3]; rad per unit of action
    proportional_gain: Array  # f32 [3]; N m / rad
    derivative_gain: Array  # f32 [3]; N m s / rad
    rated_load: Array  # f32 [M]; of the gears, N m
    destructive_load: Array  # f32 [M]
    reward: Array  # i32 []; this and the following index `CHOICES`
    target: Array
    actuator: Array
    load: Array
    load_definition: Array
    start: Array
    foot_rating: Array = constant(6.0)  # impulse at the foot above which it is penalised, in body weights
    barrier: Array = constant(False, bool)  # joint load: a relaxed log barrier instead of the squared excess
    randomisation: Array = constant(1.0)  # share of the ranges that `sample_params` draws from; 0: the nominal robot
    noise: Array = constant(1.0)  # share of the observation noise
    flight_starts: Array = constant(0.3)  # probability of a start in flight, where `start` is "mixed"
    delay: Array = constant(False, bool)  # actions act one control step late
    push_speed: Array = constant(0.0)  # m/s, forward, at `push_step`
    push_step: Array = constant(-1, jnp.int32)


def make_params(hopper: Hopper, weights: Mapping[str, float], **choices: str) -> Params:
    """Parameters from constants, changed weights and the names of choices.

    Raises:
        ValueError: a weight or choice is unknown, with the nearest known one.
    """
    known = [field.name for field in dataclasses.fields(Weights)]
    for name in weights:
        if name not in known:
            raise ValueError(f"weights has no {name!r}{nearest(name, known)} Allowed: {', '.join(known)}")
    indices = {}
    for name, value in choices.items():
        allowed = CHOICES[name]
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{nearest(str(value), allowed)}")
        indices[name] = jnp.asarray(allowed.index(value), jnp.int32)
    joints = ("nominal", "action_scale", "proportional_gain", "derivative_gain")
    tables = {name: _f32(hopper.table("joints", name)) for name in joints}
    gears = {name: _f32(hopper.table("motors", name)) for name in ("rated_load", "destructive_load")}
    return Params(
        robot=make_robot(hopper),
        motors=hopper.motor_region(("knee", "ankle_pitch")),
        weights=Weights(**{name: _f32(value) for name, value in weights.items()}),
        **tables,
        **gears,
        **indices,
    )


def evaluation_params(params: Params) -> Params:
    """The same without randomisation, noise and starts in flight, under the full actuator model."""
    zero = jnp.zeros_like(params.randomisation)
    return dataclasses.replace(
        params,
        randomisation=zero,
        noise=zero,
        flight_starts=zero,
        actuator=jnp.zeros_like(params.actuator),
    )


def randomise(key: Array, params: Params, landing: tuple[int, int]) -> Params:
    """One episode's robot; consumes `key`. A push comes at a control step in `landing` (first, last)."""
    keys = iter(jax.random.split(key, 16))
    robot, motors, share = params.robot, params.motors, params.randomisation

    def draw(low: float, high: float, shape: tuple[int, ...] = (), centre: float = 1.0) -> Array:
        drawn = jax.random.uniform(next(keys), shape, jnp.float32, low, high)
        return centre + share * (drawn - centre)

    constant_factor = draw(0.95, 1.05)
    time_constant = jax.random.uniform(next(keys), (), jnp.float32, 0.008, 0.03)
    friction = jax.random.uniform(next(keys), (), jnp.float32, 0.5, 1.1)
    robot = dataclasses.replace(
        robot,
        mass=robot.mass * draw(0.9, 1.1, (3,)),
        inertia=robot.inertia * draw(0.9, 1.1, (3,)),
        com=robot.com.at[0].add(draw(-0.02, 0.02, (2,), 0.0)),
        armature=robot.armature * draw(0.8, 1.2, (2,)),
        damping=robot.damping * draw(0.5, 2.0, (2,)),
        friction=robot.friction + share * (friction - robot.friction),
        time_constant=robot.time_constant + share * (time_constant - robot.time_constant),
        ground=robot.ground + draw(-0.01, 0.01, (), 0.0),
    )
    motors = dataclasses.replace(
        motors,
        voltage=motors.voltage * draw(0.85, 1.0),
        torque_constant=motors.torque_constant * constant_factor,
        max_torque=motors.max_torque * constant_factor,
    )
    return dataclasses.replace(
        params,
        robot=robot,
        motors=motors,
        proportional_gain=params.proportional_gain * draw(0.9, 1.1, (3,)),
        derivative_gain=params.derivative_gain * draw(0.9, 1.1, (3,)),
        delay=jax.random.bernoulli(next(keys), 0.5 * share),
        push_speed=draw(0.0, 0.3, (), 0.0) * jax.random.rademacher(next(keys), (), jnp.float32),
        push_step=jax.random.randint(next(keys), (), *landing, jnp.int32),
    )


def _f32(value: Any) -> Array:
    return jnp.asarray(np.asarray(value), jnp.float32)
