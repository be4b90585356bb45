"""Environments made for tests: each shows one promise or needs one ability."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.control import toy
from envs_jax.core import Environment, EnvParams, constant, time_step
from envs_jax.spaces import Box, Discrete, MultiDiscrete

BANK_SIZE = 1234  # a number that no other shape has


@struct.dataclass
class CounterParams(EnvParams):
    length: jax.Array = constant(3, jnp.int32)  # steps of an episode
    bank: jax.Array = struct.field(default_factory=lambda: jnp.ones(BANK_SIZE, jnp.float32))


class Counter(Environment):
    """Counts its steps. Observation f32 [2] = (count, length); reward = count + action / 100.

    The episode ends when the count reaches `length`: by termination where that is even, by truncation where it is odd.
    Beyond the end everything is NaN, as the protocol permits. With `random_length` the length of every episode is
    drawn from 2 .. 5.
    """

    max_steps = 5

    def __init__(self, random_length=False):
        self.random_length = random_length

    default_params = property(lambda self: CounterParams())

    def sample_params(self, key, params):
        if not self.random_length:
            return params
        return dataclasses.replace(params, length=jax.random.randint(key, (), 2, 6, jnp.int32))

    def reset(self, key, params):
        count = jnp.zeros((), jnp.int32)
        return count, self.show(count, params, jnp.zeros((), jnp.float32), key)

    def step(self, key, state, action, params):
        count = state + 1
        reward = count * params.bank[-1] + action / 100
        return count, self.show(count, params, jnp.where(count > params.length, jnp.nan, reward), key)

    def show(self, count, params, reward, key):
        observation = jnp.stack([count, params.length]).astype(jnp.float32)
        ended, even = count >= params.length, params.length % 2 == 0
        noise = jnp.where(count > params.length, jnp.nan, jax.random.uniform(key, ()))
        info = {"noise": noise, "count": count, "vector": jnp.zeros(2)}
        return time_step(observation, reward, ended & even, ended & ~even, info=info)

    def observation_space(self, params):
        return Box(0.0, 5.0, (2,))

    def action_space(self, params):
        return Discrete(3)


@struct.dataclass
class WorldState:
    hidden: jax.Array
    step: jax.Array  # i32 []


class OneStep(Environment):
    """Base of worlds with one or a few steps that terminate; `hidden` is drawn at reset and never changes."""

    max_steps = 1
    default_params = property(lambda self: EnvParams())

    def reset(self, key, params):
        state = WorldState(self.draw(key), jnp.zeros((), jnp.int32))
        return state, self.show(state, 0.0)

    def step(self, key, state, action, params):
        reward = self.reward(state, action)
        state = WorldState(state.hidden, state.step + 1)
        return state, self.show(state, reward)

    def show(self, state, reward):
        return time_step(self.observe(state), reward, state.step >= self.max_steps, legal_actions=self.legal(state))

    def draw(self, key):
        return jax.random.rademacher(key, (), jnp.float32)

    def legal(self, state):
        return None

    def observation_space(self, params):
        return Box(-1.0, 1.0, (1,))

    def action_space(self, params):
        return Discrete(2)


@struct.dataclass
class RecallParams(EnvParams):
    length: jax.Array = constant(4, jnp.int32)  # steps of an episode, at most 4


class Recall(OneStep):
    """The sign is shown in the first step only and pays, if the action matches it, in the last step only."""

    max_steps = 4
    default_params = property(lambda self: RecallParams())

    def step(self, key, state, action, params):
        last = state.step == params.length - 1
        reward = jnp.where(last, state.hidden * (2.0 * action - 1.0), 0.0)
        state = WorldState(state.hidden, state.step + 1)
        return state, time_step(self.observe(state), reward, last)

    def observe(self, state):
        return jnp.where(state.step == 0, state.hidden, 0.0)[None]


class BrightCorner(OneStep):
    """An image u8 [5, 5, 1] in which one of two corners is bright; the action names it."""

    def observe(self, state):
        left, right = (255 * (state.hidden == sign).astype(jnp.uint8) for sign in (-1.0, 1.0))
        return jnp.zeros((5, 5, 1), jnp.uint8).at[0, 0, 0].set(left).at[4, 4, 0].set(right)

    def reward(self, state, action):
        return state.hidden * (2.0 * action - 1.0)

    def observation_space(self, params):
        return Box(0, 255, (5, 5, 1), jnp.uint8)


class MaskedPairs(OneStep):
    """Two components with 2 and 3 values. The greatest value of each pays most, and is legal for the sign +1 only.

    Reward = (a_0 + a_1) / 3 + bonus, so at best 1 or 1/3 without the bonus; -10 for what is illegal. The bonus of +-5
    is seen by the critic alone.
    """

    def draw(self, key):
        return jax.random.rademacher(key, (2,), jnp.float32)  # sign, bonus / 5

    def observe(self, state):
        return state.hidden[:1]

    def show(self, state, reward):
        return super().show(state, reward).replace(critic_observation=jnp.tile(state.hidden, 2))

    def legal(self, state):
        positive = state.hidden[0] > 0
        return jnp.stack([True, positive, True, True, positive])

    def reward(self, state, action):
        mask = self.legal(state)
        allowed = mask[action[0]] & mask[2 + action[1]]
        return jnp.where(allowed, jnp.sum(action) / 3.0 + 5.0 * state.hidden[1], -10.0)

    def action_space(self, params):
        return MultiDiscrete((2, 3))

    def critic_observation_space(self, params):
        return Box(-1.0, 1.0, (4,))


class Target(OneStep):
    """One continuous action f32 [2] in [0, 10] x [-2, 2]: the penalty is its distance from (7, the sign).

    Observation = (1000 + 100 sign): of no use before it is normalised. The reward is large: -50 (distance / 10)^2.
    """

    def observe(self, state):
        return (1000.0 + 100.0 * state.hidden)[None]

    def reward(self, state, action):
        error = (action - jnp.stack([jnp.float32(7.0), state.hidden])) / jnp.array([10.0, 4.0])
        return -50.0 * jnp.sum(error**2)

    def observation_space(self, params):
        return Box(-jnp.inf, jnp.inf, (1,))

    def action_space(self, params):
        return Box([0.0, -2.0], [10.0, 2.0], (2,))


TOYS = (toy.ConstantReward, toy.ObservedValue, toy.Discounting, toy.ActionChoice, toy.ObservedAction)


@struct.dataclass
class WhichToy(EnvParams):
    which: jax.Array = constant(0, jnp.int32)


class AnyToy(toy.Toy):
    """One of the five, by a parameter: so that one program trains them all side by side."""

    max_steps = 2
    toys = tuple(kind() for kind in TOYS)
    default_params = property(lambda self: WhichToy())

    def reset(self, key, params):
        return jax.lax.switch(params.which, [env.reset for env in self.toys], key, None)

    def step(self, key, state, action, params):
        return jax.lax.switch(params.which, [env.step for env in self.toys], key, state, action, None)


def shows(observations, **fields):
    """Time steps [n] as after a reset."""
    observations = jnp.asarray(observations)
    zeros = jnp.zeros(len(observations))
    return time_step(observations, zeros, zeros, zeros).replace(**fields)
