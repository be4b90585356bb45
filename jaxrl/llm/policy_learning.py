"""What GRPO and PPO of a language model share: the policy's part of the loss, and how a batch is gone through."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.llm.config import one_of
from jaxrl.llm.learning import (
    LearnerConfig,
    LearnerHParams,
    adamw,
    frozen_models,
    gradient_step,
    micro_batches_divide,
    model_shape,
)
from jaxrl.llm.losses import (
    AGGREGATIONS,
    KL_ESTIMATORS,
    PolicyLoss,
    kl_estimate,
    policy_loss,
    token_weights,
    weighted_sum,
)
from jaxrl.llm.parameters import Params
from jaxrl.llm.rollout import Conversations
from jaxrl.parts.setup import at_least_one
from jaxrl.parts.shuffle import random_order
from jaxrl.types import Array, FrozenModel, Metrics, PyTree, TrainState, hparam


@dataclasses.dataclass(frozen=True)
class PolicyLearnerConfig(LearnerConfig):
    """What shapes the program of a learner that samples conversations and is rewarded for them."""

    num_epochs: int = 1
    num_minibatches: int = 1
    aggregation: str = ""  # how tokens are averaged; "": as the algorithm does
    dual_clip: float = 0.0  # bounds the loss of a token with negative advantage; 0: no bound
    kl: str = ""  # estimator of the divergence from the reference, see `reference_params`; "": there is none

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "num_epochs", "num_minibatches")
        if self.aggregation:
            one_of("config.aggregation", self.aggregation, AGGREGATIONS)
        if self.kl:
            one_of("config.kl", self.kl, KL_ESTIMATORS)
        if self.num_conversations % self.num_minibatches:
            size = self.num_conversations
            raise ValueError(f"config.num_minibatches must divide {size} conversations, got {self.num_minibatches}")
        micro_batches_divide(self, self.num_conversations // self.num_minibatches, "conversations of a minibatch")
        _ = self.policy_loss

    @property
    def num_conversations(self) -> int:
        """B: of one update."""
        raise NotImplementedError

    @property
    def policy_loss(self) -> PolicyLoss:
        return PolicyLoss(dual_clip=self.dual_clip or None)


@struct.dataclass
class PolicyLearnerHParams(LearnerHParams):
    """What may be traced and swept."""

    clip_low: Any = hparam(0.2, low=0.0, high=1.0)
    clip_high: Any = hparam(0.2, low=0.0)
    kl_cost: Any = hparam(0.04, low=0.0)  # read where `config.kl` names an estimator
    entropy_cost: Any = hparam(0.0, low=0.0)
    temperature: Any = hparam(1.0, low=1e-3)  # of sampling, and of the log-probabilities that are learned


@struct.dataclass
class Sample:
    """What the loss reads of B conversations."""

    tokens: Array  # i32 [B, T]
    valid: Array  # bool [B, T]
    mask: Array  # bool [B, T]
    old_log_probs: Array  # f32 [B, T]
    reference_log_probs: Array | None  # f32 [B, T]
    advantages: Array  # f32 [B, T]


@struct.dataclass
class Weights:
    """What the tokens of a minibatch add to its numbers."""

    loss: Array  # f32 [B, T]; as the algorithm averages
    mean: Array  # f32 [B, T]; every token alike


def policy_frozen(config: PolicyLearnerConfig) -> dict[str, FrozenModel]:
    """The models that `[data]` may name."""
    models = frozen_models(config)
    if config.kl:
        models["reference"] = FrozenModel(config.model, model_shape(config.model), ("reference", "base"))
    return models


def policy_terms(
    config: PolicyLearnerConfig,
    hparams: Any,
    log_probs: Array,
    entropies: Array,
    batch: Sample,
    weights: Weights,
    *,
    penalised: bool,
) -> tuple[Array, Metrics]:
    """The policy's loss on some conversations, and what there is to say about the step.

    Args:
        config: static settings.
        hparams: those of `PolicyLearnerHParams`.
        log_probs: f32 `[B, T]`, of the policy that learns.
        entropies: f32 `[B, T]`.
        batch: the conversations.
        weights: of their tokens.
        penalised: whether the divergence from the reference is a cost; False where it is part of the rewards.
    """
    terms = jax.vmap(policy_loss, (None, 0, 0, 0, 0, None, None))(
        *(config.policy_loss, log_probs, batch.old_log_probs, batch.advantages, batch.mask),
        *(hparams.clip_low, hparams.clip_high),
    )
    log_ratio = jnp.where(batch.mask, log_probs - batch.old_log_probs, 0.0)
    ratio = jnp.exp(log_ratio)
    clipped = (ratio < 1.0 - hparams.clip_low) | (ratio > 1.0 + hparams.clip_high)
    metrics = {
        "loss/policy": weighted_sum(terms, weights.loss),
        "entropy": weighted_sum(entropies, weights.mean),
        "approx_kl": weighted_sum(ratio - 1.0 - log_ratio, weights.mean),
        "clip_fraction": weighted_sum(clipped.astype(jnp.float32), weights.mean),
    }
    total = metrics["loss/policy"] - hparams.entropy_cost * weighted_sum(entropies, weights.loss)
    if batch.reference_log_probs is not None:
        reference = jnp.where(batch.mask, batch.reference_log_probs, 0.0)
        divergence = kl_estimate(jnp.where(batch.mask, log_probs, 0.0), reference, config.kl)
        metrics["reference_kl"] = weighted_sum(divergence, weights.mean)
        if penalised:
            total += hparams.kl_cost * weighted_sum(divergence, weights.loss)
    return total, metrics


def learn_batch(
    config: PolicyLearnerConfig,
    hparams: Any,
    loss: Callable[[Params, tuple[PyTree, Weights]], tuple[Array, Metrics]],
    state: TrainState,
    samples: PyTree,
    aggregation: str,
    length: int,
) -> tuple[TrainState, Metrics]:
    """`num_epochs x num_minibatches` gradient steps on conversations: the state after them, and mean metrics.

    Args:
        config: static settings.
        hparams: those of the optimiser.
        loss: `loss(params, (samples, weights)) -> (loss, metrics)`, sums over the rows that it is given.
        state: its parameters and optimiser learn.
        samples: leaves lead with B; the mask of its tokens is `samples.mask`.
        aggregation: how tokens are averaged, one of `jaxrl.llm.losses.AGGREGATIONS`.
        length: for "sequence_sum_norm".
    """
    key, key_epochs = jax.random.split(state.key)
    optimizer = adamw(hparams, state.num_updates)

    def minibatch_step(loop: tuple, rows: Array) -> tuple[tuple, Metrics]:
        minibatch = jax.tree.map(lambda leaf: leaf[rows], samples)
        weights = Weights(token_weights(minibatch.mask, aggregation, length), token_weights(minibatch.mask))
        params, opt_state = loop
        batch = minibatch, weights
        params, opt_state, metrics = gradient_step(optimizer, loss, params, opt_state, batch, config.num_micro_batches)
        return (params, opt_state), metrics

    def epoch(loop: tuple, key: Array) -> tuple[tuple, Metrics]:
        order = random_order(key, config.num_conversations).reshape(config.num_minibatches, -1)
        return jax.lax.scan(minibatch_step, loop, order)

    (params, opt_state), metrics = jax.lax.scan(
        epoch, (state.params, state.opt_state), jax.random.split(key_epochs, config.num_epochs)
    )
    state = dataclasses.replace(state, params=params, opt_state=opt_state, key=key, num_updates=state.num_updates + 1)
    return state, jax.tree.map(jnp.mean, metrics)


def conversation_metrics(talk: Conversations) -> Metrics:
    """Means over the conversations of an update. One that was cut counts as it stands."""
    returns = jnp.sum(talk.rewards, axis=1)
    return {
        "episode/return": jnp.mean(returns),
        "episode/length": jnp.mean(jnp.sum(talk.valid, axis=1) - 1.0),
        "episode/count": jnp.asarray(returns.shape[0], jnp.int32),
    }
