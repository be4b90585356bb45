"""Physics of the hopper in its sagittal plane: thigh, calf and foot, five degrees of freedom, in plain JAX.

Coordinates are the centre of mass (x, z) and the absolute pitch of each link, so that linear momentum decouples and the
links' equations are 3 by 3. Contacts and joint limits are MuJoCo's soft constraints (reference acceleration, impedance
and the softness of a pyramidal cone; "Computation" in its documentation). The solver starts from the forces without
their bounds, which are exact for a foot that stands, and goes on by projected Gauss-Seidel. A positive angle is a pitch
forward: it turns (x, z) into (x cos + z sin, -x sin + z cos). No batch axis.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_jax.robotics.centroidal import Centroidal
from envs_jax.robotics.hopper_constants import Hopper

Array = jax.Array

# MuJoCo's default impedance: from the first value without penetration to the second at the width and deeper.
IMPEDANCE, WIDTH = (0.9, 0.95), 0.001
NUM_SWEEPS = 4  # of Gauss-Seidel; loads of a landing are then within 0.2 % of those of 100
SPHERES_PER_POINT = 2  # left and right ones of the sole are one point of the plane


@struct.dataclass
class Robot:
    """What may be drawn per episode and what goes with it; links are thigh, calf, foot, joints knee and ankle."""

    mass: Array  # f32 [3]; kg
    inertia: Array  # f32 [3]; about y through each centre of mass, kg m^2
    com: Array  # f32 [3, 2]; centres of mass in the links' frames, (x, z), m
    offset: Array  # f32 [2, 2]; knee in the thigh's frame, ankle in the calf's
    sole: Array  # f32 [2, 2]; centres of the toe's and the heel's spheres in the foot's frame
    sole_radius: Array  # f32 []
    guards: Array  # f32 [2, 2]; centres of kneecap and top in the thigh's frame
    guard_radii: Array  # f32 [2]
    armature: Array  # f32 [2]; kg m^2
    damping: Array  # f32 [2]; N m s
    limits: Array  # f32 [2, 2]; lowest and highest angle of each joint
    friction: Array  # f32 []
    time_constant: Array  # f32 []; of contacts and limits, s
    compliance: Array  # f32 [3]; of the foot, 1/kg, and of the joints, 1/(kg m^2): what softness is relative to
    ground: Array  # f32 []; height of the floor
    gravity: Array  # f32 []


@struct.dataclass
class Motion:
    com: Array  # f32 [2]; x, z
    velocity: Array  # f32 [2]; of the centre of mass
    angles: Array  # f32 [3]; absolute pitch of the links, not wrapped, rad
    rates: Array  # f32 [3]; rad/s


@struct.dataclass
class Forces:
    """Of one substep, at the state before its integration."""

    acceleration: Array  # f32 [2]; of the joints, rad/s^2
    contact_torque: Array  # f32 [2]; J^T f of the contacts at the joints, N m
    normal_force: Array  # f32 [2]; on toe and heel, N


def make_robot(hopper: Hopper) -> Robot:
    """The sagittal part of the constants."""
    links, contact = hopper.links, hopper.contact
    knee_and_ankle = [hopper.joints[name] for name in ("knee", "ankle_pitch")]
    toe, heel = max(contact.sole), min(contact.sole)
    values = {
        "mass": hopper.table("links", "mass"),
        "inertia": hopper.table("links", "inertia")[:, 1],
        "com": hopper.table("links", "com")[:, ::2],
        "offset": [links["calf"].offset[::2], links["foot"].offset[::2]],
        "sole": [toe[::2], heel[::2]],
        "sole_radius": contact.sole_radius,
        "guards": [contact.kneecap[::2], contact.top[::2]],
        "guard_radii": [contact.kneecap_radius, contact.top_radius],
        "armature": hopper.armature[:2],
        "damping": [joint.damping for joint in knee_and_ankle],
        "limits": [joint.range for joint in knee_and_ankle],
        "friction": contact.friction[0],
        "time_constant": contact.time_constant,
        "compliance": compliance(hopper),
        "ground": 0.0,
        "gravity": hopper.gravity,
    }
    return Robot(**{name: jnp.asarray(np.asarray(value), jnp.float32) for name, value in values.items()})


def compliance(hopper: Hopper) -> np.ndarray:
    """MuJoCo's `invweight0` `[3]` of the foot (translation) and of knee and ankle pitch, with all joints at 0.

    The inverse inertia of the spatial robot, by which MuJoCo scales how soft its constraints are.
    """
    positions = np.cumsum([link.offset for link in hopper.links.values()], axis=0)
    links, joints = list(hopper.links), list(hopper.joints.values())
    inertia, jacobian = np.diag(np.concatenate([np.zeros(6), hopper.armature])), np.zeros((3, 6 + len(joints)))
    for number, link in enumerate(hopper.links.values()):
        centre = positions[number] + link.com
        moves = [links.index(joint.link) <= number for joint in joints]
        spins = np.concatenate(
            [np.zeros((3, 3)), np.eye(3), [moved * np.array(j.axis) for moved, j in zip(moves, joints)]]
        )
        anchors = np.concatenate([np.zeros((6, 3)), [positions[links.index(joint.link)] for joint in joints]])
        jacobian = (np.cross(spins, centre - anchors) + np.eye(len(spins), 3)).T
        inertia += link.mass * jacobian.T @ jacobian + spins @ np.diag(link.inertia) @ spins.T
    inverse = np.linalg.inv(inertia)
    return np.array([np.trace(jacobian @ inverse @ jacobian.T) / 3, inverse[6, 6], inverse[7, 7]])


def arms(robot: Robot) -> Array:
    """f32 [3, 3, 2]: link i's centre of mass, seen from that of the whole, is the sum over j of arms[i, j] turned by
    link j's angle."""
    knee, ankle, zero = robot.offset[0], robot.offset[1], jnp.zeros(2)
    positions = jnp.stack([
        jnp.stack([robot.com[0], zero, zero]),
        jnp.stack([knee, robot.com[1], zero]),
        jnp.stack([knee, ankle, robot.com[2]]),
    ])  # fmt: skip
    share = robot.mass / jnp.sum(robot.mass)
    return positions - jnp.sum(share[:, None, None] * positions, axis=0, keepdims=True)


