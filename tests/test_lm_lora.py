"""Adapters in every learner of a language model: only they learn, and the base they stand beside is the reference."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxrl.algorithms.dpo import DPOConfig, DPOHParams, make_dpo
from jaxrl.algorithms.grpo import GRPOConfig, GRPOHParams, make_grpo
from jaxrl.algorithms.lm_ppo import LMPPOConfig, LMPPOHParams, make_lm_ppo
from jaxrl.algorithms.reward_model import RewardModelConfig, RewardModelHParams, make_reward_model
from jaxrl.algorithms.sft import SFTConfig, SFTHParams, make_sft
from jaxrl.llm.learning import gradient_step, model_params
from jaxrl.llm.lora import LoraConfig, merge_attached
from jaxrl.llm.losses import AGGREGATIONS, token_weights, weighted_sum
from jaxrl.llm.model import TransformerLM
from jaxrl.llm.parameters import stack_layers, unstack_layers
from jaxrl.loop import scan_updates
from jaxrl.types import Data
from programs import bits, compiled
from token_worlds import TINY, Bandit, BanditParams

# Larger fresh weights than the default: embeddings, which stay as they are under adapters, bound what logits can be.
MODEL = dataclasses.replace(TINY, initial_std=0.3)
LORA = LoraConfig(rank=4, targets=("attn.[qkvo]", "mlp.*"))
SHAPE = {"model": MODEL, "lora": LORA}
LEARNERS = {
    "sft": (make_sft, SFTConfig(batch_size=8, **SHAPE), SFTHParams),
    "grpo": (make_grpo, GRPOConfig(num_groups=8, group_size=8, kl="k3", **SHAPE), GRPOHParams),
    "lm_ppo": (make_lm_ppo, LMPPOConfig(batch_size=8, kl="k1", **SHAPE), LMPPOHParams),
    "dpo": (make_dpo, DPOConfig(batch_size=8, **SHAPE), DPOHParams),
    "reward_model": (
        make_reward_model,
        RewardModelConfig(batch_size=8, num_demonstrations=16, num_held_out=8, **SHAPE),
        RewardModelHParams,
    ),
}


def settings(kind, **values):
    return jax.tree.map(jnp.float32, kind(**values))


@functools.cache
def data():
    return Data(BanditParams(), frozen={"base": TransformerLM(MODEL).init(jax.random.key(3))})


@pytest.mark.parametrize("name", LEARNERS)
def test_only_adapters_learn(name):
    """By shapes: every leaf that learns, and that the optimiser holds, is an adapter or part of a head."""
    make, config, hparams = LEARNERS[name]
    agent = make(config, Bandit())
    state = jax.eval_shape(agent.init, jax.random.key(0), settings(hparams), data())
    learned = state.params if name in ("sft", "grpo", "dpo") else state.params["model"]
    assert set(learned) == {"attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down"}
    after, _ = jax.eval_shape(agent.update, state, settings(hparams), data())
    assert jax.tree.structure(after.params) == jax.tree.structure(state.params)
    with pytest.raises(ValueError, match=r"config\.lora needs data\.frozen\['base'\]"):
        jax.eval_shape(agent.policy, state, Data(BanditParams()))


def test_adapters_learn_the_bandit_beside_a_base_that_stays():
    make, config, kind = LEARNERS["grpo"]
    agent, hparams = make(config, Bandit()), settings(kind, learning_rate=3e-2, kl_cost=0.0)

    @compiled
    def train(key, data):
        first = agent.init(key, hparams, data)
        last, metrics = scan_updates(agent, first, hparams, 80, data)
        return first, last, metrics, agent.policy(first, data), agent.policy(last, data)

    before = bits(data().frozen)
    first, last, metrics, policy, learned = train(jax.random.key(0), data())
    assert float(metrics["episode/return"][-10:].mean()) > 0.9
    assert float(metrics["reference_kl"][0]) == pytest.approx(0.0, abs=1e-6)  # adapters that have not learned: the base
    assert float(metrics["reference_kl"][-1]) > 0.1
    assert bits(data().frozen) == before
    assert bits({name: pair["a"] for name, pair in first.params.items()}) != bits(
        {name: pair["a"] for name, pair in last.params.items()}
    )
    model, tokens = TransformerLM(TINY), jnp.arange(6, dtype=jnp.int32)[None]
    base = unstack_layers(data().frozen["base"])  # in layers too, so that the same products are computed
    np.testing.assert_array_equal(model.apply(base, tokens)[0], model.apply(policy, tokens)[0])
    merged = merge_attached(stack_layers(learned))
    assert "lora" not in merged["layers"]
    np.testing.assert_allclose(model.apply(merged, tokens)[0], model.apply(learned, tokens)[0], atol=1e-5)
    assert bits(stack_layers(unstack_layers(merged))) == bits(merged)


@pytest.mark.slow
def test_adapters_go_on_from_a_tuned_base():
    """From a base that is right half of the time; all weights reach 1, adapters less: embeddings bound the logits."""
    params = BanditParams()
    tune = make_sft(SFTConfig(model=MODEL, batch_size=32), Bandit())
    sft = settings(SFTHParams, learning_rate=1e-2)
    start = tune.init(jax.random.key(0), sft, Data(params))
    base = compiled(lambda state: scan_updates(tune, state, sft, 60, Data(params))[0].params)(start)
    reached = {}
    for lora, learning_rate in ((None, 1e-2), (LORA, 2e-2)):
        agent = make_grpo(GRPOConfig(num_groups=32, group_size=8, model=MODEL, lora=lora), Bandit())

        def train(key, hparams, given, agent=agent):
            return scan_updates(agent, agent.init(key, hparams, given), hparams, 300, given)[1]["episode/return"]

        hparams = settings(GRPOHParams, learning_rate=learning_rate)
        returns = compiled(train)(jax.random.key(1), hparams, Data(params, frozen={"base": base}))
        assert 0.4 < float(returns[0]) < 0.7
        reached[lora] = float(returns[-10:].mean())
    assert reached[None] > 0.95
    assert reached[LORA] > 0.85


@functools.cache
def one_step():
    """jit of (batch, number of micro-batches) -> what one step of gradient descent gives."""
    model, optimizer = TransformerLM(TINY), optax.sgd(1.0)
    params = model.init(jax.random.key(0))

    def loss(params, rows):
        tokens, weights = rows
        total = weighted_sum(-model.token_log_probs(params, tokens)[0], weights)
        return total, {"loss": total}

    def step(batch, num_micro_batches):
        return gradient_step(optimizer, loss, params, optimizer.init(params), batch, num_micro_batches)

    return jax.jit(step, static_argnums=1)


@pytest.mark.parametrize("kind", AGGREGATIONS)
def test_micro_batches_and_devices_give_the_step_of_the_whole_batch(kind):
    """Ragged masks, one of them empty; four devices of which each holds two sequences."""
    tokens = jax.random.randint(jax.random.key(1), (8, 7), 0, 6)
    lengths = jnp.array([[1], [2], [7], [3], [4], [6], [0], [5]])
    mask = (jnp.arange(7)[None] < lengths) & (jnp.arange(7)[None] > 0)
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    split = jax.device_put((tokens, mask), NamedSharding(mesh, PartitionSpec("batch")))
    batch, sharded = ((words, token_weights(ours, kind, 7.0)) for words, ours in ((tokens, mask), split))
    whole, _, metrics = one_step()(batch, 1)
    for other, _, found in (one_step()(batch, 4), one_step()(sharded, 1)):
        np.testing.assert_allclose(found["loss"], metrics["loss"], atol=1e-6)
        np.testing.assert_allclose(found["grad_norm"], metrics["grad_norm"], atol=2e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), other, whole)


def test_a_learner_with_micro_batches_takes_the_same_step():
    make, config, kind = LEARNERS["grpo"]
    hparams, states = settings(kind, learning_rate=1e-2, entropy_cost=0.01), []
    for number in (1, 4):
        agent = make(dataclasses.replace(config, num_micro_batches=number, variant="dr_grpo"), Bandit(max_steps=2))
        state = agent.init(jax.random.key(0), hparams, data())
        states.append(compiled(agent.update)(state, hparams, data()))
    (one, metrics), (four, others) = states
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), metrics, others)
    whole = [model_params(config, state.params, data())["layers"]["lora"] for state in (one, four)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *whole)


def test_packed_sequences_are_those_of_a_padded_batch():
    """Sequence numbers as `valid`: the loss of two sequences in one row is that of two rows."""
    model = TransformerLM(TINY)
    params = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 6)
    lengths = jnp.array([4, 6])
    valid = jnp.arange(6)[None] < lengths[:, None]
    mask = valid & (jnp.arange(6)[None] > 0)

    @jax.jit
    @jax.value_and_grad
    def loss(params, tokens, valid, mask):
        return weighted_sum(-model.token_log_probs(params, tokens, valid)[0], token_weights(mask))

    padded = loss(params, tokens, valid, mask)
    row = jnp.concatenate([tokens[0, :4], tokens[1]])[None]
    number = jnp.array([[1] * 4 + [2] * 6], jnp.int32)
    first = jnp.array([[False] + [True] * 3 + [False] + [True] * 5])
    packed = loss(params, row, number, first)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), packed, padded)
