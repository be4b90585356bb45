"""Conversations in token space: one step of the environment is one token, whoever says it.

The observation is i32 `[2]`: the last token, and whether the agent says the next one. Where it does not (prompt, a
tool's result, a user), the environment appends its own token and ignores the action. The sequence that is trained on is
thus the one that was sampled, token by token; nothing is encoded again. `TimeStep.info["role"]` is the role of the last
token, a place in `jaxrl.llm.chat.ROLES`. An environment of which every prompt has P tokens says so, `prompt_length`:
then the model reads them in one pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.core import Environment, EnvParams, TimeStep
from jaxrl.llm.attention import Cache
from jaxrl.llm.chat import ROLES
from jaxrl.llm.model import TransformerLM, log_prob_and_entropy
from jaxrl.llm.parameters import Params, unstack_layers
from jaxrl.llm.sampling import Sampling, sample_token
from jaxrl.rollout import Policy, episodes

Array = jax.Array
PyTree = Any


@struct.dataclass
class Conversations:
    """B conversations of at most T tokens, the first one included; all but the last field are `[B, T]`."""

    tokens: Array  # i32; padding after the end
    valid: Array  # bool; False at padding
    mask: Array  # bool; the agent's tokens: what is trained on
    roles: Array  # i32; places in `jaxrl.llm.chat.ROLES`
    log_probs: Array  # f32; under the model itself, 0 where not the agent's
    behaviour_log_probs: Array  # f32; under what the token was drawn from, 0 where not the agent's
    rewards: Array  # f32; what came with a token
    terminated: Array  # bool [B]; False where a conversation was cut


def make_policy(model: TransformerLM, sampling: Sampling, num_slots: int) -> Policy:
    """`(start, act)` of a language model, for `jaxrl.rollout`; its carry is the cache of one sequence.

    Args:
        model: the model; policy parameters are its parameters, best as from `unstack_layers`.
        sampling: how tokens are drawn; a deterministic `act` takes the most probable one.
        num_slots: how many tokens an episode can have.
    """

    def start(params: Params, key: Array) -> Cache:
        del params, key
        return model.init_cache(1, num_slots)

    def act(
        params: Params, carry: Cache, time_step: TimeStep, key: Array, deterministic: bool
    ) -> tuple[Array, Cache, dict[str, Array]]:
        logits, carry = model.apply(params, time_step.observation[:1][None], cache=carry)  # type: ignore[assignment]
        drawn = dataclasses.replace(sampling, greedy=True) if deterministic else sampling
        token, behaviour = sample_token(logits[0, 0], key, drawn)
        log_prob, _ = log_prob_and_entropy(logits[0, 0], token)
        return token, carry, {"log_prob": log_prob, "behaviour_log_prob": behaviour}

    return start, act


def make_reader(model: TransformerLM) -> Callable[[Params, Cache, TimeStep], Cache]:
    """`read` of a language model, for the `opening` of `jaxrl.rollout.episodes`: a block of tokens in one pass."""

    def read(params: Params, carry: Cache, time_steps: TimeStep) -> Cache:
        tokens = time_steps.observation[:, 0][None]
        return model.apply(params, tokens, cache=carry, return_hidden=True)[1]  # type: ignore[return-value]

    return read


def rollout(
    model: TransformerLM,
    params: Params,
    env: Environment,
    env_params: EnvParams,
    reset_keys: Array,
    key: Array,
    *,
    max_length: int,
    sampling: Sampling,
    deterministic: bool = False,
    pad_id: int = 0,
) -> Conversations:
    """Holds one conversation per reset key; equal keys make a group with the same beginning.

    Args:
        model: the agent.
        params: its parameters.
        env: a token-space environment, as above.
        env_params: its parameters.
        reset_keys: typed keys `[B]`.
        key: consumed; what is sampled, and the environment's own noise.
        max_length: T; a conversation that is longer is cut.
        sampling: how the agent's tokens are drawn.
        deterministic: take the most probable token instead.
        pad_id: what follows the end.
    """

    def record(state: PyTree, before: TimeStep, action: Array, after: TimeStep, extras: dict[str, Array]) -> PyTree:
        del state, action
        return before.observation, before.info["role"], after.observation, after.info["role"], after.reward, extras

    played = episodes(
        *(env, make_policy(model, sampling, max_length), unstack_layers(params), env_params, reset_keys, key),
        max_length - 1,
        deterministic=deterministic,
        record=record,
        # The last token of the prompt is left to `act`, whose choice is the agent's first.
        opening=(getattr(env, "prompt_length", 1) - 1, make_reader(model)),
    )
    if played.mask is None:
        raise AssertionError("episodes were not recorded")
    before, first_role, after, role, reward, extras = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), played.record)
    alive = played.mask.T
    mask = alive & (before[:, :, 1] != 0)

    def with_first(first: Array, rest: Array, keep: Array, fill: float) -> Array:
        rest = jnp.where(keep, rest, jnp.asarray(fill, rest.dtype))
        return jnp.concatenate([first.astype(rest.dtype), rest], axis=1)

    nothing = jnp.zeros((alive.shape[0], 1), bool)
    return Conversations(
        tokens=with_first(before[:, :1, 0], after[:, :, 0], alive, pad_id),
        valid=jnp.concatenate([~nothing, alive], axis=1),
        mask=jnp.concatenate([nothing, mask], axis=1),
        roles=with_first(first_role[:, :1], role, alive, ROLES.index("pad")),
        log_probs=with_first(nothing, extras["log_prob"], mask, 0.0),
        behaviour_log_probs=with_first(nothing, extras["behaviour_log_prob"], mask, 0.0),
        rewards=with_first(nothing, reward, alive, 0.0),
        terminated=played.terminated,
    )
