"""Environments made from environments."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_jax.core import Array, Environment, EnvParams, PyTree, TimeStep, positive_integer
from envs_jax.spaces import Box, Space
from envs_jax.timeline import Played, Timeline


@struct.dataclass
class FrameStackState:
    inner: PyTree
    frames: Array  # [*shape[:-1], shape[-1] * num_frames], oldest first


class FrameStack(Environment[FrameStackState, EnvParams]):
    """Joins the last `num_frames` observations along the last axis, oldest first; at reset all are the first one.

    Everything else is the wrapped environment's.
    """

    def __init__(self, env: Environment, num_frames: int):
        self.num_frames = positive_integer("frame_stack", num_frames)
        space = env.observation_space(env.default_params) if env.num_agents == 1 else None
        if not isinstance(space, Box) or not space.shape:
            raise ValueError("frame_stack needs a single-agent environment with array observations")
        self.env, self.max_steps, self.frames_per_second = env, env.max_steps, env.frames_per_second

    @property
    def unwrapped(self) -> Environment:
        return self.env.unwrapped

    @property
    def default_params(self) -> EnvParams:
        return self.env.default_params

    def reset(self, key: Array, params: EnvParams) -> tuple[FrameStackState, TimeStep]:
        inner, time_step = self.env.reset(key, params)
        frames = jnp.concatenate([time_step.observation] * self.num_frames, axis=-1)
        return FrameStackState(inner, frames), dataclasses.replace(time_step, observation=frames)

    def step(
        self, key: Array, state: FrameStackState, action: Array, params: EnvParams
    ) -> tuple[FrameStackState, TimeStep]:
        inner, time_step = self.env.step(key, state.inner, action, params)
        newest = time_step.observation
        frames = jnp.concatenate([state.frames[..., newest.shape[-1] :], newest], axis=-1)
        return FrameStackState(inner, frames), dataclasses.replace(time_step, observation=frames)

    def sample_params(self, key: Array, params: EnvParams) -> EnvParams:
        return self.env.sample_params(key, params)

    def observation_space(self, params: EnvParams) -> Space:
        space = self.env.observation_space(params)
        assert isinstance(space, Box)
        low, high = (np.concatenate([bound] * self.num_frames, axis=-1) for bound in (space.low, space.high))
        return Box(low, high, low.shape, space.dtype)

    def action_space(self, params: EnvParams) -> Space:
        return self.env.action_space(params)

    def critic_observation_space(self, params: EnvParams) -> Space | None:
        return self.env.critic_observation_space(params)

    def render(self, state: FrameStackState) -> Any:
        return self.env.render(state.inner)

    def film(self, played: Played) -> list[Any]:
        return self.env.film(dataclasses.replace(played, states=played.states.inner))

    def timeline(self, played: Played) -> Timeline:
        return self.env.timeline(dataclasses.replace(played, states=played.states.inner))

    def page(self, played: Played, title: str) -> str | None:
        return self.env.page(dataclasses.replace(played, states=played.states.inner), title)

    def describe(self) -> dict[str, Any]:
        """That of one frame, and how frames are stacked."""
        return self.env.describe() | {"frame_stack": {"num_frames": self.num_frames, "order": "oldest first"}}

    def details(self) -> str:
        return self.env.details()

    def diagram(self) -> str:
        return self.env.diagram()

    @property
    def can_render(self) -> bool:
        return self.env.can_render

    @property
    def has_timeline(self) -> bool:
        return self.env.has_timeline
