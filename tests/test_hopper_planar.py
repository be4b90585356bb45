"""The planar hopper beside MuJoCo: flight, landing, stance, and the momentum of a swinging leg."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs_jax.robotics import centroidal, hopper_planar, transmission_load
from envs_jax.robotics.hopper_constants import load_constants
from envs_jax.robotics.hopper_mjcf import mjcf

HOPPER = load_constants()
ROBOT = hopper_planar.make_robot(HOPPER)
TIME_STEP = jnp.float32(HOPPER.clock.time_step)
STIFFNESS, DAMPING, NOMINAL = (
    HOPPER.table("joints", name) for name in ("proportional_gain", "derivative_gain", "nominal")
)
substep = jax.jit(functools.partial(hopper_planar.substep, ROBOT))


@pytest.fixture(scope="module")
def mujoco():
    return pytest.importorskip("mujoco")


def in_mujoco(mujoco, pitch, joints, height, velocities):
    """(model, data) of the spatial hopper; velocities: x, z, pitch, knee, ankle."""
    model = mujoco.MjModel.from_xml_string(mjcf(HOPPER))
    data = mujoco.MjData(model)
    data.qpos[:] = [0, 0, height, np.cos(pitch / 2), 0, np.sin(pitch / 2), 0, *joints, 0]
    data.qvel[[0, 2, 4, 6, 7]] = velocities
    mujoco.mj_forward(model, data)
    return model, data


def in_the_plane(mujoco, model, data):
    pitch = 2 * np.arctan2(data.qpos[5], data.qpos[3])
    mujoco.mj_subtreeVel(model, data)
    numbers = (
        data.subtree_com[1, ::2], data.subtree_linvel[1, ::2],
        np.cumsum([pitch, *data.qpos[7:9]]), np.cumsum(data.qvel[[4, 6, 7]]),
    )  # fmt: skip
    return hopper_planar.Motion(*(jnp.asarray(x, jnp.float32) for x in numbers))


def controlled(motion):
    joints, rates = np.diff(motion.angles), np.diff(motion.rates)
    return STIFFNESS[:2] * (NOMINAL[:2] - joints) - DAMPING[:2] * rates


def test_free_flight_is_mujocos(mujoco):
    model, data = in_mujoco(mujoco, -0.5, (0.9, -0.3), 3.0, (1.0, 2.0, 5.0, 3.0, -2.0))
    motion = in_the_plane(mujoco, model, data)
    for step in range(50):
        torque = [20 * np.sin(0.3 * step), 5 * np.cos(0.2 * step)]
        data.ctrl[:2] = torque
        mujoco.mj_step(model, data)
        motion, forces = substep(motion, jnp.asarray(torque, jnp.float32), TIME_STEP)
        np.testing.assert_array_equal(forces.contact_torque, 0.0)
    mujoco.mj_forward(model, data)
    reference = in_the_plane(mujoco, model, data)
    np.testing.assert_allclose(motion.angles, reference.angles, atol=1e-4)
    np.testing.assert_allclose(motion.rates, reference.rates, atol=1e-3)
    # MuJoCo integrates the base, not the centre of mass: first-order differences in that.
    np.testing.assert_allclose(motion.com, reference.com, atol=1e-3)

    whole, spatial = hopper_planar.centroidal(ROBOT, reference), centroidal.from_data(data)
    np.testing.assert_allclose(whole.angular_momentum, spatial.angular_momentum, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whole.locked_inertia[1, 1], spatial.locked_inertia[1, 1], rtol=1e-4)
    base = hopper_planar.base_position(ROBOT, reference)
    np.testing.assert_allclose(base, data.xpos[1, ::2], atol=1e-5)
    np.testing.assert_allclose(hopper_planar.joint_positions(ROBOT, reference)[2], data.xpos[3, ::2], atol=1e-5)


def test_a_landing_loads_the_gears_as_in_mujoco(mujoco):
    model, data = in_mujoco(mujoco, -0.5517, (0.9, -0.3483), 0.6827, (0.0, -2.7, 0.0, 0.0, 0.0))
    motion = in_the_plane(mujoco, model, data)
    contact, gear = [], []
    for _ in range(60):
        data.ctrl[:] = STIFFNESS * (NOMINAL - data.qpos[7:]) - DAMPING * data.qvel[6:]
        torque = controlled(motion)
        mujoco.mj_step(model, data)
        motion, forces = substep(motion, jnp.asarray(torque, jnp.float32), TIME_STEP)
        contact.append([transmission_load.contact_force(data, model.nv)[6:8], forces.contact_torque])
        armature = model.dof_armature[6:8]
        gear.append([
            transmission_load.gear_load(data.ctrl[:2], armature, data.qacc[6:8]),
            transmission_load.gear_load(torque, armature, np.asarray(forces.acceleration)),
        ])  # fmt: skip
    for loads in (contact, gear):
        peaks = np.abs(loads).max(axis=0)  # [which, joint]
        np.testing.assert_allclose(peaks[1], peaks[0], rtol=0.05)
    impulse = np.abs(contact).sum(axis=0)
    np.testing.assert_allclose(impulse[1], impulse[0], rtol=0.05)
    np.testing.assert_allclose(np.diff(motion.angles), data.qpos[7:9], atol=0.02)


def test_a_stance_asks_for_the_same_torques(mujoco):
    """For three seconds. The ankle's stiffness hardly exceeds what gravity takes from it: differences grow."""
    model, data = in_mujoco(mujoco, -0.5517, (0.9, -0.3483), 0.6727, np.zeros(5))
    motion = in_the_plane(mujoco, model, data)
    for step in range(1500):
        data.ctrl[:] = STIFFNESS * (NOMINAL - data.qpos[7:]) - DAMPING * data.qvel[6:]
        torque = controlled(motion)
        mujoco.mj_step(model, data)
        motion, forces = substep(motion, jnp.asarray(torque, jnp.float32), TIME_STEP)
        if step % 100 == 50:
            np.testing.assert_allclose(torque, data.ctrl[:2], rtol=0.01)
            reference = transmission_load.contact_force(data, model.nv)
            np.testing.assert_allclose(forces.contact_torque, reference[6:8], rtol=0.01, atol=0.01)
    assert float(forces.normal_force.sum()) == pytest.approx(12.45 * 9.81, rel=0.01)


