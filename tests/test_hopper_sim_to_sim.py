"""The replay in C MuJoCo: NumPy's controller, motors and observation beside the environment's; names of an MJCF."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from envs_jax.robotics import hopper_backends, hopper_sim_to_sim, model_names
from envs_jax.robotics.hopper_flip import HopperFlip
from envs_jax.robotics.hopper_mjcf import make_model
from envs_jax.robotics.hopper_params import evaluation_params
from envs_jax.robotics.hopper_planar import base_position
from envs_jax.robotics.hopper_sim_to_sim import replay

ENV = HopperFlip()
QUIET = evaluation_params(ENV.default_params)
KEY = jax.random.key(0)
step = jax.jit(ENV.step)


@pytest.fixture(scope="module")
def mujoco():
    return pytest.importorskip("mujoco")


def in_space(motion):
    """(qpos, qvel) of a motion in the plane."""
    motion = jax.device_get(motion)
    x, z = np.asarray(base_position(QUIET.robot, motion))
    half = motion.angles[0] / 2
    qpos = np.concatenate([[x, 0, z, np.cos(half), 0, np.sin(half), 0], np.diff(motion.angles), [0]])
    qvel = np.concatenate([np.zeros(4), motion.rates[:1], [0], np.diff(motion.rates), [0]])
    return qpos, qvel


@pytest.fixture(scope="module")
def swaying():
    """The planar environment under slow actions: its states [T + 1], time steps [T + 1] and the actions."""
    actions = 0.1 * np.sin(np.arange(120)[:, None] * np.array([0.05, 0.08, 0.0])).astype(np.float32)
    state, shown = jax.jit(ENV.reset)(KEY, QUIET)
    states, steps = [state], [shown]
    for action in actions:
        state, shown = step(KEY, state, jnp.asarray(action), QUIET)
        states.append(state)
        steps.append(shown)
    return jax.device_get(states), jax.device_get(steps), actions


def test_frames_are_the_environments_observations(swaying):
    for state, shown in zip(*swaying[:2]):
        qpos, qvel = in_space(state.motion)
        found = hopper_sim_to_sim.frame(qpos, qvel, QUIET.nominal, state.actions, int(state.step), ENV.clock)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, shown.observation, atol=1e-5)


def test_a_replay_is_the_planar_episode(mujoco, swaying):
    states, shown, actions = swaying
    qpos, qvel = in_space(states[0].motion)
    com_velocity = states[0].motion.velocity
    model = make_model(ENV.hopper)
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = qpos, qvel
    mujoco.mj_forward(model, data)
    mujoco.mj_subtreeVel(model, data)
    qvel[[0, 2]] += com_velocity - data.subtree_linvel[1, ::2]
    seen = []

    def policy(observation):
        seen.append(observation)
        return actions[min(len(seen), len(actions)) - 1]

    found = replay(ENV, policy, start=(qpos, qvel), time_step=0.002, solver_iterations=4)
    steps = len(found.action)  # it falls some time after the actions have ended
    assert steps > 120
    assert (found.observation.shape, found.torque.shape) == ((steps + 1, 22), (steps, 5, 3))
    wanted = np.stack([item.observation for item in shown])
    np.testing.assert_allclose(found.observation[:121], wanted, atol=0.02)
    np.testing.assert_allclose(found.observation[:121, 6:9], wanted[:, 6:9], atol=5e-3)  # joint angles
    np.testing.assert_array_equal(seen[2], np.concatenate([found.observation[i] for i in (0, 1, 2)]))
    np.testing.assert_array_equal(seen[0], np.tile(found.observation[0], 3))
    for index, name in enumerate(ENV.hopper.motors):
        for kind, loads in (("contact", found.contact_load), ("gear", found.gear_load)):
            its = np.array([item.info[f"load_{kind}/{name}"] for item in shown[1:]])
            # From when it has settled until the heel lifts.
            np.testing.assert_allclose(loads[20:110, index], its[20:110], rtol=0.05, atol=0.1)
    assert found.turns[120, 1] == pytest.approx(float(shown[-1].info["turns/centroidal"]), abs=2e-3)
    assert found.turns[120, 0] == pytest.approx(float(shown[-1].info["turns/base"]), abs=2e-3)
    assert not found.success


def test_a_fall_ends_a_replay_and_a_finer_step_changes_little(mujoco):
    fallen = replay(ENV, lambda observation: np.array([-1.0, 1.0, 0.0]), seed=1)
    assert fallen.failure == "body"
    assert len(fallen.qpos) == len(fallen.action) + 1 < 201
    still = [replay(ENV, lambda observation: np.zeros(3), time_step=dt, seed=1) for dt in (0.002, 0.0005)]
    assert np.abs(still[0].observation - still[1].observation).max() < 0.02
    delayed = QUIET.replace(delay=jnp.asarray(True))
    late = replay(ENV, lambda observation: np.full(3, 0.2), params=delayed, time_step=0.002)
    prompt = replay(ENV, lambda observation: np.full(3, 0.2), time_step=0.002)
    assert np.abs(late.torque[0, 0] - prompt.torque[0, 0]).max() > 1.0
    with pytest.raises(ValueError, match=r"must divide the control step of 0.01 s, got 0.003"):
        replay(ENV, lambda observation: np.zeros(3), time_step=0.003)


def test_motors_are_the_environments():
    """With every torque and speed: the region of three motors, two of which share the ankle."""
    generator = np.random.default_rng(0)
    draws = [generator.normal(size=(200, 3)) * size for size in (2.0, 1.0, 20.0)]  # targets, joints, rates
    ours = hopper_sim_to_sim._Motors(ENV.hopper, jax.device_get(QUIET))
    motors = ENV.hopper.motor_region()

    def theirs(targets, joints, rates):
        return hopper_backends.actuate(QUIET, motors, joints, rates, targets)[0]

    wanted = jax.jit(jax.vmap(theirs))(*(jnp.asarray(draw, jnp.float32) for draw in draws))
    found = np.stack([ours.torque(*row) for row in zip(*draws)])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-2)


def test_a_drawn_robot_is_mujocos(mujoco):
    drawn = jax.jit(ENV.sample_params)(KEY, ENV.default_params).robot
    model, nominal = make_model(ENV.hopper, drawn), make_model(ENV.hopper)
    np.testing.assert_allclose(model.body_mass[1:], drawn.mass, rtol=1e-6)
    np.testing.assert_allclose(model.body_inertia[1:, 1], drawn.inertia, rtol=1e-6)
    np.testing.assert_allclose(model.body_ipos[1:, ::2], drawn.com, atol=1e-7)
    np.testing.assert_allclose(model.dof_armature[6:8], drawn.armature, rtol=1e-6)
    assert model.body_subtreemass[0] == pytest.approx(float(drawn.mass.sum()), rel=1e-6)
    assert model.geom("floor").pos[2] == pytest.approx(float(drawn.ground))
    ratio = model.dof_armature[8] / nominal.dof_armature[8]
    assert ratio == pytest.approx(model.dof_armature[7] / nominal.dof_armature[7], rel=1e-5)
    same = make_model(ENV.hopper, QUIET.robot)
    for name in ("body_mass", "body_subtreemass", "body_inertia", "body_ipos", "dof_armature", "dof_damping",
                 "geom_friction", "geom_solref", "geom_pos", "jnt_solref"):  # fmt: skip
        np.testing.assert_allclose(getattr(same, name), getattr(nominal, name), rtol=1e-6, atol=1e-7, err_msg=name)


def test_names_of_a_model(mujoco):
    model = make_model(ENV.hopper)
    found = model_names.joint_addresses(model, ["ankle_pitch", "knee"])
    assert (found.ids.tolist(), found.positions.tolist(), found.dofs.tolist()) == ([2, 1], [8, 7], [7, 6])
    with pytest.raises(ValueError, match=r"no joint 'ankle_pich'; did you mean 'ankle_pitch'.* Known: free, knee"):
        model_names.joint_addresses(model, ["knee", "ankle_pich"])
    with pytest.raises(ValueError, match=r"no site 'toe'.* Known: none"):
        model_names.indices(model, "site", ["toe"])
    with pytest.raises(ValueError, match=r"kind must be one of .*, got 'joints'; did you mean 'joint'"):
        model_names.indices(model, "joints", ["knee"])
    with pytest.raises(ValueError, match="joint 'free' must be a hinge or a slide"):
        model_names.joint_addresses(model, ["free"])


def test_the_plane_needs_no_mujoco_and_space_says_so(monkeypatch):
    code = "import sys, envs_jax; envs_jax.make('hopper-flip'); print('mujoco' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "False"
    monkeypatch.delitem(sys.modules, "envs_jax.robotics.hopper_mjx", raising=False)
    for name in ("mujoco", "mujoco.mjx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install mujoco mujoco-mjx"):
        envs_jax.make("hopper-flip", physics="mjx")
    with pytest.raises(ImportError, match="pip install mujoco"):
        replay(ENV, lambda observation: np.zeros(3))
