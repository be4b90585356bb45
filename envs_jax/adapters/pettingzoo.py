"""Any environment with several agents as a PettingZoo `ParallelEnv`."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs_jax.adapters.gymnasium import gymnasium_space, render_metadata
from envs_jax.adapters.host import HostEpisode
from envs_jax.core import Environment, EnvParams, TimeStep

try:
    from pettingzoo import ParallelEnv
except ImportError as error:
    raise ImportError("envs_jax.adapters.pettingzoo needs pettingzoo: pip install pettingzoo") from error


class PettingZooEnv(ParallelEnv):
    """`env` under `params` as a PettingZoo `ParallelEnv`.

    The agents are named after the roles, `"blue_0"` and `"red_0"`, or `"agent_0"`, `"agent_1"`, ... where these have no
    names. All agents act at every step and end together; a time limit truncates. Each agent's `info` holds its row of
    the environment's `info` and, where some actions are illegal, `action_mask` (i8 [N], PettingZoo's name and type).
    `reset(seed=...)` determines the whole episode and, without further seeds, those after it.

    Args:
        env: an environment with several agents.
        params: its parameters; the default ones if None.
        render_mode: None or "rgb_array".

    Raises:
        ValueError: a single agent (see `envs_jax.adapters.gymnasium`), or a render mode that does not exist.

    Example:
        >>> import envs_jax
        >>> env = PettingZooEnv(*envs_jax.make("poolflip-r3"))
        >>> observations, infos = env.reset(seed=0)
    """

    def __init__(self, env: Environment, params: EnvParams | None = None, render_mode: str | None = None):
        if env.num_agents < 2:
            raise ValueError(f"PettingZooEnv needs several agents, {type(env).__name__} has one")
        self.metadata = render_metadata(env, render_mode)
        self.env, self.render_mode = env, render_mode
        self.episode = HostEpisode(env, params)
        self.possible_agents = [f"{role}_0" for role in env.roles]
        if len(set(self.possible_agents)) != env.num_agents:
            self.possible_agents = [f"agent_{number}" for number in range(env.num_agents)]
        self.agents: list[str] = []
        # One object per agent: each is seeded by itself.
        observation_space, action_space = env.observation_space(self.episode.params), self.episode.action_space
        self.observation_spaces = {agent: gymnasium_space(observation_space) for agent in self.possible_agents}
        self.action_spaces = {agent: gymnasium_space(action_space) for agent in self.possible_agents}
        self._generator = np.random.default_rng()

    def observation_space(self, agent: str) -> Any:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Any:
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        time_step = self.episode.reset(int(self._generator.integers(2**32)))
        return self._by_agent(time_step.observation), self._infos(time_step)

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, Any]]:
        """Plays one action per agent.

        Raises:
            ValueError: no episode is under way, or an agent's action is missing or refused.
        """
        if not self.agents:
            raise ValueError("no episode is under way: call reset")
        missing = [agent for agent in self.agents if agent not in actions]
        if missing:
            raise ValueError(f"actions are missing for {', '.join(missing)}")
        time_step = self.episode.step(np.stack([np.asarray(actions[agent]) for agent in self.agents]))
        terminated, truncated = bool(time_step.terminated), bool(time_step.truncated)
        results = (
            self._by_agent(time_step.observation),
            self._by_agent(time_step.reward.tolist()),
            dict.fromkeys(self.possible_agents, terminated),
            dict.fromkeys(self.possible_agents, truncated),
            self._infos(time_step),
        )
        if terminated or truncated:
            self.agents = []
        return results

    def render(self) -> Any:
        """The current state, u8 [height, width, 3]; None without a render mode."""
        return self.env.render(self.episode.state) if self.render_mode else None

    def _by_agent(self, rows: Any) -> dict[str, Any]:
        return dict(zip(self.possible_agents, rows, strict=True))

    def _infos(self, time_step: TimeStep) -> dict[str, dict[str, Any]]:
        columns: dict[str, Any] = dict(time_step.info)
        if time_step.legal_actions is not None:
            columns["action_mask"] = np.asarray(time_step.legal_actions, np.int8)
        return {
            agent: {name: rows[number] for name, rows in columns.items()}
            for number, agent in enumerate(self.possible_agents)
        }
