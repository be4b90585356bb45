"""Cross-play: every policy of one role against every policy of the other, in the same episodes.

P and Q are the numbers of policies of the two roles, E the number of episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs_jax.core import Environment, EnvParams, TimeStep
from envs_jax.versus import agent_view
from jaxrl.rollout import Policy, episodes
from jaxrl.types import Array, PyTree


class Family(NamedTuple):
    """Policies that share one program and differ in their parameters alone."""

    start: Callable[..., Any]
    act: Callable[..., Any]
    params: PyTree  # leaves [n, ...]


def cross_play(
    game: Environment,
    first: Sequence[Family],
    second: Sequence[Family],
    game_params: EnvParams,
    key: Array,
    num_episodes: int,
    max_steps: int,
) -> dict[str, Array]:
    """Plays every policy of role 0 against every one of role 1; may be traced.

    All pairs meet the same starts and noise (common random numbers), those that `Population.play` gives for `key`.
    Actions are sampled, as in training.

    Args:
        game: of two roles.
        first: the policies of role 0; P in all, in this order.
        second: the policies of role 1; Q in all.
        game_params: of the game.
        key: of the episodes; equal keys give equal episodes.
        num_episodes: E.
        max_steps: bound of an episode.

    Returns:
        `utility` (the return divided by `max_steps`) and the entries of `TimeStep.info`, f32 `[P, Q, E, 2]`.
    """
    key_reset, key_noise = jax.random.split(key)
    reset_keys = jax.random.split(key_reset, num_episodes)

    def block(rows: Family, columns: Family) -> dict[str, Array]:
        policy = play_pair((rows.start, rows.act), (columns.start, columns.act))

        def one_pair(row: PyTree, column: PyTree) -> dict[str, Array]:
            # A record of nothing: the loop then has a fixed length and, batched over pairs, selects nothing.
            played = episodes(
                game, policy, (row, column), game_params, reset_keys, key_noise, max_steps, deterministic=False,
                record=lambda *_: (),
            )  # fmt: skip
            return {"utility": played.episode_return / max_steps} | played.info

        # Row by row: all pairs at once would need P times the memory and outgrow the caches.
        return jax.lax.map(lambda row: jax.vmap(one_pair, (None, 0))(row, columns.params), rows.params)

    def join(blocks: list[dict[str, Array]], axis: int) -> dict[str, Array]:
        return {name: jnp.concatenate([block[name] for block in blocks], axis) for name in blocks[0]}

    return join([join([block(rows, columns) for columns in second], 1) for rows in first], 0)


def play_pair(first: Policy, second: Policy) -> Policy:
    """Two policies, one for each role, as one policy of the game; its parameters and carry are pairs.

    Like `play_together`, whose keys it gives the roles, for policies that are not one program.
    """

    def start(policy_params: tuple[PyTree, PyTree], key: Array) -> tuple[PyTree, PyTree]:
        keys = jax.random.split(key)
        return first[0](policy_params[0], keys[0]), second[0](policy_params[1], keys[1])

    def act(policy_params: tuple, carry: tuple, time_step: TimeStep, key: Array, deterministic: bool) -> tuple:
        keys, actions, carries = jax.random.split(key), [], []
        for role, policy in enumerate((first, second)):
            view = agent_view(time_step, role)  # type: ignore[arg-type]
            action, after, _ = policy[1](policy_params[role], carry[role], view, keys[role], deterministic)
            actions.append(action)
            carries.append(after)
        return jnp.stack(actions), tuple(carries), {}

    return start, act
