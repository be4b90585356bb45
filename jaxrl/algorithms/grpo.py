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
from jaxrl.llm.learning import adamw, conversation_length, init_learned, model_params, reference_params
from jaxrl.llm.losses import PolicyLoss, kl_estimate
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
from jaxrl.parts.setup import at_least_one
from jaxrl.types import Algorithm, Array, Data, Metrics, Recipe, TrainState


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
class GRPOConfig(PolicyLearnerConfig):
    """What shapes the program."""

    num_groups: int = 16  # starts of one update
    group_size: int = 8  # G: conversations from each start
    variant: str = "grpo"

    def __post_init__(self) -> None:
        at_least_one(self, "num_groups")
        one_of("config.variant", self.variant, VARIANTS)
        if self.group_size < 2:
            raise ValueError(f"config.group_size must be at least 2, got {self.group_size}")
        super().__post_init__()

    @property
    def num_conversations(self) -> int:
        return self.num_groups * self.group_size

    @property
    def policy_loss(self) -> PolicyLoss:
        return PolicyLoss(VARIANTS[self.variant].loss, self.dual_clip or None)


@struct.dataclass
class GRPOHParams(PolicyLearnerHParams):
    """What may be traced and swept."""


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

    def learn(state: TrainState, hparams: GRPOHParams, batch: Conversations, data: Data) -> tuple[TrainState, Metrics]:
        def loss(params: Params, rows: tuple[Sample, Weights]) -> tuple[Array, Metrics]:
            whole, sample = model_params(config, params, data), rows[0]
            log_probs, entropies = model.token_log_probs(whole, sample.tokens, sample.valid, hparams.temperature)
            in_return = variant.advantage == "whitened"
            return policy_terms(config, hparams, log_probs, entropies, *rows, penalised=not in_return)

        samples = prepare(hparams, batch, data)
        state, metrics = learn_batch(config, hparams, loss, state, samples, aggregation, length)
        return state, metrics | conversation_metrics(batch) | group_metrics(batch, config.group_size)

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
        steps_per_update=config.num_conversations * (length - 1),
    )


def group_metrics(talk: Conversations, group_size: int) -> Metrics:
    """The share of groups whose returns are all equal: they teach nothing."""
    groups = jnp.sum(talk.rewards, axis=1).reshape(-1, group_size)
    return {"groups/equal": jnp.mean(jnp.all(groups == groups[:, :1], axis=1).astype(jnp.float32))}


GRPO = Recipe(make_grpo, GRPOConfig, GRPOHParams, frozen=policy_frozen)
