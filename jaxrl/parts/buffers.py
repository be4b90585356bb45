"""Replay: transitions in rings that live in the donated train state, drawn uniformly or by priority.

The rings are written in place. A program that chooses between an old and a new buffer (`where` or `cond` over a whole
state) copies it at every update: gate what learning changes instead, and hold the program to `check_in_place`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.parts.returns import n_step_targets
from jaxrl.parts.sum_tree import SumTree, init_tree, sample_leaves, set_leaves
from jaxrl.types import Array, PyTree, Transition


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
    """The part of an algorithm's configuration that shapes its replay."""

    capacity: int = 65_536  # transitions of all environments together
    warmup: int = 1024  # transitions in the buffer before learning begins
    prioritized: bool = False

    def check(self, num_envs: int, unroll_length: int, n_step: int) -> None:
        """ValueError unless blocks of T = `unroll_length` steps of B = `num_envs` environments and windows fit."""
        block, window = num_envs * unroll_length, unroll_length + n_step - 1
        if self.capacity % block or not 0 < self.capacity <= 2**30:
            raise ValueError(
                f"config.replay.capacity must be a positive multiple of num_envs * unroll_length = {block}, at most "
                f"2**30, got {self.capacity} (nearest: {max(round(self.capacity / block), 1) * block})"
            )
        if self.capacity < num_envs * window:
            raise ValueError(
                f"config.replay.capacity must be at least num_envs * (unroll_length + n_step - 1) = "
                f"{num_envs * window}, got {self.capacity}"
            )
        if not num_envs * n_step <= self.warmup <= self.capacity:
            raise ValueError(
                f"config.replay.warmup must lie between num_envs * n_step = {num_envs * n_step} and the capacity of "
                f"{self.capacity}, got {self.warmup}"
            )


@struct.dataclass
class ReplayState:
    """One ring of L = capacity / B steps for each of B environments, all at the same position.

    Time is the second axis, so that the steps of a window are neighbours in memory: reading them waits for memory.
    """

    items: PyTree  # [B, L, ...]
    position: Array  # i32 []; the step to be written next: the oldest one, once the rings are full
    num_steps: Array  # i32 []; steps written so far, at most L
    priorities: SumTree | None  # of windows, by their first step; 0 while a window is not complete
    max_priority: Array  # f32 []; the largest so far, given to new windows


@struct.dataclass
class Sample:
    """Windows of consecutive steps of one environment, each named by its first step."""

    index: Array  # i32 [n]; into the flattened [B, L]
    priority: Array  # f32 [n]; 1 where sampling is uniform
    density: Array  # f32 [n]; probability relative to uniform sampling: `N P(i)` in Schaul et al. 2016, section 3.4


@struct.dataclass
class NStep:
    """What bootstrapping from n steps needs, of one window; leaves lead with `[n]` where n were read."""

    observation: PyTree
    action: Array
    reward: Array  # f32; discounted sum up to the n-th step or the end of the episode
    bootstrap: Array  # f32; factor of the value of `next_observation`, 0 after a termination
    next_observation: PyTree  # the true successor of the last step in the sum
    next_legal_actions: Array | None


class Replay(NamedTuple):
    """A replay buffer as pure functions on a `ReplayState`."""

    init: Callable[[PyTree], ReplayState]  # (one item, for its shapes) -> empty buffer
    add: Callable[[ReplayState, PyTree], ReplayState]  # (state, items [T, B, ...]) -> state
    is_warm: Callable[[ReplayState], Array]  # bool []; before that, what is sampled means nothing
    sample: Callable[[ReplayState, Array, int], Sample]  # (state, key, n); with replacement; consumes `key`
    # (state, index [n], priorities f32 [n] > 0) -> state; of a window named more than once the largest counts
    set_priorities: Callable[[ReplayState, Array, Array], ReplayState]
    read: Callable[[ReplayState, Array, Any], NStep]  # (state whose items are `Transition`s, index [n], discount)


