"""The environment protocol: pure functions on a state made of arrays.

Letters used in shapes throughout the project: T time, B parallel environments, A agents, S seeds, K population,
N actions. An environment itself has no batch axis, no auto-reset and no Python state; `jaxrl.rollout` owns those.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.spaces import Space

if TYPE_CHECKING:
    from envs_jax.timeline import Played, Timeline

Array = jax.Array
PyTree = Any


@struct.dataclass
class EnvParams:
    """Base of every environment's parameters: arrays that may be traced, vmapped and drawn per episode."""


def constant(value: float, dtype: Any = jnp.float32) -> Any:
    """The default of an `EnvParams` field: an array, made when the parameters are, so that imports touch no device."""
    return struct.field(default_factory=lambda: jnp.asarray(value, dtype))


def positive_integer(name: str, value: Any) -> int:
    """`value`, checked to be an integer of at least 1; ValueError names the option otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return value


@struct.dataclass
class TimeStep:
    """What an environment shows after a reset or a step.

    With `num_agents > 1`, `observation`, `reward`, `legal_actions`, `critic_observation` and every leaf of `info`
    lead with an axis A; the two endings stay scalar.
    """

    observation: PyTree  # in the observation space
    reward: Array  # f32 [] or [A]; 0 at reset
    terminated: Array  # bool []; the task ended: the value of what follows is 0
    truncated: Array  # bool []; the episode was cut: what follows still has a value
    legal_actions: Array | None = None  # bool [N]; None where every action is always legal
    info: dict[str, Array] = dataclasses.field(default_factory=dict)  # the same keys at every step
    critic_observation: PyTree | None = None  # what only a critic may see (asymmetric critics)

    @property
    def ended(self) -> Array:
        """bool []: the episode is over, for either reason."""
        return self.terminated | self.truncated


def draw_index(key: Array, weights: Array) -> Array:
    """An index of `weights` `[N]`, drawn in proportion to them, i32 []; consumes `key`.

    Inverse CDF: one random number, however large N. An index of weight 0 is never drawn.
    """
    # A parallel sum need not be flat where 0 is added nor end at its maximum: impossible indices are taken out.
    cumulative = jnp.where(weights > 0, jnp.cumsum(weights), 0.0)
    threshold = jax.random.uniform(key, ()) * jnp.max(cumulative)
    return jnp.argmax(cumulative > threshold).astype(jnp.int32)


def time_step(
    observation: PyTree,
    reward: Array | float = 0.0,
    terminated: Array | bool = False,
    truncated: Array | bool = False,
    legal_actions: Array | None = None,
    info: dict[str, Array] | None = None,
    critic_observation: PyTree | None = None,
) -> TimeStep:
    """A `TimeStep` with the dtypes every environment must emit, so that reset and step return equal trees."""
    return TimeStep(
        observation=observation,
        reward=jnp.asarray(reward, jnp.float32),
        terminated=jnp.asarray(terminated, bool),
        truncated=jnp.asarray(truncated, bool),
        legal_actions=legal_actions,
        info={} if info is None else info,
        critic_observation=critic_observation,
    )


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """The spaces alone: what an algorithm needs to know where no JAX environment is at hand."""

    observation_space: Space
    action_space: Space
    critic_observation_space: Space | None = None
    num_agents: int = 1


StateT = TypeVar("StateT")
ParamsT = TypeVar("ParamsT", bound=EnvParams)


class Environment(Generic[StateT, ParamsT]):
    """Base class of all environments.

    A subclass names its state and its parameters (both `flax.struct` dataclasses) and defines `reset`, `step`,
    `observation_space`, `action_space` and `default_params`. Static options are arguments of its constructor.
    """

    version: ClassVar[int] = 1  # raised when the same key gives another episode
    num_agents: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ()  # names of the agents, where they differ
    # G: parallel environments stand in so many groups of equal size, in order, and every leaf of their parameters leads
    # with G. None: all of them share one set of parameters.
    num_groups: int | None = None
    frames_per_second: float = 30.0  # of a film at the speed that suits the environment
    # The longest episode, where the environment itself bounds it; None where only a caller can.
    max_steps: int | None = None

    @property
    def default_params(self) -> ParamsT:
        raise NotImplementedError

    def reset(self, key: Array, params: ParamsT) -> tuple[StateT, TimeStep]:
        """Starts an episode; consumes `key`."""
        raise NotImplementedError

    def step(self, key: Array, state: StateT, action: Array, params: ParamsT) -> tuple[StateT, TimeStep]:
        """Plays one action; consumes `key`. Must not be called after an ending without a reset."""
        raise NotImplementedError

    def observation_space(self, params: ParamsT) -> Space:
        raise NotImplementedError

    def action_space(self, params: ParamsT) -> Space:
        raise NotImplementedError

    def critic_observation_space(self, params: ParamsT) -> Space | None:
        """The space of `TimeStep.critic_observation`; None where there is none."""
        del params
        return None

    def sample_params(self, key: Array, params: ParamsT) -> ParamsT:
        """Draws the parameters of one episode; may ignore `key`.

        Leaves that come back unchanged (the same object) stay shared by all environments; only replaced leaves are
        carried per environment. The default draws nothing and costs nothing.
        """
        del key
        return params

    def render(self, state: StateT) -> Any:
        """One picture of a state on the host: u8 `[height, width, 3]`. Optional."""
        raise NotImplementedError(f"{type(self).__name__} has no renderer")

    def film(self, played: Played) -> list[Any]:
        """The pictures of a whole episode, one per state; by default those of `render`."""
        from envs_jax.render import frames

        return frames(self, played.states)

    def timeline(self, played: Played) -> Timeline:
        """A whole episode as bars over its steps, and as a table. Optional."""
        raise NotImplementedError(f"{type(self).__name__} has no timeline")

    def page(self, played: Played, title: str) -> str | None:
        """A self-contained HTML page that shows a whole episode; None: the pictures of `film` in a player."""
        del played, title
        return None

    def describe(self) -> dict[str, Any]:
        """What observations and actions mean to whoever deploys a policy: names, scales, units, gains, as JSON values.

        It goes with every exported policy; nothing by default.
        """
        return {}

    def details(self) -> str:
        """Facts for a reader beyond spaces and docstring, such as a table of motors; nothing by default."""
        return ""

    def diagram(self) -> str:
        """A picture of such facts, as SVG; nothing by default."""
        return ""

    @classmethod
    def traced_options(cls, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Options of the constructor that, among `options`, change nothing but the default parameters.

        Runs that differ in these alone share one compiled program.
        """
        del options
        return ()

    @property
    def unwrapped(self) -> Environment:
        """The environment inside all wrappers."""
        return self

    def time_is_up(self, step: Array) -> Array | bool:
        """bool []: whether `step` steps reach `max_steps`."""
        return self.max_steps is not None and step >= self.max_steps

    def spec(self, params: ParamsT) -> EnvSpec:
        """The spaces of this environment under `params`."""
        return EnvSpec(
            self.observation_space(params),
            self.action_space(params),
            self.critic_observation_space(params),
            self.num_agents,
        )

    @property
    def can_render(self) -> bool:
        return type(self).render is not Environment.render

    @property
    def has_timeline(self) -> bool:
        return type(self).timeline is not Environment.timeline
