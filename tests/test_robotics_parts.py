"""Momentum, motor regions and gear loads: identities, and MuJoCo where it is the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs_jax.robotics import centroidal, motor_region, transmission_load

TREE = """
<mujoco>
  <option timestep="0.002" gravity="0 0 -9.81" iterations="50"/>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 1" condim="3"/>
    <body name="base" pos="0 0 1">
      <freejoint/>
      <inertial pos="0.01 0.02 -0.03" mass="5" fullinertia="0.08 0.07 0.03 0.004 0.002 -0.003"/>
      <geom type="sphere" size="0.05" mass="0" contype="0" conaffinity="0"/>
      <body name="upper" pos="0 0.1 -0.3">
        <joint name="hip" axis="0 1 0" armature="0.1"/>
        <inertial pos="0.02 0 -0.1" mass="3" diaginertia="0.045 0.05 0.008"/>
        <geom type="sphere" size="0.02" mass="0" contype="0" conaffinity="0"/>
        <body name="lower" pos="0 0 -0.3">
          <joint name="knee" axis="1 0 0" armature="0.05" limited="true" range="-2 2"/>
          <inertial pos="0 0.01 -0.1" mass="1" diaginertia="0.01 0.012 0.004"/>
          <geom type="sphere" size="0.05" pos="0 0 -0.2" mass="0" condim="3"/>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="hip"/><motor joint="knee"/></actuator>
  <sensor><subtreeangmom body="base"/><subtreelinvel body="base"/></sensor>
