"""Conversations that others held: played by an environment's teacher inside the program, or read from a data set."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.core import TimeStep
from jaxrl.data.dataset import Dataset, take_rows, window_rows
from jaxrl.rollout import EpisodeParams
from jaxrl.types import Array, PyTree


@struct.dataclass
class Demonstrations:
    """B conversations of T tokens; the first token of each is the environment's."""

    tokens: Array  # i32 [B, T]
    valid: Array  # bool [B, T]; False after the end
    mask: Array  # bool [B, T]; the agent's tokens
    returns: Array  # f32 [B]


def demonstrate(env: Any, env_params: Any, keys: Array, length: int) -> Demonstrations:
    """One conversation of `length` tokens per key `[B]`, played by the environment's teacher; consumes `keys`.

    Raises:
        ValueError: the environment has no teacher.
    """
    if not hasattr(env, "demonstrate"):
        raise ValueError(f"SFT needs a data set: {type(env).__name__} has no `demonstrate`")
    sampled = EpisodeParams(env, env_params)
    key_draw, key_reset, key_plan, key_steps = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 4))(keys), 1, 0)

    def play(key_reset: Array, key_plan: Array, key_steps: Array, params: PyTree) -> Demonstrations:
        state, first = env.reset(key_reset, params)
        plan = env.demonstrate(key_plan, state, params)

        def step(loop: tuple[PyTree, TimeStep, Array, Array], key: Array) -> tuple[tuple, tuple]:
            state, before, place, alive = loop
            speaks = before.observation[1] != 0
            # The plan runs from the agent's first token on, and on past the words of others.
            state, after = env.step(key, state, plan[jnp.clip(place, 0, plan.shape[0] - 1)], params)
            shown = jnp.where(alive, after.observation[0], 0), alive, alive & speaks, jnp.where(alive, after.reward, 0)
            place = place + (speaks | (place > 0))
            return (state, after, place, alive & ~after.ended), shown

        loop = (state, first, jnp.zeros((), jnp.int32), jnp.ones((), bool))
        _, (tokens, alive, mask, rewards) = jax.lax.scan(step, loop, jax.random.split(key_steps, length - 1))
        return Demonstrations(
            tokens=jnp.concatenate([first.observation[:1], tokens]),
            valid=jnp.pad(alive, (1, 0), constant_values=True),
            mask=jnp.pad(mask, (1, 0)),
            returns=jnp.sum(rewards),
        )

    return sampled.map(play, sampled.draw(key_draw), key_reset, key_plan, key_steps)


def recorded(dataset: Dataset, rows: Array, length: int) -> Demonstrations:
    """The conversations to which the rows i32 `[B]` of a data set belong, each from its beginning."""
    first = take_rows(dataset.episode_start, rows)
    window, inside = window_rows(dataset, first, length - 1)
    before, after = take_rows((dataset.transitions.observation, dataset.transitions.next_observation), window)
    return Demonstrations(
        tokens=jnp.concatenate([before[:, :1, 0], jnp.where(inside, after[:, :, 0], 0)], axis=1),
        valid=jnp.pad(inside, ((0, 0), (1, 0)), constant_values=True),
        mask=jnp.pad(inside & (before[:, :, 1] != 0), ((0, 0), (1, 0))),
        returns=take_rows(dataset.return_to_go, first),
    )
