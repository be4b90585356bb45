"""Physics back ends of the hopper's flip: place the robot, advance it by a control step, say how it stands."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.robotics import hopper_planar, motor_region, transmission_load
from envs_jax.robotics.hopper_constants import Hopper
from envs_jax.robotics.hopper_params import Params
from envs_jax.robotics.hopper_planar import Motion
from envs_jax.robotics.hopper_rewards import Effort, Snapshot, chosen
from envs_jax.robotics.motor_region import Motors

Array = jax.Array
PyTree = Any


@struct.dataclass
class Pose:
    """A start."""

    joints: Array  # f32 [3]; rad
    joint_rates: Array  # f32 [3]
    pitch: Array  # f32 []; of the base, less that of the nominal stance
    pitch_rate: Array  # f32 []
    flying: Array  # bool []; else the sole is on the floor
    height: Array  # f32 []; of the centre of mass above the floor, where it flies
    climb: Array  # f32 []; its vertical speed
    heading: Array  # f32 []; yaw about the vertical, rad


class Physics(Protocol):
    """What the environment asks of a back end; J joints are driven. `motion` is a tree of the back end's own."""

    num_joints: int  # J: the first of knee, ankle pitch and ankle roll

    def __init__(self, hopper: Hopper) -> None: ...

    def place(self, params: Params, pose: Pose) -> PyTree:
        """The motion that a start begins with."""
        ...

    def push(self, motion: PyTree, speed: Array) -> PyTree:
        """Adds a forward speed."""
        ...

    def still_rate(self, params: Params, joints: Array, joint_rates: Array) -> Array:
        """The base's pitch rate at which the whole has no angular momentum."""
        ...

    def advance(
        self, params: Params, motion: PyTree, targets: Array, substeps: int, time_step: float
    ) -> tuple[PyTree, Effort]:
        """Holds joint targets `[3]` for a control step."""
        ...

    def snapshot(self, params: Params, motion: PyTree) -> Snapshot:
        """How the robot stands; vectors in the heading frame of the start."""
        ...

    def finite(self, motion: PyTree) -> Array:
        """bool []: the numbers are those of a robot."""
        ...

    def astray(self, motion: PyTree) -> Array:
        """bool []: the base has left the plane of the flip by more than a flight can mend."""
        ...


class Planar:
    """The sagittal plane alone. The roll joint stays at 0, and its action acts on nothing; nothing goes astray."""

    num_joints = 2

    def __init__(self, hopper: Hopper):
        del hopper  # all that it needs is among the parameters

    def place(self, params: Params, pose: Pose) -> Motion:
        joints, rates = pose.joints[:2], pose.joint_rates[:2]
        # The nominal stance has a flat foot.
        pitch = pose.pitch - jnp.sum(params.nominal[:2])
        angles = jnp.cumsum(jnp.concatenate([pitch[None], joints]))
        still = Motion(jnp.zeros(2), jnp.zeros(2), angles, jnp.cumsum(jnp.concatenate([pose.pitch_rate[None], rates])))
        standing = -jnp.min(hopper_planar.heights(params.robot, still)[0])
        height = jnp.where(pose.flying, pose.height + params.robot.ground, standing)
        return dataclasses.replace(
            still,
            com=jnp.stack([jnp.zeros(()), height]),
            velocity=jnp.stack([jnp.zeros(()), jnp.where(pose.flying, pose.climb, 0.0)]),
        )

    def push(self, motion: Motion, speed: Array) -> Motion:
        return dataclasses.replace(motion, velocity=motion.velocity.at[0].add(speed))

    def still_rate(self, params: Params, joints: Array, joint_rates: Array) -> Array:
        return still_rate(params, joints, joint_rates)

    def advance(
        self, params: Params, motion: Motion, targets: Array, substeps: int, time_step: float
    ) -> tuple[Motion, Effort]:
        motors, armature = params.motors, params.robot.armature

        def substep(motion: Motion, _: None) -> tuple[Motion, tuple]:
            joints, rates = motion.angles[1:] - motion.angles[:-1], motion.rates[1:] - motion.rates[:-1]
            torque, demand = actuate(params, motors, joints, rates, targets[:2])
            after, forces = hopper_planar.substep(params.robot, motion, torque, jnp.float32(time_step))
            load = loads(motors, armature, torque, forces.contact_torque, forces.acceleration)
            return after, (demand, load, jnp.sum(forces.normal_force))

        after, (demand, load, floor_force) = jax.lax.scan(substep, motion, length=substeps)
        rates = [hopper_planar.centroidal(params.robot, m).angular_velocity[1] for m in (motion, after)]
        rotation = 0.5 * (rates[0] + rates[1]) * substeps * time_step
        return after, effort(rotation, demand, load, floor_force, time_step)

    def snapshot(self, params: Params, motion: Motion) -> Snapshot:
        robot, zero = params.robot, jnp.zeros(())
        whole = hopper_planar.centroidal(robot, motion)
        soles, guards = hopper_planar.heights(robot, motion)
        pitch = motion.angles[0]
        return Snapshot(
            com=jnp.stack([motion.com[0], zero, motion.com[1] - robot.ground]),
            velocity=whole.velocity,
            momentum=whole.angular_momentum,
            centroidal_rate=whole.angular_velocity,
            base_rate=jnp.stack([zero, motion.rates[0], zero]),
            base_pitch=pitch + jnp.sum(params.nominal[:2]),
            base_height=hopper_planar.base_position(robot, motion)[1] - robot.ground,
            gravity=jnp.stack([jnp.sin(pitch), zero, -jnp.cos(pitch)]),
            joints=jnp.concatenate([motion.angles[1:] - motion.angles[:-1], zero[None]]),
            joint_rates=jnp.concatenate([motion.rates[1:] - motion.rates[:-1], zero[None]]),
            foot_contact=jnp.any(soles < 0),
            body_contact=jnp.any(guards < 0),
        )

    def finite(self, motion: Motion) -> Array:
        return jnp.stack([jnp.all(jnp.abs(leaf) < 1e3) for leaf in jax.tree.leaves(motion)]).all()

    def astray(self, motion: Motion) -> Array:
        return jnp.zeros((), bool)


