"""GRPO and its variants: a bandit of tokens is learned, equal returns teach nothing, and an ordinary run does it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
import jaxrl
from jaxrl.algorithms.grpo import GRPO, VARIANTS, GRPOConfig, GRPOHParams, make_grpo
from jaxrl.loop import scan_updates
from jaxrl.run.config import load_config
from jaxrl.types import Data
from programs import bits, compiled, equations
from token_worlds import TINY, Bandit, BanditParams

SMALL = GRPOConfig(num_groups=8, group_size=4, model=TINY)


def settings(**values):
    return jax.tree.map(jnp.float32, GRPOHParams(**values))


@functools.cache
def trainer(num_updates, **changes):
    agent = make_grpo(dataclasses.replace(SMALL, **changes), Bandit())

    @compiled
    def train(key, hparams, data):
        first = agent.init(key, hparams, data)
        return first, *scan_updates(agent, first, hparams, num_updates, data)

    return agent, train


FAST = ("grpo", "reinforce++")  # a program each


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in VARIANTS]
)
def test_every_variant_learns_the_bandit(variant):
    _, train = trainer(80, variant=variant)
    _, _, metrics = train(jax.random.key(0), settings(learning_rate=2e-2), Data(BanditParams()))
    assert float(metrics["episode/return"][:3].mean()) < 0.5
    assert float(metrics["episode/return"][-10:].mean()) > 0.9
    assert (metrics["episode/length"] == 1).all()
    np.testing.assert_allclose(metrics["approx_kl"], 0.0, atol=1e-5)  # one step per batch: the policy that acted
    assert (metrics["clip_fraction"] == 0).all()


def test_equal_returns_teach_nothing():
    _, train = trainer(80, variant="grpo")
    worthless = Data(BanditParams(prize=jnp.zeros(())))
    first, last, metrics = train(jax.random.key(0), settings(learning_rate=2e-2), worthless)
    assert bits(first.params) == bits(last.params)
    assert (metrics["groups/equal"] == 1).all()
    assert (metrics["grad_norm"] == 0).all()


def test_a_reference_holds_the_policy():
    agent, train = trainer(40, kl="k3", num_epochs=2, num_minibatches=2)
    params = BanditParams()
    reference = agent.init(jax.random.key(0), settings(), Data(params)).params
    data = Data(params, frozen={"reference": reference})
    _, _, free = train(jax.random.key(0), settings(learning_rate=2e-2, kl_cost=0.0), data)
    _, _, held = train(jax.random.key(0), settings(learning_rate=2e-2, kl_cost=10.0), data)
    assert float(free["reference_kl"][-5:].mean()) > 10 * float(held["reference_kl"][-5:].mean())
    assert float(free["approx_kl"].max()) > 1e-4  # later steps on one batch leave the policy that acted
    with pytest.raises(ValueError, match=r"needs data\.frozen"):
        jax.eval_shape(agent.update, agent.init(jax.random.key(0), settings(), data), settings(), Data(params))


def test_update_is_learn_after_collect_and_one_program():
    agent, _ = trainer(80, variant="grpo")
    data, hparams = Data(BanditParams()), settings()
    state = agent.init(jax.random.key(0), hparams, data)
    collected, talk = compiled(agent.collect)(state, hparams, data)
    apart, _ = compiled(agent.learn)(collected, hparams, talk, data)
    together, _ = compiled(agent.update)(state, hparams, data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), apart.params, together.params)
    groups = np.asarray(talk.tokens).reshape(8, 4, 2)
    assert (groups[:, :, 0] == groups[:, :1, 0]).all()
    assert len(np.unique(groups[:, 0, 0])) > 1
    names = {
        equation.primitive.name for equation in equations(jax.make_jaxpr(agent.update)(state, hparams, data).jaxpr)
    }
    assert "scan" in names
    assert not any("callback" in name for name in names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "gsp"}, r"config\.variant must be one of .*did you mean 'gspo'"),
        ({"group_size": 1}, r"config\.group_size must be at least 2"),
        ({"num_minibatches": 3}, r"num_minibatches must divide 32 conversations, got 3"),
        ({"kl": "k4"}, r"config\.kl must be one of k1, k2, k3"),
        ({"aggregation": "mean"}, r"config\.aggregation must be one of"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_environments_that_do_not_fit():
    with pytest.raises(ValueError, match=r"config\.model\.vocab_size must be 64"):
        make_grpo(SMALL, envs_jax.make("tool-desk")[0])
    with pytest.raises(ValueError, match="GRPO needs an environment of tokens"):
        GRPO.make(SMALL, envs_jax.make("cartpole")[0])


def test_a_run_from_a_fine_tuned_model(tmp_path):
    """It starts from the parameters that were fine-tuned; cut and resumed it is the same, bit by bit."""
    model = ["config.model.hidden_size=16", "config.model.num_layers=1", "evaluation.num_episodes=4", "log.every=1",
             "checkpoint.every=1", "evaluation.every=2"]  # fmt: skip
    tuned, _ = jaxrl.fit(
        load_config("sft_tool_desk", [*model, "num_updates=2", "config.batch_size=4"]), tmp_path / "sft", progress=False
    )
    quick = [*model, "config.num_groups=2", "config.group_size=2", "config.num_epochs=1"]
    still = load_config("grpo_tool_desk", [*quick, "num_updates=2", "hparams.learning_rate=0"])
    started, _ = jaxrl.fit(still, init_from=tmp_path / "sft", progress=False)
    assert bits(started.params) == bits(tuned.params)
    run = load_config("grpo_tool_desk", [*quick, "num_updates=2"])
    whole, log = jaxrl.fit(run, progress=False)
    assert log[-1]["env_steps"] == 2 * 4 * 40
    jaxrl.fit(load_config("grpo_tool_desk", [*quick, "num_updates=1"]), tmp_path / "run", progress=False)
    resumed, _ = jaxrl.fit(run, tmp_path / "run", resume=True, progress=False)
    assert bits(resumed) == bits(whole)
