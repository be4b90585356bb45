"""What sequence policies share: windows of a data set to learn from, the last K steps to act on, one AdamW step.

A window is `(observation [K, S], action [K, A], return_to_go [K], time [K], mask [K])`, the input of
`jaxrl.parts.transformer.DecisionTransformer`. Acting starts from a target return and lowers it by what was earned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from envs_jax.core import EnvSpec, TimeStep
from envs_jax.spaces import Box
from jaxrl.data.dataset import sample_rows, take_rows, window_rows
from jaxrl.parts.distributions import scale_from_bounds, scale_to_bounds
from jaxrl.parts.normalize import RunningStatistics, normalize
from jaxrl.parts.setup import at_least_one, dataset_statistics, single_agent_spec
from jaxrl.parts.transformer import TransformerConfig, warmup_adamw
from jaxrl.types import Array, Data, Metrics, PyTree, TrainState, hparam, kept_hparams


@dataclasses.dataclass(frozen=True)
class SequenceConfig:
    """What shapes the program."""

    context_length: int = 20  # K
    batch_size: int = 64
    max_episode_steps: int = 1000  # the table of time steps has K rows more
    corl_loss: bool = False  # divide by all entries, padding included
    transformer: TransformerConfig = dataclasses.field(default_factory=TransformerConfig)

    def __post_init__(self) -> None:
        at_least_one(self, "context_length", "batch_size", "max_episode_steps")


@struct.dataclass
class SequenceHParams:
    """What may be traced and swept."""

    learning_rate: Any = hparam(1e-4, low=0.0)
    warmup_updates: Any = hparam(10_000.0, low=0.0)  # the learning rate rises linearly over so many
    weight_decay: Any = hparam(1e-4, low=0.0)  # decoupled, of every parameter
    max_grad_norm: Any = hparam(0.25, low=0.0)
    reward_scale: Any = hparam(1e-3)  # of returns, before the network sees them
    target_return: Any = hparam(0.0)  # undiscounted, what acting asks for at the start of an episode


@struct.dataclass
class SequencePolicy:
    """What acting needs."""

    params: PyTree
    statistics: RunningStatistics
    reward_scale: Array  # f32 []
    target_return: Array  # f32 []


@struct.dataclass
class SequenceState(TrainState):
    statistics: Any = None
    reward_scale: Any = None  # f32 []; as in the hyper-parameters
    target_return: Any = None  # f32 []


@struct.dataclass
class Context:
    """The last K steps of an episode, filled from the left, and what is still to be earned."""

    observation: Array  # f32 [K, S], standardised
    action: Array  # f32 [K, A] in [-1, 1]
    return_to_go: Array  # f32 [K], scaled
    remaining: Array  # f32 []; target return less rewards
    step: Array  # i32 []; steps played


class Sequences(NamedTuple):
    """Pure functions on windows; see `make_sequences`."""

    spec: EnvSpec
    action_size: int
    num_times: int  # rows of the table of time steps
    window: tuple  # of the right shapes, to initialise a network
    draw: Callable[..., tuple]  # (state, hparams, data, key) -> windows, leaves [batch_size, ...]
    start: Callable[..., Context]  # (policy_params, key) -> the context of an episode's start
    see: Callable[..., tuple]  # (policy_params, context, time_step) -> (window, index of the present step, context)
    choose: Callable[..., tuple]  # (context, index, action [A] in [-1, 1]) -> (action of the environment, context)
    to_unit: Callable[[Array], Array]  # an action of the environment -> in [-1, 1]


def make_sequences(config: SequenceConfig, env: Any, learner: str) -> Sequences:
    """Windows of an environment with continuous actions.

    Args:
        config: static settings.
        env: an `Environment`, or the `EnvSpec` of a data set.
        learner: the algorithm's name, for messages.

    Raises:
        ValueError: the spaces are not vectors of floats, actions have no bounds, or episodes are longer than the table.
    """
    spec = single_agent_spec(env, learner)
    space, observation_shape = spec.action_space, spec.observation_space.shape
    if not isinstance(space, Box) or len(space.shape) != 1 or len(observation_shape) != 1:
        raise ValueError(f"{learner} needs vectors of floats, got {spec.observation_space} and {space}")
    max_steps = getattr(env, "max_steps", None) or 0
    if max_steps > config.max_episode_steps:
        raise ValueError(
            f"config.max_episode_steps must be at least {max_steps} (the longest episode), got "
            f"{config.max_episode_steps}"
        )
    to_unit, to_env = scale_from_bounds(space), scale_to_bounds(space)
    length, num_times = config.context_length, config.max_episode_steps + config.context_length
    steps = jnp.arange(length, dtype=jnp.int32)

    def start(policy_params: SequencePolicy, key: Array) -> Context:
        del key
        return Context(
            observation=jnp.zeros((length, *observation_shape)),
            action=jnp.zeros((length, space.size)),
            return_to_go=jnp.zeros(length),
            remaining=policy_params.target_return,
            step=jnp.zeros((), jnp.int32),
        )

    def see(policy_params: SequencePolicy, context: Context, time_step: TimeStep) -> tuple:
        # Full: the oldest step makes room. The newest stands at `index`.
        index = jnp.minimum(context.step, length - 1)
        kept = jax.tree.map(
            lambda kept: jnp.where(context.step >= length, jnp.roll(kept, -1, axis=0), kept),
            (context.observation, context.action, context.return_to_go),
        )
        remaining = context.remaining - time_step.reward  # 0 after a reset
        observation = kept[0].at[index].set(standardised(policy_params.statistics, time_step.observation))
        action = kept[1].at[index].set(0.0)
        return_to_go = kept[2].at[index].set(remaining * policy_params.reward_scale)
        time = jnp.minimum(jnp.maximum(context.step - (length - 1), 0) + steps, num_times - 1)
        window = (observation, action, return_to_go, time, steps <= index)
        return window, index, Context(observation, action, return_to_go, remaining, context.step)

    def choose(context: Context, index: Array, action: Array) -> tuple[Array, Context]:
        written = context.action.at[index].set(action)
        return to_env(action), dataclasses.replace(context, action=written, step=context.step + 1)

    def draw(state: SequenceState, hparams: SequenceHParams, data: Data, key: Array) -> tuple:
        dataset: Any = data.dataset
        first = sample_rows(dataset, key, config.batch_size)
        rows, mask = window_rows(dataset, first, length)
        observation, action, return_to_go, begin = take_rows(
            (dataset.transitions.observation, dataset.transitions.action, dataset.return_to_go, dataset.episode_start),
            rows,
        )
        time = jnp.minimum(jnp.where(mask, rows - begin, 0), num_times - 1)
        action = jax.vmap(jax.vmap(to_unit))(action)
        # Padding holds the rows of another episode: it is not read, and its own predictions do not count.
        return standardised(state.statistics, observation), action, return_to_go * hparams.reward_scale, time, mask

    window = (
        jnp.zeros((length, *observation_shape)), jnp.zeros((length, space.size)), jnp.zeros(length),
        steps, jnp.ones(length, bool),
    )  # fmt: skip
    return Sequences(spec, space.size, num_times, window, draw, start, see, choose, to_unit)


def standardised(statistics: RunningStatistics, observation: Array) -> Array:
    """Without the clipping that other policies have, as in CORL."""
    return normalize(statistics, jnp.asarray(observation, jnp.float32), limit=jnp.inf)


def optimizer(hparams: SequenceHParams, num_updates: Array) -> optax.GradientTransformation:
    return warmup_adamw(
        hparams.learning_rate, hparams.warmup_updates, hparams.weight_decay, hparams.max_grad_norm, num_updates
    )


def first_state(
    kind: type, params: PyTree, key: Array, hparams: SequenceHParams, data: Data, spec: EnvSpec, **fields: Any
) -> Any:
    """A `SequenceState` or subclass `kind`, before the first update, with further `fields`."""
    num_updates = jnp.zeros((), jnp.int32)
    return kind(
        params=params,
        opt_state=optimizer(hparams, num_updates).init(params),
        key=key,
        num_updates=num_updates,
        rollout=None,
        statistics=dataset_statistics(data, spec),
        **kept_hparams(kind, hparams),
        **fields,
    )


def improve(
    state: Any, hparams: SequenceHParams, key: Array, loss: Callable[[PyTree], tuple[Array, Metrics]]
) -> tuple[Any, Metrics]:
    """One AdamW step on `loss(params) -> (scalar, metrics)`; `key` is the one that the next update consumes."""
    gradient, metrics = jax.grad(loss, has_aux=True)(state.params)
    change, opt_state = optimizer(hparams, state.num_updates).update(gradient, state.opt_state, state.params)
    state = dataclasses.replace(
        state,
        params=optax.apply_updates(state.params, change),
        opt_state=opt_state,
        key=key,
        num_updates=state.num_updates + 1,
        **kept_hparams(state, hparams),  # they may differ from those of `init`, in a run that is continued
    )
    return state, metrics | {"grad_norm": optax.tree.norm(gradient)}
