"""Any single-agent environment as a `gymnasium.Env`, for the libraries that expect one."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs_jax.adapters.host import HostEpisode
from envs_jax.core import Environment, EnvParams
from envs_jax.spaces import Box, Discrete, MultiDiscrete, Space

try:
    import gymnasium
    from gymnasium import spaces
except ImportError as error:
    raise ImportError("envs_jax.adapters.gymnasium needs gymnasium: pip install gymnasium") from error


class GymnasiumEnv(gymnasium.Env):
    """`env` under `params` as a `gymnasium.Env`.

    Observations are NumPy arrays, time limits are the environment's own (`truncated`), and `info` holds the
    environment's `info`, and, where it has them, `legal_actions` (bool [N], what may be played next) and
    `critic_observation`. `reset(seed=...)` determines the whole episode and, without further seeds, those after it.

    Args:
        env: an environment with one agent.
        params: its parameters; the default ones if None.
        render_mode: None or "rgb_array".

    Raises:
        ValueError: several agents (see `envs_jax.adapters.pettingzoo`), or a render mode that does not exist.

    Example:
        >>> import envs_jax
        >>> env = GymnasiumEnv(*envs_jax.make("cartpole"))
        >>> observation, info = env.reset(seed=0)
    """

    def __init__(self, env: Environment, params: EnvParams | None = None, render_mode: str | None = None):
        if env.num_agents != 1:
            raise ValueError(f"GymnasiumEnv needs one agent, {type(env).__name__} has {env.num_agents}")
        self.metadata = render_metadata(env, render_mode)
        self.env, self.render_mode = env, render_mode
        self.episode = HostEpisode(env, params)
        self.observation_space = gymnasium_space(env.observation_space(self.episode.params))
        self.action_space = gymnasium_space(self.episode.action_space)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        time_step = self.episode.reset(int(self.np_random.integers(2**32)))
        return time_step.observation, _info(time_step)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time_step = self.episode.step(action)
        ended = bool(time_step.terminated), bool(time_step.truncated)
        return time_step.observation, float(time_step.reward), *ended, _info(time_step)

    def render(self) -> Any:
        """The current state, u8 [height, width, 3]; None without a render mode."""
        return self.env.render(self.episode.state) if self.render_mode else None


def gymnasium_space(space: Space) -> spaces.Space:
    """The same space in Gymnasium's terms."""
    if isinstance(space, Box):
        return spaces.Box(space.low, space.high, dtype=np.dtype(space.dtype).type)
    if isinstance(space, Discrete):
        return spaces.Discrete(space.num_values)
    return spaces.MultiDiscrete(list(space.num_values))


def space_of(space: spaces.Space) -> Space:
    """The same space for jaxrl.

    Raises:
        ValueError: there is none: discrete values must count from 0, anything nested is flattened by a wrapper first.
    """
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1 and not np.any(space.start):
        return MultiDiscrete(tuple(int(n) for n in space.nvec))
    if isinstance(space, spaces.Box):
        dtype = np.float32 if space.dtype == np.float64 else space.dtype
        return Box(space.low, space.high, space.shape, dtype)
    raise ValueError(f"no use can be made of the Gymnasium space {space}; flatten it with a wrapper")


def render_metadata(env: Environment, render_mode: str | None) -> dict[str, Any]:
    """What both interfaces call `metadata`; ValueError where `env` cannot be drawn in `render_mode`."""
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"unknown render_mode {render_mode!r}. Allowed: None, 'rgb_array'")
    if render_mode and not env.can_render:
        raise ValueError(f"{type(env).__name__} has no renderer: render_mode must be None")
    return {"name": type(env).__name__, "render_modes": ["rgb_array"] if env.can_render else [], "render_fps": 30}


def _info(time_step: Any) -> dict[str, Any]:
    info = dict(time_step.info)
    for name in ("legal_actions", "critic_observation"):
        if getattr(time_step, name) is not None:
            info[name] = getattr(time_step, name)
    return info