def turn(angles: Array, vectors: Array) -> Array:
    """`vectors` `[..., 2]` turned by `angles` `[...]`."""
    cos, sin, x, z = jnp.cos(angles), jnp.sin(angles), vectors[..., 0], vectors[..., 1]
    return jnp.stack([x * cos + z * sin, z * cos - x * sin], axis=-1)


def base_position(robot: Robot, motion: Motion) -> Array:
    """f32 [2]: the origin of the thigh's frame."""
    # The base lies where the thigh's centre of mass, less its own offset, is.
    own = arms(robot)[0] - jnp.stack([robot.com[0], jnp.zeros(2), jnp.zeros(2)])
    return motion.com + jnp.sum(turn(motion.angles, own), axis=0)


def joint_positions(robot: Robot, motion: Motion) -> Array:
    """f32 [4, 2]: the origin of the thigh, the knee, the ankle, and the middle of the sole."""
    base, turned = base_position(robot, motion), turn(motion.angles[:2], robot.offset)
    ankle = base + turned[0] + turned[1]
    return jnp.stack([base, base + turned[0], ankle, ankle + turn(motion.angles[2], jnp.mean(robot.sole, axis=0))])


def heights(robot: Robot, motion: Motion) -> tuple[Array, Array]:
    """Gaps (m, negative: penetration) between the floor and toe and heel, kneecap and top, `[2]` each."""
    base, _, ankle, _ = joint_positions(robot, motion)
    soles = ankle[1] + turn(motion.angles[2] * jnp.ones(2), robot.sole)[:, 1]
    guards = base[1] + turn(motion.angles[0] * jnp.ones(2), robot.guards)[:, 1]
    return soles - robot.sole_radius - robot.ground, guards - robot.guard_radii - robot.ground


def centroidal(robot: Robot, motion: Motion) -> Centroidal:
    """Momentum of the whole; x and z axes of rotation carry nothing in the plane."""
    lever = turn(motion.angles[None] * jnp.ones((3, 1)), arms(robot))
    position = jnp.sum(lever, axis=1)
    relative = jnp.sum(_perpendicular(lever) * motion.rates[None, :, None], axis=1)
    crossed = position[:, 1] * relative[:, 0] - position[:, 0] * relative[:, 1]
    momentum = jnp.sum(robot.inertia * motion.rates + robot.mass * crossed)
    locked = jnp.sum(robot.inertia + robot.mass * jnp.sum(jnp.square(position), axis=1))
    axis = jnp.array([0.0, 1.0, 0.0])
    velocity = jnp.stack([motion.velocity[0], jnp.zeros(()), motion.velocity[1]])
    return Centroidal(jnp.sum(robot.mass), velocity, momentum * axis, jnp.diag(locked * axis), momentum / locked * axis)


