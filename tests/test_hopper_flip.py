"""The flip: its clock, starts, rewards, conditions from one program, endings, randomisation and picture."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from envs_jax.robotics import hopper_params, hopper_planar, hopper_rewards
from envs_jax.robotics.hopper_flip import HopperFlip
from envs_jax.robotics.hopper_params import CHOICES, CONDITIONS, evaluation_params
from envs_jax.robotics.hopper_planar import Motion
from envs_jax.testing import check_structure

KEY = jax.random.key(0)
ENV = HopperFlip()
QUIET = evaluation_params(ENV.default_params)
TRACES = []


def play(key, params, actions):
    """An episode's (first, states, time steps) under actions `[T, 3]`, not stopped at its end."""
    TRACES.append("play")
    state, first = ENV.reset(key, params)

    def body(state, inputs):
        action, number = inputs
        state, shown = ENV.step(jax.random.fold_in(key, number), state, action, params)
        return state, (state, shown)

    return (state, first), jax.lax.scan(body, state, (actions, jnp.arange(len(actions))))[1]


played = jax.jit(play)
reset, step = jax.jit(ENV.reset), jax.jit(ENV.step)
STAND = jnp.zeros((200, 3))


def test_the_structure_is_an_environments():
    check_structure(ENV, ENV.default_params)
    assert ENV.max_steps == 200


@pytest.fixture(scope="module")
def standing():
    return jax.device_get(played(KEY, QUIET, STAND))


def test_standing_still_is_no_flip(standing):
    _, (states, shown) = standing
    assert not shown.terminated.any()
    assert shown.truncated.tolist() == [False] * 199 + [True]
    assert not shown.info["success"].any()
    assert states.calm[-1] > 150
    assert abs(states.rotation[-1]) < 0.3
    # Phases by whole steps: what the observation shows before step t is what step t is paid for.
    phases = shown.observation[:, 19:]
    assert phases.sum(axis=1).tolist() == [1.0] * 200
    assert np.flatnonzero(np.diff(phases[:, 0])).tolist() == [48]  # from step 50 on: flight
    assert np.flatnonzero(np.diff(phases[:, 2])).tolist() == [103]
    rewards = {name[7:]: term for name, term in shown.info.items() if name.startswith("reward/")}
    total = 0.1 * np.sum(list(rewards.values()), axis=0)
    np.testing.assert_allclose(shown.reward, total, rtol=1e-5)
    assert (rewards["stance"] > 0.9).sum() == 25
    assert (rewards["rotation"][:50] == 0).all()
    assert (rewards["upright"][:105] == 0).all()
    assert (rewards["upright"][105:] > 2.5).all()  # any whole number of turns, none included


def test_an_absolute_target_wants_one_turn(standing):
    absolute = QUIET.replace(target=jnp.int32(CHOICES["target"].index("absolute")))
    _, (_, shown) = played(KEY, absolute, STAND)
    assert (np.asarray(shown.info["reward/upright"])[105:] < 1e-3).all()


def test_every_condition_runs_in_one_program():
    count = len(TRACES)
    returns = {}
    actions = jax.random.uniform(KEY, (200, 3), minval=-1.0)
    for name, options in CONDITIONS.items():
        env = HopperFlip(**options)
        _, (_, shown) = played(KEY, env.default_params, actions)
        assert np.isfinite(np.asarray(shown.reward)).all(), name
        returns[name] = float(shown.reward.sum())
    assert len(TRACES) - count <= 1
    assert returns["E1"] != returns["E2"] != returns["E2b"]
    assert returns["E2"] != returns["E2m"]


@functools.cache
def swinging():
    """In flight without angular momentum, the knee flexing at 10 rad/s."""
    state, _ = reset(KEY, QUIET)
    angles = jnp.cumsum(jnp.array([-0.5, 0.9, -0.35]))
    still_rate = jax.jit(ENV.physics.still_rate)
    rate = still_rate(QUIET, jnp.array([0.9, -0.35, 0.0]), jnp.array([-10.0, 0.0, 0.0]))
    rates = jnp.stack([rate, rate - 10.0, rate - 10.0])
    motion = Motion(jnp.array([0.0, 2.0]), jnp.zeros(2), angles, rates)
    return dataclasses.replace(state, motion=motion, step=jnp.int32(60))


