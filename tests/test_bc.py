"""Behaviour cloning: known answers, and an offline run from the configuration to the evaluation."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from envs_jax.core import EnvSpec
from envs_jax.spaces import Box, Discrete
from jaxrl.algorithms.bc import BC, BCConfig, BCHParams, make_bc
from jaxrl.algorithms.cql import CQL
from jaxrl.data.dataset import load_dataset
from jaxrl.data.recording import DataError, Episode, Header, from_episodes
from jaxrl.loop import scan_updates
from jaxrl.parts.distributions import scale_from_bounds, scale_to_bounds
from jaxrl.parts.networks import NetworkConfig
from jaxrl.run.config import ConfigError, load_config, shipped_configs
from jaxrl.types import Data
from programs import bits, compiled, evaluation_returns
from small_worlds import shows

pytest.importorskip("h5py")

OBSERVATIONS = Box(-np.inf, np.inf, (2,))
CONFIG = BCConfig(batch_size=64, network=NetworkConfig(hidden_sizes=(32,), activation="relu"))


def dataset_of(actions_of, action_space):
    """40 episodes of 10 steps on a scale that needs normalising; `actions_of(observation [T, 2], rng)`."""
    rng, episodes, last = np.random.default_rng(0), [], np.arange(10) == 9
    for _ in range(40):
        observation = 100.0 + 50.0 * rng.normal(size=(11, 2))
        action = actions_of((observation[:-1] - 100.0) / 50.0, rng)
        episodes.append(Episode(observation, action, np.zeros(10), last, np.zeros(10, bool)))
    return load_dataset(from_episodes(episodes, Header(OBSERVATIONS, action_space)))


def train(agent, dataset, num_updates, keys, **values):
    hparams = jax.tree.map(jnp.float32, BCHParams(**{"learning_rate": 1e-2, "anneal_updates": num_updates, **values}))

    def run(key, data):
        state = agent.init(key, hparams, data)
        state, metrics = scan_updates(agent, state, hparams, num_updates, data)
        return agent.policy(state, data), metrics

    if keys.ndim:
        run = jax.vmap(run, (0, None))
    return compiled(run)(keys, Data(dataset=dataset))


def test_discrete_actions():
    """Half of the actions follow from the observation; the other half are 1 in 70 of 100 cases, else 2."""
    space = Discrete(3)

    def actions_of(x, rng):
        return np.where(x[:, 0] < 0, 0, np.where(rng.random(len(x)) < 0.7, 1, 2))

    dataset = dataset_of(actions_of, space)
    agent = make_bc(CONFIG, EnvSpec(OBSERVATIONS, space))
    policy, metrics = train(agent, dataset, 300, jax.random.key(0))
    act = jax.vmap(agent.act, (None, None, 0, 0, None))
    chosen = act(policy, (), shows([[50.0, 100.0], [150.0, 100.0]]), jax.random.split(jax.random.key(1), 2), True)[0]
    assert chosen.tolist() == [0, 1]
    sampled = act(policy, (), shows([[150.0, 100.0]] * 2000), jax.random.split(jax.random.key(2), 2000), False)[0]
    actions = np.asarray(dataset.transitions.action)
    share = np.sum(actions == 1) / np.sum(actions > 0)
    assert abs(np.mean(np.asarray(sampled) == 1) - share) < 0.12
    # Nobody can do better than the entropy of the data, given whether x < 0.
    best = -np.mean(actions > 0) * (share * np.log(share) + (1 - share) * np.log(1 - share))
    assert metrics["loss/imitation"][-50:].mean() == pytest.approx(best, abs=0.06)
    assert metrics["agreement"][-50:].mean() == pytest.approx(1 - np.mean(actions == 2), abs=0.06)


def test_masks_hold_when_acting():
    agent = make_bc(CONFIG, EnvSpec(OBSERVATIONS, Discrete(3)))
    dataset = dataset_of(lambda x, rng: np.zeros(len(x), np.int64), Discrete(3))
    policy, _ = train(agent, dataset, 20, jax.random.key(0))
    shown = shows([[100.0, 100.0]])
    shown = jax.tree.map(lambda leaf: leaf[0], shown).replace(legal_actions=jnp.array([False, True, True]))
    assert int(agent.act(policy, (), shown, jax.random.key(0), True)[0]) in (1, 2)


def test_continuous_actions():
    """The squared error is in units of the bounds, which differ from component to component; seeds side by side."""
    space = Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), (2,))

    def actions_of(x, rng):
        return np.stack([2.0 * np.tanh(x[:, 0]), 5.0 + 5.0 * np.tanh(x[:, 1] / 2)], -1)

    dataset = dataset_of(actions_of, space)
    agent = make_bc(CONFIG, EnvSpec(OBSERVATIONS, space))
    keys = jax.random.split(jax.random.key(0), 2)
    policies, metrics = train(agent, dataset, 300, keys)
    assert np.all(metrics["loss/imitation"][:, -20:].mean(1) < 2e-3)
    for seed in (0, 1):
        policy = jax.tree.map(lambda leaf, seed=seed: leaf[seed], policies)
        shown = shows([[100.0, 100.0], [150.0, 50.0], [1e6, -1e6]])
        actions = jax.vmap(agent.act, (None, None, 0, None, None))(policy, (), shown, jax.random.key(0), True)[0]
        np.testing.assert_allclose(actions[:2], actions_of(np.array([[0.0, 0.0], [1.0, -1.0]]), None), atol=0.5)
        assert all(space.contains(action) for action in np.asarray(actions))
    alone, _ = train(agent, dataset, 5, keys[0])
    beside, _ = train(agent, dataset, 5, keys)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[0], atol=1e-5), alone, beside)


def test_bounds_to_units_and_back():
    space = Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), (2,))
    unit = jnp.array([0.5, -0.25])
    np.testing.assert_allclose(scale_to_bounds(space)(unit), [1.0, 3.75])
    np.testing.assert_allclose(scale_from_bounds(space)(scale_to_bounds(space)(unit)), unit)
    with pytest.raises(ValueError, match="finite bounds"):
        scale_from_bounds(Box(-np.inf, np.inf, (2,)))


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"config\.batch_size must be at least 1, got 0"):
        BCConfig(batch_size=0)
    with pytest.raises(ValueError, match="got 'gru'"):
        BCConfig(network=NetworkConfig(torso="gru"))
    with pytest.raises(ValueError, match="finite bounds"):
        make_bc(CONFIG, EnvSpec(OBSERVATIONS, Box(-np.inf, np.inf, (1,))))


# --- a run

QUICK = ["num_updates=40", "evaluation.every=20", "evaluation.num_episodes=4", "checkpoint.every=20", "log.every=10",
         "config.batch_size=16", "config.network.hidden_sizes=[8]", "env.max_steps=30"]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.name="], "'bc' learns from a data set: name one as data.name"),
        (["data.names=a"], "unknown key 'data.names'; did you mean 'name'"),
        (["data.num_episodes=-1"], "data.num_episodes must be at least 0"),
        (["algorithm=ppo", "config={}", "hparams={}"], "'ppo' learns from what it plays"),
    ],
)
def test_settings_that_do_not_go_together(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config("bc_pendulum", overrides)


def test_data_that_does_not_fit():
    with pytest.raises(DataError, match="is of another environment: its observation_space is Box"):
        jaxrl.load_data(load_config("bc_pendulum", ["env.name=cartpole"]))
    with pytest.raises(DataError, match="there is no data set 'nowhere'"):
        jaxrl.load_data(load_config("bc_pendulum", ["data.name=nowhere"]))
    with pytest.raises(DataError, match=r"num_episodes must be in \[0, 20\]"):
        jaxrl.load_data(load_config("bc_pendulum", ["data.num_episodes=21"]))


def test_a_trained_policy_needs_no_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(shipped_configs()["bc_pendulum"].parent / "data" / "pendulum_expert.hdf5", "mine.hdf5")
    run = load_config("bc_pendulum", ["data.name=mine.hdf5", *QUICK])
    state, log = jaxrl.fit(run, "run", progress=False)
    assert "env_steps" not in log[-1]
    assert [row["update"] for row in log] == [10, 20, 30, 40]
    assert log[-1]["loss/imitation"] < log[0]["loss/imitation"]
    timing = json.loads((tmp_path / "run" / "timing.jsonl").read_text().splitlines()[-1])
    assert timing["updates_per_second"] > 0
    assert (tmp_path / "run" / "curve.png").exists()
    _, longer = jaxrl.fit(load_config("bc_pendulum", ["data.name=mine.hdf5", *QUICK, "num_updates=60"]), "run60",
                          progress=False)  # fmt: skip
    assert longer[2]["loss/imitation"] != log[2]["loss/imitation"]  # its learning rate falls more slowly
    (tmp_path / "mine.hdf5").unlink()
    stored, again = jaxrl.load_state("run")
    assert np.isfinite(
        jaxrl.evaluate(jaxrl.make_algorithm(again), stored, again, jaxrl.load_data(again, dataset=False)).mean
    )
    with pytest.raises(DataError, match=r"there is no data set 'mine\.hdf5'"):
        jaxrl.load_data(again)
    assert jax.tree.structure(stored) == jax.tree.structure(state)


def test_evaluation_on_the_host(tmp_path):
    """Gymnasium's pendulum is this project's: the same policy, trained from the same data, plays it as well."""
    pytest.importorskip("gymnasium")
    settings = [*QUICK, "env={name='Pendulum-v1', backend='gymnasium'}", "evaluation.max_steps=30"]
    run = load_config("bc_pendulum", settings)
    state, log = jaxrl.fit(run, tmp_path / "run", progress=False)
    here, _ = jaxrl.fit(load_config("bc_pendulum", QUICK), progress=False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params, here.params)
    assert [row["update"] for row in log] == [10, 20, 30, 40]
    stored, again = jaxrl.load_state(tmp_path / "run")
    agent, data = jaxrl.make_algorithm(again), jaxrl.load_data(again, dataset=False)
    assert data.dataset is None
    assert jaxrl.evaluate(agent, stored, again, data).mean == pytest.approx(log[-1]["evaluation/return"], rel=1e-4)


def test_blocks_are_swapped_and_a_run_that_resumes_reads_the_same(tmp_path):
    settings = [*QUICK, "data.block_steps=500", "hparams.anneal_updates=40"]
    whole, _ = jaxrl.fit(load_config("bc_pendulum", settings), progress=False)
    jaxrl.fit(load_config("bc_pendulum", [*settings, "num_updates=20"]), tmp_path / "run", progress=False)
    resumed, _ = jaxrl.fit(load_config("bc_pendulum", settings), tmp_path / "run", resume=True, progress=False)
    assert bits(resumed) == bits(whole)
    other, _ = jaxrl.fit(load_config("bc_pendulum", [*settings, "data.block_steps=0"]), progress=False)
    assert bits(other.params) != bits(whole.params)
    with pytest.raises(ConfigError, match=r"block_steps must be 0 unless"):
        load_config("bc_pendulum", [*settings, "env.backend=gymnasium"])


@pytest.mark.parametrize("space", [Box(-2.0, 2.0, (1,)), Discrete(3)], ids=["continuous", "discrete"])
@pytest.mark.parametrize("recipe", [BC, CQL], ids=["bc", "cql"])
def test_exports_act_like_the_policy(recipe, space, tmp_path):
    spec = EnvSpec(OBSERVATIONS, space)
    agent = recipe.make(recipe.config(network=CONFIG.network), spec)
    state = compiled(agent.init)(jax.random.key(0), recipe.hparams(), Data())
    for name in ("policy.npz", "policy.stablehlo"):
        path = jaxrl.export_policy(agent, state, tmp_path / name, Data(), spec=spec)  # which checks it
        action, _ = jaxrl.load_policy(path).act(np.ones((2, 2), np.float32))
        assert action.shape == (2, *space.shape)


@pytest.mark.slow
def test_the_pendulum_is_cloned():
    """The teacher's mean over the evaluation episodes is -141."""
    returns = evaluation_returns("bc_pendulum", 3)
    assert np.all(returns > -150), returns