</mujoco>
"""


@pytest.fixture(scope="module")
def mujoco():
    return pytest.importorskip("mujoco")


def random_states(mujoco, count, speed=3.0):
    """The tree in random poses and motions: yields (model, data) after `mj_forward`."""
    model = mujoco.MjModel.from_xml_string(TREE)
    data = mujoco.MjData(model)
    generator = np.random.default_rng(0)
    for _ in range(count):
        data.qpos[:] = generator.normal(size=model.nq)
        data.qpos[2] = 3.0  # in the air
        data.qpos[3:7] /= np.linalg.norm(data.qpos[3:7])
        data.qvel[:] = speed * generator.normal(size=model.nv)
        data.ctrl[:] = 10 * generator.normal(size=model.nu)
        mujoco.mj_forward(model, data)
        yield model, data


def bodies(mujoco, model, data):
    """The arguments of `centroidal.from_bodies`, the world left out."""
    numbers = range(1, model.nbody)
    velocities = np.zeros((model.nbody, 6))
    for body in numbers:  # angular, then linear, at the centre of mass, world axes
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_BODY, body, velocities[body], 0)
    inertias = np.stack([np.diag(model.body_inertia[body]) for body in numbers])
    rotations = data.ximat[1:].reshape(-1, 3, 3)
    return [
        jnp.asarray(x, jnp.float32)
        for x in (model.body_mass[1:], inertias, rotations, data.xipos[1:], velocities[1:, 3:], velocities[1:, :3])
    ]


from_bodies = jax.jit(centroidal.from_bodies)


def test_momentum_and_inertia_are_mujocos(mujoco):
    for model, data in random_states(mujoco, 20):
        sums, spatial = from_bodies(*bodies(mujoco, model, data)), centroidal.from_data(data)
        for result in (sums, spatial):
            np.testing.assert_allclose(result.angular_momentum, data.sensordata[:3], rtol=1e-4, atol=2e-5)
            np.testing.assert_allclose(result.velocity, data.sensordata[3:], rtol=1e-4, atol=2e-5)
            assert float(result.mass) == pytest.approx(9.0)
            np.testing.assert_allclose(
                result.locked_inertia @ result.angular_velocity, data.sensordata[:3], rtol=1e-4, atol=2e-5
            )
        np.testing.assert_allclose(sums.locked_inertia, spatial.locked_inertia, rtol=1e-4, atol=1e-5)


def test_with_joints_at_rest_the_whole_turns_like_its_base(mujoco):
    for model, data in random_states(mujoco, 5):
        data.qvel[6:] = 0.0
        mujoco.mj_forward(model, data)
        base = data.xmat[1].reshape(3, 3) @ data.qvel[3:6]
        np.testing.assert_allclose(centroidal.from_data(data).angular_velocity, base, rtol=1e-5, atol=1e-5)


def test_a_base_turned_by_its_legs_alone_has_no_centroidal_rotation(mujoco):
    for model, data in random_states(mujoco, 5):
        moved = []  # angular momentum per unit of each velocity; the base's angular velocity in its own axes
        for dof in range(3, model.nv):
            data.qvel[:] = np.eye(model.nv)[dof]
            mujoco.mj_forward(model, data)
            moved.append(centroidal.from_data(data).angular_momentum)
        moved = jnp.stack(moved, axis=1)
        joint_rates = jnp.array([6.0, -4.0])
        turn = data.xmat[1].reshape(3, 3)
        # In world axes the base's part is the locked inertia itself, which is symmetric.
        rate = centroidal.base_rate_without_momentum(moved[:, :3] @ turn.T, moved[:, 3:], joint_rates)
        data.qvel[:] = np.concatenate([np.array([0.3, -0.2, 0.1]), turn.T @ rate, joint_rates])
        mujoco.mj_forward(model, data)
        assert np.linalg.norm(rate) > 1.0
        np.testing.assert_allclose(centroidal.from_data(data).angular_velocity, 0.0, atol=2e-5)


def test_a_moving_or_turned_frame_changes_nothing_but_the_axes(mujoco):
    model, data = next(random_states(mujoco, 1))
    masses, inertias, rotations, positions, velocities, spins = bodies(mujoco, model, data)
    plain = from_bodies(masses, inertias, rotations, positions, velocities, spins)
    boosted = from_bodies(masses, inertias, rotations, positions, velocities + jnp.array([[3.0, -2.0, 5.0]]), spins)
    np.testing.assert_allclose(boosted.angular_momentum, plain.angular_momentum, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(boosted.angular_velocity, plain.angular_velocity, rtol=1e-4, atol=1e-5)

    turn = jnp.asarray(np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0], jnp.float32)
    turn = turn * jnp.sign(jnp.linalg.det(turn))
    turned = from_bodies(masses, inertias, turn @ rotations, positions @ turn.T, velocities @ turn.T, spins @ turn.T)
    np.testing.assert_allclose(turned.angular_momentum, turn @ plain.angular_momentum, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(turned.angular_velocity, turn @ plain.angular_velocity, rtol=1e-4, atol=1e-5)


def test_a_single_body_is_itself():
    inertia, spin = jnp.diag(jnp.array([0.8, 0.7, 0.1])), jnp.array([1.0, -2.0, 3.0])
    body = (jnp.ones(1), inertia[None], jnp.eye(3)[None], jnp.ones((1, 3)), jnp.ones((1, 3)), spin[None])
    result = centroidal.from_bodies(*body)
    np.testing.assert_allclose(result.angular_momentum, inertia @ spin, rtol=1e-6)
    np.testing.assert_allclose(result.angular_velocity, spin, rtol=1e-6)


KNEE_AND_ANKLE = {
    "gear_ratio": np.array([13.0, 10.0, 10.0]),
    "torque_constant": np.array([0.15, 0.1, 0.1]),
    "resistance": np.array([0.3, 0.35, 0.35]),
    "current_limit": np.array([72.0, 50.0, 50.0]),
    "voltage": 48.0,
    "transmission": np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.6], [0.0, 1.0, -0.6]]),
}
MOTORS = motor_region.make_motors(**KNEE_AND_ANKLE)


def random_motion(count=500):
    generator = np.random.default_rng(0)
    no_load = np.asarray(MOTORS.voltage / MOTORS.torque_constant)
    speeds = generator.uniform(-2, 2, (count, 3)) * no_load
    torques = generator.uniform(-2, 2, (count, 3)) * np.asarray(MOTORS.max_torque)
    return jnp.asarray(speeds, jnp.float32), jnp.asarray(torques, jnp.float32)


def test_a_resting_motor_gives_its_cap_or_its_stall_torque():
    low, high = motor_region.torque_limits(MOTORS, jnp.zeros(3))
    np.testing.assert_allclose(high, [10.8, 5.0, 5.0], rtol=1e-6)
    np.testing.assert_allclose(low, -high)
    weak = MOTORS.replace(voltage=jnp.float32(12.0), max_torque=MOTORS.max_torque * 10)
    np.testing.assert_allclose(motor_region.torque_limits(weak, jnp.zeros(3))[1], [6.0, 12 / 3.5, 12 / 3.5], rtol=1e-6)


def test_the_region_is_a_parallelogram_within_the_cap():
    speeds, torques = random_motion()
    low, high = jax.vmap(motor_region.torque_limits, (None, 0))(MOTORS, speeds)
    mirrored, _ = jax.vmap(motor_region.torque_limits, (None, 0))(MOTORS, -speeds)
    np.testing.assert_allclose(high, -mirrored, rtol=1e-5, atol=1e-5)
    assert (low <= high).all()
    no_load = MOTORS.voltage / MOTORS.torque_constant
    np.testing.assert_allclose(motor_region.torque_limits(MOTORS, no_load)[1], 0.0, atol=1e-4)

    clip = jax.vmap(motor_region.clip_torque, (None, 0, 0))
    applied = clip(MOTORS, torques, speeds)
    np.testing.assert_array_equal(clip(MOTORS, applied, speeds), applied)
    # The bus cannot give more power than its voltage times the current.
    assert (applied * speeds <= MOTORS.voltage * jnp.abs(applied) / MOTORS.torque_constant[None] + 1e-2).all()
    share = jax.vmap(motor_region.excess, (None, 0, 0))(MOTORS, torques, applied)
    assert ((share > 0) == (jnp.abs(torques) > jnp.abs(applied))).all()
    assert (share > 0).any()


def test_without_resistance_and_with_any_voltage_the_region_is_a_box():
    ideal = MOTORS.replace(resistance=MOTORS.resistance * 1e-6, voltage=jnp.float32(1e6))
    speeds, torques = random_motion()
    applied = jax.vmap(motor_region.clip_torque, (None, 0, 0))(ideal, torques, speeds)
    np.testing.assert_array_equal(applied, np.clip(torques, -MOTORS.max_torque, MOTORS.max_torque))


def test_two_motors_share_an_ankle():
    demand = jnp.array([-100.0, 40.0, 12.0])  # knee, ankle pitch, ankle roll, N m
    np.testing.assert_allclose(motor_region.branch_torque(MOTORS, demand), [-100.0, 30.0, 10.0], rtol=1e-6)
    torques = motor_region.motor_torque(MOTORS, demand)
    np.testing.assert_allclose(motor_region.joint_torque(MOTORS, torques), demand, rtol=1e-5)
    # Power is the same on both sides of the gears.
    rates = jnp.array([3.0, -2.0, 1.0])
    assert float(jnp.dot(torques, motor_region.motor_speed(MOTORS, rates))) == pytest.approx(
        float(jnp.dot(demand, rates)), rel=1e-5
    )
    # Full pitch torque leaves no roll torque.
    limits = motor_region.joint_torque(MOTORS, MOTORS.max_torque)
    np.testing.assert_allclose(limits, [140.4, 100.0, 0.0], rtol=1e-6, atol=1e-4)
    armature = motor_region.reflected_inertia(
        KNEE_AND_ANKLE["gear_ratio"], np.array([7.0e-4, 1.5e-4, 1.5e-4]), KNEE_AND_ANKLE["transmission"]
    )
    np.testing.assert_allclose(armature, [0.1183, 0.0300, 0.0108], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("voltage", 0.0, r"voltage must be \[\] positive"),
        ("gear_ratio", np.array([13.0, -10.0, 10.0]), r"gear_ratio must be \[3\] positive"),
        ("resistance", np.array([0.3, 0.35]), r"resistance must be \[3\] positive"),
        ("transmission", np.ones((3, 3)), "drive every joint"),
    ],
)
def test_motors_that_cannot_be_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        motor_region.make_motors(**{**KNEE_AND_ANKLE, name: value})


def test_the_load_of_an_impact_is_that_of_its_contacts(mujoco):
    model = mujoco.MjModel.from_xml_string(TREE)
    data = mujoco.MjData(model)
    data.qpos[2], data.qvel[2] = 0.86, -2.0
    joints, armature = np.arange(6, 8), model.dof_armature[6:]
    seen, inertial = 0, np.zeros(model.nv)
    for _ in range(60):
        mujoco.mj_step(model, data)
        mujoco.mj_forward(model, data)
        load = transmission_load.contact_load(transmission_load.contact_force(data, model.nv), joints)
        if not data.ncon:
            np.testing.assert_array_equal(load, 0.0)
        limited = np.any(data.efc_type == mujoco.mjtConstraint.mjCNSTR_LIMIT_JOINT)
        if data.ncon and not limited:
            np.testing.assert_allclose(load, data.qfrc_constraint[6:], rtol=1e-4, atol=1e-3)
            seen += np.abs(load).max() > 1.0
        # B is the inverse dynamics of the links without their rotors.
        carried = transmission_load.gear_load(data.qfrc_actuator[6:], armature, data.qacc[6:])
        mujoco.mj_mulM(model, data, inertial, data.qacc)
        force = inertial + data.qfrc_bias - data.qfrc_constraint - data.qfrc_passive
        np.testing.assert_allclose(carried, force[6:] - armature * data.qacc[6:], atol=1e-3)
    assert seen > 5


def test_loads_are_penalised_above_their_rating():
    load, rating = jnp.array([90.0, -210.0, 70.0]), jnp.array([180.0, 140.0, 70.0])
    assert float(transmission_load.penalty(load, rating)) == pytest.approx(0.25)
    assert not transmission_load.overloaded(load, jnp.full(3, 210.0))
    assert transmission_load.overloaded(load, jnp.full(3, 209.0))
    np.testing.assert_allclose(transmission_load.impulse(load, 0.002), [0.18, 0.42, 0.14], rtol=1e-6)


@pytest.mark.slow
def test_mjx_data_gives_the_same(mujoco):
    mjx = pytest.importorskip("mujoco.mjx")
    compiled = None
    for model, data in random_states(mujoco, 3):
        model_x = mjx.put_model(model)
        compiled = compiled or jax.jit(lambda m, d: mjx.forward(m, d))
        data.qpos[2] = 0.6
        mujoco.mj_forward(model, data)
        with jax.numpy_rank_promotion("allow"):  # MJX relies on it
            data_x = compiled(model_x, mjx.put_data(model, data))
        there, here = centroidal.from_data(data_x), centroidal.from_data(data)
        np.testing.assert_allclose(there.angular_momentum, here.angular_momentum, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(there.locked_inertia, here.locked_inertia, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            transmission_load.contact_force(data_x, model.nv), transmission_load.contact_force(data, model.nv),
            rtol=2e-2, atol=0.5,
        )  # fmt: skip
