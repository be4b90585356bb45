"""A reward model learns labels of conversations, and GRPO can be rewarded by it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.algorithms.grpo import GRPOConfig, GRPOHParams, make_grpo
from jaxrl.algorithms.reward_model import REWARD_MODEL, RewardModelConfig, RewardModelHParams, make_reward_model
from jaxrl.llm.demonstrations import sampled
from jaxrl.llm.heads import binary_agreement, conversation_score, init_scalar_head, scalar_head
from jaxrl.llm.model import TransformerLM
from jaxrl.loop import scan_updates
from jaxrl.types import Data
from programs import compiled
from token_worlds import TINY, Bandit, BanditParams

CONFIG = RewardModelConfig(model=TINY, batch_size=32, num_demonstrations=256, num_held_out=64)
ENV, DATA = Bandit(), Data(BanditParams())
HPARAMS = jax.tree.map(jnp.float32, RewardModelHParams(learning_rate=1e-2))


@functools.cache
def trained():
    """The algorithm, its state after 100 updates, and metrics."""
    agent = make_reward_model(CONFIG, ENV)

    @compiled
    def train(key):
        return scan_updates(agent, agent.init(key, HPARAMS, DATA), HPARAMS, 100, DATA)

    return agent, *train(jax.random.key(0))


def test_the_head():
    head = init_scalar_head(TINY)
    hidden = jax.random.normal(jax.random.key(0), (3, 4, TINY.hidden_size), jnp.bfloat16)
    assert scalar_head(head, hidden).dtype == jnp.float32
    assert (scalar_head(head, hidden) == 0).all()
    head = {"weight": jnp.ones(TINY.hidden_size), "bias": jnp.float32(0.5)}
    np.testing.assert_allclose(scalar_head(head, hidden), jnp.sum(hidden.astype(jnp.float32), -1) + 0.5, atol=1e-5)


def test_a_score_reads_the_last_valid_token():
    model = TransformerLM(TINY)
    params, head = model.init(jax.random.key(0)), {"weight": jnp.ones(TINY.hidden_size), "bias": jnp.zeros(())}
    tokens = jnp.array([[1, 2, 3, 0], [1, 2, 3, 4]], jnp.int32)
    score = functools.partial(conversation_score, model, params, head)
    padded = score(tokens, jnp.array([[True, True, True, False], [True] * 4]))
    np.testing.assert_allclose(padded[0], score(tokens[:1, :3], jnp.ones((1, 3), bool))[0], atol=1e-5)
    assert abs(float(padded[0] - padded[1])) > 1e-3


def test_agreement_by_hand():
    said, true = jnp.array([1, 1, 1, 0, 0, 0, 1, 0], bool), jnp.array([1, 1, 0, 0, 0, 0, 1, 1], bool)
    found = binary_agreement(said, true)
    assert float(found["accuracy"]) == 0.75
    assert float(found["kappa"]) == pytest.approx((0.75 - 0.5) / 0.5)
    assert float(found["false_positive_rate"]) == 0.25
    assert float(binary_agreement(jnp.ones(4, bool), jnp.ones(4, bool))["kappa"]) == 0.0


def test_it_learns_what_the_environment_says():
    _, state, metrics = trained()
    held_out = np.asarray(state.held_out.label)
    assert 0.3 < held_out.mean() < 0.7
    assert float(metrics["held_out/accuracy"][-1]) > 0.95
    assert float(metrics["held_out/kappa"][-1]) > 0.9
    assert float(metrics["loss/label"][0]) == pytest.approx(np.log(2), abs=1e-3)
    np.testing.assert_array_equal(held_out, np.all(state.held_out.tokens[:, 1:] == state.held_out.tokens[:, :1], 1))


def test_a_policy_learns_from_the_model_what_the_environment_would_reward():
    judge, state, _ = trained()
    config = GRPOConfig(num_groups=8, group_size=8, model=TINY, reward="model", reward_model=TINY)
    agent = make_grpo(config, ENV)
    hparams = jax.tree.map(jnp.float32, GRPOHParams(learning_rate=2e-2))
    data = dataclasses.replace(DATA, frozen={"reward": judge.policy(state, DATA)})

    @compiled
    def train(hparams):
        return scan_updates(agent, agent.init(jax.random.key(0), hparams, data), hparams, 100, data)

    _, metrics = train(hparams)
    assert float(metrics["episode/return"][-10:].mean()) > 0.9
    assert float(metrics["reward/model"][-10:].mean()) > 0.9
    assert float(metrics["reward/model"][0]) < 0.5
    # Whatever the model says, a conversation whose own return is refused keeps it: here all of them.
    _, refused = train(dataclasses.replace(hparams, refused_return=jnp.float32(2.0)))
    np.testing.assert_allclose(refused["reward/model"][0], refused["episode/return"][0], atol=1e-6)


def test_conversations_of_a_model():
    model = TransformerLM(TINY)
    params = model.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 16)
    talks = compiled(lambda params: sampled(model, params, ENV, DATA.env_params, keys, jax.random.key(2), 2))(params)
    right = np.asarray(talks.tokens[:, 1:] == talks.tokens[:, :1])
    np.testing.assert_allclose(talks.returns, right.mean(1), atol=1e-6)
    np.testing.assert_array_equal(talks.final["complete"], right.all(1))
    assert talks.mask[:, 1:].all()
    assert not talks.mask[:, 0].any()
    base = make_reward_model(dataclasses.replace(CONFIG, source="base"), ENV)
    shape = jax.eval_shape(base.init, jax.random.key(0), HPARAMS, dataclasses.replace(DATA, frozen={"base": params}))
    assert shape.learned.tokens.shape == (256, 2)
    with pytest.raises(ValueError, match=r"config\.source='base' needs data\.frozen\['base'\]"):
        jax.eval_shape(base.init, jax.random.key(0), HPARAMS, DATA)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"config\.source must be one of teacher, base"):
        RewardModelConfig(source="policy")
    wrong = make_reward_model(dataclasses.replace(CONFIG, label="compleet"), ENV)
    with pytest.raises(ValueError, match=r"config\.label must be one of .*did you mean 'complete'"):
        jax.eval_shape(wrong.init, jax.random.key(0), HPARAMS, DATA)
    with pytest.raises(ValueError, match=r"config\.reward_model\.vocab_size must be that of config\.model, 6, got 7"):
        GRPOConfig(model=TINY, reward="model", reward_model=dataclasses.replace(TINY, vocab_size=7))
    assert REWARD_MODEL.frozen(dataclasses.replace(CONFIG, source="base"))["base"].one_of == ("base",)
