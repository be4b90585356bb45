"""What algorithms that train language models share: what they ask of an environment, and one step of AdamW."""

from __future__ import annotations

from typing import Any

import jax
import optax

from envs_jax.core import Environment
from envs_jax.spaces import Discrete
from jaxrl.llm.config import LMConfig
from jaxrl.parts.schedules import linear_decay

Array = jax.Array


def conversation_length(env: Any, model: LMConfig, max_length: int, learner: str) -> int:
    """T, the tokens of a conversation: `max_length`, or where that is 0 those of the environment's longest episode.

    Raises:
        ValueError: the environment does not speak in this model's tokens, or does not bound its episodes.
    """
    if not isinstance(env, Environment):
        raise ValueError(f"{learner} plays inside its program: it needs env.backend='jax'")
    space, shape = env.action_space(env.default_params), env.observation_space(env.default_params).shape
    if not isinstance(space, Discrete) or shape != (2,):
        raise ValueError(f"{learner} needs an environment of tokens (last one, who speaks), got {type(env).__name__}")
    if space.num_values != model.vocab_size:
        size, own = space.num_values, model.vocab_size
        raise ValueError(f"config.model.vocab_size must be {size}, the environment's, got {own}")
    if not max_length and not env.max_steps:
        raise ValueError("config.max_length must be given: this environment does not bound its episodes")
    length = max_length or env.max_steps + 1  # type: ignore[operator]
    if model.position == "learned" and length > model.max_positions:
        raise ValueError(f"config.model.max_positions must be at least {length}, got {model.max_positions}")
    return length


def adamw(hparams: Any, num_updates: Array) -> optax.GradientTransformation:
    """AdamW on a clipped gradient; the learning rate falls linearly to 0 over `hparams.anneal_updates`."""
    return optax.chain(
        optax.clip_by_global_norm(hparams.max_grad_norm),
        optax.scale_by_adam(),
        optax.add_decayed_weights(hparams.weight_decay),
        optax.scale(-hparams.learning_rate * linear_decay(num_updates, hparams.anneal_updates)),
    )
