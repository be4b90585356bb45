"""One role of a two-role environment against policies given as data, on a matrix game."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from envs_jax.control.cartpole import CartPole
from envs_jax.testing import check_environment
from envs_jax.versus import Versus, versus_params
from revealed_game import PAYOFFS, RevealedGame, act, play, start


def make_versus(role="row", opponents=("always(0)", "always(1)", "mirror")):
    return envs_jax.make("revealed_game:RevealedGame", role=role, opponents=opponents)


def test_the_revealed_game_itself_keeps_the_protocol():
    check_environment(RevealedGame())


def test_versus_keeps_the_protocol():
    check_environment(*make_versus("column"))


def test_both_roles_get_their_payoff_against_every_opponent_in_one_program():
    env, params = make_versus()

    def both_rounds(role, opponent, action):
        chosen = dataclasses.replace(params, role=role, opponent=opponent)
        return play(env, chosen, jnp.stack([action, action]))

    over_opponents = jax.vmap(both_rounds, (None, 0, None))
    over_roles = jax.vmap(jax.vmap(over_opponents, (None, None, 0)), (0, None, None))
    rewards = jax.jit(over_roles)(jnp.arange(2), jnp.arange(3), jnp.arange(2))  # [role, action, opponent, T]
    for action in range(2):
        for opponent in range(2):
            np.testing.assert_array_equal(rewards[0, action, opponent], 2 * [PAYOFFS[0, action, opponent]])
            np.testing.assert_array_equal(rewards[1, action, opponent], 2 * [PAYOFFS[1, opponent, action]])
        # The mirror opens with 0 and then repeats what it saw: its memory and its own observation reach it.
        np.testing.assert_array_equal(rewards[0, action, 2], [PAYOFFS[0, action, 0], PAYOFFS[0, action, action]])
        np.testing.assert_array_equal(rewards[1, action, 2], [PAYOFFS[1, 0, action], PAYOFFS[1, action, action]])


def test_the_learner_sees_its_own_role_only():
    for number, role in enumerate(("row", "column")):
        env, params = make_versus(role)
        state, first = env.reset(jax.random.key(0), params)
        state, after = env.step(jax.random.key(0), state, jnp.int32(1), params)
        np.testing.assert_array_equal(first.observation, [number, 1.0])
        np.testing.assert_array_equal(after.observation, [number, 0.0])  # the opponent is always(0)
        np.testing.assert_array_equal(first.legal_actions, [True, True, False])
        assert after.legal_actions.all()
        assert int(after.info["last_action"]) == 1
        assert int(state.opponent_time_step.info["last_action"]) == 0
        assert int(state.opponent_time_step.observation[0]) == 1 - number
        assert env.action_space(params) == RevealedGame().action_space(params.game)


def test_opponents_are_drawn_by_their_weights():
    env, _ = make_versus()
    params = versus_params(RevealedGame().default_params, jnp.arange(3), weights=[1.0, 0.0, 3.0])
    keys = jax.random.split(jax.random.key(0), 4_000)
    drawn = jax.jit(jax.vmap(lambda key: env.sample_params(key, params).opponent))(keys)
    share = np.bincount(drawn, minlength=3) / len(drawn)
    assert share[1] == 0.0
    assert abs(share[2] - 0.75) < 4 * np.sqrt(0.75 * 0.25 / len(drawn))


def test_only_the_opponent_is_redrawn():
    _, params = make_versus()
    env, _ = make_versus()
    drawn = env.sample_params(jax.random.key(0), params)
    assert drawn.opponents is params.opponents
    assert drawn.weights is params.weights
    assert drawn.game.payoffs is params.game.payoffs


def test_refusals():
    with pytest.raises(ValueError, match="two roles"):
        Versus(CartPole(), start, act, None)
    with pytest.raises(ValueError, match="weights must have shape"):
        versus_params(RevealedGame().default_params, jnp.arange(3), weights=jnp.ones(2))
    with pytest.raises(ValueError, match="did you mean 'column'"):
        make_versus("colum")
    with pytest.raises(ValueError, match="at least one name"):
        make_versus(opponents="mirror")
    with pytest.raises(ValueError, match="at least one name, got None"):
        envs_jax.make("revealed_game:RevealedGame", role="row")
    with pytest.raises(ValueError, match="unknown role None"):
        envs_jax.make("revealed_game:RevealedGame", opponents=["mirror"])
    with pytest.raises(ValueError, match="unknown heuristic 'mirrors'"):
        make_versus(opponents=["mirrors"])
    with pytest.raises(ValueError, match="CartPole has no two roles"):
        envs_jax.make("cartpole", role="row", opponents=["mirror"])