def base_rate_without_momentum(robot: Robot, angles: Array, joint_rates: Array) -> Array:
    """The thigh's rate at which the joints turn at `joint_rates` `[2]` and the whole has no angular momentum."""
    relative = jnp.concatenate([jnp.zeros(1), jnp.cumsum(joint_rates)])
    still = Motion(jnp.zeros(2), jnp.zeros(2), angles, relative)
    whole = centroidal(robot, still)
    return -whole.angular_momentum[1] / whole.locked_inertia[1, 1]


def substep(robot: Robot, motion: Motion, torque: Array, time_step: Array) -> tuple[Motion, Forces]:
    """One semi-implicit Euler step under joint torques `[2]` (N m).

    Constraint rows are normal and tangent at the toe, then at the heel, then the limits of knee and ankle.
    """
    lever, mass = arms(robot), jnp.sum(robot.mass)
    # Row j, column k: by link j's angle against link k's.
    x, z = lever[..., 0], lever[..., 1]
    weight = robot.mass[:, None, None]
    along = jnp.sum(weight * (x[:, :, None] * x[:, None, :] + z[:, :, None] * z[:, None, :]), axis=0)
    across = jnp.sum(weight * (x[:, :, None] * z[:, None, :] - z[:, :, None] * x[:, None, :]), axis=0)
    difference = motion.angles[None, :] - motion.angles[:, None]
    cos, sin = jnp.cos(difference), jnp.sin(difference)
    knee, ankle = robot.armature[0], robot.armature[1]
    rotors = jnp.stack([
        jnp.stack([knee, -knee, jnp.zeros(())]),
        jnp.stack([-knee, knee + ankle, -ankle]),
        jnp.stack([jnp.zeros(()), -ankle, ankle]),
    ])  # fmt: skip
    inertia = cos * along + sin * across + jnp.eye(3) * robot.inertia[None, :] + rotors
    centrifugal = jnp.sum((sin * along - cos * across) * jnp.square(motion.rates)[None, :], axis=1)
    joint_rates = motion.rates[1:] - motion.rates[:-1]
    driven = torque - robot.damping * joint_rates
    force = centrifugal + jnp.stack([-driven[0], driven[0] - driven[1], driven[1]])
    inverse = _inverse(inertia)
    free = jnp.sum(inverse * force[None, :], axis=1)
    fall = jnp.stack([jnp.zeros(()), -robot.gravity])

    on_com, on_angles, on_joints, gap = constraints(robot, motion, lever)
    speed = _rows(on_com, motion.velocity) + _rows(on_angles, motion.rates)
    unconstrained = _rows(on_com, fall) + _rows(on_angles, free)
    moved = jnp.sum(on_angles[:, :, None] * inverse[None], axis=1)  # [6, 3]; angular acceleration per row's force
    coupling = jnp.sum(moved[:, None, :] * on_angles[None, :, :], axis=2)
    coupling += jnp.sum(on_com[:, None, :] * on_com[None, :, :], axis=2) / mass
    forces = solve(robot, coupling, unconstrained, speed, gap)

    acceleration = free + _rows(moved.T, forces)
    linear = fall + _rows(on_com.T, forces) / mass
    velocity, rates = motion.velocity + time_step * linear, motion.rates + time_step * acceleration
    after = Motion(motion.com + time_step * velocity, velocity, motion.angles + time_step * rates, rates)
    return after, Forces(acceleration[1:] - acceleration[:-1], _rows(on_joints.T, forces[:4]), forces[:4:2])


def constraints(robot: Robot, motion: Motion, lever: Array) -> tuple[Array, Array, Array, Array]:
    """The six rows: speed per velocity of the centre of mass `[6, 2]` and per link's rate `[6, 3]`, of the contacts
    also per joint's rate with the base at rest `[4, 2]`, and gaps `[6]` (negative where a row is active)."""
    contacts, on_joints = [], []
    for point in robot.sole:
        reach = turn(motion.angles, lever[2].at[2].add(point - robot.com[2]))  # from the whole's centre of mass
        arm = turn(motion.angles[2], point) - jnp.stack([jnp.zeros(()), robot.sole_radius])  # from the ankle
        shin = turn(motion.angles[1], robot.offset[1])
        normal = -reach[:, 0]
        tangent = reach[:, 1].at[2].add(-robot.sole_radius)
        contacts += [normal, tangent]
        on_joints += [jnp.stack([-arm[0] - shin[0], -arm[0]]), jnp.stack([arm[1] + shin[1], arm[1]])]
    angles = motion.angles[1:] - motion.angles[:-1]
    below, above = angles - robot.limits[:, 0], robot.limits[:, 1] - angles
    side = jnp.where(below < above, 1.0, -1.0)
    stops = side[:, None] * jnp.array([[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0]])
    soles = heights(robot, motion)[0]
    on_com = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    gap = jnp.concatenate([jnp.repeat(soles, 2), jnp.minimum(below, above)])
    return on_com, jnp.concatenate([jnp.stack(contacts), stops]), jnp.stack(on_joints), gap


