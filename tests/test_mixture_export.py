"""A population's mixture as one file: a member plays each episode, drawn by weight, and acts as it does live."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from jaxrl.algorithms.ppo import PPOConfig, PPOHParams
from jaxrl.algorithms.psro import OracleConfig, PSROConfig, make_psro
from jaxrl.parts.networks import NetworkConfig
from jaxrl.results.export import export_policy, load_policy
from jaxrl.types import Data

HPARAMS = jax.tree.map(jnp.float32, PPOHParams())
NETWORKS = {
    "mlp": PPOConfig(
        num_envs=8, unroll_length=4, network=NetworkConfig(hidden_sizes=(8,)), normalize_observations=True
    ),
    "gru": PPOConfig(num_envs=8, unroll_length=4, network=NetworkConfig(torso="gru", gru_size=4, hidden_sizes=(8,))),
}
WEIGHTS = jnp.array([0.0, 0.001, 0.6, 0.0, 0.399])  # two heuristics, three networks


def trained(oracle="mlp", output="meta", **changes):
    """Agent, state and data of red's population, after three iterations of nothing but chance."""
    env, params = envs_jax.make("poolflip-r3", horizon=8, role="red", opponents=["guard(2)"])
    config = PSROConfig(
        ("sleep", "guard(2)"), capacity=3, num_groups=4, output=output, oracle=OracleConfig("ppo", 1, NETWORKS[oracle])
    )
    agent, data = make_psro(config, env), Data(params)
    generator = np.random.default_rng(0)

    def fill(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        values = generator.uniform(0.0, 1.0, leaf.shape) if jnp.issubdtype(leaf.dtype, jnp.floating) else 0
        return jnp.full(leaf.shape, values, leaf.dtype)

    shapes = jax.eval_shape(lambda key: agent.init(key, HPARAMS, data), jax.random.key(0))
    state = jax.tree.map(fill, shapes)
    # Weights of both signs; the rest, statistics among it, is positive.
    network = state.params.network
    weights = jax.tree.map(lambda leaf: jnp.asarray(generator.normal(size=leaf.shape), leaf.dtype), network.params)
    members = dataclasses.replace(
        state.params,
        learned=jnp.tile(jnp.array([False, False, True, True, True]), (2, 1)),
        network=dataclasses.replace(network, params=weights),
    )
    changes = {"strategies": jnp.stack([jnp.ones(5), WEIGHTS]), "num_updates": jnp.int32(3)} | changes
    return agent, dataclasses.replace(state, params=members, **changes), data, env


def live(agent, state, data, slots, observation):
    """The deterministic actions of the population's members `slots` `[b]` at `observation` `[T, b, ...]`."""
    mixture = agent.policy(state, data)
    template = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(*reset_of(data)))

    @jax.jit
    def play(slots, observation):
        def step(carry, row):
            def one(carry, row):
                time_step = dataclasses.replace(template, observation=row)
                return agent.act(mixture, carry, time_step, jax.random.key(0), True)[1::-1]

            return jax.vmap(one)(carry, row)

        _, memory = jax.vmap(agent.start, (None, 0))(mixture, jax.random.split(jax.random.key(0), len(slots)))
        return jax.lax.scan(step, (slots, memory), observation)[1]

    return np.asarray(play(jnp.asarray(slots), observation))


def reset_of(data):
    env, _ = envs_jax.make("poolflip-r3", horizon=8, role="red", opponents=["guard(2)"])
    return (lambda key: env.reset(key, data.env_params)[1]), jax.random.key(0)


@pytest.mark.parametrize("oracle", ["mlp", pytest.param("gru", marks=pytest.mark.slow)])
def test_members_act_as_they_do_live(oracle, tmp_path):
    agent, state, data, env = trained(oracle)
    observation = np.random.default_rng(1).uniform(size=(3, 6, 13)).astype(np.float32)
    wanted = live(agent, state, data, np.array([2, 4, 2, 4, 4, 2], np.int32), observation)
    assert len(np.unique(wanted)) > 1
    for suffix in ("stablehlo", "npz"):
        path = tmp_path / f"policy.{suffix}"
        policy = load_policy(export_policy(agent, state, path, data, spec=env))
        policy.verify()
        assert policy.metadata["num_members"] == 2  # those that are ever drawn
        carry, actions = policy.start(6, member=[0, 1, 0, 1, 1, 0]), []
        for row in observation:
            action, carry = policy.act(row, carry=carry)
            actions.append(np.asarray(action))
        np.testing.assert_array_equal(actions, wanted)
        np.testing.assert_array_equal(carry[0], [0, 1, 0, 1, 1, 0])  # a member plays throughout
        drawn = policy.start(20_000, seed=1)[0]
        np.testing.assert_array_equal(drawn, policy.start(20_000, seed=1)[0])
        np.testing.assert_allclose(np.mean(drawn), 0.399 / 0.999, atol=0.015)
        with pytest.raises(ValueError, match=r"member must be \[2\] numbers from 0 to 1"):
            policy.start(2, member=[0, 2])


def test_the_script_alone_runs_a_mixture(tmp_path):
    agent, state, data, env = trained(output="learned")
    path = export_policy(agent, state, tmp_path / "policy.npz", data, spec=env)
    policy = load_policy(path)
    np.testing.assert_allclose(policy.weights, 1 / 3, atol=1e-6)
    done = subprocess.run(
        [sys.executable, "infer_numpy.py", "policy.npz"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "recorded actions reproduced" in done.stdout, done.stderr


def test_heuristics_stay_behind_or_are_refused(tmp_path):
    agent, state, data, env = trained(strategies=jnp.tile(jnp.array([0.0, 0.2, 0.8, 0.0, 0.0]), (2, 1)))
    with pytest.raises(ValueError, match=r"heuristics with probability 0.2, .* distil it"):
        export_policy(agent, state, tmp_path / "policy.stablehlo", data, spec=env)
    assert not list(tmp_path.iterdir())


def test_a_policy_of_one_member_has_no_members_to_choose(tmp_path):
    agent, state, data, env = trained(output="last")
    path = export_policy(agent, state, tmp_path / "policy.npz", data, spec=env)
    policy = load_policy(path)
    assert policy.weights is policy.metadata["num_members"] is None
    with pytest.raises(ValueError, match="is no mixture"):
        policy.start(1, member=[0])
