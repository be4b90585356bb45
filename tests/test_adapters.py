"""Environments offered to Gymnasium and PettingZoo."""

import warnings

import jax
import numpy as np
import pytest

import envs_jax
from envs_jax.adapters.host import HostEpisode
from revealed_game import PAYOFFS

gymnasium = pytest.importorskip("gymnasium")
from gymnasium.utils.env_checker import check_env  # noqa: E402

from envs_jax.adapters.gymnasium import GymnasiumEnv, gymnasium_space  # noqa: E402
from envs_jax.spaces import Box, Discrete, MultiDiscrete  # noqa: E402


def registered(name, **options):
    """Through `gymnasium.make`, so that the checker can build the environment anew in each of its render modes."""

    def build(render_mode=None):
        return GymnasiumEnv(*envs_jax.make(name, **options), render_mode=render_mode)

    gymnasium.registry.pop("Checked-v0", None)
    gymnasium.register("Checked-v0", build)
    return gymnasium.make("Checked-v0").unwrapped


VERSUS = {"role": "row", "opponents": ["mirror"]}


@pytest.mark.parametrize(
    ("name", "options"), [("toy-observed-action", {"continuous": True}), ("revealed_game:RevealedGame", VERSUS)]
)
def test_gymnasiums_checker_has_nothing_to_say(name, options):
    check_env(registered(name, **options))


def remarks(env, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env, **options)
    return {str(remark.message) for remark in caught}


@pytest.mark.parametrize(("name", "original"), [("cartpole", "CartPole-v1"), ("pendulum", "Pendulum-v1")])
def test_gymnasiums_checker_remarks_only_what_it_remarks_of_the_original(name, original):
    # On their unbounded or unscaled spaces, that is; drawing the originals would need another package.
    theirs = remarks(gymnasium.make(original).unwrapped, skip_render_check=True)
    assert remarks(registered(name)) == theirs
    assert all("Box" in remark for remark in theirs)


def test_gymnasium_episode_equals_the_environments():
    env, params = envs_jax.make("pendulum", max_steps=4)
    wrapped, host = GymnasiumEnv(env, params), HostEpisode(env, params)
    observation, _ = wrapped.reset(seed=3)
    seed = np.random.Generator(np.random.PCG64(3)).integers(2**32)
    first = host.reset(int(seed))
    np.testing.assert_array_equal(observation, first.observation)
    state, _ = env.reset(jax.random.split(jax.random.key(np.uint32(seed)), 3)[1], params)
    for number in range(1, 5):
        action = np.array([number - 2.0], np.float32)
        observation, reward, terminated, truncated, _ = wrapped.step(action)
        state, time_step = env.step(jax.random.key(0), state, action, params)
        np.testing.assert_allclose(observation, time_step.observation, rtol=1e-5, atol=1e-6)
        assert reward == pytest.approx(float(time_step.reward), rel=1e-5)
        assert (terminated, truncated) == (False, number == 4)
        assert type(reward) is float


def test_gymnasium_seeds():
    env = GymnasiumEnv(*envs_jax.make("cartpole"))
    first, second = env.reset(seed=1)[0], env.reset()[0]
    assert (first != second).any()
    np.testing.assert_array_equal(env.reset(seed=1)[0], first)
    np.testing.assert_array_equal(env.reset()[0], second)
    assert (env.reset(seed=2)[0] != first).any()


def test_gymnasium_info_tells_the_legal_actions():
    env = GymnasiumEnv(*envs_jax.make("revealed_game:RevealedGame", **VERSUS))
    _, info = env.reset(seed=0)
    np.testing.assert_array_equal(info["legal_actions"], [True, True, False])
    assert env.action_space.sample(mask=info["legal_actions"].astype(np.int8)) in (0, 1)
    _, reward, _, _, info = env.step(1)
    assert info["legal_actions"].all()
    assert info["last_action"] == 1
    assert reward == PAYOFFS[0, 1, 0]
    assert "legal_actions" not in GymnasiumEnv(*envs_jax.make("cartpole")).reset(seed=0)[1]


