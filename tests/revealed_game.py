"""A two-role matrix game for tests: moves are revealed, one is illegal at first, an opponent may have a memory."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_jax.core import Array, Environment, EnvParams, TimeStep, time_step
from envs_jax.spaces import Box, Discrete

PAYOFFS = np.array([[[0, 1, 2], [3, 4, 5], [6, 7, 8]], [[10, 11, 12], [13, 14, 15], [16, 17, 18]]], np.float32)


@struct.dataclass
class State:
    step: Array  # i32 []
    last_actions: Array  # i32 [A]; 3 before the first move


@struct.dataclass
class Params(EnvParams):
    payoffs: Array = dataclasses.field(default_factory=lambda: jnp.asarray(PAYOFFS))  # f32 [A, row, column]


class RevealedGame(Environment[State, Params]):
    """`max_steps` rounds. A role sees, in [0, 1], its own number (0 row, 1 column) and its opponent's last action / 3.

    Action 2 is illegal in the first round.
    """

    num_agents = 2
    roles = ("row", "column")
    max_steps = 2

    @property
    def default_params(self) -> Params:
        return Params()

    def reset(self, key: Array, params: Params) -> tuple[State, TimeStep]:
        state = State(jnp.zeros((), jnp.int32), jnp.full(2, 3, jnp.int32))
        return state, self._time_step(state, jnp.zeros(2))

    def step(self, key: Array, state: State, action: Array, params: Params) -> tuple[State, TimeStep]:
        after = State(state.step + 1, action)
        return after, self._time_step(after, params.payoffs[:, action[0], action[1]])

    def _time_step(self, state: State, reward: Array) -> TimeStep:
        return time_step(
            jnp.stack([jnp.arange(2, dtype=jnp.float32), state.last_actions[::-1] / 3], axis=-1),
            reward,
            truncated=self.time_is_up(state.step),
            legal_actions=jnp.broadcast_to((jnp.arange(3) < 2) | (state.step > 0), (2, 3)),
            info={"active": jnp.ones(2, bool), "last_action": state.last_actions},
        )

    def observation_space(self, params: Params) -> Box:
        return Box(0.0, 1.0, (2,))

    def action_space(self, params: Params) -> Discrete:
        return Discrete(3)

    def heuristics(self, names):
        """`always(a)` plays a, `mirror` what its opponent played last; policy params i32 `[M]`, -1 for mirror."""
        parsed = [re.fullmatch(r"always\((\d)\)|mirror", name) for name in names]
        unknown = [name for name, match in zip(names, parsed, strict=True) if match is None]
        if unknown:
            raise ValueError(f"unknown heuristic {unknown[0]!r}; allowed: always(a), mirror")
        return start, act, jnp.array([-1 if match[1] is None else int(match[1]) for match in parsed], jnp.int32)


def start(policy_params, key):
    return jnp.zeros((), jnp.int32)  # moves made


def act(policy_params, carry, time_step, key, deterministic):
    last = jnp.round(time_step.observation[1] * 3).astype(jnp.int32)
    mirrored = jnp.where(carry == 0, 0, last)
    return jnp.where(policy_params < 0, mirrored, policy_params), carry + 1, {}


def play(env, params, actions):
    """Rewards `[T]` of playing `actions` `[T]` in a single-agent view."""

    def body(state, action):
        state, time_step = env.step(jax.random.key(0), state, action, params)
        return state, time_step.reward

    return jax.lax.scan(body, env.reset(jax.random.key(0), params)[0], actions)[1]