def still_rate(params: Params, joints: Array, joint_rates: Array) -> Array:
    """The base's pitch rate at which the whole has no angular momentum about y; the roll joint counts for nothing."""
    angles = jnp.cumsum(jnp.concatenate([jnp.zeros(1), joints[:2]]))
    return hopper_planar.base_rate_without_momentum(params.robot, angles, joint_rates[:2])


class Demand(NamedTuple):
    """What the motors did in a substep, f32 [] each."""

    squared: Array  # sum of (torque / cap)^2 over motors
    excess: Array  # mean over motors of the command above what was given, of the cap
    outside: Array  # share of motors with a command outside their region
    mechanical: Array  # W; of all rotors
    heat: Array  # W; in the windings


def motor_torques(
    params: Params, motors: Motors, joints: Array, joint_rates: Array, targets: Array
) -> tuple[Array, Array, Array, Array]:
    """Speeds of the rotors, torques asked for, given, and within the operating region, `[M]` each, before the gears.

    `motors` may drive the first joints alone.
    """
    driven = slice(motors.transmission.shape[1])
    gains = params.proportional_gain[driven], params.derivative_gain[driven]
    wanted = gains[0] * (targets[driven] - joints[driven]) - gains[1] * joint_rates[driven]
    command, speed = motor_region.motor_torque(motors, wanted), motor_region.motor_speed(motors, joint_rates[driven])
    region = motor_region.clip_torque(motors, command, speed)
    box = jnp.clip(command, -motors.max_torque, motors.max_torque)
    modelled = jnp.where(chosen(params, "actuator", "rectangle"), box, region)
    return speed, command, jnp.where(chosen(params, "actuator", "penalty"), command, modelled), region


def actuate(params: Params, motors: Motors, joints: Array, joint_rates: Array, targets: Array) -> tuple[Array, Demand]:
    """Joint torques `[J]` of the PD controller after the motors, and what it took; arguments of `motor_torques`."""
    speed, command, applied, region = motor_torques(params, motors, joints, joint_rates, targets)
    # What the penalty alone lets through counts as excess all the same.
    modelled = jnp.where(chosen(params, "actuator", "rectangle"), applied, region)
    demand = Demand(
        squared=jnp.sum(jnp.square(applied / motors.max_torque)),
        excess=jnp.mean(motor_region.excess(motors, command, modelled)),
        outside=jnp.mean((jnp.abs(command - region) > 1e-5 * motors.max_torque).astype(jnp.float32)),
        mechanical=jnp.sum(applied * speed),
        heat=jnp.sum(jnp.square(applied / motors.torque_constant) * motors.resistance),
    )
    return motor_region.joint_torque(motors, applied), demand


def loads(
    motors: Motors, armature: Array, torque: Array, contact_torque: Array, acceleration: Array
) -> tuple[Array, Array]:
    """Gear loads by definitions A and B `[M]`, not signed, from what acts on the joints, `[J]` each."""
    contact = motor_region.branch_torque(motors, contact_torque)
    gear = motor_region.branch_torque(motors, transmission_load.gear_load(torque, armature, acceleration))
    return jnp.abs(contact), jnp.abs(gear)


def effort(
    rotation: Array,
    demand: Demand,
    load: tuple[Array, Array],
    floor_force: Array,
    time_step: float,
) -> Effort:
    """A control step's, from what `actuate` and `loads` gave in S substeps, `[S]` and `[S, M]`, and the floor's
    vertical force `[S]`."""
    contact, gear = load
    return Effort(
        rotation=rotation,
        torque=jnp.mean(demand.squared),
        excess=jnp.mean(demand.excess),
        outside=jnp.mean(demand.outside),
        mechanical_energy=jnp.sum(demand.mechanical) * time_step,
        electrical_energy=jnp.sum(demand.mechanical + demand.heat) * time_step,
        contact_load=jnp.max(contact, axis=0),
        gear_load=jnp.max(gear, axis=0),
        impulse=jnp.sum(transmission_load.impulse(contact, time_step), axis=0),
        foot_impulse=jnp.sum(floor_force) * time_step,
    )
