"""Self-play with one PPO for each role: what each learns, and that it is PPO's own learning on the role's batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from envs_jax.control.cartpole import CartPole
from envs_jax.core import EnvSpec
from jaxrl.algorithms.ippo import by_role, make_ippo
from jaxrl.algorithms.ppo import PPOConfig, PPOHParams, make_ppo
from jaxrl.loop import scan_updates
from jaxrl.parts.networks import NetworkConfig
from jaxrl.parts.roles import take
from jaxrl.run.config import make_config
from jaxrl.types import Data
from programs import bits, compiled
from revealed_game import RevealedGame

CONFIG = PPOConfig(num_envs=16, unroll_length=4, num_minibatches=2, network=NetworkConfig(hidden_sizes=(8,)))
HPARAMS = jax.tree.map(jnp.float32, PPOHParams(learning_rate=2e-2, entropy_cost=0.0))


def test_both_prisoners_learn_to_defect():
    env, params = envs_jax.make("matrix-game", payoffs="prisoners-dilemma")
    agent, data = make_ippo(CONFIG, env), Data(params)

    @compiled
    def train(key):
        state = agent.init(key, HPARAMS, data)
        state, metrics = scan_updates(agent, state, HPARAMS, 30, data)
        _, time_step = env.reset(key, params)
        policy = agent.policy(state, data)
        action, _, extras = agent.act(policy, agent.start(policy, key), time_step, key, True)
        return action, extras["log_prob"], metrics

    action, log_prob, metrics = train(jax.random.key(0))
    np.testing.assert_array_equal(action, [1, 1])
    assert np.all(log_prob > np.log(0.9))
    np.testing.assert_allclose(metrics["episode/return"][-1], 1.0, atol=0.2)  # what defection earns both
    for role in ("row", "column"):
        np.testing.assert_allclose(metrics[f"episode/return/{role}"][-1], 1.0, atol=0.3)
    assert np.all(metrics["episode/count"] == 16 * 4)
    assert agent.steps_per_update == 2 * 16 * 4


@pytest.mark.slow
def test_each_learner_is_ppo_on_its_own_role():
    """The batch of a role is what a PPO of that role would have collected, mask and rewards included."""
    env = RevealedGame()
    agent, data = make_ippo(CONFIG, env), Data(env.default_params)
    ppo = make_ppo(CONFIG, EnvSpec(*spaces(env)))

    @compiled
    def step(key):
        state = agent.init(key, HPARAMS, data)
        collected, batch = agent.collect(state, HPARAMS, data)
        learned, _ = agent.learn(collected, HPARAMS, batch, data)
        updated, _ = agent.update(state, HPARAMS, data)
        alone = [
            ppo.learn(take(collected.params, i), HPARAMS, take(by_role(batch, 2), i), Data())[0].params for i in (0, 1)
        ]
        return batch, by_role(batch, 2), learned, updated, alone

    batch, split, learned, updated, alone = step(jax.random.key(0))
    assert bits(learned) == bits(updated)
    for role in (0, 1):
        np.testing.assert_array_equal(split.transitions.reward[role], batch.transitions.reward[:, :, role])
        np.testing.assert_array_equal(split.transitions.observation[role, :, :, 0], role)
        np.testing.assert_array_equal(split.transitions.truncated[role], batch.transitions.truncated)
        np.testing.assert_array_equal(
            split.transitions.legal_actions[role], batch.transitions.legal_actions[:, :, role]
        )
        for one, other in zip(jax.tree.leaves(take(learned.params.params, role)), jax.tree.leaves(alone[role])):
            np.testing.assert_allclose(one, other, atol=1e-5)


def spaces(env):
    params = env.default_params
    return env.observation_space(params), env.action_space(params)


def test_a_view_of_one_role_acts_for_it():
    game, params = envs_jax.make("poolflip-r3", horizon=16)
    view, view_params = envs_jax.make("poolflip-r3", horizon=16, role="red", opponents=["sleep"])
    both, red = make_ippo(CONFIG, game), make_ippo(CONFIG, view)
    states = [
        jax.jit(agent.init)(jax.random.key(0), HPARAMS, Data(p)) for agent, p in ((both, params), (red, view_params))
    ]
    assert bits(states[0]) == bits(states[1])
    policies = both.policy(states[0], Data(params)), red.policy(states[1], Data(view_params))
    assert bits(take(policies[0], 1)) == bits(policies[1])


def test_it_is_configured_like_ppo():
    table = {"algorithm": "ippo", "num_updates": 3, "env": {"name": "poolflip-r3"}}
    run = make_config(table, ["config.num_envs=32", "hparams.learning_rate=1e-3"])
    assert isinstance(run.config, PPOConfig)
    assert run.config.num_envs == 32
    assert float(run.hparams.anneal_updates) == 3


def test_games_of_one_role_are_refused():
    with pytest.raises(ValueError, match="needs a game of two roles or more, CartPole has 1"):
        make_ippo(CONFIG, CartPole())
    with pytest.raises(ValueError, match="inside JAX"):
        make_ippo(CONFIG, CartPole().spec(CartPole().default_params))
