"""PPO of a language model (Schulman et al. 2017; of conversations as in Ouyang et al. 2022), one compiled update.

`collect` holds conversations; `learn` asks a value head, on the last hidden state of the model that learns, what each
of the agent's tokens was worth, and takes clipped steps. Advantages go from one of the agent's tokens to its next one,
whatever others say between them. A divergence from a reference is a cost within the rewards.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.llm.advantages import token_advantages, whiten
from jaxrl.llm.heads import init_scalar_head, scalar_head
from jaxrl.llm.learning import adamw, conversation_length, init_learned, model_params, reference_params
from jaxrl.llm.losses import kl_estimate, weighted_sum
from jaxrl.llm.model import TransformerLM
from jaxrl.llm.parameters import Params, unstack_layers
from jaxrl.llm.policy_learning import (
    PolicyLearnerConfig,
    PolicyLearnerHParams,
    Sample,
    Weights,
    conversation_metrics,
    learn_batch,
    policy_frozen,
    policy_terms,
)
from jaxrl.llm.rollout import Conversations, make_policy, rollout
from jaxrl.llm.sampling import Sampling
from jaxrl.parts.losses import clipped_value_loss
from jaxrl.parts.setup import at_least_one
from jaxrl.types import Algorithm, Array, Data, Metrics, Recipe, TrainState, hparam


@dataclasses.dataclass(frozen=True)
class LMPPOConfig(PolicyLearnerConfig):
    """What shapes the program."""

    batch_size: int = 128  # conversations of one update
    whiten_advantages: bool = True  # mean 0 and variance 1 over the agent's tokens of an update

    def __post_init__(self) -> None:
        at_least_one(self, "batch_size")
        super().__post_init__()

    @property
    def num_conversations(self) -> int:
        return self.batch_size


@struct.dataclass
class LMPPOHParams(PolicyLearnerHParams):
    """What may be traced and swept."""

    discount: Any = hparam(1.0, 0.0, 1.0)  # per token of the agent
    gae_lambda: Any = hparam(0.95, 0.0, 1.0)
    value_cost: Any = hparam(0.5, low=0.0)
    clip_value: Any = hparam(0.2, low=0.0)  # how far a value moves from that of the batch before its loss is clipped


@struct.dataclass
class PPOSample(Sample):
    old_values: Array  # f32 [B, T]
    targets: Array  # f32 [B, T]; of the values


def make_lm_ppo(config: LMPPOConfig, env: Any) -> Algorithm:
    """PPO of a language model.

    Args:
        config: static settings.
        env: an environment of tokens, see `jaxrl.llm.rollout`.

    Returns:
        An `Algorithm` whose `learn` takes the `Conversations` of `batch_size` episodes. Its parameters are "model", as
        those of GRPO, and "head".

    Raises:
        ValueError: the environment does not fit the model.
    """
    length = conversation_length(env, config.model, config.max_length, "PPO")
    model, aggregation = TransformerLM(config.model), config.aggregation or "token_mean"
    start, act = make_policy(model, Sampling(), length)

    def init(key: Array, hparams: LMPPOHParams, data: Data) -> TrainState:
        key_params, key_state = jax.random.split(key)
        params = {"model": init_learned(config, key_params, data), "head": init_scalar_head(config.model)}
        num_updates = jnp.zeros((), jnp.int32)
        return TrainState(params, adamw(hparams, num_updates).init(params), key_state, num_updates, rollout=None)

    def policy(state: TrainState, data: Data) -> Params:
        return unstack_layers(model_params(config, state.params["model"], data))

    def collect(state: TrainState, hparams: LMPPOHParams, data: Data) -> tuple[TrainState, Conversations]:
        key, key_reset, key_play = jax.random.split(state.key, 3)
        reset_keys = jax.random.split(key_reset, config.batch_size)
        talk = rollout(
            *(model, policy(state, data), env, data.env_params, reset_keys, key_play),
            max_length=length,
            sampling=Sampling(hparams.temperature),
        )
        return dataclasses.replace(state, key=key), talk

    def evaluate(params: Params, talk: Any, hparams: LMPPOHParams, data: Data) -> tuple[Array, Array, Array]:
        """Log-probability, entropy and value f32 `[B, T]` of each token, from what came before it."""
        whole = model_params(config, params["model"], data)
        hidden, _ = model.apply(whole, talk.tokens, valid=talk.valid, return_hidden=True)
        values = jnp.pad(scalar_head(params["head"], hidden[:, :-1]), ((0, 0), (1, 0)))
        return *model.log_probs_of_hidden(whole, hidden, talk.tokens, hparams.temperature), values

    def prepare(state: TrainState, hparams: LMPPOHParams, talk: Conversations, data: Data) -> PPOSample:
        # Nothing is filtered out when sampling: what a token was drawn from is the model at this temperature.
        old, reference, rewards = talk.behaviour_log_probs, None, talk.rewards
        if config.kl:
            held = reference_params(data, f"config.kl={config.kl!r}")
            reference, _ = model.token_log_probs(held, talk.tokens, talk.valid, hparams.temperature)
            divergence = kl_estimate(old, jnp.where(talk.mask, reference, 0.0), config.kl)
            rewards = rewards - jnp.where(talk.mask, hparams.kl_cost * divergence, 0.0)
        _, _, values = evaluate(state.params, talk, hparams, data)
        advantages = jax.vmap(token_advantages, (0, 0, 0, None, None))(
            rewards, values, talk.mask, hparams.discount, hparams.gae_lambda
        )
        targets = advantages + values
        if config.whiten_advantages:
            advantages = whiten(advantages, talk.mask)
        return PPOSample(talk.tokens, talk.valid, talk.mask, old, reference, advantages, values, targets)

    def learn(state: TrainState, hparams: LMPPOHParams, batch: Conversations, data: Data) -> tuple[TrainState, Metrics]:
        def loss(params: Params, rows: tuple[PPOSample, Weights]) -> tuple[Array, Metrics]:
            sample, weights = rows
            log_probs, entropies, values = evaluate(params, sample, hparams, data)
            total, metrics = policy_terms(config, hparams, log_probs, entropies, *rows, penalised=False)
            errors = clipped_value_loss(values, sample.old_values, sample.targets, hparams.clip_value)
            metrics["loss/value"] = weighted_sum(errors, weights.loss)
            return total + hparams.value_cost * metrics["loss/value"], metrics

        samples = prepare(state, hparams, batch, data)
        state, metrics = learn_batch(config, hparams, loss, state, samples, aggregation, length)
        return state, metrics | conversation_metrics(batch)

    def update(state: TrainState, hparams: LMPPOHParams, data: Data) -> tuple[TrainState, Metrics]:
        state, batch = collect(state, hparams, data)
        return learn(state, hparams, batch, data)

    return Algorithm(
        init=init,
        update=update,
        policy=policy,
        start=start,
        act=act,
        collect=collect,
        learn=learn,
        steps_per_update=config.batch_size * (length - 1),
    )


LM_PPO = Recipe(make_lm_ppo, LMPPOConfig, LMPPOHParams, frozen=policy_frozen)
