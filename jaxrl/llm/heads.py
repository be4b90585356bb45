"""A scalar of every token: a value for PPO, or a reward, read off the last hidden state by a linear head."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.llm.config import LMConfig
from jaxrl.llm.model import TransformerLM
from jaxrl.llm.parameters import Params

Array = jax.Array


def init_scalar_head(config: LMConfig) -> Params:
    """A head that says 0 of everything until it has learned."""
    return {"weight": jnp.zeros(config.hidden_size), "bias": jnp.zeros(())}


def scalar_head(params: Params, hidden: Array) -> Array:
    """f32 `[...]` from hidden states `[..., D]` after the last norm, as `TransformerLM.apply(return_hidden=True)`."""
    return hidden.astype(jnp.float32) @ params["weight"] + params["bias"]


def conversation_score(model: TransformerLM, params: Params, head: Params, tokens: Array, valid: Array) -> Array:
    """What the head says at the last token of each conversation, f32 `[B]`; its sigmoid is a learned reward.

    Args:
        model: the transformer.
        params: its parameters.
        head: as from `init_scalar_head`.
        tokens: i32 `[B, T]`.
        valid: bool `[B, T]`; the first so many of a row.
    """
    hidden, _ = model.apply(params, tokens, valid=valid, return_hidden=True)
    last = jnp.maximum(jnp.sum(valid, axis=1) - 1, 0)
    return scalar_head(head, jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0])


def binary_agreement(said: Array, true: Array) -> dict[str, Array]:
    """How well verdicts bool `[B]` agree with the truth bool `[B]`: f32 scalars.

    Cohen's kappa (Cohen 1960) is what accuracy there is beyond that of verdicts drawn at their own rate; 0 where all
    are alike.
    """
    accuracy = jnp.mean((said == true).astype(jnp.float32))
    said_rate, true_rate = (jnp.mean(x.astype(jnp.float32)) for x in (said, true))
    chance = said_rate * true_rate + (1.0 - said_rate) * (1.0 - true_rate)
    return {
        "accuracy": accuracy,
        "kappa": jnp.where(chance < 1.0, (accuracy - chance) / jnp.maximum(1.0 - chance, 1e-6), 0.0),
        "false_positive_rate": jnp.sum(said & ~true) / jnp.maximum(jnp.sum(~true), 1).astype(jnp.float32),
    }
