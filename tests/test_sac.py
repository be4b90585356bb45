"""Soft actor-critic: its losses by hand, known answers, and what a run of it promises."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
import jaxrl
from envs_jax.core import EnvSpec
from envs_jax.spaces import Box, Discrete
from jaxrl.algorithms.sac import SACConfig, SACHParams, make_sac
from jaxrl.loop import scan_updates
from jaxrl.parts.buffers import ReplayConfig, check_in_place, make_replay
from jaxrl.parts.networks import NetworkConfig
from jaxrl.parts.normalize import standard_deviation
from jaxrl.parts.soft_actor_critic import log_slope, make_soft_actor_critic
from jaxrl.types import Data
from programs import bits, compiled, evaluation_returns
from small_worlds import Target, shows

CONFIG = SACConfig(
    num_envs=8, unroll_length=4, num_gradient_steps=4, batch_size=32, normalize_observations=True,
    replay=ReplayConfig(capacity=1024, warmup=64), network=NetworkConfig(hidden_sizes=(16,), activation="relu"),
)  # fmt: skip


def floats(**values):
    fast = dict.fromkeys(("learning_rate", "policy_learning_rate", "temperature_learning_rate"), 1e-2)
    return jax.tree.map(jnp.float32, SACHParams(**(fast | values)))


def test_a_bandit_and_its_temperature():
    """The best action is (7, the sign); the entropy is led to its target and the critics learn what remains."""
    env = Target()
    agent, data = make_sac(CONFIG, env), Data(env_params=env.default_params)
    hparams = floats(tau=0.1, reward_scale=0.2, target_entropy=-2.0)

    def train(key):
        return scan_updates(agent, agent.init(key, hparams, data), hparams, 500, data)

    state, metrics = compiled(train)(jax.random.key(0))
    act = jax.vmap(agent.act, (None, None, 0, None, None))
    chosen = act(agent.policy(state, data), (), shows([[900.0], [1100.0]]), jax.random.key(0), True)[0]
    np.testing.assert_allclose(chosen, [[7.0, -1.0], [7.0, 1.0]], atol=0.5)
    assert float(metrics["entropy"][-100:].mean()) == pytest.approx(-4.0, abs=0.5)
    assert float(metrics["temperature"][-1]) < 0.5
    assert float(metrics["episode/return"][-50:].mean()) > -1.5  # random play has about -17


# --- the update, taken apart


@pytest.fixture(scope="module")
def runs():
    """Four updates on the pendulum, the first before the buffer is warm; then one in its parts."""
    config = dataclasses.replace(CONFIG, num_gradient_steps=1)
    env, params = envs_jax.make("pendulum", max_steps=6)
    agent, data, hparams = make_sac(config, env), Data(env_params=params), floats(tau=0.25, reward_scale=0.5)
    update, collect, learn = compiled(agent.update), compiled(agent.collect), compiled(agent.learn)
    states, rows = [compiled(agent.init)(jax.random.key(1), hparams, data)], []
    for _ in range(4):
        state, metrics = update(states[-1], hparams, data)
        states.append(state)
        rows.append(metrics)
    collected, batch = collect(states[-2], hparams, data)
    after, after_metrics = learn(collected, hparams, batch, data)
    return SimpleNamespace(**locals())


def test_the_second_update_does_not_recompile(runs):
    assert runs.update._cache_size() == 1


def test_learn_after_collect_is_update(runs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), runs.after_metrics, runs.metrics)
    whole, parts = (dataclasses.replace(s, key=jax.random.key_data(s.key)) for s in (runs.state, runs.after))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, parts)


def test_before_the_buffer_is_warm_nothing_is_learned(runs):
    before, first, second = runs.states[:3]
    assert bits((before.params, before.opt_state, before.target_params)) == bits(
        (first.params, first.opt_state, first.target_params)
    )
    assert float(runs.rows[0]["loss/critic"]) == 0.0
    assert int(first.num_updates) == 1
    assert float(first.statistics.count) == 32.0  # what was seen is counted
    moved = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), first.params, second.params)
    assert min(jax.tree.leaves(moved)) > 1e-4


def test_the_target_critics_follow(runs):
    before, after = runs.states[-2:]
    expected = jax.tree.map(lambda new, old: 0.25 * new + 0.75 * old, after.params["critic"], before.target_params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.target_params, expected)


def dense(params, features):
    """A network of one hidden layer, NumPy."""
    layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    hidden = features @ layers["torso"]["dense_0"]["kernel"] + layers["torso"]["dense_0"]["bias"]
    return np.maximum(hidden, 0.0) @ layers["head"]["kernel"] + layers["head"]["bias"]


def test_losses_by_hand(runs):
    """The metrics of the last update, from the rows that it drew, in NumPy."""
    config, before = runs.config, runs.collected
    replay = make_replay(config.replay, config.num_envs, config.unroll_length)

    @compiled
    def drawn(state):
        _, key_sample, key_noise = jax.random.split(state.key, 3)
        index = replay.sample(runs.after.buffer, key_sample, config.batch_size).index
        rows = replay.read(runs.after.buffer, index, runs.hparams.discount)
        return rows, jax.random.normal(jax.random.split(key_noise, 1)[0], (config.batch_size, 2, 1))

    rows, noise = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), drawn(before))
    statistics = runs.after.statistics
    mean, std = np.asarray(statistics.mean), np.asarray(standard_deviation(statistics))
    observation, successor = ((x - mean) / std for x in (rows.observation, rows.next_observation))
    assert set(np.unique(rows.bootstrap)) == {np.float64(np.float32(0.99))}  # cut episodes have a future

    def sample(observation, noise):
        mean, log_std = np.split(dense(before.params["actor"], observation), 2, -1)
        raw = mean + np.exp(log_std) * noise
        density = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi) - np.log(1 - np.tanh(raw) ** 2)
        return np.tanh(raw), density.sum(-1)

    def values(critic, observation, action):
        inputs = np.concatenate([observation, action], -1)
        return np.stack([dense(jax.tree.map(lambda x, i=i: x[i], critic), inputs)[:, 0] for i in (0, 1)])

    temperature = np.exp(float(before.params["log_temperature"]))
    action, density = sample(successor, noise[:, 0])
    after = values(before.target_params, successor, action).min(0) - temperature * density
    goal = 0.5 * rows.reward + 0.99 * after
    shown = values(before.params["critic"], observation, rows.action / 2.0)
    action, density = sample(observation, noise[:, 1])
    expected = {
        "loss/critic": 0.5 * ((shown - goal) ** 2).sum(0).mean(),
        "loss/policy": (temperature * density - values(before.params["critic"], observation, action).min(0)).mean(),
        "loss/temperature": -np.log(temperature) * (density - 1.0).mean(),
        "entropy": -density.mean(),
        "q/mean": shown.mean(),
    }
    for name, value in expected.items():
        assert float(runs.after_metrics[name]) == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_each_loss_trains_its_own():
    """A rate of 0 keeps its group where it is and moves the others."""
    env, params = envs_jax.make("pendulum", max_steps=6)
    agent, data = make_sac(CONFIG, env), Data(env_params=params)

    def train(rates):
        hparams = dataclasses.replace(
            floats(), learning_rate=rates[0], policy_learning_rate=rates[1], temperature_learning_rate=rates[2]
        )
        before = agent.init(jax.random.key(0), hparams, data)
        after, _ = scan_updates(agent, before, hparams, 3, data)
        return {
            name: sum(jnp.sum(jnp.abs(a - b)) for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True))
            for (name, old), new in zip(before.params.items(), after.params.values(), strict=True)
        }

    rates = 1e-2 * (1.0 - jnp.eye(3))
    moved = compiled(jax.vmap(train))(rates)
    for i, name in enumerate(("critic", "actor", "log_temperature")):
        assert float(moved[name][i]) == 0.0
        assert all(float(moved[name][j]) > 0.0 for j in range(3) if j != i)


def test_a_member_equals_its_single_run(runs):
    def train(seed, hparams):
        state = runs.agent.init(jax.random.key(seed), hparams, runs.data)
        state, metrics = scan_updates(runs.agent, state, hparams, 4, runs.data)
        return state.params, state.target_params, metrics

    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), floats(), floats(discount=0.9))
    members = compiled(jax.vmap(train))(jnp.arange(2), both)
    alone = compiled(train)(1, floats(discount=0.9))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-3, atol=1e-4), members, alone)


def test_the_buffer_is_updated_in_place():
    env, params = envs_jax.make("pendulum")
    config = dataclasses.replace(CONFIG, replay=ReplayConfig(capacity=2**20, warmup=64))
    agent, data = make_sac(config, env), Data(env_params=params)
    state = jax.eval_shape(agent.init, jax.random.key(0), floats(), data)
    check_in_place(lambda state: scan_updates(agent, state, floats(), 2, data), state)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    """Buffer, statistics and temperature are in the checkpoint."""
    settings = ["num_updates=8", "config.num_envs=4", "config.replay.capacity=256", "config.replay.warmup=16",
                "config.network.hidden_sizes=[8]", "config.batch_size=8", "config.num_gradient_steps=2",
                "evaluation.every=0", "evaluation.num_episodes=2", "checkpoint.every=4", "log.every=1",
                "env.max_steps=10", "config.normalize_observations=true"]  # fmt: skip
    whole, _ = jaxrl.fit(jaxrl.load_config("sac_pendulum", settings), progress=False)
    half = jaxrl.load_config("sac_pendulum", [*settings, "num_updates=4"])
    jaxrl.fit(half, tmp_path / "run", progress=False)
    resumed, _ = jaxrl.fit(jaxrl.load_config("sac_pendulum", settings), tmp_path / "run", resume=True, progress=False)
    assert bits(resumed) == bits(whole)


# --- parts, export, refusals


def test_the_density_of_squashed_actions():
    raw = jnp.linspace(-3.0, 3.0, 13)
    np.testing.assert_allclose(log_slope(raw), np.log(1 - np.tanh(np.asarray(raw, np.float64)) ** 2), atol=1e-5)
    assert np.isfinite(log_slope(jnp.float32(40.0)))
    # In one dimension the density of the sampled actions integrates to 1.
    parts = make_soft_actor_critic(CONFIG.network, EnvSpec(Box(-1.0, 1.0, (2,)), Box(-1.0, 1.0, (1,))), "SAC")
    actor = parts.init(jax.random.key(0))["actor"]
    action, log_prob = parts.sample(actor, jnp.ones(2), jnp.linspace(-5.0, 5.0, 2001)[:, None])
    assert np.trapezoid(np.exp(log_prob), action[:, 0]) == pytest.approx(1.0, abs=1e-3)


def test_described_layers_compute_the_deterministic_action():
    agent = make_sac(CONFIG, EnvSpec(Box(-1.0, 1.0, (5,)), Box(-2.0, 2.0, (3,))))
    policy = agent.policy(compiled(agent.init)(jax.random.key(2), floats(), Data()), Data())
    observation = np.random.default_rng(0).normal(size=5).astype(np.float32)
    features = observation
    functions = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}
    for layer in agent.export(policy)["layers"][1:]:
        features = functions[layer["activation"]](features @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]))
    shown = jax.tree.map(lambda leaf: leaf[0], shows(observation[None]))
    action, _, _ = agent.act(policy, (), shown, jax.random.key(0), True)
    np.testing.assert_allclose(2.0 * features, action, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SACConfig(batch_size=0), "config.batch_size must be at least 1, got 0"),
        (lambda: SACConfig(num_envs=24), "config.replay.capacity must be a positive multiple"),
        (lambda: SACConfig(network=NetworkConfig(torso="gru")), "config.network.torso must be mlp or cnn"),
        (lambda: make_sac(CONFIG, envs_jax.make("cartpole")[0]), "SAC needs vectors of floats"),
        (lambda: make_sac(CONFIG, EnvSpec(Box(-1.0, 1.0, (2,)), Discrete(2))), "SAC needs vectors of floats"),
        (lambda: make_sac(CONFIG, EnvSpec(Box(-1.0, 1.0, (2,)), Box(-np.inf, np.inf, (1,)))), "finite bounds"),
        (
            lambda: make_sac(dataclasses.replace(CONFIG, network=NetworkConfig(torso="cnn")), Target()),
            "config.network.torso must be mlp for vectors, got 'cnn'",
        ),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.slow
def test_the_pendulum_is_solved():
    returns = evaluation_returns("sac_pendulum", 3)
    assert np.all(returns > -200), returns