def make_replay(config: ReplayConfig, num_envs: int, unroll_length: int, n_step: int = 1) -> Replay:
    """A replay buffer for blocks of T = `unroll_length` steps of B environments, read in windows of `n_step` steps.

    A block never wraps, because its length divides the ring's; a window never reaches past the newest step.

    Raises:
        ValueError: the sizes do not fit each other.

    Example:
        >>> replay = make_replay(ReplayConfig(capacity=4096), num_envs=8, unroll_length=16, n_step=3)
    """
    config.check(num_envs, unroll_length, n_step)
    length, pending = config.capacity // num_envs, n_step - 1

    def init(item: PyTree) -> ReplayState:
        return ReplayState(
            items=jax.tree.map(lambda x: jnp.zeros((num_envs, length, *jnp.shape(x)), jnp.result_type(x)), item),
            position=jnp.zeros((), jnp.int32),
            num_steps=jnp.zeros((), jnp.int32),
            priorities=init_tree(config.capacity) if config.prioritized else None,
            max_priority=jnp.ones((), jnp.float32),
        )

    def add(state: ReplayState, items: PyTree) -> ReplayState:
        def write(ring: Array, block: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(ring, jnp.swapaxes(block, 0, 1), state.position, axis=1)

        priorities = state.priorities
        if priorities is not None:
            # The windows that this block completes begin up to `pending` steps before it.
            offset = jnp.arange(-pending, unroll_length, dtype=jnp.int32)
            complete = (offset < unroll_length - pending) & (offset >= -state.num_steps)
            fresh = jnp.where(complete, state.max_priority, 0.0)
            starts = jnp.arange(num_envs, dtype=jnp.int32) * length
            index = starts[:, None] + ((state.position + offset) % length)[None]
            priorities = set_leaves(priorities, index.reshape(-1), jnp.tile(fresh, num_envs))
        return dataclasses.replace(
            state,
            items=jax.tree.map(write, state.items, items),
            position=(state.position + unroll_length) % length,
            num_steps=jnp.minimum(state.num_steps + unroll_length, length),
            priorities=priorities,
        )

    def is_warm(state: ReplayState) -> Array:
        return state.num_steps * num_envs >= config.warmup

    def sample(state: ReplayState, key: Array, num_samples: int) -> Sample:
        num_windows = jnp.maximum(state.num_steps - pending, 1)  # of each environment
        if state.priorities is not None:
            index, priority = sample_leaves(state.priorities, key, num_samples)
            mean = jnp.sum(state.priorities[-1]) / (num_windows * num_envs)
            return Sample(index, priority, priority / jnp.maximum(mean, jnp.finfo(jnp.float32).tiny))
        drawn = jax.random.randint(key, (num_samples,), 0, num_windows * num_envs)
        oldest = state.position - state.num_steps
        index = drawn // num_windows * length + (oldest + drawn % num_windows) % length
        return Sample(index, jnp.ones(num_samples), jnp.ones(num_samples))

    def set_priorities(state: ReplayState, index: Array, priorities: Array) -> ReplayState:
        if state.priorities is None:
            return state
        return dataclasses.replace(
            state,
            priorities=set_leaves(state.priorities, index, priorities),
            max_priority=jnp.maximum(state.max_priority, jnp.max(priorities)),
        )

    def read(state: ReplayState, index: Array, discount: Array | float) -> NStep:
        steps: Transition = state.items

        def at(items: PyTree, index: Array) -> Any:
            return jax.tree.map(lambda ring: ring.reshape(config.capacity, *ring.shape[2:])[index], items)

        def read_one(index: Array) -> NStep:
            start, first = index // length * length, index % length
            window = start + (first + jnp.arange(n_step, dtype=jnp.int32)) % length
            # Read before combining: `steps.ended` would be computed for the whole buffer.
            reward, terminated, truncated = at((steps.reward, steps.terminated, steps.truncated), window)
            reward, bootstrap, last = n_step_targets(reward, terminated, terminated | truncated, discount)
            end = start + (first + last) % length
            return NStep(
                observation=at(steps.observation, index),
                action=at(steps.action, index),
                reward=reward,
                bootstrap=bootstrap,
                next_observation=at(steps.next_observation, end),
                next_legal_actions=at(steps.next_legal_actions, end),
            )

        return jax.vmap(read_one)(index)

    return Replay(init, add, is_warm, sample, set_priorities, read)


def check_in_place(update: Callable[..., Any], state: Any, *args: Any) -> None:
    """Compiles `update(state, *args)` with the state donated; AssertionError if it needs room for another buffer.

    Args:
        update: a function of a train state with a field `buffer`.
        state: a state, or its shapes (`jax.eval_shape`): nothing is run.
        *args: the other arguments.
    """
    memory = jax.jit(update, donate_argnums=0).lower(state, *args).compile().memory_analysis()
    assert memory is not None
    buffer = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.buffer))
    if memory.temp_size_in_bytes >= buffer:
        raise AssertionError(f"{memory.temp_size_in_bytes} bytes of temporary memory for a buffer of {buffer}")
