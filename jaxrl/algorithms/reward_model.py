"""A reward model: a transformer with a scalar head learns from labelled conversations what a judge would say.

A fixed number of conversations is held at the start, by the environment's teacher with its faults or by a frozen model,
and labelled by the environment itself: an entry of its last `TimeStep.info`, such as whether all was found out. The
loss is the cross-entropy of the label; what is reported is measured on conversations that were held out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrl.llm.config import one_of
from jaxrl.llm.demonstrations import demonstrate, sampled
from jaxrl.llm.heads import binary_agreement, conversation_score, init_scalar_head
from jaxrl.llm.learning import (
    LearnerConfig,
    LearnerHParams,
    adamw,
    conversation_length,
    frozen_model,
    frozen_models,
    gradient_step,
    init_learned,
    micro_batches_divide,
    model_params,
)
from jaxrl.llm.model import TransformerLM
from jaxrl.llm.parameters import Params
from jaxrl.parts.setup import at_least_one
from jaxrl.types import Algorithm, Array, Data, FrozenModel, Metrics, Recipe, TrainState, hparam


@dataclasses.dataclass(frozen=True)
class RewardModelConfig(LearnerConfig):
    """What shapes the program."""

    batch_size: int = 64  # conversations of one update
    num_demonstrations: int = 1000  # labelled conversations to learn from
    num_held_out: int = 256  # others, on which it is measured
    source: str = "teacher"  # who holds them: the environment's teacher, or "base": the model `data.frozen["base"]`
    label: str = "complete"  # the entry of `TimeStep.info` that is learned: true where it is above 1/2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "batch_size", "num_demonstrations", "num_held_out")
        micro_batches_divide(self, self.batch_size, "conversations")
        one_of("config.source", self.source, ("teacher", "base"))


@struct.dataclass
class RewardModelHParams(LearnerHParams):
    """What may be traced and swept."""

    learning_rate: Any = hparam(1e-3, low=0.0)


@struct.dataclass
class Labelled:
    """N conversations of T tokens and what is to be said of them."""

    tokens: Array  # i32 [N, T]
    valid: Array  # bool [N, T]
    label: Array  # bool [N]


@struct.dataclass
class RewardModelState(TrainState):
    learned: Any = None  # Labelled
    held_out: Any = None  # Labelled


def make_reward_model(config: RewardModelConfig, env: Any) -> Algorithm:
    """A reward model.

    Args:
        config: static settings.
        env: an environment of tokens, see `jaxrl.llm.rollout`, with the entry `config.label` in its info; with
            `demonstrate(key, state, params)`, see `jaxrl.algorithms.sft`, unless a model holds the conversations.

    Returns:
        An `Algorithm` that does not act. Its parameters are "model" and "head", as `policy` gives them whole.

    Raises:
        ValueError: the environment does not fit the model, or says nothing of this name.
    """
    length = conversation_length(env, config.model, config.max_length, "A reward model")
    model, total = TransformerLM(config.model), config.num_demonstrations + config.num_held_out

    def init(key: Array, hparams: RewardModelHParams, data: Data) -> RewardModelState:
        key_params, key_talks, key_state = jax.random.split(key, 3)
        params = {"model": init_learned(config, key_params, data), "head": init_scalar_head(config.model)}
        examples, num_updates = label_conversations(key_talks, data), jnp.zeros((), jnp.int32)
        return RewardModelState(
            params=params,
            opt_state=adamw(hparams, num_updates).init(params),
            key=key_state,
            num_updates=num_updates,
            rollout=None,
            learned=jax.tree.map(lambda leaf: leaf[: config.num_demonstrations], examples),
            held_out=jax.tree.map(lambda leaf: leaf[config.num_demonstrations :], examples),
        )

    def label_conversations(key: Array, data: Data) -> Labelled:
        key_reset, key_play = jax.random.split(key)
        keys = jax.random.split(key_reset, total)
        if config.source == "teacher":
            talks = demonstrate(env, data.env_params, keys, length)
        else:
            base = frozen_model(data, "config.source='base'", "base")
            talks = sampled(model, base, env, data.env_params, keys, key_play, length)
        one_of("config.label", config.label, talks.final)
        return Labelled(talks.tokens, talks.valid, talks.final[config.label] > 0.5)

    def policy(state: RewardModelState, data: Data) -> Params:
        return state.params | {"model": model_params(config, state.params["model"], data)}

    def update(state: RewardModelState, hparams: RewardModelHParams, data: Data) -> tuple[RewardModelState, Metrics]:
        key, key_batch = jax.random.split(state.key)
        rows = jax.random.randint(key_batch, (config.batch_size,), 0, config.num_demonstrations)

        def score(params: Params, batch: Labelled) -> Array:
            whole = model_params(config, params["model"], data)
            return conversation_score(model, whole, params["head"], batch.tokens, batch.valid)

        def loss(params: Params, batch: Labelled) -> tuple[Array, Metrics]:
            losses = optax.sigmoid_binary_cross_entropy(score(params, batch), batch.label.astype(jnp.float32))
            total = jnp.sum(losses) / config.batch_size
            return total, {"loss/label": total}

        params, opt_state, metrics = gradient_step(
            *(adamw(hparams, state.num_updates), loss, state.params, state.opt_state),
            *(jax.tree.map(lambda leaf: leaf[rows], state.learned), config.num_micro_batches),
        )
        found = binary_agreement(score(params, state.held_out) > 0.0, state.held_out.label)
        metrics |= {f"held_out/{name}": value for name, value in found.items()}
        metrics["held_out/positive_rate"] = jnp.mean(state.held_out.label.astype(jnp.float32))
        state = dataclasses.replace(
            state, params=params, opt_state=opt_state, key=key, num_updates=state.num_updates + 1
        )
        return state, metrics

    return Algorithm(init=init, update=update, policy=policy)


def reward_model_frozen(config: RewardModelConfig) -> dict[str, FrozenModel]:
    """The models that `[data]` may name."""
    models = frozen_models(config)
    return {"base": models["base"]._replace(one_of=("base",))} if config.source == "base" else models


REWARD_MODEL = Recipe(make_reward_model, RewardModelConfig, RewardModelHParams, frozen=reward_model_frozen)
