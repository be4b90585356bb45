"""Control environments: CartPole and Pendulum beside Gymnasium's, and the values of the toys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from envs_jax.control import cartpole, pendulum

gymnasium = pytest.importorskip("gymnasium")

NUM_STATES = 2_000
KEY = jax.random.key(0)


def run_from(states, actions, env):
    """One step of `env` from each of `states` (a state with leaves `[N]`) and `actions` `[N]`."""
    params = env.default_params
    step = jax.jit(jax.vmap(lambda state, action: env.step(KEY, state, action, params)))
    return jax.device_get(step(states, actions))


def inject_cartpole(original, state):
    original.unwrapped.state = np.asarray(state, np.float64)
    original.unwrapped.steps_beyond_terminated = None


def test_cartpole_equals_gymnasium_from_injected_states():
    generator = np.random.default_rng(0)
    scale = np.array([2.5, 3.0, 0.22, 3.0])  # beyond both limits
    numbers = (generator.uniform(-1, 1, (NUM_STATES, 4)) * scale).astype(np.float32)
    actions = generator.integers(0, 2, NUM_STATES).astype(np.int32)
    states = cartpole.State(*numbers.T, step=np.zeros(NUM_STATES, np.int32))
    _, after = run_from(states, actions, cartpole.CartPole())

    original = gymnasium.make("CartPole-v1").unwrapped
    original.reset(seed=0)
    for index in range(NUM_STATES):
        inject_cartpole(original, numbers[index])
        observation, reward, terminated, _, _ = original.step(int(actions[index]))
        np.testing.assert_allclose(after.observation[index], observation, rtol=1e-5, atol=1e-6)
        assert after.reward[index] == reward == 1.0
        assert after.terminated[index] == terminated
    assert 0.1 < after.terminated.mean() < 0.9
    assert not after.truncated.any()


def test_pendulum_equals_gymnasium_from_injected_states():
    generator = np.random.default_rng(0)
    angles = generator.uniform(-20, 20, NUM_STATES).astype(np.float32)  # several turns
    speeds = generator.uniform(-8, 8, NUM_STATES).astype(np.float32)
    torques = generator.uniform(-4, 4, (NUM_STATES, 1)).astype(np.float32)  # half of them are clipped
    zeros = np.zeros(NUM_STATES, np.float32)
    states = pendulum.State(angles, speeds, zeros, np.zeros(NUM_STATES, np.int32))
    state, after = run_from(states, torques, pendulum.Pendulum())

    original = gymnasium.make("Pendulum-v1").unwrapped
    original.reset(seed=0)
    for index in range(NUM_STATES):
        original.state = np.array([angles[index], speeds[index]], np.float64)
        observation, reward, terminated, truncated, _ = original.step(torques[index])
        np.testing.assert_allclose(after.observation[index], observation, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(after.reward[index], reward, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(state.angle[index], original.state[0], rtol=1e-6, atol=1e-6)
        assert (terminated, truncated) == (False, False)
    assert not (after.terminated | after.truncated).any()
    assert (np.abs(after.observation[:, 2]) == 8.0).any()  # the speed limit was met
    assert np.abs(state.torque).max() == 2.0


def test_whole_cartpole_episodes_equal_gymnasium():
    env, params = envs_jax.make("cartpole")
    step = jax.jit(env.step)
    original = gymnasium.make("CartPole-v1")
    for seed in range(5):
        state, time_step = env.reset(jax.random.key(seed), params)
        original.reset(seed=seed)
        inject_cartpole(original, time_step.observation)
        generator = np.random.default_rng(seed)
        for _ in range(500):
            action = int(generator.integers(0, 2))
            state, time_step = step(KEY, state, jnp.int32(action), params)
            observation, _, terminated, truncated, _ = original.step(action)
            np.testing.assert_allclose(time_step.observation, observation, rtol=1e-4, atol=1e-5)
            assert (bool(time_step.terminated), bool(time_step.truncated)) == (terminated, truncated)
            if terminated:
                break
        assert terminated


@pytest.mark.parametrize(("name", "original_name"), [("cartpole", "CartPole-v1"), ("pendulum", "Pendulum-v1")])
def test_the_time_limit_and_spaces_are_gymnasiums(name, original_name):
    original = gymnasium.make(original_name)
    env, params = envs_jax.make(name)
    assert env.max_steps == original.spec.max_episode_steps
    space = env.observation_space(params)
    np.testing.assert_allclose(space.low, original.observation_space.low)
    np.testing.assert_allclose(space.high, original.observation_space.high)


def test_time_limit_truncates_and_shows_the_last_observation():
    env, params = envs_jax.make("pendulum", max_steps=3)
    state, _ = env.reset(KEY, params)
    for number in range(1, 4):
        state, time_step = env.step(KEY, state, jnp.zeros(1), params)
        assert not time_step.terminated
        assert bool(time_step.truncated) == (number == 3)
        np.testing.assert_array_equal(time_step.observation, pendulum.observe(state))


def test_termination_and_truncation_are_kept_apart():
    env, params = envs_jax.make("cartpole", max_steps=5)
    zero = jnp.zeros(())
    late = cartpole.State(zero, zero, zero, zero, jnp.int32(4))
    late_and_fallen = late.replace(angle=jnp.float32(1.0))
    fallen = late_and_fallen.replace(step=jnp.int32(0))
    endings = [env.step(KEY, state, jnp.int32(0), params)[1] for state in (late, late_and_fallen, fallen)]
    assert [bool(time_step.terminated) for time_step in endings] == [False, True, True]
    assert [bool(time_step.truncated) for time_step in endings] == [True, True, False]


def test_starts_fill_their_range():
    keys = jax.random.split(KEY, 2_000)
    for name, limits in (("cartpole", [0.05] * 4), ("pendulum", [np.pi, 1.0])):
        env, params = envs_jax.make(name)
        state, _ = jax.jit(jax.vmap(env.reset, (0, None)))(keys, params)
        start = np.stack(jax.tree.leaves(state)[: len(limits)])
        assert (np.abs(start).max(axis=1) <= limits).all()
        assert (start.max(axis=1) > 0.99 * np.array(limits)).all()
        assert (start.min(axis=1) < -0.99 * np.array(limits)).all()


def test_physical_constants_can_be_swept():
    env, params = envs_jax.make("cartpole")
    forces = jnp.array([5.0, 10.0, 20.0])
    swept = params.replace(force=forces)
    axes = jax.tree.map(lambda leaf: 0 if leaf.ndim else None, swept)
    state, _ = env.reset(KEY, params)
    _, after = jax.vmap(env.step, (None, None, None, axes))(KEY, state, jnp.int32(1), swept)
    assert (np.diff(after.observation[:, 1]) > 0).all()  # the harder the push, the faster the cart
    assert env.observation_space(swept) == env.observation_space(params)


DISCOUNT = 0.9
TOY_VALUES = {
    # name: {(first observation, action): discounted return}
    "toy-constant-reward": {(0, 0): 1, (0, 1): 1},
    "toy-observed-value": {(-1, 0): -1, (-1, 1): -1, (1, 0): 1, (1, 1): 1},
    "toy-discounting": {(-1, 0): DISCOUNT, (-1, 1): DISCOUNT},
    "toy-action-choice": {(0, 0): -1, (0, 1): 1},
    "toy-observed-action": {(-1, 0): 1, (-1, 1): -1, (1, 0): -1, (1, 1): 1},
}


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("name", TOY_VALUES)
def test_toys_have_their_documented_values(name, continuous):
    env, params = envs_jax.make(name, continuous=continuous)
    actions = jnp.array([[-1.0], [1.0]]) if continuous else jnp.arange(2)

    @jax.jit
    @jax.vmap
    def episode(key):
        state, first = env.reset(key, params)

        def body(state, _):
            state, time_step = jax.vmap(lambda s, a: env.step(key, s, a, params))(state, actions)
            return state, time_step

        states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
        return first.observation[0], jax.lax.scan(body, states, length=env.max_steps)[1]

    observation, steps = jax.device_get(episode(jax.random.split(KEY, 20)))  # steps: [20, T, action]
    discounted = (steps.reward * DISCOUNT ** np.arange(env.max_steps)[:, None]).sum(axis=1)
    seen = {(int(o), a): discounted[i, a] for i, o in enumerate(observation) for a in range(2)}
    assert seen == pytest.approx(TOY_VALUES[name])
    assert steps.terminated[:, -1].all()
    assert not steps.terminated[:, :-1].any()
    assert not steps.truncated.any()
    if name == "toy-discounting":
        np.testing.assert_array_equal(steps.observation[:, 0], 1.0)


def test_continuous_toys_clip_their_action():
    env, params = envs_jax.make("toy-action-choice", continuous=True)
    state, _ = env.reset(KEY, params)
    rewards = [float(env.step(KEY, state, jnp.array([a]), params)[1].reward) for a in (-9.0, 0.25, 9.0)]
    assert rewards == [-1.0, 0.25, 1.0]