def test_softness_is_relative_to_mujocos_inverse_inertia(mujoco):
    for variant in ("", "light_thigh"):
        hopper = HOPPER.variant(variant)
        model = mujoco.MjModel.from_xml_string(mjcf(hopper))
        wanted = [model.body("foot").invweight0[0], *model.dof_invweight0[6:8]]
        np.testing.assert_allclose(hopper_planar.compliance(hopper), wanted, rtol=1e-6)


@pytest.mark.parametrize(("knee", "rate"), [(0.05, -0.430), (0.9, -0.414), (2.4, -0.267)])
def test_a_swinging_leg_turns_the_base_but_not_the_whole(knee, rate):
    ankle = {0.05: -0.0566, 0.9: -0.3483, 2.4: -1.2}[knee]  # of the stances, and tucked
    angles = jnp.cumsum(jnp.array([0.3, knee, ankle], jnp.float32))
    found = hopper_planar.base_rate_without_momentum(ROBOT, angles, jnp.array([1.0, 0.0]))
    assert float(found) == pytest.approx(rate, abs=2e-3)
    rates = jnp.stack([found, found + 1.0, found + 1.0]) * 10
    motion = hopper_planar.Motion(jnp.array([0.0, 2.0]), jnp.zeros(2), angles, rates)
    whole = hopper_planar.centroidal(ROBOT, motion)
    assert abs(float(motion.rates[0])) > 1.0
    np.testing.assert_allclose(whole.angular_velocity, 0.0, atol=1e-5)


def test_momentum_in_flight_drifts_at_first_order():
    start = hopper_planar.Motion(
        jnp.array([0.0, 5.0]), jnp.array([0.5, 2.0]), jnp.array([-0.5, 0.4, 0.0]), jnp.array([8.0, 9.0, 7.0])
    )

    @functools.partial(jax.jit, static_argnums=0)
    def drift(num_steps):
        time_step = jnp.float32(0.4 / num_steps)

        def body(motion, step):
            time = step * time_step
            torque = jnp.stack([60 * jnp.sin(20 * time), 20 * jnp.cos(15 * time)])
            return hopper_planar.substep(ROBOT, motion, torque, time_step)[0], None

        end, _ = jax.lax.scan(body, start, jnp.arange(num_steps))
        before, after = (hopper_planar.centroidal(ROBOT, m) for m in (start, end))
        # Ballistic exactly, up to the first-order fall of the semi-implicit step.
        fall = end.velocity - start.velocity - jnp.array([0.0, -9.81 * 0.4])
        return after.angular_momentum[1] / before.angular_momentum[1] - 1, fall

    errors = [drift(n) for n in (200, 400, 800)]
    for _, fall in errors:
        np.testing.assert_allclose(fall, 0.0, atol=1e-3)
    sizes = [abs(float(error)) for error, _ in errors]
    assert sizes[0] > 1.5 * sizes[1] > 2.25 * sizes[2]
    assert sizes[2] < 0.02


def test_joints_stop_at_their_limits():
    motion = hopper_planar.Motion(
        jnp.array([0.0, 3.0]), jnp.zeros(2), jnp.array([0.0, 2.3, 1.2]), jnp.array([0.0, 8.0, 0.0])
    )
    angles = []
    for _ in range(100):
        motion, forces = substep(motion, jnp.zeros(2), TIME_STEP)
        angles.append(np.diff(motion.angles))
        np.testing.assert_array_equal(forces.contact_torque, 0.0)
    low, high = np.asarray(ROBOT.limits).T
    assert np.max(angles, axis=0)[0] > high[0] - 0.01
    assert (np.max(angles, axis=0) < high + 0.1).all()
    assert (np.min(angles, axis=0) > low - 0.1).all()