def test_gymnasium_draws():
    env, params = envs_jax.make("cartpole")
    drawn = GymnasiumEnv(env, params, render_mode="rgb_array")
    drawn.reset(seed=0)
    assert drawn.render().shape == (200, 300, 3)
    silent = GymnasiumEnv(env, params)
    silent.reset(seed=0)
    assert silent.render() is None
    with pytest.raises(ValueError, match="unknown render_mode 'human'"):
        GymnasiumEnv(env, params, render_mode="human")
    with pytest.raises(ValueError, match="ActionChoice has no renderer"):
        GymnasiumEnv(*envs_jax.make("toy-action-choice"), render_mode="rgb_array")


def test_gymnasium_spaces():
    box = gymnasium_space(Box([0.0, -np.inf], [1.0, np.inf], (2,)))
    assert (box.shape, box.dtype) == ((2,), np.float32)
    assert (box.low.tolist(), box.high.tolist()) == ([0.0, -np.inf], [1.0, np.inf])
    assert gymnasium_space(Box(0, 255, (2,), np.uint8)).dtype == np.uint8
    assert gymnasium_space(Discrete(3)) == gymnasium.spaces.Discrete(3)
    assert gymnasium_space(MultiDiscrete((2, 3))) == gymnasium.spaces.MultiDiscrete([2, 3])


def test_gymnasium_refusals():
    with pytest.raises(ValueError, match="RevealedGame has 2"):
        GymnasiumEnv(*envs_jax.make("revealed_game:RevealedGame"))
    env = GymnasiumEnv(*envs_jax.make("cartpole"))
    with pytest.raises(ValueError, match="call reset before step"):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"must be in Discrete\(num_values=2\), got 2"):
        env.step(2)
    with pytest.raises(ValueError, match=r"must have shape \(\), got \(1,\)"):
        env.step([0])


@pytest.fixture(scope="module")
def zoo():
    pytest.importorskip("pettingzoo")
    from envs_jax.adapters.pettingzoo import PettingZooEnv

    return PettingZooEnv


def test_pettingzoos_test_passes(zoo, capsys):
    from pettingzoo.test import parallel_api_test, parallel_seed_test

    parallel_api_test(zoo(*envs_jax.make("revealed_game:RevealedGame")), num_cycles=10)
    parallel_seed_test(lambda: zoo(*envs_jax.make("revealed_game:RevealedGame")), num_cycles=10)
    assert "Passed" in capsys.readouterr().out


def test_pettingzoo_episode(zoo):
    env = zoo(*envs_jax.make("revealed_game:RevealedGame"))
    assert env.possible_agents == ["row_0", "column_0"]
    assert zoo(*envs_jax.make("poolflip-r3")).possible_agents == ["blue_0", "red_0"]
    observations, infos = env.reset(seed=0)
    assert env.agents == env.possible_agents
    assert [observations[agent].tolist() for agent in env.agents] == [[0.0, 1.0], [1.0, 1.0]]
    assert infos["column_0"]["action_mask"].tolist() == [1, 1, 0]
    assert infos["column_0"]["action_mask"].dtype == np.int8
    _, rewards, terminations, truncations, infos = env.step({"row_0": 1, "column_0": 0})
    assert rewards == {"row_0": PAYOFFS[0, 1, 0], "column_0": PAYOFFS[1, 1, 0]}
    assert not any(truncations.values())
    assert [infos[agent]["last_action"] for agent in env.agents] == [1, 0]
    *_, terminations, truncations, _ = env.step({"row_0": 2, "column_0": 2})
    assert set(terminations.values()) == {False}
    assert set(truncations.values()) == {True}
    assert env.agents == []


def test_pettingzoo_refusals(zoo):
    with pytest.raises(ValueError, match="CartPole has one"):
        zoo(*envs_jax.make("cartpole"))
    env = zoo(*envs_jax.make("revealed_game:RevealedGame"))
    with pytest.raises(ValueError, match="call reset"):
        env.step({"row_0": 0, "column_0": 0})
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions are missing for column_0"):
        env.step({"row_0": 0})