def test_a_swinging_leg_is_paid_by_the_base_reward_alone():
    snapshot = jax.jit(ENV.physics.snapshot)(QUIET, swinging().motion)
    rates = {}
    for index, name in enumerate(CHOICES["reward"]):
        rates[name] = float(hopper_rewards.rotation_rate(QUIET.replace(reward=jnp.int32(index)), snapshot))
    assert rates["base"] > 3.0
    assert rates["centroidal"] == pytest.approx(0.0, abs=1e-5)
    assert rates["momentum"] == pytest.approx(0.0, abs=1e-4)


def test_the_reward_conditions_differ_in_the_rotation_alone():
    shown = [step(KEY, swinging(), jnp.zeros(3), QUIET.replace(reward=jnp.int32(index)))[1].info for index in (0, 1)]
    different = [name for name in shown[0] if shown[0][name] != shown[1][name]]
    assert different == ["reward/rotation"]


def test_actuators_differ_where_the_motors_end():
    """Above no-load speed the region only brakes, the rectangle drives on; both cap what the penalty lets pass."""
    joint_rate, infos = {}, {}
    for speed in (30.0, -20.0):  # of the knee, under a command to flex
        state = swinging()
        motion = dataclasses.replace(state.motion, rates=jnp.array([0.0, speed, speed]))
        state = dataclasses.replace(state, motion=motion)
        for index, name in enumerate(CHOICES["actuator"]):
            params = QUIET.replace(actuator=jnp.int32(index))
            after, shown = step(KEY, state, jnp.array([1.0, 0.0, 0.0]), params)
            joint_rate[name, speed] = float(jnp.diff(after.motion.rates)[0])
            infos[name, speed] = shown.info
    assert joint_rate["region", 30.0] < joint_rate["rectangle", 30.0] == joint_rate["penalty", 30.0]
    assert joint_rate["region", -20.0] == joint_rate["rectangle", -20.0] < joint_rate["penalty", -20.0]
    assert infos["region", 30.0]["outside_region"] > 0
    assert infos["region", 30.0]["reward/motor_region"] < infos["rectangle", 30.0]["reward/motor_region"] == 0
    assert infos["penalty", -20.0]["reward/motor_region"] < 0


@pytest.mark.slow
def test_overloads_end_half_of_the_time(standing):
    _, (states, _) = standing
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf[150]), states)
    fragile = QUIET.replace(destructive_load=jnp.full(3, 1e-3))
    keys = jax.random.split(KEY, 2_000)
    steps = jax.jit(jax.vmap(ENV.step, (0, None, None, None)))
    _, shown = steps(keys, state, jnp.zeros(3), fragile)
    assert float(shown.terminated.mean()) == pytest.approx(0.5, abs=0.05)
    np.testing.assert_array_equal(shown.info["failure/overload"], shown.terminated)
    _, shown = steps(keys, state, jnp.zeros(3), fragile.replace(load=jnp.int32(CHOICES["load"].index("off"))))
    assert not shown.terminated.any()


def test_bodies_on_the_floor_and_broken_states_are_failures():
    state, _ = reset(KEY, QUIET)
    inverted = Motion(jnp.zeros(2), jnp.zeros(2), jnp.full(3, jnp.pi), jnp.zeros(3))
    lowest = jnp.min(jax.jit(hopper_planar.heights)(QUIET.robot, inverted)[1])
    lying = dataclasses.replace(inverted, com=jnp.stack([jnp.zeros(()), -lowest - 0.005]))
    _, shown = step(KEY, dataclasses.replace(state, motion=lying), jnp.zeros(3), QUIET)
    assert shown.terminated
    assert shown.info["failure/body"] == 1.0
    assert shown.info["reward/failure"] == -10.0
    broken = dataclasses.replace(state.motion, rates=jnp.full(3, 1e6))
    _, shown = step(KEY, dataclasses.replace(state, motion=broken), jnp.zeros(3), QUIET)
    assert shown.terminated
    assert shown.info["failure/not_finite"] == 1.0
    assert np.isfinite(shown.reward)


@pytest.mark.slow
def test_rewards_are_finite_in_any_state():
    count = 100_000
    keys = jax.random.split(KEY, count)

    @jax.jit
    @jax.vmap
    def reward(key):
        state, _ = ENV.reset(key, ENV.default_params)
        spread = jax.random.normal(key, (10,)) * jnp.array([5, 1, 5, 5, 4, 4, 4, 20, 20, 20.0])
        motion = Motion(spread[:2], spread[2:4], spread[4:7], spread[7:])
        state = dataclasses.replace(state, motion=motion, step=jax.random.randint(key, (), 0, 200))
        shown = ENV.step(key, state, jax.random.normal(key, (3,)), ENV.default_params)[1]
        return shown.reward, shown.observation, shown.critic_observation

    assert all(np.isfinite(leaf).all() for leaf in reward(keys))


