"""What impacts do to gears: the torque a transmission carries, by two definitions, and its impulse.

A: the joint torque that contact forces ask for, J^T f (the regulariser of Kang et al. 2025, arXiv 2505.12222, as others
report it). B: what the teeth carry, the motor's torque less what accelerates the rotor. At an impact the second term of
B is the larger. The peak of either depends on how stiff the simulated contact is, the impulse does not: report both.
Letters: V degrees of freedom, J joints, M motors, R constraint rows. N m, no batch axis.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array

FIRST_CONTACT_ROW_TYPE = 5  # of MuJoCo's mjtConstraint: from here on frictionless, pyramidal and elliptic contacts


def contact_force(data: Any, num_dofs: int) -> Array:
    """The generalised force `[V]` of the contacts alone, of a MuJoCo or MJX `Data` after `forward` or `step`.

    `qfrc_constraint` would mix in the forces of joint limits. Needs dense constraint Jacobians (small models).
    """
    constraints = getattr(data, "_impl", data)  # MJX keeps them among its private fields
    jacobian = jnp.reshape(jnp.asarray(constraints.efc_J, jnp.float32), (-1, num_dofs))
    is_contact = jnp.asarray(constraints.efc_type) >= FIRST_CONTACT_ROW_TYPE
    return jnp.where(is_contact, jnp.asarray(constraints.efc_force, jnp.float32), 0.0) @ jacobian


def contact_load(generalized_force: Array, joint_dofs: Array) -> Array:
    """Definition A `[J]`: the contacts' force `[V]` at the actuated degrees of freedom `[J]`."""
    return generalized_force[joint_dofs]


def gear_load(applied_torque: Array, armature: Array, joint_acceleration: Array) -> Array:
    """Definition B `[J]`: the applied torque less the part that accelerates the rotors (armature, kg m^2, `[J]`)."""
    return applied_torque - armature * joint_acceleration


def penalty(load: Array, rating: Array) -> Array:
    """Sum over gears of the squared relative excess above the rating; 0 within it. Both `[M]`."""
    return jnp.sum(jnp.square(jnp.maximum(jnp.abs(load) / rating - 1.0, 0.0)))


def overloaded(load: Array, limit: Array) -> Array:
    """bool []: whether some gear `[M]` exceeds its limit."""
    return jnp.any(jnp.abs(load) > limit)


def impulse(load: Array, time_step: Array | float) -> Array:
    """What one substep adds to the load's impulse, N m s, `[M]`."""
    return jnp.abs(load) * time_step
