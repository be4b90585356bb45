"""Operating regions of electric motors: which torque a motor can give at which speed.

A DC motor under a bounded voltage, v = (R / K) torque + K speed with |v| <= V, and a bounded torque: a parallelogram
cut by two horizontal lines. Driving quadrants shrink with speed, braking quadrants do not (the region of Shin et al.
2023, arXiv 2312.17507; all constants are the robot's). Motors may drive joints in common, as in a differential ankle.
Letters: M motors, J joints. Motor torque and speed are those of the rotor, before the gear. No batch axis.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = jax.Array


@struct.dataclass
class Motors:
    """Motors and how they drive the joints; build with `make_motors`."""

    gear_ratio: Array  # f32 [M]; rotor turns per output turn
    torque_constant: Array  # f32 [M]; N m / A, equal to the back EMF constant in V s / rad
    resistance: Array  # f32 [M]; ohm
    max_torque: Array  # f32 [M]; N m at the rotor: current limit or saturation
    voltage: Array  # f32 []; of the bus all motors share, V
    transmission: Array  # f32 [M, J]; output speed of each motor per joint speed (motor angle = T joint angle)
    sharing: Array  # f32 [M, J]; output torque of each motor per joint torque: T^-T, or of least norm where M > J


def make_motors(
    gear_ratio: np.ndarray,
    torque_constant: np.ndarray,
    resistance: np.ndarray,
    current_limit: np.ndarray,
    voltage: float,
    transmission: np.ndarray,
) -> Motors:
    """Checks and bundles.

    Args:
        gear_ratio, torque_constant, resistance, current_limit: [M], all positive; the last in A.
        voltage: of the bus, V.
        transmission: [M, J], of rank J: every joint is driven.

    Raises:
        ValueError: names what is not positive or does not fit.
    """
    transmission = np.asarray(transmission, np.float64)
    if transmission.ndim != 2 or np.linalg.matrix_rank(transmission) < transmission.shape[1]:
        raise ValueError(f"transmission must be [motors, joints] and drive every joint, got {transmission.tolist()}")
    num_motors = len(transmission)
    values = {
        "gear_ratio": gear_ratio, "torque_constant": torque_constant, "resistance": resistance,
        "current_limit": current_limit, "voltage": voltage,
    }  # fmt: skip
    for name, value in values.items():
        shape = () if name == "voltage" else (num_motors,)
        if np.shape(value) != shape or not np.all(np.asarray(value, float) > 0) or not np.all(np.isfinite(value)):
            raise ValueError(f"{name} must be {list(shape)} positive numbers, got {np.asarray(value).tolist()}")
    arrays = (
        gear_ratio, torque_constant, resistance, np.multiply(torque_constant, current_limit), voltage, transmission,
        np.linalg.pinv(transmission.T),
    )  # fmt: skip
    return Motors(*(jnp.asarray(array, jnp.float32) for array in arrays))


def torque_limits(motors: Motors, speed: Array) -> tuple[Array, Array]:
    """The lowest and the highest torque (N m, `[M]`) at rotor speeds `[M]` (rad/s).

    Beyond the no-load speed a motor can only brake; the limits then stay ordered and within `max_torque`.
    """
    slope = motors.torque_constant / motors.resistance
    high = slope * (motors.voltage - motors.torque_constant * speed)
    low = slope * (-motors.voltage - motors.torque_constant * speed)
    cap = motors.max_torque
    return jnp.clip(low, -cap, cap), jnp.clip(high, -cap, cap)


def clip_torque(motors: Motors, torque: Array, speed: Array) -> Array:
    """The torque `[M]` the motors give when `torque` `[M]` is asked for at rotor speeds `[M]`."""
    low, high = torque_limits(motors, speed)
    return jnp.clip(torque, low, high)


def motor_speed(motors: Motors, joint_speed: Array) -> Array:
    """Rotor speeds `[M]` at joint speeds `[J]`."""
    return motors.gear_ratio * _times(motors.transmission, joint_speed)


def motor_torque(motors: Motors, demand: Array) -> Array:
    """Rotor torques `[M]` that make up the joint torques `demand` `[J]`."""
    return branch_torque(motors, demand) / motors.gear_ratio


def branch_torque(motors: Motors, demand: Array) -> Array:
    """The part of the joint torques `demand` `[J]` that each motor's gear carries at its output, `[M]`, N m."""
    return _times(motors.sharing, demand)


def joint_torque(motors: Motors, torque: Array) -> Array:
    """Joint torques `[J]` from rotor torques `[M]`."""
    return jnp.sum(motors.transmission * (motors.gear_ratio * torque)[:, None], axis=0)


def reflected_inertia(gear_ratio: np.ndarray, rotor_inertia: np.ndarray, transmission: np.ndarray) -> np.ndarray:
    """The armature `[J]` of the joints, kg m^2: diagonal of T^T N^2 J T, with rotor inertias `[M]` in kg m^2."""
    return np.einsum("mj,m,mj->j", transmission, np.square(gear_ratio) * rotor_inertia, transmission)


def excess(motors: Motors, commanded: Array, applied: Array) -> Array:
    """How far what was asked for exceeds what was given, as a part of `max_torque`, `[M]`."""
    return jnp.maximum(jnp.abs(commanded) - jnp.abs(applied), 0.0) / motors.max_torque


def _times(matrix: Array, vector: Array) -> Array:
    # A sum rather than a product of matrices: under vmap it fuses with what surrounds it.
    return jnp.sum(matrix * vector[None, :], axis=1)
