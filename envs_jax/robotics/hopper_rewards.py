"""The flip's reward, term by term, from what any physics back end reports of a control step.

The rotation terms of flight and landing follow Kang et al. 2025 (arXiv 2505.12222) as others report them; the rest, and
all weights, are our choice. Vectors are (x, y, z) in the heading frame, forward along x: the flip turns about y.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.robotics import transmission_load
from envs_jax.robotics.hopper_params import CHOICES, Params

Array = jax.Array

LANDING_HEIGHT = 0.49  # m; of the centre of mass in the nominal stance
MOMENTUM_INERTIA = 0.5  # kg m^2; turns momentum into a rate for the `momentum` reward
BARRIER_START = 0.1  # of the relaxed log barrier


@struct.dataclass
class Snapshot:
    """The robot at the end of a control step."""

    com: Array  # f32 [3]; m
    velocity: Array  # f32 [3]; of the centre of mass, m/s
    momentum: Array  # f32 [3]; angular, N m s
    centroidal_rate: Array  # f32 [3]; rad/s
    base_rate: Array  # f32 [3]; of the base in its own axes (gyroscope)
    base_pitch: Array  # f32 []; not wrapped, less that of the nominal stance, rad
    base_height: Array  # f32 []
    gravity: Array  # f32 [3]; unit vector in the base's axes
    joints: Array  # f32 [3]; knee, ankle pitch, ankle roll, rad
    joint_rates: Array  # f32 [3]
    foot_contact: Array  # bool []
    body_contact: Array  # bool []; kneecap or top


@struct.dataclass
class Effort:
    """What the substeps of a control step took."""

    rotation: Array  # f32 []; integral of the centroidal rate about the flip's axis, rad
    torque: Array  # f32 []; mean over substeps of the sum of (torque / cap)^2 over motors
    excess: Array  # f32 []; mean over substeps and motors of the command above what was given, of the cap
    outside: Array  # f32 []; share of substeps and motors with a command outside the motors' region
    mechanical_energy: Array  # f32 []; of all rotors, J; braking counts as negative
    electrical_energy: Array  # f32 []; with the heat of the windings, J
    contact_load: Array  # f32 [M]; largest over the substeps, definition A, N m
    gear_load: Array  # f32 [M]; likewise, definition B
    impulse: Array  # f32 [M]; sum over substeps of |A| dt, N m s
    foot_impulse: Array  # f32 []; of the floor's normal force, N s


def phases(time: Array, take_off_end: float, aerial_end: float) -> tuple[Array, Array, Array]:
    """bool []: take-off, flight, landing."""
    return time < take_off_end, (time >= take_off_end) & (time < aerial_end), time >= aerial_end


def chosen(params: Params, name: str, value: str) -> Array:
    """bool []: whether the choice `name` is `value`."""
    return getattr(params, name) == CHOICES[name].index(value)


def wrap(angle: Array) -> Array:
    """The same angle in [-pi, pi)."""
    return (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi


def load(params: Params, effort: Effort) -> Array:
    """The load `[M]` of the chosen definition."""
    return jnp.where(chosen(params, "load_definition", "gear"), effort.gear_load, effort.contact_load)


def rotation_rate(params: Params, snapshot: Snapshot) -> Array:
    """What the rotation term rewards, rad/s: the only difference between the `reward` conditions."""
    rates = jnp.stack([snapshot.base_rate[1], snapshot.centroidal_rate[1], snapshot.momentum[1] / MOMENTUM_INERTIA])
    return rates[params.reward]


def landing_error(params: Params, snapshot: Snapshot) -> Array:
    """Base pitch off the target, rad."""
    turned = snapshot.base_pitch
    return jnp.where(chosen(params, "target", "absolute"), turned - 2 * math.pi, wrap(turned))


def reward_terms(
    params: Params,
    snapshot: Snapshot,
    effort: Effort,
    phase: tuple[Array, Array, Array],
    standing: Array,
    start: Array,
    actions: tuple[Array, Array, Array],
    joint_ranges: Array,
    foot_limit: Array,
    failed: Array,
) -> dict[str, Array]:
    """The weighted terms f32 [], before the common `weights.scale`; their sum times it is the reward.

    Args:
        params: of the episode.
        snapshot, effort: of the control step.
        phase: of the step, see `phases`.
        standing: bool []; the first part of take-off, in which an upright stance pays.
        start: [2]; x and y of the centre of mass at the start.
        actions: this one, the last, and the one before, [3] each.
        joint_ranges: [3, 2]; lowest and highest angles.
        foot_limit: N s; impulse per control step above which `load="foot"` counts.
        failed: bool []; the episode ended in a failure.
    """
    take_off, aerial, landing = (item.astype(jnp.float32) for item in phase)
    weights = params.weights
    now, last, before = actions
    velocity, joints = snapshot.velocity, snapshot.joints
    sideways = jnp.square(snapshot.centroidal_rate[0]) + jnp.square(snapshot.centroidal_rate[2])
    # Soft limits: 5 % of the range above the lowest angle, 95 % of the highest.
    low = joint_ranges[:, 0] + 0.05 * (joint_ranges[:, 1] - joint_ranges[:, 0])
    beyond = jnp.maximum(joints - 0.95 * joint_ranges[:, 1], 0.0), jnp.maximum(low - joints, 0.0)
    height_error = (snapshot.com[2] - LANDING_HEIGHT) / 0.10
    terms = {
        "rotation": aerial * jnp.clip(rotation_rate(params, snapshot), -0.1, 10.0),
        "momentum": -landing * jnp.minimum(jnp.sqrt(jnp.sum(jnp.square(snapshot.momentum))), 2.5),
        "launch": (take_off + aerial) * jnp.clip(velocity[2], 0.0, 3.0),
        "stance": standing * jnp.exp(-jnp.square(snapshot.base_pitch) / 0.36),
        "upright": landing * jnp.exp(-jnp.square(landing_error(params, snapshot)) / 0.25),
        "height": landing * jnp.exp(-jnp.square(height_error)),
        "stillness": landing * jnp.exp(-jnp.sum(jnp.square(velocity))),
        "foot_contact": landing * (snapshot.foot_contact & ~snapshot.body_contact),
        "off_axis": -sideways,
        "drift": -landing * jnp.sum(jnp.square(snapshot.com[:2] - start)),
        "alive": jnp.ones(()),
        "action_rate": -jnp.sum(jnp.square(now - last)),
        "action_jerk": -jnp.sum(jnp.square(now - 2 * last + before)),
        "torque": -effort.torque,
        "joint_limit": -jnp.sum(jnp.square(beyond[0]) + jnp.square(beyond[1])),
        "motor_region": -effort.excess,
        "load": -load_penalty(params, effort, foot_limit),
        "failure": -10.0 * failed,
    }
    return {name: (getattr(weights, name) * term).astype(jnp.float32) for name, term in terms.items()}


def load_penalty(params: Params, effort: Effort, foot_limit: Array) -> Array:
    """What the load term subtracts: of the gears, of the foot (relative excess squared, too), or nothing."""
    carried = load(params, effort)
    squared = transmission_load.penalty(carried, params.rated_load)
    gears = jnp.where(params.barrier, jnp.sum(relaxed_barrier(1.0 - carried / params.destructive_load)), squared)
    foot = jnp.square(jnp.maximum(effort.foot_impulse / foot_limit - 1.0, 0.0))
    return jnp.stack([jnp.zeros(()), gears, foot])[params.load]


def relaxed_barrier(margin: Array) -> Array:
    """-ln(margin), continued below `BARRIER_START` by a parabola of the same value and slope."""
    start = BARRIER_START
    safe = jnp.maximum(margin, start)
    return jnp.where(
        margin > start, -jnp.log(safe), 0.5 * (jnp.square((margin - 2 * start) / start) - 1.0) - math.log(start)
    )