@pytest.mark.slow
def test_starts():
    keys = jax.random.split(KEY, 2_000)
    resets = jax.jit(jax.vmap(ENV.reset, (0, None)))
    mixed, first = resets(keys, ENV.default_params)
    assert float((mixed.step > 0).mean()) == pytest.approx(0.3, abs=0.04)
    flying = np.asarray(mixed.step > 0)
    assert mixed.step[flying].min() >= 50
    assert mixed.step.max() <= 100
    np.testing.assert_allclose(mixed.rotation[flying], 2 * np.pi * (mixed.step[flying] - 50) / 55, rtol=1e-5, atol=1e-5)
    assert not np.asarray(first.info["failure/body"]).any()
    stance, _ = resets(keys, QUIET)
    assert (stance.step == 0).all()
    swing, _ = resets(keys, QUIET.replace(start=jnp.int32(CHOICES["start"].index("swing"))))
    assert (swing.step == 50).all()
    momentum = jax.vmap(lambda m: ENV.physics.snapshot(QUIET, m).momentum[1])(swing.motion)
    np.testing.assert_allclose(momentum, 0.0, atol=1e-4)


@pytest.mark.slow
def test_randomisation_draws_within_its_ranges():
    params = ENV.default_params
    draw = jax.jit(jax.vmap(ENV.sample_params, (0, None)))
    drawn = draw(jax.random.split(KEY, 2_000), params)
    ratios = {
        "mass": (drawn.robot.mass / params.robot.mass[None], 0.9, 1.1),
        "damping": (drawn.robot.damping / params.robot.damping[None], 0.5, 2.0),
        "friction": (drawn.robot.friction, 0.5, 1.1),
        "time constant": (drawn.robot.time_constant, 0.008, 0.03),
        "voltage": (drawn.motors.voltage, 0.85 * 48, 48),
        "ground": (drawn.robot.ground, -0.01, 0.01),
        "push": (drawn.push_speed, -0.3, 0.3),
    }
    for name, (values, low, high) in ratios.items():
        assert low <= values.min() < low + 0.03 * (high - low), name
        assert high >= values.max() > high - 0.03 * (high - low), name
    assert float(drawn.delay.mean()) == pytest.approx(0.5, abs=0.05)
    assert drawn.push_step.min() >= 105
    same = draw(jax.random.split(KEY, 5), QUIET)
    names = ("robot", "motors", "proportional_gain", "delay", "push_speed")
    for name in names:
        for mine, its in zip(jax.tree.leaves(getattr(same, name)), jax.tree.leaves(getattr(QUIET, name)), strict=True):
            np.testing.assert_allclose(mine, np.broadcast_to(its, mine.shape), rtol=1e-6)


def test_the_relaxed_barrier_is_smooth():
    start = hopper_rewards.BARRIER_START
    value, slope = jax.vmap(jax.value_and_grad(hopper_rewards.relaxed_barrier))(jnp.array([start - 1e-4, start + 1e-4]))
    np.testing.assert_allclose(value[0], value[1], atol=3e-3)
    np.testing.assert_allclose(slope[0], slope[1], rtol=1e-2)
    assert float(hopper_rewards.relaxed_barrier(jnp.float32(1.0))) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": "centriodal"}, "reward must be one of base, centroidal, momentum, got 'centriodal'; did you mean"),
        ({"physics": "mujoco"}, "physics must be one of planar"),
        ({"variant": "light"}, "no variant 'light'"),
        ({"weights": {"lunch": 1.0}}, "weights has no 'lunch'; did you mean 'launch'"),
        ({"constants": "none.toml"}, "cannot read constants"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        envs_jax.make("hopper-flip", **options)


def test_weights_are_options():
    _, params = envs_jax.make("hopper-flip", weights={"launch": 2.0}, randomisation=0.0)
    assert (float(params.weights.launch), float(params.weights.rotation)) == (2.0, 1.0)
    assert float(params.randomisation) == 0.0
    assert {field.name for field in dataclasses.fields(hopper_params.Weights)} >= {"rotation", "scale"}


def test_the_picture_shows_the_robot(standing):
    (state, _), (states, _) = standing
    first = ENV.render(state)
    assert first.shape == (240, 320, 3)
    later = ENV.render(jax.tree.map(lambda leaf: leaf[120], states))
    assert (first != later).any()
    assert (np.asarray(first)[60:205] != np.array([247, 247, 245])).any(axis=-1).sum() > 500
