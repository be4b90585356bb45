"""Five proving environments: each isolates one ability of a learner and has a known value to be learned.

They are meant to be tried in this order; the first that fails names what is broken. `discount` is the learner's.

| environment | what must work | value function to be learned |
|---|---|---|
| `ConstantReward` | fitting a value; not bootstrapping past an ending | `V(0) = 1` |
| `ObservedValue` | reading the observation | `V(-1) = -1`, `V(+1) = +1` |
| `Discounting` | bootstrapping from the next observation | `V(-1) = discount`, `V(+1) = 1` |
| `ActionChoice` | preferring the better action | `Q(0, 0) = -1`, `Q(0, 1) = +1`, optimal `V(0) = +1` |
| `ObservedAction` | choosing by the observation | `Q(o, a) = +1` where `a` matches `o`, else -1; optimal `V(o) = +1` |
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.core import Array, Environment, EnvParams, TimeStep, time_step
from envs_jax.spaces import Box, Discrete


@struct.dataclass
class State:
    observation: Array  # f32 [1]
    step: Array  # i32 []; steps played


class Toy(Environment[State, EnvParams]):
    """Common part of the five: `max_steps` steps, then the episode terminates.

    Observation: f32 [1] in [-1, 1]; see each class.
    Action: i32 in {0, 1}, which stands for the directions -1 and +1. With `continuous=True` f32 [1], the direction
        itself, clipped to [-1, 1]; the best actions and their values stay the same.
    Reward: f32; see each class.
    Ending: terminated after `max_steps` steps, never truncated.
    """

    max_steps = 1

    def __init__(self, continuous: bool = False):
        if not isinstance(continuous, bool):
            raise ValueError(f"continuous must be true or false, got {continuous!r}")
        self.continuous = continuous

    @property
    def default_params(self) -> EnvParams:
        return EnvParams()

    def reset(self, key: Array, params: EnvParams) -> tuple[State, TimeStep]:
        state = State(self.first_observation(key), jnp.zeros((), jnp.int32))
        return state, time_step(state.observation)

    def step(self, key: Array, state: State, action: Array, params: EnvParams) -> tuple[State, TimeStep]:
        direction = jnp.clip(action[0], -1.0, 1.0) if self.continuous else 2.0 * action.astype(jnp.float32) - 1.0
        after = State(self.next_observation(state.observation), state.step + 1)
        return after, time_step(after.observation, self.reward(state, direction), self.time_is_up(after.step))

    def observation_space(self, params: EnvParams) -> Box:
        return Box(-1.0, 1.0, (1,))

    def action_space(self, params: EnvParams) -> Discrete | Box:
        return Box(-1.0, 1.0, (1,)) if self.continuous else Discrete(2)

    def first_observation(self, key: Array) -> Array:
        return jnp.zeros(1, jnp.float32)

    def next_observation(self, observation: Array) -> Array:
        return observation

    def reward(self, state: State, direction: Array) -> Array:
        """Reward of moving in `direction` (f32 [] in [-1, 1]) from `state`."""
        raise NotImplementedError


class ConstantReward(Toy):
    """One step, observation 0, reward 1 whatever is done.

    The last observation looks like the first: a learner that bootstraps past the ending learns more than 1.
    """

    def reward(self, state: State, direction: Array) -> Array:
        return jnp.ones((), jnp.float32)


class ObservedValue(Toy):
    """One step, observation -1 or +1 with equal chance, reward = observation whatever is done."""

    def first_observation(self, key: Array) -> Array:
        return jax.random.rademacher(key, (1,), jnp.float32)

    def reward(self, state: State, direction: Array) -> Array:
        return state.observation[0]


class Discounting(Toy):
    """Two steps, observation -1 in the first and +1 in the second, reward 0, then 1, whatever is done."""

    max_steps = 2

    def first_observation(self, key: Array) -> Array:
        return -jnp.ones(1, jnp.float32)

    def next_observation(self, observation: Array) -> Array:
        return jnp.ones(1, jnp.float32)

    def reward(self, state: State, direction: Array) -> Array:
        return state.step.astype(jnp.float32)


class ActionChoice(Toy):
    """One step, observation 0, reward = direction: action 1 pays +1, action 0 pays -1."""

    def reward(self, state: State, direction: Array) -> Array:
        return direction


class ObservedAction(Toy):
    """One step, observation -1 or +1 with equal chance, reward = direction x observation: the action must match."""

    def first_observation(self, key: Array) -> Array:
        return jax.random.rademacher(key, (1,), jnp.float32)

    def reward(self, state: State, direction: Array) -> Array:
        return direction * state.observation[0]
