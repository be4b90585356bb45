"""Playing: `unroll` continues many environments and resets them, `episodes` plays one episode per reset key."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.core import Environment, EnvParams, TimeStep
from jaxrl.types import Array, Batch, EpisodeStats, PyTree, Rollout, Transition

Policy = tuple[Callable[..., Any], Callable[..., Any]]  # (start, act) as in `jaxrl.types.Algorithm`


class EpisodeParams:
    """Environment parameters of which `sample_params` draws some leaves per episode and leaves the rest shared.

    Which leaves it replaces is found by object identity in an abstract trace, so that an unused hook costs nothing and
    a shared bank is never copied B times. With `env.num_groups` = G every leaf of the parameters leads with G, and
    what is shared is shared by the B / G environments of a group.
    """

    def __init__(self, env: Environment, env_params: EnvParams):
        self.env, self.shared = env, env_params
        self.replaced: list[bool] = []

        def probe(key: Array, params: EnvParams) -> Array:
            old, new = jax.tree.leaves(params), jax.tree.leaves(env.sample_params(key, params))
            self.replaced = [a is not b for a, b in zip(old, new, strict=True)]
            return key

        one_group = env_params if env.num_groups is None else jax.tree.map(lambda leaf: leaf[0], env_params)
        jax.eval_shape(probe, jax.random.key(0), one_group)
        self.axes = jax.tree.structure(env_params).unflatten([0 if mark else None for mark in self.replaced])

    def draw(self, keys: Array) -> list[Array]:
        """The replaced leaves for each of `keys` `[B]`."""

        def leaves(shared: EnvParams, key: Array) -> list[Array]:
            params = jax.tree.leaves(self.env.sample_params(key, shared))
            return [leaf for leaf, mark in zip(params, self.replaced, strict=True) if mark]

        return self._over_groups(jax.vmap(leaves, (None, 0)), keys) if any(self.replaced) else []

    def map(self, function: Callable[..., PyTree], drawn: list[Array], *args: PyTree) -> PyTree:
        """`function(*args, params)` for each of B environments: `args` and `drawn` lead with B."""

        def one_group(shared: EnvParams, drawn: list[Array], *args: PyTree) -> PyTree:
            leaves, structure = jax.tree.flatten(shared)
            fresh = iter(drawn)
            params = structure.unflatten([next(fresh) if mark else leaf for leaf, mark in zip(leaves, self.replaced)])
            return jax.vmap(function, (0,) * len(args) + (self.axes,))(*args, params)

        return self._over_groups(one_group, drawn, *args)

    def _over_groups(self, function: Callable[..., PyTree], *args: PyTree) -> PyTree:
        num_groups = self.env.num_groups
        if num_groups is None:
            return function(self.shared, *args)
        args = jax.tree.map(lambda leaf: leaf.reshape(num_groups, len(leaf) // num_groups, *leaf.shape[1:]), args)
        result = jax.vmap(function)(self.shared, *args)
        return jax.tree.map(lambda leaf: leaf.reshape(math.prod(leaf.shape[:2]), *leaf.shape[2:]), result)


def start_rollout(
    env: Environment, policy: Policy, policy_params: PyTree, env_params: EnvParams, key: Array, num_envs: int
) -> Rollout:
    """Resets B = `num_envs` environments; consumes `key`. ValueError where they do not fill `env.num_groups` evenly."""
    if env.num_groups and num_envs % env.num_groups:
        raise ValueError(f"num_groups={env.num_groups} must divide num_envs = {num_envs}")
    keys = jax.random.split(key, (3, num_envs))
    params = EpisodeParams(env, env_params)
    drawn = params.draw(keys[0])
    state, time_step = params.map(env.reset, drawn, keys[1])
    carry = jax.vmap(policy[0], (None, 0))(policy_params, keys[2])
    zeros = jnp.zeros_like(time_step.reward)
    return Rollout(drawn, state, time_step, carry, zeros, jnp.zeros(num_envs, jnp.int32), zeros)


def unroll(
    env: Environment,
    policy: Policy,
    policy_params: PyTree,
    env_params: EnvParams,
    rollout: Rollout,
    key: Array,
    num_steps: int,
    discount: Array | float = 1.0,
) -> tuple[Rollout, Batch]:
    """Plays T = `num_steps` steps in each of B environments; where an episode ends, the next one begins.

    The successor in a transition is the true last observation; the one after the reset is the observation of the
    following transition. Episode parameters are drawn once per call, for the episodes that begin in it.

    Args:
        env: the environment.
        policy: `(start, act)`.
        policy_params: shared by all environments.
        env_params: shared parameters, or [G] of them with `env.num_groups`; `rollout.drawn_params` holds the leaves
            that differ between environments.
        rollout: where the environments stand, `[B]`.
        key: consumed.
        num_steps: T.
        discount: of the running discounted return (used to normalise rewards).

    Returns:
        The rollout after the last step and the `Batch` of transitions `[T, B]`.
    """
    start, act = policy
    num_envs = rollout.episode_length.shape[0]
    params = EpisodeParams(env, env_params)
    key_params, key_play, key_begin = jax.random.split(key, 3)
    fresh_params = params.draw(jax.random.split(key_params, num_envs))

    def step(rollout: Rollout, keys: tuple[Array, Array]) -> tuple[Rollout, tuple[Transition, EpisodeStats]]:
        (key_act, key_step), key_begin = keys
        before = rollout.time_step
        action, carry, extras = jax.vmap(act, (None, 0, 0, 0, None))(
            policy_params, rollout.carry, before, key_act, False
        )
        state, after = params.map(env.step, rollout.drawn_params, key_step, rollout.env_state, action)
        transition = make_transition(before, action, after, extras)
        ended = after.ended
        episode_return = rollout.episode_return + after.reward
        episode_length = rollout.episode_length + 1
        discounted_return = discount * rollout.discounted_return + after.reward
        stats = EpisodeStats(
            jnp.sum(_where(ended, episode_return, jnp.zeros_like(episode_return)), axis=0),
            jnp.sum(jnp.where(ended, episode_length, 0)).astype(jnp.float32),
            jnp.sum(ended, dtype=jnp.int32),
        )

        def begin() -> Rollout:
            key_reset, key_start = jax.random.split(key_begin, (2, num_envs))
            drawn = _select(ended, fresh_params, rollout.drawn_params)
            new_state, first = params.map(env.reset, drawn, key_reset)
            new_carry = jax.vmap(start, (None, 0))(policy_params, key_start)
            return Rollout(
                drawn,
                _select(ended, new_state, state),
                _select(ended, first, after),
                _select(ended, new_carry, carry),
                _where(ended, jnp.zeros_like(episode_return), episode_return),
                jnp.where(ended, 0, episode_length),
                _where(ended, jnp.zeros_like(discounted_return), discounted_return),
            )

        def go_on() -> Rollout:
            return Rollout(rollout.drawn_params, state, after, carry, episode_return, episode_length, discounted_return)

        # One condition for all environments and for all members of a sweep: a step at which no episode ends, nearly
        # every one where all episodes are equally long, computes no reset.
        return jax.lax.cond(any_of_all(ended), begin, go_on), (transition, stats)

    first_carry, first_return = rollout.carry, rollout.discounted_return
    # All keys at once: with few environments a call of the generator costs more than the numbers it makes.
    keys = (jax.random.split(key_play, (num_steps, 2, num_envs)), jax.random.split(key_begin, num_steps))
    rollout, (transitions, stats) = jax.lax.scan(step, rollout, keys)
    total = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), stats)
    return rollout, Batch(transitions, first_carry, first_return, total)


@jax.custom_batching.custom_vmap
def any_of_all(mask: Array) -> Array:
    """bool []: whether any entry of `mask` is true, in whatever batch axes it is vmapped over too.

    A condition on it stays one condition under `vmap`, where one on `jnp.any` would compute both branches.
    """
    return jnp.any(mask)


@any_of_all.def_vmap
def _any_over_batch(axis_size: int, in_batched: list[bool], mask: Array) -> tuple[Array, bool]:
    del axis_size, in_batched
    return any_of_all(mask), False


def make_transition(before: TimeStep, action: Array, after: TimeStep, extras: dict[str, Array]) -> Transition:
    """The transition between two time steps of one episode."""
    return Transition(
        observation=before.observation,
        action=action,
        reward=after.reward,
        terminated=after.terminated,
        truncated=after.truncated,
        next_observation=after.observation,
        legal_actions=before.legal_actions,
        next_legal_actions=after.legal_actions,
        critic_observation=before.critic_observation,
        next_critic_observation=after.critic_observation,
        extras=extras,
    )


@struct.dataclass
class Episodes:
    """B whole episodes."""

    episode_return: Array  # f32 [B] or [B, A]; undiscounted
    episode_length: Array  # i32 [B]
    terminated: Array  # bool [B]; False where the episode was truncated or cut by `max_steps`
    info: dict[str, Array]  # per-step means of the scalar entries of `TimeStep.info`, f32 [B] (or [B, A])
    final: dict[str, Array]  # the same entries at the last step
    record: PyTree = None  # what `record` returned, [T, B]
    mask: Array | None = None  # bool [T, B]; False after the end; None without `record`


def episodes(
    env: Environment,
    policy: Policy,
    policy_params: PyTree,
    env_params: EnvParams,
    reset_keys: Array,
    key: Array,
    max_steps: int,
    *,
    deterministic: bool = True,
    record: Callable[[PyTree, TimeStep, Array, TimeStep, dict[str, Array]], PyTree] | None = None,
    opening: tuple[int, Callable[[PyTree, PyTree, TimeStep], PyTree]] | None = None,
) -> Episodes:
    """Plays exactly one episode per reset key.

    Parameters and start of episode i come from `reset_keys[i]`; step noise and actions come from two streams of
    `fold_in(key, i)`, so that every policy meets the same episodes and noise, and episode i can be replayed alone.
    Equal reset keys give a group of episodes with the same start.

    Args:
        env: the environment.
        policy: `(start, act)`.
        policy_params: shared by all episodes.
        env_params: the shared parameters, before `sample_params`.
        reset_keys: typed keys `[B]`.
        key: consumed; the noise of steps and actions.
        max_steps: an episode that lasts longer is cut.
        deterministic: passed to `act`.
        record: `record(env_state, before, action, after, extras)` names what to keep of each step, batch axis B
            included; without it nothing is stored and play stops when the last episode has ended.
        opening: `(n, read)` where the environment ignores the actions of its first n steps: it takes them without
            `act`, then `read(policy_params, carry, time_steps)` takes in the n time steps before them at once and
            returns the carry that n calls of `act` would leave. Their actions and extras are recorded as zeros.

    Returns:
        `Episodes` with B entries.
    """
    start, act = policy
    num_opening = 0 if opening is None else min(opening[0], max_steps)
    num_episodes = reset_keys.shape[0]
    sampled = EpisodeParams(env, env_params)
    key_draw, key_reset, key_start = jnp.moveaxis(jax.vmap(lambda k: jax.random.split(k, 3))(reset_keys), 1, 0)
    drawn = sampled.draw(key_draw)
    streams = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(jnp.arange(num_episodes))

    def choose(before: TimeStep, carry: PyTree, t: Array) -> tuple[Array, PyTree, dict[str, Array]]:
        keys = jax.vmap(jax.random.fold_in, (0, None))(streams[:, 1], t)
        return jax.vmap(act, (None, 0, 0, 0, None))(policy_params, carry, before, keys, deterministic)

    def step(loop: tuple, t: Array) -> tuple[tuple, PyTree]:
        state, before, carry, *rest = loop
        action, carry, extras = choose(before, carry, t)
        return advance((state, before, carry, *rest), t, action, extras)

    def advance(loop: tuple, t: Array, action: Array, extras: dict[str, Array]) -> tuple[tuple, PyTree]:
        state, before, carry, result, alive = loop
        key_step = jax.vmap(jax.random.fold_in, (0, None))(streams[:, 0], t)
        new_state, after = sampled.map(env.step, drawn, key_step, state, action)
        kept = None if record is None else (record(state, before, action, after, extras), alive)
        result = dataclasses.replace(
            result,
            # Selected, not multiplied: what an environment shows after its end may be anything, NaN included.
            episode_return=result.episode_return + _where(alive, after.reward, jnp.zeros_like(after.reward)),
            episode_length=result.episode_length + alive,
            terminated=result.terminated | (alive & after.terminated),
            info={
                name: total + _where(alive, after.info[name].astype(jnp.float32), jnp.zeros_like(total))
                for name, total in result.info.items()
            },
            final={
                name: _where(alive, after.info[name].astype(jnp.float32), old) for name, old in result.final.items()
            },
        )
        return (_select(alive, new_state, state), after, carry, result, alive & ~after.ended), kept

    state, first = sampled.map(env.reset, drawn, key_reset)
    carry = jax.vmap(start, (None, 0))(policy_params, key_start)
    reward_shape = first.reward.shape
    scalars = [name for name, leaf in first.info.items() if leaf.shape == reward_shape]
    result = Episodes(
        jnp.zeros(reward_shape),
        jnp.zeros(num_episodes, jnp.int32),
        jnp.zeros(num_episodes, bool),
        {name: jnp.zeros(reward_shape) for name in scalars},
        {name: first.info[name].astype(jnp.float32) for name in scalars},
    )
    loop: tuple = (state, first, carry, result, jnp.ones(num_episodes, bool))
    opened = None
    if opening is not None and num_opening:
        shapes = jax.eval_shape(choose, first, carry, jnp.int32(0))
        action, _, extras = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def open_step(loop: tuple, t: Array) -> tuple[tuple, PyTree]:
            after, kept = advance(loop, t, action, extras)
            return after, (kept, loop[1])

        loop, (opened, seen) = jax.lax.scan(open_step, loop, jnp.arange(num_opening))
        loop = (*loop[:2], jax.vmap(opening[1], (None, 0, 1))(policy_params, carry, seen), *loop[3:])
    if record is not None:
        (_, _, _, result, _), kept = jax.lax.scan(step, loop, jnp.arange(num_opening, max_steps))
        if opened is not None:
            kept = jax.tree.map(lambda *parts: jnp.concatenate(parts), opened, kept)
        result = dataclasses.replace(result, record=kept[0], mask=kept[1])
    else:
        _, (_, _, _, result, _) = jax.lax.while_loop(
            lambda c: (c[0] < max_steps) & jnp.any(c[1][-1]),
            lambda c: (c[0] + 1, step(c[1], c[0])[0]),
            (jnp.int32(num_opening), loop),
        )
    length = jnp.maximum(result.episode_length, 1).astype(jnp.float32)
    means = {
        name: total / length.reshape(length.shape + (1,) * (total.ndim - 1)) for name, total in result.info.items()
    }
    return dataclasses.replace(result, info=means)


def _where(mask: Array, new: Array, old: Array) -> Array:
    """`new` where `mask` `[B]`, else `old`, both `[B, ...]`; keys too."""
    return jnp.where(mask.reshape(mask.shape + (1,) * (new.ndim - mask.ndim)), new, old)


def _select(mask: Array, new: PyTree, old: PyTree) -> PyTree:
    """`new` where `mask` `[B]`, else `old`, leaf by leaf."""
    return jax.tree.map(lambda a, b: _where(mask, a, b), new, old)
