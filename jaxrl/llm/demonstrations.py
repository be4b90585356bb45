"""Conversations that others held: an environment's teacher, a frozen model, or whoever wrote a data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.core import TimeStep
from jaxrl.data.dataset import Dataset, take_rows, window_rows
from jaxrl.llm.model import TransformerLM
from jaxrl.llm.parameters import Params, unstack_layers
from jaxrl.llm.rollout import make_policy
from jaxrl.llm.sampling import Sampling
from jaxrl.rollout import EpisodeParams, episodes
from jaxrl.types import Array, PyTree


@struct.dataclass
class Demonstrations:
    """B conversations of T tokens; the first token of each is the environment's."""

    tokens: Array  # i32 [B, T]; 0 after the end
    valid: Array  # bool [B, T]; False after the end
    mask: Array  # bool [B, T]; the agent's tokens
    returns: Array  # f32 [B]
    final: dict[str, Array]  # f32 [B]; the scalar entries of `TimeStep.info` at the end; none from a data set


def demonstrate(env: Any, env_params: Any, keys: Array, length: int) -> Demonstrations:
    """One conversation of `length` tokens per key `[B]`, played by the environment's teacher; consumes `keys`.

    Raises:
        ValueError: the environment has no teacher.
    """
    teacher = _asked(env, "demonstrate", "a data set, or an environment whose teacher shows how it is done")
    return _played(env, env_params, keys, length, lambda *given: (teacher(*given),))[0]


def preferred(env: Any, env_params: Any, keys: Array, length: int) -> tuple[Demonstrations, Demonstrations]:
    """A better and a worse conversation from the same start per key `[B]`, as the environment says; consumes `keys`.

    Raises:
        ValueError: the environment prefers nothing.
    """
    better, worse = _played(
        *(env, env_params, keys, length),
        _asked(env, "prefer", "a data set of pairs, or an environment that says which of two answers is better"),
    )
    return better, worse


def _asked(env: Any, name: str, what: str) -> Callable[..., Any]:
    if not hasattr(env, name):
        raise ValueError(f"needed: {what}; {type(env).__name__} has no `{name}`")
    return getattr(env, name)


def _played(
    env: Any, env_params: Any, keys: Array, length: int, plans: Callable[..., tuple[Array, ...]]
) -> tuple[Demonstrations, ...]:
    """The conversations of `plans(key, state, params) -> (the agent's tokens i32 [N], ...)`, all from one start."""
    sampled = EpisodeParams(env, env_params)
    key_draw, key_reset, key_plan, key_steps = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 4))(keys), 1, 0)

    def play(key_reset: Array, key_plan: Array, key_steps: Array, params: PyTree) -> tuple[Demonstrations, ...]:
        state, first = env.reset(key_reset, params)
        step_keys = jax.random.split(key_steps, length - 1)
        return tuple(_follow(env, params, state, first, plan, step_keys) for plan in plans(key_plan, state, params))

    return sampled.map(play, sampled.draw(key_draw), key_reset, key_plan, key_steps)


def _follow(env: Any, params: Any, state: PyTree, first: TimeStep, plan: Array, step_keys: Array) -> Demonstrations:
    """One conversation in which the agent says what is planned; no batch axis."""

    def scalars(time_step: TimeStep) -> dict[str, Array]:
        return {name: leaf.astype(jnp.float32) for name, leaf in time_step.info.items() if leaf.ndim == 0}

    def step(loop: tuple, key: Array) -> tuple[tuple, tuple]:
        state, before, place, alive, final = loop
        speaks = before.observation[1] != 0
        # The plan runs from the agent's first token on, and on past the words of others.
        state, after = env.step(key, state, plan[jnp.clip(place, 0, plan.shape[0] - 1)], params)
        shown = jnp.where(alive, after.observation[0], 0), alive, alive & speaks, jnp.where(alive, after.reward, 0)
        place = place + (speaks | (place > 0))
        final = jax.tree.map(lambda new, old: jnp.where(alive, new, old), scalars(after), final)
        return (state, after, place, alive & ~after.ended, final), shown

    loop = (state, first, jnp.zeros((), jnp.int32), jnp.ones((), bool), scalars(first))
    (*_, final), (tokens, alive, mask, rewards) = jax.lax.scan(step, loop, step_keys)
    return Demonstrations(
        tokens=jnp.concatenate([first.observation[:1], tokens]),
        valid=jnp.pad(alive, (1, 0), constant_values=True),
        mask=jnp.pad(mask, (1, 0)),
        returns=jnp.sum(rewards),
        final=final,
    )


def sampled(
    model: TransformerLM, params: Params, env: Any, env_params: Any, reset_keys: Array, key: Array, length: int
) -> Demonstrations:
    """One conversation of a model at temperature 1 per reset key `[B]`; consumes `key`."""
    played = episodes(
        *(env, make_policy(model, Sampling(), length), unstack_layers(params), env_params, reset_keys, key, length - 1),
        deterministic=False,
        record=lambda state, before, action, after, extras: (before.observation, after.observation[:, 0]),
    )
    assert played.mask is not None
    before, tokens = (jnp.swapaxes(leaf, 0, 1) for leaf in played.record)
    return _joined(before, tokens, played.mask.T, played.episode_return, played.final)


def recorded(dataset: Dataset, rows: Array, length: int) -> Demonstrations:
    """The conversations to which the rows i32 `[B]` of a data set belong, each from its beginning."""
    first = take_rows(dataset.episode_start, rows)
    window, inside = window_rows(dataset, first, length - 1)
    before, after = take_rows((dataset.transitions.observation, dataset.transitions.next_observation), window)
    return _joined(before, after[:, :, 0], inside, take_rows(dataset.return_to_go, first), {})


def recorded_pairs(dataset: Dataset, rows: Array, length: int) -> tuple[Demonstrations, Demonstrations]:
    """The better and the worse conversation of the pairs to which the rows i32 `[B]` of a data set belong.

    Its episodes come in pairs from one start, the better one first.
    """
    row = jnp.arange(len(dataset.episode_start), dtype=jnp.int32)
    number = jnp.cumsum(dataset.episode_start == row) - 1  # of each row's episode
    pair = take_rows(number, rows) // 2
    better, worse = (
        recorded(dataset, jnp.searchsorted(number, 2 * pair + i).astype(jnp.int32), length) for i in (0, 1)
    )
    return better, worse


def _joined(before: Array, tokens: Array, inside: Array, returns: Array, final: dict[str, Array]) -> Demonstrations:
    """From observations i32 `[B, T - 1, 2]`, the tokens after them and whether those are of the conversation."""
    return Demonstrations(
        tokens=jnp.concatenate([before[:, :1, 0], jnp.where(inside, tokens, 0)], axis=1),
        valid=jnp.pad(inside, ((0, 0), (1, 0)), constant_values=True),
        mask=jnp.pad(inside & (before[:, :, 1] != 0), ((0, 0), (1, 0))),
        returns=returns,
        final=final,
    )
