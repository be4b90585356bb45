"""What the pictures of a hopper's episode need and its steps do not report, computed again from the recorded states."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.core import Array, PyTree
from envs_jax.robotics import hopper_planar
from envs_jax.robotics.hopper_backends import motor_torques
from envs_jax.robotics.hopper_constants import JOINTS
from envs_jax.robotics.hopper_params import Params
from envs_jax.robotics.hopper_torque_speed import region_edges
from envs_jax.robotics.motor_region import Motors

if TYPE_CHECKING:
    from envs_jax.robotics.hopper_flip import HopperFlip, State
    from envs_jax.timeline import Played

PHASES = ("take-off", "flight", "landing")


@dataclasses.dataclass(frozen=True)
class Trace:
    """An episode of T control steps with S substeps, on the host. States come before each step, and the last one.

    Motors are seen at their gears' outputs: speed in rad/s, torque in N m.
    """

    time: np.ndarray  # f32 [T + 1]; s
    phase: np.ndarray  # i32 [T + 1]; index of PHASES
    qpos: np.ndarray  # f32 [T + 1, 10]; of the MJCF
    com: np.ndarray  # f32 [T + 1, 3]; m above the floor
    centroidal_rate: np.ndarray  # f32 [T + 1, 3]; rad/s
    turns: np.ndarray  # f32 [T + 1, 2]; of the base and of the whole
    load: np.ndarray  # f32 [T + 1, M]; contact load over rating, the largest of the step before; 0 at the start
    speed: np.ndarray  # f32 [T, S, M]
    command: np.ndarray  # f32 [T, S, M]
    applied: np.ndarray  # f32 [T, S, M]
    edges: np.ndarray  # f32 [M, N, 2]; outline of each operating region, see `region_edges`


def trace(env: HopperFlip, played: Played) -> Trace:
    """Recomputes an episode: one small program, the physics' own, run from every recorded state at once."""
    params, states = played.params, played.states
    shown = jax.device_get(_stills(env, params, states))
    before = jax.tree.map(lambda leaf: leaf[:-1], states)
    speed, command, applied, load = jax.device_get(_substeps(env, params, before, jnp.asarray(played.actions)))
    ratio = np.asarray(params.motors.gear_ratio)
    peak = load.max(axis=1) / np.asarray(params.rated_load)
    return Trace(
        **shown,
        load=np.concatenate([np.zeros_like(peak[:1]), peak]),
        speed=speed / ratio,
        command=command * ratio,
        applied=applied * ratio,
        edges=region_edges(params.motors),
    )


def driving_motors(env: HopperFlip, params: Params, motion: PyTree) -> Motors:
    """The episode's motors as they drive the joints that its physics has: in the plane the roll joint is not there."""
    whole = env.hopper.motor_region(JOINTS if hasattr(motion, "qpos") else JOINTS[:2])
    return dataclasses.replace(params.motors, transmission=whole.transmission, sharing=whole.sharing)


@functools.partial(jax.jit, static_argnums=0)
def _substeps(env: HopperFlip, params: Params, states: State, actions: Array) -> tuple[Array, ...]:
    """Rotor speeds, commands, applied torques and contact loads, `[T, S, M]` each."""
    clock, physics = env.clock, env.physics

    def step(state: Any, action: Array) -> tuple[Array, ...]:
        used = jnp.where(params.delay, state.actions[0], jnp.clip(action, -1.0, 1.0))
        targets = params.nominal + params.action_scale * used
        motors = driving_motors(env, params, state.motion)
        pushed = physics.push(state.motion, jnp.where(state.step == params.push_step, params.push_speed, 0.0))

        def substep(motion: PyTree, _: None) -> tuple[PyTree, tuple[Array, ...]]:
            snapshot = physics.snapshot(params, motion)
            torques = motor_torques(params, motors, snapshot.joints, snapshot.joint_rates, targets)[:3]
            after, effort = physics.advance(params, motion, targets, 1, clock.time_step)
            return after, (*torques, effort.contact_load)

        return jax.lax.scan(substep, pushed, length=clock.substeps)[1]

    return jax.vmap(step)(states, actions)


@functools.partial(jax.jit, static_argnums=0)
def _stills(env: HopperFlip, params: Params, states: State) -> dict[str, Array]:
    """The fields of `Trace` that a state alone decides."""

    def still(state: Any) -> dict[str, Array]:
        snapshot = env.physics.snapshot(params, state.motion)
        return {
            "time": state.step * jnp.float32(env.clock.control_step),
            "phase": jnp.argmax(jnp.stack(env._phases(state.step))),
            "qpos": generalized_position(params, state.motion),
            "com": snapshot.com,
            "centroidal_rate": snapshot.centroidal_rate,
            "turns": jnp.stack([snapshot.base_pitch, state.rotation]) / (2 * math.pi),
        }

    return jax.vmap(still)(states)


def generalized_position(params: Params, motion: PyTree) -> Array:
    """The MJCF's qpos [10] in the heading frame above a floor at 0, of a motion in space or in the plane."""
    ground, zero = params.robot.ground, jnp.zeros(())
    if hasattr(motion, "qpos"):
        cos, sin = jnp.cos(motion.heading), jnp.sin(motion.heading)
        x, y, z, *quaternion = motion.qpos[:7]
        half = -motion.heading / 2
        back = jnp.stack([jnp.cos(half), zero, zero, jnp.sin(half)])
        place = jnp.stack([cos * x + sin * y, cos * y - sin * x, z - ground])
        return jnp.concatenate([place, _times(back, jnp.stack(quaternion)), motion.qpos[7:]])
    x, z = hopper_planar.base_position(params.robot, motion)
    half = motion.angles[0] / 2
    joints = motion.angles[1:] - motion.angles[:-1]
    pose = jnp.stack([x, zero, z - ground, jnp.cos(half), zero, jnp.sin(half), zero])
    return jnp.concatenate([pose, joints, zero[None]])


def _times(first: Array, second: Array) -> Array:
    """The product of two quaternions (w, x, y, z)."""
    (w, x, y, z), (a, b, c, d) = first, second
    return jnp.stack([
        w * a - x * b - y * c - z * d, w * b + x * a + y * d - z * c,
        w * c - x * d + y * a + z * b, w * d + x * c - y * b + z * a,
    ])  # fmt: skip
