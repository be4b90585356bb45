"""The types that everything else speaks: transitions, batches, training state, algorithms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.core import TimeStep

Array = jax.Array
PyTree = Any
Metrics = dict[str, Array]  # flat names such as "loss/policy", scalar values, the same keys at every update


@struct.dataclass
class Transition:
    """One step of one environment; leaves lead with `[T, B]` in a batch, `[N]` in a data set."""

    observation: PyTree
    action: Array
    reward: Array  # f32
    terminated: Array  # bool
    truncated: Array  # bool
    next_observation: PyTree  # the true successor, before any reset
    legal_actions: Array | None = None  # bool, of `observation`
    next_legal_actions: Array | None = None  # bool, of `next_observation`
    critic_observation: PyTree | None = None
    next_critic_observation: PyTree | None = None
    extras: dict[str, Array] = dataclasses.field(default_factory=dict)  # what `act` gave: log_prob, value, ...

    @property
    def ended(self) -> Array:
        """bool: the episode was over after this step, for either reason."""
        return self.terminated | self.truncated


@struct.dataclass
class EpisodeStats:
    """Sums over the episodes that finished in a batch."""

    return_sum: Array  # f32 [] or [A]; undiscounted
    length_sum: Array  # f32 []
    count: Array  # i32 []


@struct.dataclass
class Batch:
    """What `collect` hands to `learn`."""

    transitions: Transition  # [T, B]
    carry: PyTree  # [B]; the policy's memory before the first transition
    discounted_return: Array  # f32 [B] or [B, A]; running discounted return before the first transition
    stats: EpisodeStats


@struct.dataclass
class Rollout:
    """Environments in the middle of their episodes; every leaf leads with B."""

    drawn_params: list[Array]  # the leaves of the environment's parameters that `sample_params` replaced
    env_state: PyTree
    time_step: TimeStep
    carry: PyTree
    episode_return: Array  # f32 [B] or [B, A]
    episode_length: Array  # i32 [B]
    discounted_return: Array  # f32 [B] or [B, A]


@struct.dataclass
class TrainState:
    """Everything needed to continue a training run: arrays only. Each algorithm extends it."""

    params: PyTree
    opt_state: PyTree
    key: Array
    num_updates: Array  # i32 []; updates done. Environment steps are counted on the host, where integers do not wrap
    rollout: Any  # Rollout; None without a JAX environment


@struct.dataclass
class Data:
    """What is read and never changed. An argument of the program, neither a constant of it nor part of the state."""

    env_params: Any = None  # EnvParams
    dataset: PyTree | None = None  # a `jaxrl.data.dataset.Dataset`
    # What learning reads and never changes. Of language models a dictionary: "base" (under adapters, or the weights to
    # start from), "reference" (of a divergence; without it the base), "reward" (a learned reward).
    frozen: PyTree | None = None
    expert: PyTree | None = None  # a second `Dataset`, from which a memory is filled


class Algorithm(NamedTuple):
    """An algorithm as pure functions. `init` and `update` suffice to train; the others are None where meaningless."""

    init: Callable[..., Any]  # (key, hparams, data) -> state
    update: Callable[..., Any]  # (state, hparams, data) -> (state, metrics)
    policy: Callable[..., Any] | None = None  # (state, data) -> policy_params
    start: Callable[..., Any] | None = None  # (policy_params, key) -> carry: a policy's memory at an episode's start
    # (policy_params, carry, time_step, key, deterministic) -> (action, carry, extras); one environment, no batch axis
    act: Callable[..., Any] | None = None
    collect: Callable[..., Any] | None = None  # (state, hparams, data) -> (state, batch)
    learn: Callable[..., Any] | None = None  # (state, hparams, batch, data) -> (state, metrics)
    steps_per_update: int = 0  # environment steps of one update; 0: it learns from a data set
    export: Callable[..., Any] | None = None  # (policy_params) -> layers for the NumPy export, see jaxrl.results.export


class FrozenModel(NamedTuple):
    """What an entry of `data.frozen` that `[data]` may name has to be."""

    model: Any  # the model's configuration, as the file has it
    shape: PyTree  # of the parameters
    one_of: tuple[str, ...] = ()  # entries of which training needs at least one; none: it can do without


class Recipe(NamedTuple):
    """What a configuration file needs to know of an algorithm: how to build it and what may be set."""

    make: Callable[[Any, Any], Algorithm]  # (config, env or EnvSpec) -> Algorithm
    config: type  # frozen dataclass of static settings
    hparams: type  # flax.struct dataclass of floats, each field made by `hparam`
    # Where the types above depend on other settings: (settings of the file) -> recipe. It may fill in defaults, in
    # place, and raises ValueError for settings that do not go together.
    specialise: Callable[[dict[str, Any]], Recipe] | None = None
    offline: bool = False  # it learns from a data set, which `[data]` names, and never plays but to be evaluated
    expert: bool = False  # it also reads the expert's data set, `data.expert`
    # (config) -> the models that `[data]` may name, by their names in `data.frozen`
    frozen: Callable[[Any], dict[str, FrozenModel]] | None = None


def hparam(default: float, low: float = -math.inf, high: float = math.inf) -> Any:
    """A field of a class of hyper-parameters: its default value and the closed range the loader accepts."""
    return dataclasses.field(default=default, metadata={"range": (low, high)})


def kept_hparams(state: Any, hparams: Any) -> dict[str, Array]:
    """The hyper-parameters that acting needs: those after which fields of `state` (or of its class) are named, f32."""
    names = {field.name for field in dataclasses.fields(state)} & {field.name for field in dataclasses.fields(hparams)}
    return {name: jnp.asarray(getattr(hparams, name), jnp.float32) for name in sorted(names)}


def no_carry(policy_params: PyTree, key: Array) -> tuple[()]:
    """The `start` of a policy without memory; ignores `key`."""
    del policy_params, key
    return ()


def episode_metrics(stats: EpisodeStats) -> Metrics:
    """Means over finished episodes; 0 with `episode/count` 0 where none finished."""
    count = jnp.maximum(stats.count, 1).astype(jnp.float32)
    mean = stats.return_sum / count
    metrics = {
        "episode/return": mean if mean.ndim == 0 else mean.mean(),
        "episode/length": stats.length_sum / count,
        "episode/count": stats.count,
    }
    if mean.ndim == 1:
        metrics |= {f"episode/return/{agent}": mean[agent] for agent in range(mean.shape[0])}
    return metrics
