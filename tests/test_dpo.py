"""Preferences: the better answer becomes more probable than the worse one, wherever pairs come from."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from jaxrl.algorithms.dpo import DPO, DPOConfig, DPOHParams, make_dpo
from jaxrl.data.dataset import load_dataset
from jaxrl.data.recording import Episode, Header, from_episodes
from jaxrl.llm.demonstrations import preferred, recorded_pairs
from jaxrl.loop import scan_updates
from jaxrl.types import Data
from programs import compiled
from token_worlds import TINY, Bandit, BanditParams

CONFIG = DPOConfig(model=TINY, batch_size=16)
ENV = Bandit(max_steps=2)


def settings(**values):
    return jax.tree.map(jnp.float32, DPOHParams(**values))


@functools.cache
def learner(**changes):
    """The algorithm, data with a reference, and jit of (hparams, data) -> (states after 0 and 60 updates, metrics)."""
    agent = make_dpo(dataclasses.replace(CONFIG, **changes), ENV)
    reference = agent.init(jax.random.key(0), settings(), Data()).params

    @compiled
    def train(hparams, data):
        first = agent.init(jax.random.key(0), hparams, data)
        return first, *scan_updates(agent, first, hparams, 60, data)

    return agent, Data(BanditParams(), frozen={"reference": reference}), train


def test_it_begins_at_the_reference_and_learns_the_preference():
    _, data, train = learner()
    first, _, metrics = train(settings(learning_rate=2e-2), data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), first.params, data.frozen["reference"])
    assert float(metrics["loss/preference"][0]) == pytest.approx(np.log(2), abs=1e-5)
    assert float(metrics["reference_kl"][0]) == pytest.approx(0.0, abs=1e-5)
    assert float(metrics["accuracy"][-10:].mean()) >= 0.95
    assert float(metrics["reward/better"][-1]) > float(metrics["reward/worse"][-1])
    assert float(metrics["reference_kl"][-1]) > 0.1


def test_smoothed_labels_bound_the_margin():
    _, data, train = learner()
    plain, smooth = (
        train(settings(learning_rate=2e-2, label_smoothing=s), data)[2]["margin"][-10:].mean() for s in (0.0, 0.4)
    )
    assert float(smooth) < 0.5 * float(plain)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ipo", "hinge"])
def test_relatives(loss):
    _, data, train = learner(loss=loss)
    _, _, metrics = train(settings(learning_rate=2e-2), data)
    assert float(metrics["accuracy"][-10:].mean()) >= 0.95


def test_pairs_of_the_environment_and_of_a_data_set():
    keys = jax.random.split(jax.random.key(0), 5)
    better, worse = compiled(lambda keys: preferred(ENV, BanditParams(), keys, 3))(keys)
    np.testing.assert_array_equal(better.tokens[:, 0], worse.tokens[:, 0])
    assert (better.returns == 1).all()
    assert (worse.returns == 0).all()
    # The same pairs written down, the better one first.
    episodes = []
    for tokens in np.stack([better.tokens, worse.tokens], axis=1).reshape(-1, 3):
        observation, last = np.stack([tokens, [1, 1, 0]], axis=1), np.array([False, True])
        episodes.append(Episode(observation, tokens[1:], last * 1.0, last, np.zeros(2, bool)))
    params = BanditParams()
    dataset = load_dataset(from_episodes(episodes, Header(ENV.observation_space(params), ENV.action_space(params))))
    again = recorded_pairs(dataset, jnp.array([0, 2, 7, 13, 19], jnp.int32), 3)
    for side, expected in zip(again, (better, worse), strict=True):
        np.testing.assert_array_equal(side.tokens, expected.tokens[jnp.array([0, 0, 1, 3, 4])])
        np.testing.assert_array_equal(side.mask, expected.mask)
    agent, data, _ = learner()
    written = dataclasses.replace(data, dataset=dataset)
    shape = jax.eval_shape(lambda key: agent.update(agent.init(key, settings(), written), settings(), written),
                           jax.random.key(0))  # fmt: skip
    assert shape[1]["accuracy"].shape == ()


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"config\.loss must be one of sigmoid, ipo, hinge"):
        DPOConfig(loss="dpo")
    agent, data, _ = learner()
    with pytest.raises(ValueError, match=r"DPO needs data\.frozen\['reference' or 'base'\]"):
        jax.eval_shape(lambda key: agent.update(agent.init(key, settings(), data), settings(), Data(BanditParams())),
                       jax.random.key(0))  # fmt: skip
    desk, params = envs_jax.make("tool-desk")
    with pytest.raises(ValueError, match=r"a data set of pairs.*ToolDesk has no `prefer`"):
        preferred(desk, params, jax.random.split(jax.random.key(0), 2), 40)
    assert DPO.specialise({"data": {"name": "mine.hdf5"}}).offline
