"""PPO of a language model: the bandit is learned, values too, and all of an update is one program."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl.algorithms.lm_ppo import LMPPOConfig, LMPPOHParams, make_lm_ppo
from jaxrl.llm.advantages import token_advantages
from jaxrl.loop import scan_updates
from jaxrl.run.config import load_config
from jaxrl.types import Data
from programs import compiled, equations
from token_worlds import TINY, Bandit, BanditParams

SMALL = LMPPOConfig(batch_size=32, num_epochs=2, num_minibatches=2, kl="k1", model=TINY)


def settings(**values):
    return jax.tree.map(jnp.float32, LMPPOHParams(**values))


@functools.cache
def learner():
    """The algorithm, data with a reference, and jit of (hparams, data) -> (states after 0 and 80 updates, metrics)."""
    agent = make_lm_ppo(SMALL, Bandit(max_steps=2))
    params = BanditParams()
    reference = agent.init(jax.random.key(0), settings(), Data(params)).params["model"]

    @compiled
    def train(hparams, data):
        first = agent.init(jax.random.key(0), hparams, data)
        return first, *scan_updates(agent, first, hparams, 80, data)

    return agent, Data(params, frozen={"reference": reference}), train


def test_it_learns_the_bandit():
    _, data, train = learner()
    first, last, metrics = train(settings(learning_rate=2e-2, kl_cost=0.0), data)
    assert float(metrics["episode/return"][:3].mean()) < 0.5
    assert float(metrics["episode/return"][-10:].mean()) > 0.95
    assert (metrics["episode/length"] == 2).all()
    assert (first.params["head"]["weight"] == 0).all()
    assert float(last.params["head"]["bias"]) > 0.05
    assert float(metrics["loss/value"][-10:].mean()) < 0.2 * float(metrics["loss/value"][:3].mean())


def test_a_reference_within_the_rewards_holds_the_policy():
    _, data, train = learner()
    _, _, free = train(settings(learning_rate=2e-2, kl_cost=0.0), data)
    _, _, held = train(settings(learning_rate=2e-2, kl_cost=1.0), data)
    assert float(free["reference_kl"][-10:].mean()) > 5 * abs(float(held["reference_kl"][-10:].mean()))


def test_update_is_learn_after_collect_and_one_program():
    agent, data, _ = learner()
    hparams = settings()
    state = agent.init(jax.random.key(0), hparams, data)
    collected, talk = compiled(agent.collect)(state, hparams, data)
    apart, _ = compiled(agent.learn)(collected, hparams, talk, data)
    together, metrics = compiled(agent.update)(state, hparams, data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), apart.params, together.params)
    assert len(np.unique(np.asarray(talk.tokens)[:, 0])) > 1
    assert {"loss/policy", "loss/value", "entropy", "approx_kl", "clip_fraction", "grad_norm"} < set(metrics)
    program = jax.make_jaxpr(agent.update)(state, hparams, data)
    names = {equation.primitive.name for equation in equations(program.jaxpr)}
    assert "scan" in names
    assert not any("callback" in name for name in names)


def test_without_values_and_discount_it_is_reinforce():
    """Zero values, discount and lambda 1: the advantage of every token is the return (spec of the losses)."""
    mask = jnp.array([False, True, True, False, True])
    rewards = jnp.array([0.0, 0.0, 0.0, 0.0, 0.7])
    advantages = token_advantages(rewards, jnp.zeros(5), mask, 1.0, 1.0)
    np.testing.assert_allclose(advantages, jnp.where(mask, 0.7, 0.0), atol=1e-6)


@pytest.mark.slow
def test_it_completes_plans_with_tools(tmp_path):
    """From a fine-tuned model: strictly complete plans, the most probable token taken, for at least 85 % of queries."""
    jaxrl.fit(load_config("sft_tool_desk"), tmp_path / "sft", progress=False)
    run = load_config("lm_ppo_tool_desk", [f"data.base={tmp_path / 'sft'}", "evaluation.num_episodes=1024"])
    state, _ = jaxrl.fit(run, progress=False)
    result = jaxrl.evaluate(jaxrl.make_algorithm(run), state, run, jaxrl.load_data(run, dataset=False))
    assert result.final["complete"] >= 0.85
    assert result.final["stopped"] > 0.95


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"num_minibatches must divide 32 conversations, got 3"):
        dataclasses.replace(SMALL, num_minibatches=3)
    with pytest.raises(ValueError, match=r"num_micro_batches must divide 16 conversations of a minibatch, got 5"):
        dataclasses.replace(SMALL, num_micro_batches=5)
    with pytest.raises(ValueError, match=r"config\.batch_size must be at least 1"):
        LMPPOConfig(batch_size=0)
    agent = make_lm_ppo(SMALL, Bandit(max_steps=2))
    with pytest.raises(ValueError, match=r"config\.kl='k1' needs data\.frozen\['reference' or 'base'\]"):
        jax.eval_shape(lambda key: agent.update(agent.init(key, settings(), Data()), settings(), Data(BanditParams())),
                       jax.random.key(0))  # fmt: skip
