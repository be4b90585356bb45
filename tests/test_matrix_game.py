"""Matrix games: payoffs as in the tables, strategies as data, and the same numbers through `Versus`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from envs_jax.games.matrix_game import GAMES, MatrixGame, parse_strategy, payoff_tables
from envs_jax.testing import check_environment

BATTLE_OF_THE_SEXES = [[[3, 0], [0, 2]], [[2, 0], [0, 3]]]


@pytest.mark.parametrize("options", [{}, {"payoffs": "prisoners-dilemma", "num_rounds": 3}])
def test_conformance(options):
    check_environment(*envs_jax.make("matrix-game", **options))


@pytest.mark.parametrize("payoffs", [*GAMES, BATTLE_OF_THE_SEXES])
def test_every_profile_pays_its_entry_and_ends_after_the_rounds(payoffs):
    env, params = envs_jax.make("matrix-game", payoffs=payoffs, num_rounds=2)
    tables = payoff_tables(payoffs)
    num_actions = tables.shape[-1]
    assert env.action_space(params).num_values == num_actions
    profiles = jnp.array([(a, b) for a in range(num_actions) for b in range(num_actions)], jnp.int32)

    @jax.jit
    @jax.vmap
    def play(profile):
        key = jax.random.key(0)
        state, first = env.reset(key, params)
        state, second = env.step(key, state, profile, params)
        _, third = env.step(key, state, profile, params)
        return first, second, third

    first, second, third = play(profiles)
    expected = np.array([tables[:, a, b] for a, b in profiles])
    assert not np.any(first.reward)
    for time_step in (second, third):
        np.testing.assert_array_equal(time_step.reward, expected)
        np.testing.assert_array_equal(time_step.observation, first.observation)  # nothing is revealed
    assert np.all(first.info["active"])
    assert not np.any(second.ended)
    assert np.all(third.terminated)
    assert not np.any(third.truncated)


def test_known_tables():
    np.testing.assert_array_equal(payoff_tables("rock-paper-scissors")[:, 1, 0], [1, -1])  # paper covers rock
    np.testing.assert_array_equal(payoff_tables("matching-pennies")[:, 0, 1], [-1, 1])
    np.testing.assert_array_equal(payoff_tables("prisoners-dilemma")[:, 1, 0], [5, 0])
    assert MatrixGame("rock-paper-scissors").zero_sum
    assert MatrixGame([[1, 2], [3, 4]]).zero_sum
    assert not MatrixGame("prisoners-dilemma").zero_sum


def test_strategies_are_drawn_as_their_names_say():
    env, _ = envs_jax.make("matrix-game")
    start, act, policies = env.heuristics(["uniform", "pure(2)", "mixed(1, 2, 1)"])
    expected = np.array([[1 / 3, 1 / 3, 1 / 3], [0, 0, 1], [0.25, 0.5, 0.25]])
    np.testing.assert_allclose(policies, expected, atol=1e-7)

    @jax.jit
    @jax.vmap
    def frequencies(policy):
        keys = jax.random.split(jax.random.key(1), 4096)
        actions = jax.vmap(lambda key: act(policy, start(policy, key), None, key, False)[0])(keys)
        return jnp.mean(jax.nn.one_hot(actions, 3), axis=0)

    measured = frequencies(policies)
    np.testing.assert_allclose(measured, expected, atol=0.03)  # 4 standard errors
    np.testing.assert_array_equal(measured[1], [0, 0, 1])


@pytest.mark.parametrize(("role", "value"), [("row", 1.0), ("column", -1.0)])
def test_versus_meets_each_opponent(role, value):
    """Paper against rock always wins for row; the column role's table has the other sign."""
    env, params = envs_jax.make("matrix-game", role=role, opponents=["pure(0)", "pure(2)"])
    own = {"row": 1, "column": 2}[role]  # row plays paper, column scissors

    @jax.jit
    @jax.vmap
    def play(key):
        key_params, key_reset, key_step = jax.random.split(key, 3)
        drawn = env.sample_params(key_params, params)
        state, _ = env.reset(key_reset, drawn)
        _, last = env.step(key_step, state, jnp.int32(own), drawn)
        return drawn.opponent, last.reward, last.terminated

    opponent, reward, terminated = play(jax.random.split(jax.random.key(2), 64))
    assert set(np.asarray(opponent).tolist()) == {0, 1}
    # Row: paper beats rock, loses to scissors. Column: scissors lose to rock, tie with scissors.
    expected = np.where(opponent == 0, value, {"row": -1.0, "column": 0.0}[role])
    np.testing.assert_array_equal(reward, expected)
    assert np.all(terminated)


def test_payoffs_can_be_swept():
    env, params = envs_jax.make("matrix-game", payoffs="matching-pennies")
    swept = params.replace(payoffs=jnp.stack([params.payoffs, 2.0 * params.payoffs]))

    def play(params):
        state, _ = env.reset(jax.random.key(0), params)
        return env.step(jax.random.key(0), state, jnp.zeros(2, jnp.int32), params)[1].reward

    np.testing.assert_array_equal(jax.vmap(play)(swept), [[1, -1], [2, -2]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"payoffs": "rock-paper-scisors"}, "did you mean 'rock-paper-scissors'"),
        ({"payoffs": [[1, 2, 3], [4, 5, 6]]}, r"one square table.*got shape \(2, 3\)"),
        ({"payoffs": [[1, 2], [3]]}, "rows of equal length"),
        ({"payoffs": [[1, float("nan")], [0, 0]]}, "finite numbers"),
        ({"payoffs": 3}, "one square table"),
        ({"num_rounds": 0}, "num_rounds must be an integer of at least 1, got 0"),
        ({"role": "blue", "opponents": ["uniform"]}, "unknown role 'blue'"),
        ({"role": "row", "opponents": ["pure(3)"]}, r"unknown strategy 'pure\(3\)'.*k in 0 .. 2"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        envs_jax.make("matrix-game", **options)


@pytest.mark.parametrize(
    "name", ["unifrom", "pure", "pure(0.5)", "pure(x)", "mixed(1,2)", "mixed(0,0,0)", "mixed(-1,1,1)"]
)
def test_bad_strategies_are_refused(name):
    with pytest.raises(ValueError, match="unknown strategy"):
        parse_strategy(name, 3)
