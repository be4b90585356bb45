"""Centroidal quantities of a tree of rigid bodies: momentum, locked inertia and the angular velocity of the whole.

The centroidal angular velocity is that of the rigid body which freezing all joints at this instant would make, at the
same angular momentum (Orin, Goswami, Lee 2013, "Centroidal dynamics of a humanoid robot"). A swinging leg turns the
base of a robot but not this quantity. Letters: N bodies. World axes, SI units, no batch axis.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

Array = jax.Array


@struct.dataclass
class Centroidal:
    """Of all bodies together, about their common centre of mass."""

    mass: Array  # f32 []; kg
    velocity: Array  # f32 [3]; of the centre of mass, m/s
    angular_momentum: Array  # f32 [3]; N m s
    locked_inertia: Array  # f32 [3, 3]; kg m^2
    angular_velocity: Array  # f32 [3]; rad/s


def from_bodies(
    masses: Array, inertias: Array, rotations: Array, positions: Array, velocities: Array, angular_velocities: Array
) -> Centroidal:
    """The definition, as a sum over bodies.

    Args:
        masses: [N], kg.
        inertias: [N, 3, 3], of each body about its own centre of mass, in its own axes, kg m^2.
        rotations: [N, 3, 3], from body to world axes.
        positions: [N, 3], of the bodies' centres of mass, m.
        velocities: [N, 3], of the bodies' centres of mass, m/s.
        angular_velocities: [N, 3], rad/s, world axes.
    """
    mass = jnp.sum(masses)
    centre = masses @ positions / mass
    velocity = masses @ velocities / mass
    arms, relative = positions - centre[None], velocities - velocity[None]
    turned = rotations @ inertias @ jnp.swapaxes(rotations, -1, -2)
    spin = jnp.einsum("nij,nj->i", turned, angular_velocities)
    momentum = spin + masses @ jnp.cross(arms, relative)
    squared = jnp.sum(arms * arms, axis=-1)[:, None, None] * jnp.eye(3)[None]
    locked = jnp.sum(turned + masses[:, None, None] * (squared - arms[:, :, None] * arms[:, None, :]), axis=0)
    return Centroidal(mass, velocity, momentum, locked, solve_symmetric(locked, momentum))


def from_spatial(inertias: Array, velocities: Array) -> Centroidal:
    """The same from MuJoCo's spatial inertias and velocities; costs no pass over the bodies' poses.

    Args:
        inertias: [N, 10], MuJoCo's `cinert`: xx, yy, zz, xy, xz, yz of the inertia about the centre of mass of the
            whole, mass times offset (3), mass.
        velocities: [N, 6], MuJoCo's `cvel`: angular, then linear at the centre of mass of the whole.
    """
    xx, yy, zz, xy, xz, yz = jnp.sum(inertias[:, :6], axis=0)
    locked = jnp.stack([jnp.stack([xx, xy, xz]), jnp.stack([xy, yy, yz]), jnp.stack([xz, yz, zz])])
    spins, linear = velocities[:, :3], velocities[:, 3:]
    moments, masses = inertias[:, 6:9], inertias[:, 9]
    mass = jnp.sum(masses)
    rows = jnp.stack([inertias[:, [0, 3, 4]], inertias[:, [3, 1, 5]], inertias[:, [4, 5, 2]]], axis=1)
    momentum = jnp.einsum("nij,nj->i", rows, spins) + jnp.sum(jnp.cross(moments, linear), axis=0)
    velocity = (masses @ linear + jnp.sum(jnp.cross(spins, moments), axis=0)) / mass
    return Centroidal(mass, velocity, momentum, locked, solve_symmetric(locked, momentum))


def from_data(data: Any) -> Centroidal:
    """The same of a MuJoCo or MJX `Data` with a single floating tree, after `forward` or `step`.

    After a `step` they are those of the state before its integration, as is everything that MuJoCo derives from one.
    The reflected inertia of rotors (armature) is left out, as in MuJoCo's own angular momentum.
    """
    # MJX keeps `cinert` among its private fields; the first body is the world.
    inertias = getattr(data, "_impl", data).cinert
    return from_spatial(jnp.asarray(inertias, jnp.float32)[1:], jnp.asarray(data.cvel, jnp.float32)[1:])


def solve_symmetric(matrix: Array, vector: Array) -> Array:
    """`matrix^-1 vector` for a positive definite [3, 3]: Cramer's rule, which vmaps without a call of LAPACK."""
    first, second, third = matrix
    columns = jnp.stack([jnp.cross(second, third), jnp.cross(third, first), jnp.cross(first, second)])
    return vector @ columns / jnp.dot(first, columns[0])


def base_rate_without_momentum(base_inertia: Array, joint_inertia: Array, joint_rates: Array) -> Array:
    """The base's angular velocity `[3]` at which the joints turn and the whole has no angular momentum.

    Args:
        base_inertia: [3, 3], angular momentum per angular velocity of the base (joints at rest).
        joint_inertia: [3, J], angular momentum per joint rate (base at rest).
        joint_rates: [J], rad/s.
    """
    return -solve_symmetric(base_inertia, joint_inertia @ joint_rates)
