"""Decision Transformer (Chen et al. 2021): actions predicted from returns to go, observations and actions so far.

An update draws windows of K steps, each row of the data set being as likely a first step as any other, and takes one
AdamW step on the squared error of the predicted actions. Acting starts from a target return and lowers it by what was
earned. Sizes and schedule as in CORL (`dt.py`); windows are padded on the right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from envs_jax.core import TimeStep
from envs_jax.spaces import Box
from jaxrl.data.dataset import sample_rows, take_rows, window_rows
from jaxrl.parts.distributions import scale_from_bounds, scale_to_bounds
from jaxrl.parts.normalize import RunningStatistics, normalize
from jaxrl.parts.setup import at_least_one, dataset_statistics, single_agent_spec
from jaxrl.parts.transformer import DecisionTransformer, TransformerConfig, masked_squared_error, warmup_adamw
from jaxrl.types import Algorithm, Array, Data, Metrics, PyTree, Recipe, TrainState, hparam


@dataclasses.dataclass(frozen=True)
class DTConfig:
    """What shapes the program."""

    context_length: int = 20  # K
    batch_size: int = 64
    max_episode_steps: int = 1000  # the table of time steps has K rows more
    corl_loss: bool = False  # divide by all entries, padding included
    transformer: TransformerConfig = dataclasses.field(default_factory=TransformerConfig)

    def __post_init__(self) -> None:
        at_least_one(self, "context_length", "batch_size", "max_episode_steps")


@struct.dataclass
class DTHParams:
    """What may be traced and swept."""

    learning_rate: Any = hparam(1e-4, low=0.0)
    warmup_updates: Any = hparam(10_000.0, low=0.0)  # the learning rate rises linearly over so many
    weight_decay: Any = hparam(1e-4, low=0.0)  # decoupled, of every parameter
    max_grad_norm: Any = hparam(0.25, low=0.0)
    reward_scale: Any = hparam(1e-3)  # of returns, before the network sees them
    target_return: Any = hparam(0.0)  # undiscounted, what acting asks for at the start of an episode


@struct.dataclass
class DTPolicy:
    """What acting needs."""

    params: PyTree
    statistics: RunningStatistics
    reward_scale: Array  # f32 []
    target_return: Array  # f32 []


@struct.dataclass
class Context:
    """The last K steps of an episode, filled from the left, and what is still to be earned."""

    observation: Array  # f32 [K, S], standardised
    action: Array  # f32 [K, A] in [-1, 1]
    return_to_go: Array  # f32 [K], scaled
    remaining: Array  # f32 []; target return less rewards
    step: Array  # i32 []; steps played


@struct.dataclass
class DTState(TrainState):
    statistics: Any = None
    reward_scale: Any = None  # f32 []; as in the hyper-parameters
    target_return: Any = None  # f32 []


def make_decision_transformer(config: DTConfig, env: Any) -> Algorithm:
    """Decision Transformer for continuous actions with bounds.

    Args:
        config: static settings.
        env: an `Environment`, or the `EnvSpec` of a data set.

    Returns:
        An `Algorithm` that learns from `data.dataset` alone.

    Raises:
        ValueError: the spaces are not vectors of floats, actions have no bounds, or episodes are longer than the table.
    """
    spec = single_agent_spec(env, "a Decision Transformer")
    space, observation_shape = spec.action_space, spec.observation_space.shape
    if not isinstance(space, Box) or len(space.shape) != 1 or len(observation_shape) != 1:
        raise ValueError(f"a Decision Transformer needs vectors of floats, got {spec.observation_space} and {space}")
    max_steps = getattr(env, "max_steps", None) or 0
    if max_steps > config.max_episode_steps:
        raise ValueError(
            f"config.max_episode_steps must be at least {max_steps} (the longest episode), got "
            f"{config.max_episode_steps}"
        )
    to_unit, to_env = scale_from_bounds(space), scale_to_bounds(space)
    length, num_times = config.context_length, config.max_episode_steps + config.context_length
    network = DecisionTransformer(config.transformer, space.size, num_times)
    forward: Callable[..., Any] = network.apply
    steps = jnp.arange(length, dtype=jnp.int32)

    def optimizer(hparams: DTHParams, num_updates: Array) -> optax.GradientTransformation:
        return warmup_adamw(
            hparams.learning_rate, hparams.warmup_updates, hparams.weight_decay, hparams.max_grad_norm, num_updates
        )

    def empty() -> Context:
        return Context(
            observation=jnp.zeros((length, *observation_shape)),
            action=jnp.zeros((length, space.size)),
            return_to_go=jnp.zeros(length),
            remaining=jnp.zeros(()),
            step=jnp.zeros((), jnp.int32),
        )

    def init(key: Array, hparams: DTHParams, data: Data) -> DTState:
        key_params, key_state = jax.random.split(key)
        window = empty()
        params = network.init(
            key_params, window.observation, window.action, window.return_to_go, steps, jnp.ones(length, bool)
        )
        num_updates = jnp.zeros((), jnp.int32)
        return DTState(
            params=params,
            opt_state=optimizer(hparams, num_updates).init(params),
            key=key_state,
            num_updates=num_updates,
            rollout=None,
            statistics=dataset_statistics(data, spec),
            reward_scale=jnp.asarray(hparams.reward_scale, jnp.float32),
            target_return=jnp.asarray(hparams.target_return, jnp.float32),
        )

    def standardised(statistics: RunningStatistics, observation: Array) -> Array:
        return normalize(statistics, jnp.asarray(observation, jnp.float32), limit=jnp.inf)

    def policy(state: DTState, data: Data) -> DTPolicy:
        del data
        return DTPolicy(state.params, state.statistics, state.reward_scale, state.target_return)

    def start(policy_params: DTPolicy, key: Array) -> Context:
        del key
        return dataclasses.replace(empty(), remaining=policy_params.target_return)

    def act(policy_params: DTPolicy, carry: Context, time_step: TimeStep, key: Array, deterministic: bool) -> tuple:
        del key, deterministic
        # Full: the oldest step makes room. The newest stands at `index`.
        index = jnp.minimum(carry.step, length - 1)
        context = jax.tree.map(
            lambda kept: jnp.where(carry.step >= length, jnp.roll(kept, -1, axis=0), kept),
            (carry.observation, carry.action, carry.return_to_go),
        )
        remaining = carry.remaining - time_step.reward  # 0 after a reset
        observation = context[0].at[index].set(standardised(policy_params.statistics, time_step.observation))
        action = context[1].at[index].set(0.0)
        return_to_go = context[2].at[index].set(remaining * policy_params.reward_scale)
        time = jnp.minimum(jnp.maximum(carry.step - (length - 1), 0) + steps, num_times - 1)
        chosen = forward(policy_params.params, observation, action, return_to_go, time, steps <= index)[index]
        action = action.at[index].set(chosen)
        return to_env(chosen), Context(observation, action, return_to_go, remaining, carry.step + 1), {}

    def update(state: DTState, hparams: DTHParams, data: Data) -> tuple[DTState, Metrics]:
        key, key_sample, key_dropout = jax.random.split(state.key, 3)
        dataset: Any = data.dataset
        first = sample_rows(dataset, key_sample, config.batch_size)
        rows, mask = window_rows(dataset, first, length)
        observation, action, return_to_go, begin = take_rows(
            (dataset.transitions.observation, dataset.transitions.action, dataset.return_to_go, dataset.episode_start),
            rows,
        )
        time = jnp.minimum(jnp.where(mask, rows - begin, 0), num_times - 1)
        action = jax.vmap(jax.vmap(to_unit))(action)
        # Padding holds the rows of another episode: it is not read, and its own predictions do not count.
        window = (standardised(state.statistics, observation), action, return_to_go * hparams.reward_scale, time, mask)

        def loss(params: PyTree) -> Array:
            def predict(window: tuple, key: Array) -> Array:
                return forward(params, *window, deterministic=False, rngs={"dropout": key})

            predictions = jax.vmap(predict)(window, jax.random.split(key_dropout, config.batch_size))
            return masked_squared_error(predictions, action, mask, config.corl_loss)

        value, gradient = jax.value_and_grad(loss)(state.params)
        change, opt_state = optimizer(hparams, state.num_updates).update(gradient, state.opt_state, state.params)
        state = dataclasses.replace(
            state,
            params=optax.apply_updates(state.params, change),
            opt_state=opt_state,
            key=key,
            num_updates=state.num_updates + 1,
        )
        return state, {"loss/action": value, "grad_norm": optax.tree.norm(gradient)}

    return Algorithm(init=init, update=update, policy=policy, start=start, act=act)


DECISION_TRANSFORMER = Recipe(make_decision_transformer, DTConfig, DTHParams, offline=True)
