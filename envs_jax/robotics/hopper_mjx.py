"""Physics of the hopper in space, nine degrees of freedom, by MJX. Needs the packages mujoco and mujoco-mjx."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.robotics import centroidal, transmission_load
from envs_jax.robotics.hopper_backends import Pose, actuate, effort, loads, still_rate
from envs_jax.robotics.hopper_constants import JOINTS, Hopper
from envs_jax.robotics.hopper_mjcf import make_model, model_fields
from envs_jax.robotics.hopper_params import Params
from envs_jax.robotics.hopper_rewards import Effort, Snapshot, wrap
from envs_jax.robotics.model_names import indices, joint_addresses
from envs_jax.robotics.motor_region import Motors

try:
    from mujoco import mjx
except ImportError as error:
    raise ImportError('physics "mjx" needs MuJoCo and MJX: pip install mujoco mujoco-mjx') from error

Array = jax.Array
ASTRAY = 1.0  # rad; yaw or roll of the base


@struct.dataclass
class Motion:
    """All that goes from one control step to the next: a whole `mjx.Data` is a hundred times larger."""

    qpos: Array  # f32 [10]; position (m), quaternion (w, x, y, z), joints (rad)
    qvel: Array  # f32 [9]; world velocity, angular velocity in the base's axes, joint rates
    warmstart: Array  # f32 [9]; the last acceleration, from which the solver starts
    heading: Array  # f32 []; yaw at the start, rad: the flip's axis is y of that frame
    pitch: Array  # f32 []; of the base, not wrapped, rad


def _with_promotion(function: Callable) -> Callable:
    # MJX counts on ranks being promoted, which a caller may have forbidden.
    @functools.wraps(function)
    def wrapped(*arguments: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return function(*arguments)

    return wrapped


class Mjx:
    """The MJCF of `hopper_mjcf`, with its masses, contacts and joints replaced by those of the parameters.

    See `hopper_mjcf.model_fields` for what goes along with them and what stays nominal.
    """

    num_joints = 3

    def __init__(self, hopper: Hopper):
        self.hopper = hopper
        compiled = make_model(hopper)
        self.dofs = jnp.asarray(joint_addresses(compiled, JOINTS).dofs)
        self.soles = indices(compiled, "geom", [f"sole_{i}" for i in range(len(hopper.contact.sole))])
        self.guards = indices(compiled, "geom", ["kneecap", "top"])
        self.radii = jnp.asarray(compiled.geom_size[:, 0], jnp.float32)
        self.transmission = hopper.motor_region(JOINTS)
        self.model, self.empty = mjx.put_model(compiled), mjx.make_data(compiled)

    @_with_promotion
    def place(self, params: Params, pose: Pose) -> Motion:
        # The nominal stance has a flat foot.
        pitch = pose.pitch - jnp.sum(params.nominal[:2])
        (cos_yaw, sin_yaw), (cos, sin) = _cos_sin(pose.heading / 2), _cos_sin(pitch / 2)
        turned = jnp.stack([cos_yaw * cos, -sin_yaw * sin, cos_yaw * sin, sin_yaw * cos])
        zeros = jnp.zeros(3)
        qpos = jnp.concatenate([zeros, turned, pose.joints])
        qvel = jnp.concatenate([zeros, jnp.stack([zeros[0], pose.pitch_rate, zeros[0]]), pose.joint_rates])
        data = self._moved(params, qpos, qvel)
        com, velocity = data.subtree_com[1], centroidal.from_data(data).velocity
        standing = -jnp.min(self._gaps(params, data, self.soles))
        flying = pose.height + params.robot.ground - com[2]
        raised = jnp.where(pose.flying, flying, standing)
        climb = jnp.where(pose.flying, pose.climb, 0.0)
        return Motion(
            qpos=qpos.at[:3].set(jnp.stack([-com[0], -com[1], raised])),
            qvel=qvel.at[:3].set(jnp.stack([zeros[0], zeros[0], climb]) - velocity),
            warmstart=jnp.zeros(9),
            heading=pose.heading,
            pitch=pitch,
        )

    def push(self, motion: Motion, speed: Array) -> Motion:
        return dataclasses.replace(motion, qvel=motion.qvel.at[:2].add(speed * jnp.stack(_cos_sin(motion.heading))))

    def still_rate(self, params: Params, joints: Array, joint_rates: Array) -> Array:
        return still_rate(params, joints, joint_rates)

    @_with_promotion
    def advance(
        self, params: Params, motion: Motion, targets: Array, substeps: int, time_step: float
    ) -> tuple[Motion, Effort]:
        model, motors = self._model(params).tree_replace({"opt.timestep": jnp.float32(time_step)}), self._motors(params)

        def substep(moved: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], tuple]:
            qpos, qvel, warmstart = moved
            torque, demand = actuate(params, motors, qpos[7:], qvel[6:], targets)
            data = self.empty.replace(qpos=qpos, qvel=qvel, qacc_warmstart=warmstart, ctrl=torque)
            data = mjx.step(model, data)
            # All but position and velocity are those of the state before this substep's integration.
            rate = to_heading(centroidal.from_data(data).angular_velocity, motion.heading)[1]
            force = transmission_load.contact_force(data, model.nv)
            contact = transmission_load.contact_load(force, self.dofs)
            load = loads(motors, model.dof_armature[self.dofs], torque, contact, data.qacc[self.dofs])
            return (data.qpos, data.qvel, data.qacc_warmstart), (rate, demand, load, force[2])

        before = (motion.qpos, motion.qvel, motion.warmstart)
        (qpos, qvel, warmstart), (rates, demand, load, floor_force) = jax.lax.scan(substep, before, length=substeps)
        pitch = motion.pitch + wrap(base_pitch(qpos[3:7]) - motion.pitch)
        after = Motion(qpos, qvel, warmstart, motion.heading, pitch)
        return after, effort(jnp.sum(rates) * time_step, demand, load, floor_force, time_step)

    @_with_promotion
    def snapshot(self, params: Params, motion: Motion) -> Snapshot:
        data, heading = self._moved(params, motion.qpos, motion.qvel), motion.heading
        whole, ground = centroidal.from_data(data), params.robot.ground
        return Snapshot(
            com=to_heading(data.subtree_com[1], heading).at[2].add(-ground),
            velocity=to_heading(whole.velocity, heading),
            momentum=to_heading(whole.angular_momentum, heading),
            centroidal_rate=to_heading(whole.angular_velocity, heading),
            base_rate=motion.qvel[3:6],
            base_pitch=motion.pitch + jnp.sum(params.nominal[:2]),
            base_height=motion.qpos[2] - ground,
            gravity=-data.xmat[1, 2],
            joints=motion.qpos[7:],
            joint_rates=motion.qvel[6:],
            foot_contact=jnp.any(self._gaps(params, data, self.soles) < 0),
            body_contact=jnp.any(self._gaps(params, data, self.guards) < 0),
        )

    def finite(self, motion: Motion) -> Array:
        bounded = [jnp.all(jnp.abs(leaf) < 1e3) for leaf in (motion.qpos, motion.qvel)]
        return jnp.stack([*bounded, jnp.all(jnp.isfinite(motion.warmstart))]).all()

    def astray(self, motion: Motion) -> Array:
        yaw, roll = yaw_and_roll(motion.qpos[3:7], motion.heading)
        return (jnp.abs(yaw) > ASTRAY) | (jnp.abs(roll) > ASTRAY)

    def _model(self, params: Params) -> Any:
        fields: dict[str, Any] = model_fields(self.model, self.hopper, params.robot)
        return self.model.tree_replace(fields)

    def _motors(self, params: Params) -> Motors:
        """The motors of the parameters as they drive all three joints; those of the plane leave out the roll."""
        whole = self.transmission
        return dataclasses.replace(params.motors, transmission=whole.transmission, sharing=whole.sharing)

    def _moved(self, params: Params, qpos: Array, qvel: Array) -> Any:
        """Poses, spatial inertias and velocities: the part of `forward` that no force enters."""
        model = self._model(params)
        data = mjx.com_pos(model, mjx.kinematics(model, self.empty.replace(qpos=qpos, qvel=qvel)))
        return mjx.com_vel(model, data)

    def _gaps(self, params: Params, data: Any, geoms: Any) -> Array:
        return data.geom_xpos[geoms, 2] - self.radii[geoms] - params.robot.ground


def to_heading(vector: Array, heading: Array) -> Array:
    """A world vector `[3]` in the frame turned by the yaw `heading`."""
    cos, sin = _cos_sin(heading)
    return jnp.stack([cos * vector[0] + sin * vector[1], cos * vector[1] - sin * vector[0], vector[2]])


def base_pitch(quaternion: Array) -> Array:
    """The pitch (rad, in [-pi, pi]) of yaw, then roll, then pitch: regular however far the base turns over."""
    w, x, y, z = quaternion
    return jnp.arctan2(2 * (w * y - x * z), 1 - 2 * (x * x + y * y))


def yaw_and_roll(quaternion: Array, heading: Array) -> tuple[Array, Array]:
    """How far the base's y axis has left the heading frame's: about the vertical and out of the level, rad."""
    w, x, y, z = quaternion
    side = jnp.stack([2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)])
    side = to_heading(side, heading)
    return jnp.arctan2(-side[0], side[1]), jnp.arcsin(jnp.clip(side[2], -1.0, 1.0))


def _cos_sin(angle: Array) -> tuple[Array, Array]:
    return jnp.cos(angle), jnp.sin(angle)