def solve(robot: Robot, coupling: Array, unconstrained: Array, speed: Array, gap: Array) -> Array:
    """Forces `[6]` of the rows: at 0 or above and pressing for normals and stops, within friction for tangents."""
    low, high = IMPEDANCE
    depth = jnp.clip(-gap / WIDTH, 0.0, 1.0)
    ramp = jnp.where(depth < 0.5, 2.0 * jnp.square(depth), 1.0 - 2.0 * jnp.square(1.0 - depth))
    impedance = low + ramp * (high - low)
    is_tangent = jnp.array([False, True, False, True, False, False])
    stiffness = impedance / jnp.square(high * robot.time_constant)
    damping = 2.0 / (high * robot.time_constant)
    target = -damping * speed - jnp.where(is_tangent, 0.0, stiffness * gap)
    # Each sphere is a pyramid of four forces, whose sum is softer along the floor than into it.
    edge = (1.0 + jnp.square(robot.friction)) * robot.compliance[0] / SPHERES_PER_POINT
    normal = 0.5 * jnp.square(robot.friction) * edge
    softness = jnp.stack([normal, edge, normal, edge, robot.compliance[1], robot.compliance[2]])
    pivot = jnp.diagonal(coupling) + (1.0 - impedance) / impedance * softness
    missing, active = target - unconstrained, gap < 0
    # One number per row: scalars that the compiler keeps in registers, under vmap in vectors over environments.
    force = without_bounds(coupling, pivot, missing, active) + [jnp.zeros(())] * 2
    for _ in range(NUM_SWEEPS):
        for row in range(6):
            others = sum(coupling[row, k] * force[k] for k in range(6) if k != row)
            wanted = (missing[row] - others) / pivot[row]
            if row in (1, 3):
                bound = robot.friction * force[row - 1]
                wanted = jnp.clip(wanted, -bound, bound)
            else:
                wanted = jnp.maximum(wanted, 0.0)
            force[row] = jnp.where(active[row], wanted, 0.0)
    return jnp.stack(force)


def without_bounds(coupling: Array, pivot: Array, missing: Array, active: Array) -> list[Array]:
    """Forces of the active contacts by Gaussian elimination, as if they could pull and friction were endless."""
    size = 4
    both = [[active[i] & active[j] for j in range(size)] for i in range(size)]
    matrix = [[jnp.where(both[i][j], coupling[i, j], 0.0) for j in range(size)] for i in range(size)]
    force, inverse = [jnp.where(active[i], missing[i], 0.0) for i in range(size)], []
    for k in range(size):
        inverse.append(1.0 / (matrix[k][k] + pivot[k] - coupling[k, k]))
        for i in range(k + 1, size):
            factor = matrix[k][i] * inverse[k]  # symmetric: what is left below the diagonal is not kept up
            force[i] = force[i] - factor * force[k]
            for j in range(i, size):
                matrix[i][j] = matrix[i][j] - factor * matrix[k][j]
    for k in reversed(range(size)):
        force[k] = (force[k] - sum(matrix[k][j] * force[j] for j in range(k + 1, size))) * inverse[k]
    return force


def _rows(matrix: Array, vector: Array) -> Array:
    # A sum rather than a product of matrices: under vmap it fuses with what surrounds it.
    return jnp.sum(matrix * vector[None, :], axis=1)


def _perpendicular(vectors: Array) -> Array:
    """The rate of `vectors` `[..., 2]` per rate of their angle."""
    return jnp.stack([vectors[..., 1], -vectors[..., 0]], axis=-1)


def _inverse(matrix: Array) -> Array:
    """Of a symmetric [3, 3], by cofactors."""
    a, b, c = matrix
    columns = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)])
    return columns / jnp.sum(a * columns[0])
