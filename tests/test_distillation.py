"""A mixture as one network: the posterior average is learned, stored as an ordinary run, and its loss is measured."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
import jaxrl
from jaxrl.algorithms.distillation import DistillationConfig, DistillationHParams, make_distillation
from jaxrl.algorithms.ppo import PPOConfig, PPOHParams
from jaxrl.algorithms.psro import OracleConfig, PSROConfig, make_population
from jaxrl.loop import scan_updates
from jaxrl.parts.networks import NetworkConfig
from jaxrl.parts.roles import Mixture
from jaxrl.run.checkpoint import CheckpointWriter
from jaxrl.run.config import ConfigError, make_config
from jaxrl.run.distill import distill
from jaxrl.run.folder import RunFolder
from jaxrl.run.league import league
from jaxrl.run.program import load_data, make_algorithm, make_env
from jaxrl.types import Data
from programs import compiled

HPARAMS = jax.tree.map(jnp.float32, PPOHParams())
NAMES = ("pure(0)", "pure(1)", "pure(2)")
WEIGHTS = jnp.array([[0.6, 0.3, 0.1], [0.0, 1.0, 0.0]])


def student_config(**network):
    return PPOConfig(num_envs=4, unroll_length=4, num_minibatches=1, network=NetworkConfig(**network))


def imitate(network, num_rounds, weights=WEIGHTS):
    """Probabilities of the student after each observation of an episode of a matrix game, `[num_rounds, 3]`."""
    env, params = envs_jax.make("matrix-game", num_rounds=num_rounds)
    oracle = OracleConfig("ppo", 1, student_config())
    population = make_population(PSROConfig(NAMES, num_groups=4, oracle=oracle), env)
    agent = make_distillation(DistillationConfig(student_config(**network), num_minibatches=4), population)
    bank = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), population.heuristic_members(NAMES, HPARAMS))
    hparams = jax.tree.map(jnp.float32, DistillationHParams(learning_rate=1e-2, anneal_updates=150))
    data = Data(params, frozen=Mixture(bank, weights))

    @compiled
    def train(key):
        state, metrics = scan_updates(agent, agent.init(key, hparams, data), hparams, 150, data)
        policy, carry = agent.policy(state, data), agent.start(agent.policy(state, data), key)
        _, step = env.reset(key, params)
        seen = jax.tree.map(lambda leaf: leaf if leaf.ndim == 0 else leaf[0], step)

        def play(carry, key):
            _, carry, extras = agent.act(policy, carry, seen, key, False)
            return carry, (extras["raw_action"], extras["log_prob"])

        def sample(key):
            return jax.lax.scan(play, carry, jax.random.split(key, num_rounds))[1]

        return jax.vmap(sample)(jax.random.split(key, 4000)), metrics

    (actions, _), metrics = train(jax.random.key(0))
    frequencies = np.stack([np.mean(np.asarray(actions) == k, axis=0) for k in range(3)], -1)
    return frequencies, metrics


def test_the_student_learns_the_posterior_average():
    frequencies, metrics = imitate({"hidden_sizes": (8,)}, 1)
    np.testing.assert_allclose(frequencies[0], WEIGHTS[0], atol=0.04)
    entropy = -float(jnp.sum(WEIGHTS[0] * jnp.log(WEIGHTS[0])))
    assert np.mean(metrics["loss/imitation"][-20:]) == pytest.approx(entropy, abs=0.05)  # no less can be had
    assert np.mean(metrics["agreement"][-20:]) == pytest.approx(0.6, abs=0.05)


@pytest.mark.slow
def test_a_memory_is_trained_from_the_start_of_each_episode():
    frequencies, _ = imitate({"torso": "gru", "gru_size": 8, "hidden_sizes": (8,)}, 3)
    np.testing.assert_allclose(frequencies, np.tile(WEIGHTS[0], (3, 1)), atol=0.06)


TABLE = {
    "algorithm": "psro",
    "num_updates": 1,
    "env": {"name": "matrix-game", "role": "row", "opponents": ["uniform"]},
    "config": {
        "heuristics": list(NAMES),
        "num_groups": 4,
        "oracle": {
            "num_updates": 4,
            "config": {
                "num_envs": 16,
                "unroll_length": 8,
                "num_minibatches": 1,
                "network": {"hidden_sizes": [8]},
            },
        },
    },
    "hparams": {"learning_rate": 0.02},
    "evaluation": {"num_episodes": 4},
}


def stored(folder, changes=()):
    """A population whose mixtures are `WEIGHTS`, as a run folder."""
    run = make_config(TABLE, changes)
    agent, data = make_algorithm(run), load_data(run)
    shapes = jax.eval_shape(agent.init, jax.random.key(0), run.hparams, data)
    state = jax.tree.map(
        lambda leaf: (
            jax.random.key(0)
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros(leaf.shape, leaf.dtype)
        ),
        shapes,
    )
    population = make_population(run.config, make_env(run)[0].env)
    first = population.heuristic_members(NAMES, run.hparams)
    bank = jax.tree.map(lambda leaf, new: leaf.at[:, :3].set(new), state.params, first)
    state = state.replace(params=bank, strategies=jnp.pad(WEIGHTS, ((0, 0), (0, 1))))
    RunFolder(folder).create(run)
    writer = CheckpointWriter(RunFolder(folder).checkpoints, keep=1)
    writer.save(state, 1, {})
    writer.wait()
    return folder


@pytest.mark.slow
def test_a_stored_student_is_an_ordinary_run(tmp_path):
    source, out = stored(tmp_path / "psro"), tmp_path / "student"
    result = distill(source, out, num_updates=20, num_restarts=2, response_updates=30, num_episodes=64)
    facts = json.loads((out / "distillation.json").read_text())
    assert facts["role"] == result.role == "row"
    assert facts["loss"] == list(result.loss)
    # Column answers rock-heavy play with paper: 0.6 - 0.1 against the mixture.
    assert result.mixture[0] == pytest.approx(0.5, abs=0.3)
    assert result.loss[0] == pytest.approx(result.student[0] - result.mixture[0], abs=1e-6)
    state, run = jaxrl.load_state(out)
    assert run.algorithm == "ppo"
    agent, data = make_algorithm(run), load_data(run)
    exported = jaxrl.export_policy(agent, state, tmp_path / "policy.npz", data, spec=make_env(run)[0])
    assert jaxrl.load_policy(exported).metadata["action"]["num_values"] == 3
    played = league([source, out], num_episodes=64)
    assert played.names == (("psro", "student"), ("psro",))
    with pytest.raises(ConfigError, match="already holds a run"):
        distill(source, out)
    with pytest.raises(ConfigError, match="only the mixture of a population"):
        distill(out, tmp_path / "again")
    with pytest.raises(ConfigError, match="must be one of row, column, got 'blue'"):
        distill(source, tmp_path / "again", role="blue")


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_groups=3 must divide num_episodes = 64"):
        DistillationConfig(student_config(), num_groups=3)
    with pytest.raises(ValueError, match="does not normalise"):
        DistillationConfig(PPOConfig(normalize_observations=True))
