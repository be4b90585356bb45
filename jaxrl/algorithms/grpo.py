"""Group-relative policy optimisation of a language model (GRPO, Shao et al. 2024, DeepSeekMath) and its relatives.

`collect` holds several conversations from each of a number of starts; `learn` compares the returns of a group and
takes clipped policy steps on the agent's tokens. Generation, environment, reward and update are one program. What a
variant changes is the advantage, the loss of a token and how tokens are averaged: one row of `VARIANTS`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.llm.advantages import group_advantages, leave_one_out_advantages, penalised_returns, whiten
from jaxrl.llm.config import one_of
from jaxrl.llm.learning import (
    LearnerConfig,
    LearnerHParams,
    adamw,
    conversation_length,
    frozen_models,
    gradient_step,
    init_learned,
    model_params,
    model_shape,
    reference_params,
)
from jaxrl.llm.losses import AGGREGATIONS, KL_ESTIMATORS, PolicyLoss, aggregate, kl_estimate, policy_loss
from jaxrl.llm.model import TransformerLM
from jaxrl.llm.parameters import Params, unstack_layers
from jaxrl.llm.rollout import Conversations, make_policy, rollout
from jaxrl.llm.sampling import Sampling
from jaxrl.parts.setup import at_least_one
from jaxrl.parts.shuffle import random_order
from jaxrl.types import Algorithm, Array, Data, FrozenModel, Metrics, Recipe, TrainState, hparam


class Variant(NamedTuple):
    advantage: str  # "group": over the group's deviation; "centred"; "leave_one_out"; "whitened": over the batch
    loss: str  # one of jaxrl.llm.losses.POLICY_LOSSES
    aggregation: str  # one of jaxrl.llm.losses.AGGREGATIONS


VARIANTS = {
    "grpo": Variant("group", "clip", "sequence_mean"),
    "dr_grpo": Variant("centred", "clip", "sequence_sum_norm"),  # Liu et al. 2025
    "rloo": Variant("leave_one_out", "clip", "sequence_sum"),  # Ahmadian et al. 2024
    "reinforce++": Variant("whitened", "clip", "token_mean"),  # Hu 2025; the penalty is part of the return
    "gspo": Variant("group", "gspo", "sequence_mean"),  # Zheng et al. 2025
    "cispo": Variant("group", "cispo", "token_mean"),  # MiniMax 2025
}


@dataclasses.dataclass(frozen=True)
class GRPOConfig(LearnerConfig):
    """What shapes the program."""

    num_groups: int = 16  # starts of one update
    group_size: int = 8  # G: conversations from each start
    num_epochs: int = 1
    num_minibatches: int = 1
    variant: str = "grpo"
    aggregation: str = ""  # how tokens are averaged; "": as the variant does
    dual_clip: float = 0.0  # bounds the loss of a token with negative advantage; 0: no bound
    kl: str = ""  # estimator of the divergence from the reference, see `reference_params`; "": there is none

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "num_groups", "num_epochs", "num_minibatches")
        one_of("config.variant", self.variant, VARIANTS)
        if self.aggregation:
            one_of("config.aggregation", self.aggregation, AGGREGATIONS)
        if self.kl:
            one_of("config.kl", self.kl, KL_ESTIMATORS)
        if self.group_size < 2:
            raise ValueError(f"config.group_size must be at least 2, got {self.group_size}")
        if self.num_groups * self.group_size % self.num_minibatches:
            size = self.num_groups * self.group_size
            raise ValueError(f"config.num_minibatches must divide {size} conversations, got {self.num_minibatches}")
        _ = self.policy_loss

    @property
    def policy_loss(self) -> PolicyLoss:
        return PolicyLoss(VARIANTS[self.variant].loss, self.dual_clip or None)


@struct.dataclass
class GRPOHParams(LearnerHParams):
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


def make_grpo(config: GRPOConfig, env: Any) -> Algorithm:
    """GRPO and its variants.

    Args:
        config: static settings.
        env: an environment of tokens, see `jaxrl.llm.rollout`.

    Returns:
        An `Algorithm` whose `learn` takes the `Conversations` of `num_groups * group_size` episodes, group by group.

    Raises:
        ValueError: the environment does not fit the model.
    """
    length = conversation_length(env, config.model, config.max_length, "GRPO")
    model, variant = TransformerLM(config.model), VARIANTS[config.variant]
    aggregation = config.aggregation or variant.aggregation
    num_conversations = config.num_groups * config.group_size
    start, act = make_policy(model, Sampling(), length)

    def init(key: Array, hparams: GRPOHParams, data: Data) -> TrainState:
        key_params, key_state = jax.random.split(key)
        params, num_updates = init_learned(config, key_params, data), jnp.zeros((), jnp.int32)
        return TrainState(params, adamw(hparams, num_updates).init(params), key_state, num_updates, rollout=None)

    def policy(state: TrainState, data: Data) -> Params:
        return unstack_layers(model_params(config, state.params, data))

    def collect(state: TrainState, hparams: GRPOHParams, data: Data) -> tuple[TrainState, Conversations]:
        key, key_reset, key_play = jax.random.split(state.key, 3)
        reset_keys = jnp.repeat(jax.random.split(key_reset, config.num_groups), config.group_size)
        talk = rollout(
            *(model, policy(state, data), env, data.env_params, reset_keys, key_play),
            max_length=length,
            sampling=Sampling(hparams.temperature),
        )
        return dataclasses.replace(state, key=key), talk

    def prepare(hparams: GRPOHParams, talk: Conversations, data: Data) -> Sample:
        # Nothing is filtered out when sampling: what a token was drawn from is the model at this temperature.
        old, reference = talk.behaviour_log_probs, None
        if config.kl:
            held = reference_params(data, f"config.kl={config.kl!r}")
            reference, _ = model.token_log_probs(held, talk.tokens, talk.valid, hparams.temperature)
        returns = jnp.sum(talk.rewards, axis=1)
        if variant.advantage == "whitened":
            penalties = jnp.zeros_like(old)
            if reference is not None:
                penalties = -hparams.kl_cost * kl_estimate(old, reference, config.kl)
            to_go = jax.vmap(penalised_returns)(returns, penalties, talk.mask)
            advantages = whiten(to_go, talk.mask)
        else:
            compare = {
                "group": group_advantages,
                "centred": lambda rewards: group_advantages(rewards, scale=False),
                "leave_one_out": leave_one_out_advantages,
            }[variant.advantage]
            groups = jax.vmap(compare)(returns.reshape(config.num_groups, config.group_size))
            advantages = jnp.where(talk.mask, groups.reshape(-1, 1), 0.0)
        return Sample(talk.tokens, talk.valid, talk.mask, old, reference, advantages)

    def loss(params: Params, batch: Sample, hparams: GRPOHParams) -> tuple[Array, Metrics]:
        log_probs, entropies = model.token_log_probs(params, batch.tokens, batch.valid, hparams.temperature)
        terms = jax.vmap(policy_loss, (None, 0, 0, 0, 0, None, None))(
            *(config.policy_loss, log_probs, batch.old_log_probs, batch.advantages, batch.mask),
            *(hparams.clip_low, hparams.clip_high),
        )

        def mean(values: Array, kind: str = "token_mean") -> Array:
            return aggregate(values, batch.mask, kind, length)

        log_ratio = jnp.where(batch.mask, log_probs - batch.old_log_probs, 0.0)
        ratio = jnp.exp(log_ratio)
        clipped = (ratio < 1.0 - hparams.clip_low) | (ratio > 1.0 + hparams.clip_high)
        metrics = {
            "loss/policy": mean(terms, aggregation),
            "entropy": mean(entropies),
            "approx_kl": mean(ratio - 1.0 - log_ratio),
            "clip_fraction": mean(clipped.astype(jnp.float32)),
        }
        total = metrics["loss/policy"] - hparams.entropy_cost * mean(entropies, aggregation)
        if batch.reference_log_probs is not None:
            reference = jnp.where(batch.mask, batch.reference_log_probs, 0.0)
            divergence = kl_estimate(jnp.where(batch.mask, log_probs, 0.0), reference, config.kl)
            metrics["reference_kl"] = mean(divergence)
            if variant.advantage != "whitened":  # there it is part of the return
                total += hparams.kl_cost * mean(divergence, aggregation)
        return total, metrics

    def learn(state: TrainState, hparams: GRPOHParams, batch: Conversations, data: Data) -> tuple[TrainState, Metrics]:
        key, key_epochs = jax.random.split(state.key)
        samples = prepare(hparams, batch, data)
        optimizer = adamw(hparams, state.num_updates)

        def minibatch_step(loop: tuple, rows: Array) -> tuple[tuple, Metrics]:
            params, opt_state = loop
            minibatch = jax.tree.map(lambda leaf: leaf[rows], samples)
            *loop, metrics = gradient_step(
                optimizer,
                lambda learned: loss(model_params(config, learned, data), minibatch, hparams),
                params,
                opt_state,
            )
            return tuple(loop), metrics

        def epoch(loop: tuple, key: Array) -> tuple[tuple, Metrics]:
            order = random_order(key, num_conversations).reshape(config.num_minibatches, -1)
            return jax.lax.scan(minibatch_step, loop, order)

        (params, opt_state), metrics = jax.lax.scan(
            epoch, (state.params, state.opt_state), jax.random.split(key_epochs, config.num_epochs)
        )
        state = dataclasses.replace(
            state, params=params, opt_state=opt_state, key=key, num_updates=state.num_updates + 1
        )
        return state, jax.tree.map(jnp.mean, metrics) | conversation_metrics(batch, config.group_size)

    def update(state: TrainState, hparams: GRPOHParams, data: Data) -> tuple[TrainState, Metrics]:
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
        steps_per_update=num_conversations * (length - 1),
    )


def conversation_metrics(talk: Conversations, group_size: int) -> Metrics:
    """Means over the conversations of an update, and the share of groups whose returns are all equal: they teach none.

    A conversation that was cut counts as it stands.
    """
    returns = jnp.sum(talk.rewards, axis=1)
    groups = returns.reshape(-1, group_size)
    return {
        "episode/return": jnp.mean(returns),
        "episode/length": jnp.mean(jnp.sum(talk.valid, axis=1) - 1.0),
        "episode/count": jnp.asarray(returns.shape[0], jnp.int32),
        "groups/equal": jnp.mean(jnp.all(groups == groups[:, :1], axis=1).astype(jnp.float32)),
    }


def grpo_frozen(config: GRPOConfig) -> dict[str, FrozenModel]:
    """The models that `[data]` may name."""
    models = frozen_models(config)
    if config.kl:
        models["reference"] = FrozenModel(config.model, model_shape(config.model), ("reference", "base"))
    return models


GRPO = Recipe(make_grpo, GRPOConfig, GRPOHParams, frozen=grpo_frozen)
