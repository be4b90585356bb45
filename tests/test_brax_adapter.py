"""Brax's tasks behind the adapter: what brax itself does, its endings, and what is refused."""

import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from envs_jax.testing import check_environment, check_structure
from programs import compiled

SIZES = {"hopper": (11, 3), "walker2d": (17, 6), "halfcheetah": (17, 6)}


@pytest.fixture(scope="module")
def hopper():
    return envs_jax.make("brax-hopper", max_steps=30)


def test_structure(hopper):
    check_structure(*hopper)
    env, params = hopper
    assert env.observation_space(params).shape == (11,)
    assert env.action_space(params).shape == (3,)
    assert env.frames_per_second == pytest.approx(125.0)


def test_an_episode_is_brax_own(hopper):
    """Observations, rewards and endings of brax's environment without wrappers, up to a fall."""
    env, params = hopper
    key, action = jax.random.key(3), jnp.array([-1.0, -1.0, 1.0])

    @compiled
    def ours():
        def step(state, _):
            state, shown = env.step(key, state, 2.0 * action, params)  # clipped
            return state, (shown.observation, shown.reward, shown.terminated, shown.truncated)

        state, first = env.reset(key, params)
        return first.observation, jax.lax.scan(step, state, None, 30)[1]

    @compiled
    def theirs():
        def step(state, _):
            state = env._task.step(state, action)
            return state, (state.obs, state.reward, state.done)

        state = env._task.reset(key)
        return state.obs, jax.lax.scan(step, state, None, 30)[1]

    first, (observation, reward, terminated, truncated) = ours()
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        their_first, (their_observation, their_reward, done) = theirs()
    np.testing.assert_allclose(first, their_first, atol=1e-6)
    fall = int(np.argmax(np.asarray(done) > 0))
    assert 0 < fall < 29
    assert not terminated[:fall].any()
    assert terminated[fall]
    np.testing.assert_allclose(observation[:fall], their_observation[:fall], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(reward[:fall], their_reward[:fall], rtol=1e-3, atol=1e-3)
    assert np.flatnonzero(truncated).tolist() == [29]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"physics": "sprin"}, "physics must be one of spring, generalized, positional, got 'sprin'; did you mean"),
        ({"task": "ant"}, "task must be one of hopper, walker2d, halfcheetah, got 'ant'"),
        ({"max_steps": 0}, "max_steps must be an integer of at least 1"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        envs_jax.make("brax-hopper", **options)


def test_without_brax(monkeypatch):
    monkeypatch.setitem(sys.modules, "brax", None)
    with pytest.raises(ImportError, match="brax-\\* environments need brax: pip install"):
        envs_jax.make("brax-hopper")


@pytest.mark.slow
@pytest.mark.parametrize("physics", ["spring", "generalized"])
@pytest.mark.parametrize("task", SIZES)
def test_every_task_and_physics_keeps_the_protocol(task, physics):
    env, params = envs_jax.make(f"brax-{task}", physics=physics, max_steps=40)
    assert (env.observation_space(params).shape[0], env.action_space(params).shape[0]) == SIZES[task]
    check_environment(env, params, num_steps=50)
