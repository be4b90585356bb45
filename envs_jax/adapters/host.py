"""One environment stepped from Python, which is what the interfaces of Gymnasium and PettingZoo need."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from envs_jax.core import Array, Environment, EnvParams, PyTree, TimeStep
from envs_jax.spaces import Box


class HostEpisode:
    """Plays one episode after another; two compiled programs, NumPy in and out.

    Everything random follows from the seed given to `reset`.
    """

    def __init__(self, env: Environment, params: EnvParams | None = None):
        self.env = env
        self.params = env.default_params if params is None else params
        self.action_space = env.action_space(self.params)
        self.state: PyTree = None
        self._key: Any = None
        self._drawn: Any = None
        self._number = 0
        self._jitted_reset, self._jitted_step = jax.jit(self._reset), jax.jit(self._step)

    def reset(self, seed: int) -> TimeStep:
        """Starts the episode that belongs to `seed` (0 .. 2^32 - 1)."""
        self._number = 0
        self._key, self._drawn, self.state, time_step = self._jitted_reset(np.uint32(seed), self.params)
        return _copied(time_step)

    def step(self, action: Any) -> TimeStep:
        """Plays `action`, of the action space's shape (with several agents `[A, *shape]`).

        Raises:
            ValueError: there is no episode, or the action has another shape or is none of a discrete space.
        """
        if self.state is None:
            raise ValueError("call reset before step")
        space, action = self.action_space, np.asarray(action)
        agents = (self.env.num_agents,) if self.env.num_agents > 1 else ()
        if action.shape != agents + space.shape:
            raise ValueError(f"the action must have shape {agents + space.shape}, got {action.shape}")
        # Continuous actions out of bounds are the environment's to clip, as in Gymnasium.
        rows = action.reshape(-1, *space.shape)
        if not isinstance(space, Box) and not all(space.contains(row) for row in rows):
            raise ValueError(f"the action must be in {space}, got {action.tolist()}")
        self._number += 1
        action = action.astype(space.dtype)
        self.state, time_step = self._jitted_step(self._key, np.uint32(self._number), self.state, action, self._drawn)
        return _copied(time_step)

    def _reset(self, seed: Array, params: EnvParams) -> tuple[Array, EnvParams, PyTree, TimeStep]:
        key_params, key_reset, key_steps = jax.random.split(jax.random.key(seed), 3)
        drawn = self.env.sample_params(key_params, params)
        return key_steps, drawn, *self.env.reset(key_reset, drawn)

    def _step(self, key: Array, number: Array, state: PyTree, action: Array, params: EnvParams) -> Any:
        return self.env.step(jax.random.fold_in(key, number), state, action, params)


def _copied(time_step: TimeStep) -> TimeStep:
    """NumPy arrays of the caller's own: writable, shared with no later time step."""
    return jax.tree.map(np.array, jax.device_get(time_step))
