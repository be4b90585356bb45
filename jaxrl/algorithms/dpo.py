"""Direct preference optimisation of a language model (Rafailov et al. 2023) and its relatives.

Of two conversations from one start the better one becomes more probable than under a reference, by more than the
worse one does. The pairs come from a data set, whose episodes alternate (better, worse), or from the environment: one
of tokens that has `prefer(key, state, params)` plays both inside the compiled program.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.data.dataset import sample_rows
from jaxrl.llm.config import one_of
from jaxrl.llm.demonstrations import preferred, recorded_pairs
from jaxrl.llm.learning import (
    LearnerConfig,
    LearnerHParams,
    adamw,
    conversation_length,
    frozen_models,
    gradient_step,
    init_learned,
    micro_batches_divide,
    model_params,
    model_shape,
    reference_params,
)
from jaxrl.llm.losses import PREFERENCE_LOSSES, full_kl, preference_loss, token_weights, weighted_sum
from jaxrl.llm.model import TransformerLM, log_prob_and_entropy
from jaxrl.llm.parameters import Params, unstack_layers
from jaxrl.llm.rollout import make_policy
from jaxrl.llm.sampling import make_sampling
from jaxrl.parts.setup import at_least_one
from jaxrl.types import Algorithm, Array, Data, FrozenModel, Metrics, Recipe, TrainState, hparam


@dataclasses.dataclass(frozen=True)
class DPOConfig(LearnerConfig):
    """What shapes the program."""

    batch_size: int = 32  # pairs of one update
    num_pairs: int = 0  # of the environment; 0: ever new ones. Not read where there is a data set
    loss: str = "sigmoid"  # one of jaxrl.llm.losses.PREFERENCE_LOSSES

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "batch_size")
        micro_batches_divide(self, self.batch_size, "pairs")
        one_of("config.loss", self.loss, PREFERENCE_LOSSES)
        if self.num_pairs < 0:
            raise ValueError(f"config.num_pairs must be at least 0, got {self.num_pairs}")


@struct.dataclass
class DPOHParams(LearnerHParams):
    """What may be traced and swept."""

    beta: Any = hparam(0.1, low=0.0)  # how strongly the reference holds
    label_smoothing: Any = hparam(0.0, low=0.0, high=0.5)  # read by the loss "sigmoid"


@struct.dataclass
class DPOState(TrainState):
    pairs: Any = None  # typed key; number i of the set comes from `fold_in` with i


@struct.dataclass
class Pairs:
    """What the loss reads of B pairs: the better conversation of each, then the worse one."""

    tokens: Array  # i32 [B, 2, T]
    valid: Array  # bool [B, 2, T]
    mask: Array  # bool [B, 2, T]
    weights: Array  # f32 [B, 2, T]; of the agent's tokens in their mean


def make_dpo(config: DPOConfig, env: Any) -> Algorithm:
    """DPO, IPO and the hinge loss on preferences.

    Args:
        config: static settings.
        env: an environment of tokens, see `jaxrl.llm.rollout`. Without a data set it needs `prefer(key, state, params)
            -> (better, worse)`: the agent's tokens i32 `[N]` from a fresh state, as its `demonstrate` gives them.

    Returns:
        An `Algorithm` whose policy samples at temperature 1.

    Raises:
        ValueError: the environment does not fit the model.
    """
    length = conversation_length(env, config.model, config.max_length, "DPO")
    model = TransformerLM(config.model)
    start, act = make_policy(model, make_sampling(), length)

    def init(key: Array, hparams: DPOHParams, data: Data) -> DPOState:
        key_params, key_pairs, key_state = jax.random.split(key, 3)
        params, num_updates = init_learned(config, key_params, data), jnp.zeros((), jnp.int32)
        opt_state = adamw(hparams, num_updates).init(params)
        return DPOState(params, opt_state, key_state, num_updates, rollout=None, pairs=key_pairs)

    def policy(state: DPOState, data: Data) -> Params:
        return unstack_layers(model_params(config, state.params, data))

    def draw(state: DPOState, key: Array, data: Data) -> Pairs:
        if data.dataset is not None:
            rows = sample_rows(data.dataset, key, config.batch_size)  # of whole pairs: by their lengths
            pair = recorded_pairs(data.dataset, rows, length)
        else:
            if config.num_pairs:
                numbers = jax.random.randint(key, (config.batch_size,), 0, config.num_pairs)
                keys = jax.vmap(jax.random.fold_in, (None, 0))(state.pairs, numbers)
            else:
                keys = jax.random.split(key, config.batch_size)
            pair = preferred(env, data.env_params, keys, length)

        def both(name: str) -> Array:
            return jnp.stack([getattr(side, name) for side in pair], axis=1)

        mask = both("mask")
        weights = token_weights(mask.reshape(-1, length)).reshape(mask.shape)
        return Pairs(both("tokens"), both("valid"), mask, weights)

    def update(state: DPOState, hparams: DPOHParams, data: Data) -> tuple[DPOState, Metrics]:
        key, key_batch = jax.random.split(state.key)
        reference = reference_params(data, "DPO")

        def loss(params: Params, pairs: Pairs) -> tuple[Array, Metrics]:
            tokens, valid, mask, weights = (
                leaf.reshape(-1, length) for leaf in (pairs.tokens, pairs.valid, pairs.mask, pairs.weights)
            )
            held, _ = model.apply(reference, tokens[:, :-1], valid=valid[:, :-1])
            logits, _ = model.apply(model_params(config, params, data), tokens[:, :-1], valid=valid[:, :-1])
            gain = log_prob_and_entropy(logits, tokens[:, 1:])[0] - log_prob_and_entropy(held, tokens[:, 1:])[0]
            better, worse = jnp.sum(jnp.where(mask[:, 1:], gain, 0.0), axis=1).reshape(-1, 2).T
            margin = better - worse
            losses = preference_loss(margin, hparams.beta, config.loss, hparams.label_smoothing)

            def mean(values: Array) -> Array:
                return jnp.sum(values) / config.batch_size

            metrics = {
                "loss/preference": mean(losses),
                "accuracy": mean((margin > 0.0).astype(jnp.float32)),
                "margin": hparams.beta * mean(margin),  # of the implicit rewards
                "reward/better": hparams.beta * mean(better),
                "reward/worse": hparams.beta * mean(worse),
                # Of the next token, where the agent speaks in these conversations.
                "reference_kl": weighted_sum(full_kl(logits, held), weights[:, 1:]),
            }
            return metrics["loss/preference"], metrics

        params, opt_state, metrics = gradient_step(
            *(adamw(hparams, state.num_updates), loss, state.params, state.opt_state),
            *(draw(state, key_batch, data), config.num_micro_batches),
        )
        state = dataclasses.replace(
            state, params=params, opt_state=opt_state, key=key, num_updates=state.num_updates + 1
        )
        return state, metrics

    return Algorithm(init=init, update=update, policy=policy, start=start, act=act)


def dpo_frozen(config: DPOConfig) -> dict[str, FrozenModel]:
    """The models that `[data]` may name."""
    reference = FrozenModel(config.model, model_shape(config.model), ("reference", "base"))
    return frozen_models(config) | {"reference": reference}


def specialise(settings: dict[str, Any]) -> Recipe:
    """With a data set it is an offline algorithm."""
    table = settings.get("data")
    return DPO._replace(specialise=None, offline=isinstance(table, dict) and bool(table.get("name")))


DPO = Recipe(make_dpo, DPOConfig, DPOHParams, specialise, frozen=dpo_frozen)
