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
from jaxrl.llm.config import LMConfig, one_of, preset
from jaxrl.llm.heads import conversation_score, init_scalar_head
from jaxrl.llm.learning import (
    adamw,
    conversation_length,
    frozen_model,
    init_learned,
    model_params,
    model_shape,
    reference_params,
)
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

REWARDS = ("environment", "model")


@dataclasses.dataclass(frozen=True)
class GRPOConfig(PolicyLearnerConfig):
    """What shapes the program."""

    num_groups: int = 16  # starts of one update
    group_size: int = 8  # G: conversations from each start
    variant: str = "grpo"
    reward: str = "environment"  # or "model": of a reward model, `data.frozen["reward"]`
    reward_model: LMConfig | None = None  # its transformer; None: `nano` with the vocabulary of `model`

    def __post_init__(self) -> None:
        at_least_one(self, "num_groups")
        one_of("config.variant", self.variant, VARIANTS)
        one_of("config.reward", self.reward, REWARDS)
        if self.judge.vocab_size != self.model.vocab_size:
            size, own = self.model.vocab_size, self.judge.vocab_size
            raise ValueError(f"config.reward_model.vocab_size must be that of config.model, {size}, got {own}")
        if self.group_size < 2:
            raise ValueError(f"config.group_size must be at least 2, got {self.group_size}")
        super().__post_init__()

    @property
    def num_conversations(self) -> int:
        return self.num_groups * self.group_size

    @property
    def judge(self) -> LMConfig:
        """The transformer of the reward model."""
        return self.reward_model or preset("nano", vocab_size=self.model.vocab_size)

    @property
    def policy_loss(self) -> PolicyLoss:
        return PolicyLoss(VARIANTS[self.variant].loss, self.dual_clip or None)


@struct.dataclass
class GRPOHParams(PolicyLearnerHParams):
    """What may be traced and swept."""

    refused_return: Any = hparam(-1.0)  # a conversation whose own return is no higher keeps it, whatever a model says


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

    def rewarded(hparams: GRPOHParams, talk: Conversations, data: Data) -> Array:
        """The return of each conversation, f32 `[B]`."""
        returns = jnp.sum(talk.rewards, axis=1)
        if config.reward == "environment":
            return returns
        judge = frozen_model(data, "config.reward='model'", "reward")
        scores = conversation_score(TransformerLM(config.judge), judge["model"], judge["head"], talk.tokens, talk.valid)
        return jnp.where(returns <= hparams.refused_return, returns, jax.nn.sigmoid(scores))

    def prepare(hparams: GRPOHParams, talk: Conversations, returns: Array, data: Data) -> Sample:
        # Nothing is filtered out when sampling: what a token was drawn from is the model at this temperature.
        old, reference = talk.behaviour_log_probs, None
        if config.kl:
            held = reference_params(data, f"config.kl={config.kl!r}")
            reference, _ = model.token_log_probs(held, talk.tokens, talk.valid, hparams.temperature)
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

        returns = rewarded(hparams, batch, data)
        samples = prepare(hparams, batch, returns, data)
        state, metrics = learn_batch(config, hparams, loss, state, samples, aggregation, length)
        groups = returns.reshape(config.num_groups, config.group_size)
        metrics["groups/equal"] = jnp.mean(jnp.all(groups == groups[:, :1], axis=1).astype(jnp.float32))
        if config.reward == "model":
            metrics["reward/model"] = jnp.mean(returns)  # beside the environment's own, "episode/return"
        return state, metrics | conversation_metrics(batch)

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


def grpo_frozen(config: GRPOConfig) -> dict[str, FrozenModel]:
    """The models that `[data]` may name."""
    models = policy_frozen(config)
    if config.reward == "model":
        shape = {"model": model_shape(config.judge), "head": jax.eval_shape(lambda: init_scalar_head(config.judge))}
        models["reward"] = FrozenModel(config.judge, shape, ("reward",))
    return models


GRPO = Recipe(make_grpo, GRPOConfig, GRPOHParams, frozen=grpo_frozen)
