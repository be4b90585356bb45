"""Supervised fine-tuning of a language model on conversations: it learns what the agent says and reads all the rest.

They come from a data set, or from the environment itself: one of tokens that has `demonstrate(key, state, params)` is
played by its teacher inside the compiled program. A fixed number of such demonstrations needs no storage: number i is
drawn anew from key i whenever it is read.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.data.dataset import sample_rows
from jaxrl.llm.demonstrations import Demonstrations, demonstrate, recorded
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
)
from jaxrl.llm.losses import token_loss, token_weights, weighted_sum
from jaxrl.llm.model import TransformerLM
from jaxrl.llm.parameters import Params, unstack_layers
from jaxrl.llm.rollout import make_policy
from jaxrl.llm.sampling import make_sampling
from jaxrl.parts.setup import at_least_one
from jaxrl.types import Algorithm, Array, Data, Metrics, Recipe, TrainState, hparam


@dataclasses.dataclass(frozen=True)
class SFTConfig(LearnerConfig):
    """What shapes the program."""

    batch_size: int = 64  # conversations of one update
    num_demonstrations: int = 0  # of the environment's teacher; 0: ever new ones. Not read where there is a data set

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "batch_size")
        micro_batches_divide(self, self.batch_size, "conversations")
        if self.num_demonstrations < 0:
            raise ValueError(f"config.num_demonstrations must be at least 0, got {self.num_demonstrations}")


@struct.dataclass
class SFTHParams(LearnerHParams):
    """What may be traced and swept."""

    learning_rate: Any = hparam(2e-3, low=0.0)
    label_smoothing: Any = hparam(0.0, low=0.0, high=1.0)


@struct.dataclass
class SFTState(TrainState):
    demonstrations: Any = None  # typed key; number i of the set comes from `fold_in` with i


def make_sft(config: SFTConfig, env: Any) -> Algorithm:
    """Supervised fine-tuning.

    Args:
        config: static settings.
        env: an environment of tokens, see `jaxrl.llm.rollout`. Without a data set it needs
            `demonstrate(key, state, params)`: the agent's tokens i32 `[N]` from a fresh state, the first for where the
            agent first speaks; entries that fall to the words of others are not read.

    Returns:
        An `Algorithm` whose policy samples at temperature 1.

    Raises:
        ValueError: the environment does not fit the model.
    """
    length = conversation_length(env, config.model, config.max_length, "SFT")
    model = TransformerLM(config.model)
    start, act = make_policy(model, make_sampling(), length)

    def init(key: Array, hparams: SFTHParams, data: Data) -> SFTState:
        key_params, key_demonstrations, key_state = jax.random.split(key, 3)
        params, num_updates = init_learned(config, key_params, data), jnp.zeros((), jnp.int32)
        opt_state = adamw(hparams, num_updates).init(params)
        return SFTState(params, opt_state, key_state, num_updates, rollout=None, demonstrations=key_demonstrations)

    def policy(state: SFTState, data: Data) -> Params:
        return unstack_layers(model_params(config, state.params, data))

    def draw(state: SFTState, key: Array, data: Data) -> Demonstrations:
        if data.dataset is not None:
            rows = sample_rows(data.dataset, key, config.batch_size)  # of whole conversations: by their lengths
            return recorded(data.dataset, rows, length)
        if config.num_demonstrations:
            numbers = jax.random.randint(key, (config.batch_size,), 0, config.num_demonstrations)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(state.demonstrations, numbers)
        else:
            keys = jax.random.split(key, config.batch_size)
        return demonstrate(env, data.env_params, keys, length)

    def update(state: SFTState, hparams: SFTHParams, data: Data) -> tuple[SFTState, Metrics]:
        key, key_batch = jax.random.split(state.key)
        batch = draw(state, key_batch, data)

        def loss(params: Params, rows: tuple[Demonstrations, Array]) -> tuple[Array, Metrics]:
            talk, weights = rows
            whole = model_params(config, params, data)
            logits, _ = model.apply(whole, talk.tokens[:, :-1], valid=talk.valid[:, :-1])
            targets = talk.tokens[:, 1:]
            right = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
            total = weighted_sum(token_loss(logits, targets, hparams.label_smoothing), weights)
            return total, {"loss/imitation": total, "agreement": weighted_sum(right, weights)}

        params, opt_state, metrics = gradient_step(
            *(adamw(hparams, state.num_updates), loss, state.params, state.opt_state),
            *((batch, token_weights(batch.mask[:, 1:])), config.num_micro_batches),
        )
        metrics |= {"demonstration/return": jnp.mean(batch.returns)}
        state = dataclasses.replace(
            state, params=params, opt_state=opt_state, key=key, num_updates=state.num_updates + 1
        )
        return state, metrics

    return Algorithm(init=init, update=update, policy=policy, start=start, act=act)


def specialise(settings: dict[str, Any]) -> Recipe:
    """With a data set it is an offline algorithm."""
    table = settings.get("data")
    return SFT._replace(specialise=None, offline=isinstance(table, dict) and bool(table.get("name")))


SFT = Recipe(make_sft, SFTConfig, SFTHParams, specialise, frozen=frozen_models)
