"""A scalar of every token: a value for PPO, or a reward, read off the last hidden state by a linear head."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.llm.config import LMConfig
from jaxrl.llm.parameters import Params

Array = jax.Array


def init_scalar_head(config: LMConfig) -> Params:
    """A head that says 0 of everything until it has learned."""
    return {"weight": jnp.zeros(config.hidden_size), "bias": jnp.zeros(())}


def scalar_head(params: Params, hidden: Array) -> Array:
    """f32 `[...]` from hidden states `[..., D]` after the last norm, as `TransformerLM.apply(return_hidden=True)`."""
    return hidden.astype(jnp.float32) @ params["weight"] + params["bias"]
