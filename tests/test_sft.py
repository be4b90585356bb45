"""Supervised fine-tuning: what is demonstrated is what is learned, and an ordinary run does it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
import jaxrl
from envs_jax.text.tool_desk import ANSWER, PROMPT_LENGTH
from jaxrl.algorithms.sft import SFT, SFTConfig, SFTHParams, make_sft
from jaxrl.data.dataset import load_dataset
from jaxrl.data.recording import Episode, Header, from_episodes
from jaxrl.llm.config import preset
from jaxrl.llm.demonstrations import demonstrate, recorded
from jaxrl.loop import scan_updates
from jaxrl.run.config import load_config
from jaxrl.types import Data
from programs import bits, compiled

TINY = preset("nano", hidden_size=16, num_layers=1, head_dim=4, intermediate_size=32)
CONFIG = SFTConfig(batch_size=16, num_demonstrations=64, model=TINY)


@functools.cache
def desk():
    env, params = envs_jax.make("tool-desk", skip_probability=0.0, repeat_probability=0.0)
    return env, Data(params)


@functools.cache
def trainer():
    """The algorithm, and jit of (key, hparams) -> (states after 0 and 60 updates, metrics)."""
    env, data = desk()
    agent = make_sft(CONFIG, env)

    @compiled
    def train(key, hparams, data):
        first = agent.init(key, hparams, data)
        return first, *scan_updates(agent, first, hparams, 60, data)

    return agent, lambda key, **values: train(key, jax.tree.map(jnp.float32, SFTHParams(**values)), data)


@functools.cache
def demonstrations():
    env, data = desk()
    keys = jax.random.split(jax.random.key(1), 32)
    return compiled(lambda keys: demonstrate(env, data.env_params, keys, env.max_steps + 1))(keys)


def test_demonstrations():
    shown = demonstrations()
    np.testing.assert_allclose(shown.returns, 1.0, atol=1e-6)
    tokens, mask, valid = (np.asarray(leaf) for leaf in (shown.tokens, shown.mask, shown.valid))
    assert not mask[:, :PROMPT_LENGTH].any()
    for row in range(32):
        length = valid[row].sum()
        assert valid[row, :length].all()
        assert tokens[row, length - 1] == ANSWER
        assert (tokens[row, length:] == 0).all()
        # Three tokens of a call are the agent's, the fourth is the tool's.
        spoken = np.arange(length - PROMPT_LENGTH) % 4 != 3
        np.testing.assert_array_equal(mask[row, PROMPT_LENGTH:length], spoken)
        assert not mask[row, length:].any()


def test_conversations_of_a_data_set():
    env, data = desk()
    length, shown = env.max_steps + 1, demonstrations()
    episodes = []
    for tokens, valid, mask in zip(*(np.asarray(leaf) for leaf in (shown.tokens, shown.valid, shown.mask))):
        steps = valid.sum() - 1
        speaks = np.append(mask[1:], False)
        observation, last = np.stack([tokens, speaks], axis=1)[: steps + 1], np.arange(steps) == steps - 1
        episodes.append(Episode(observation, tokens[1 : steps + 1], last * 1.0, last, np.zeros(steps, bool)))
    header = Header(env.observation_space(data.env_params), env.action_space(data.env_params))
    dataset = load_dataset(from_episodes(episodes, header))
    ends = jnp.cumsum(jnp.array([len(episode.reward) for episode in episodes])) - 1
    again = recorded(dataset, ends, length)
    jax.tree.map(np.testing.assert_array_equal, (again.tokens, again.valid, again.mask),
                 (shown.tokens, shown.valid, shown.mask))  # fmt: skip
    assert (again.returns == 1.0).all()
    agent, hparams = make_sft(CONFIG, env), SFTHParams()
    shape = jax.eval_shape(lambda key: agent.update(agent.init(key, hparams, data), hparams, Data(dataset=dataset)),
                           jax.random.key(0))  # fmt: skip
    assert shape[1]["loss/imitation"].shape == ()
    assert SFT.specialise({"data": {"name": "mine.hdf5"}}).offline
    assert not SFT.specialise({}).offline
    with pytest.raises(ValueError, match=r"needed: a data set.*int has no `demonstrate`"):
        demonstrate(0, data.env_params, jax.random.split(jax.random.key(0), 2), length)


def test_the_loss_falls():
    _, train = trainer()
    _, _, metrics = train(jax.random.key(0), learning_rate=1e-2)
    assert set(metrics) == {"loss/imitation", "agreement", "grad_norm", "demonstration/return"}
    assert float(metrics["loss/imitation"][0]) == pytest.approx(np.log(64), abs=0.2)
    assert float(metrics["loss/imitation"][-10:].mean()) < 2.0
    assert float(metrics["agreement"][-10:].mean()) > 0.4  # CALL and ANSWER, and most tools
    np.testing.assert_allclose(metrics["demonstration/return"], 1.0, atol=1e-5)


def test_a_rate_of_zero_changes_nothing_and_a_schedule_ends():
    _, train = trainer()
    first, last, _ = train(jax.random.key(0), learning_rate=0.0)
    assert bits(first.params) == bits(last.params)
    assert int(last.num_updates) == 60


@pytest.mark.parametrize(
    ("config", "env", "message"),
    [
        ({"model": preset("nano", vocab_size=65)}, "tool-desk", r"config\.model\.vocab_size must be 64"),
        ({}, "cartpole", "SFT needs an environment of tokens"),
        ({"batch_size": 0}, "tool-desk", r"config\.batch_size must be at least 1"),
        ({"num_demonstrations": -1}, "tool-desk", r"num_demonstrations must be at least 0, got -1"),
    ],
)
def test_what_is_refused(config, env, message):
    with pytest.raises(ValueError, match=message):
        make_sft(SFTConfig(**config), envs_jax.make(env)[0])


@pytest.mark.slow  # the fast set runs it before GRPO
def test_a_run(tmp_path):
    """Through configuration, log, checkpoint and evaluation; cut and resumed it is the same, bit by bit."""
    quick = ["config.batch_size=4", "config.model.hidden_size=16", "log.every=2",
             "evaluation.num_episodes=4", "evaluation.every=4", "checkpoint.every=2", "hparams.anneal_updates=4",
             "config.model.num_layers=1"]  # fmt: skip
    whole, log = jaxrl.fit(load_config("sft_tool_desk", [*quick, "num_updates=4"]), progress=False)
    assert "env_steps" not in log[-1]
    assert np.isfinite(log[-1]["evaluation/return"])
    jaxrl.fit(load_config("sft_tool_desk", [*quick, "num_updates=2"]), tmp_path / "run", progress=False)
    settings = [*quick, "num_updates=4"]
    resumed, _ = jaxrl.fit(load_config("sft_tool_desk", settings), tmp_path / "run", resume=True, progress=False)
    assert bits(resumed) == bits(whole)
