"""The classes that agents for CAGE Challenge 2 are written against, played by the compiled game.

A script changes its imports and nothing else:

    from envs_jax.adapters.cage2 import B_lineAgent, ChallengeWrapper, CybORG
    env = ChallengeWrapper(env=CybORG("Scenario2.yaml", "sim", agents={"Red": B_lineAgent}), agent_name="Blue")
    observation = env.reset()
    observation, reward, done, info = env.step(env.action_space.sample())
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs_jax.adapters.gymnasium import GymnasiumEnv, spaces
from envs_jax.registry import nearest
from envs_jax.security.cyborg import Cyborg
from envs_jax.security.cyborg.actions import describe
from envs_jax.security.cyborg.network import HOSTS, RED_KINDS, SUBNETS
from envs_jax.security.cyborg.story import members

NUM_ACTIONS = 145
UNBOUNDED = 2**31 - 1  # steps; the original ends no episode by itself


class B_lineAgent:
    """Stands for red's B_line."""


class RedMeanderAgent:
    """Stands for red's Meander."""


class SleepAgent:
    """Stands for an agent that does nothing."""


class GreenAgent:
    """Stands for the green agent that makes scans."""


RED_AGENTS = {"B_lineAgent": "bline", "RedMeanderAgent": "meander", "SleepAgent": "sleep"}


class HostReward(NamedTuple):
    confidentiality: float
    availability: float


class CybORG:
    """The game with its scripted agents.

    Args:
        scenario_file: None or a path whose file is called `Scenario2.yaml`; it is not read.
        environment: "sim".
        agents: "Red" and "Green" as classes, objects or names of the original's agents, of this module or not. Red
            is B_line and green sleeps by default, as in the challenge.

    Raises:
        ValueError: another scenario, environment or agent.
    """

    def __init__(
        self, scenario_file: str | None = None, environment: str = "sim", agents: Mapping[str, Any] | None = None
    ):
        if scenario_file is not None and Path(scenario_file).name != "Scenario2.yaml":
            raise ValueError(f"the only scenario is Scenario2.yaml, got {scenario_file!r}")
        if environment != "sim":
            raise ValueError(f"environment must be 'sim', got {environment!r}")
        names = {"Red": "B_lineAgent", "Green": "SleepAgent"}
        for role, agent in (agents or {}).items():
            known = {"Red": tuple(RED_AGENTS), "Green": ("SleepAgent", "GreenAgent")}.get(role)
            if known is None:
                raise ValueError(f"agents may name 'Red' and 'Green', got {role!r}{nearest(role, names)}")
            name = agent if isinstance(agent, str) else getattr(agent, "__name__", type(agent).__name__)
            if name not in known:
                raise ValueError(f"unknown {role} agent {name!r}{nearest(name, known)} Allowed: {', '.join(known)}")
            names[role] = name
        game = Cyborg(
            red=RED_AGENTS[names["Red"]], green=names["Green"] == "GreenAgent", max_steps=UNBOUNDED, all_legal=True
        )
        self.env = GymnasiumEnv(game)
        self.observation = np.zeros(4 * len(HOSTS), np.int64)
        self._seed: int | None = None
        self._action: int | None = None
        self._info: dict[str, Any] = {}

    def set_seed(self, seed: int) -> None:
        """The next episode, and those after it, follow from `seed`."""
        self._seed = seed

    def reset(self) -> np.ndarray:
        """Starts an episode; i64 `[52]`."""
        observation, self._info = self.env.reset(seed=self._seed)
        self._seed = self._action = None
        self.observation = observation.astype(np.int64)
        return self.observation

    def step(self, action: int | None) -> float:
        """Plays one of the 145 actions, or None for Sleep; returns blue's reward, an exact multiple of 0.1."""
        action = 0 if action is None else action
        observation, reward, _, _, self._info = self.env.step(action)
        self.observation, self._action = observation.astype(np.int64), int(action)
        return round(reward, 1)

    def get_last_action(self, agent: str) -> str | None:
        """The name of an agent's last action, such as `"Restore Op_Server0"`; None before the first step."""
        if self._action is None:
            return None
        if agent == "Blue":
            return describe(self._action, len(HOSTS), HOSTS)
        if agent != "Red":
            raise ValueError(f"agent must be 'Blue' or 'Red', got {agent!r}")
        host, subnet = int(self._info["red_host"]), int(self._info["red_subnet"])
        target = HOSTS[host] if host >= 0 else SUBNETS[subnet] if subnet >= 0 else ""
        return f"{RED_KINDS[int(self._info['red_kind'])]} {target}".strip()

    def get_rewards(self) -> dict[str, float]:
        """The last step's rewards; red's leaves out what blue paid for its action."""
        info = {name: float(self._info[name]) for name in ("base_reward", "confidentiality", "availability")}
        red = -(info["confidentiality"] + info["availability"])
        return {"Blue": round(info["base_reward"], 1), "Green": 0.0, "Red": round(red, 1)}

    def get_reward_breakdown(self, agent: str) -> dict[str, HostReward]:
        """Blue's reward of the last step by host, without what its action cost."""
        if agent != "Blue":
            raise ValueError(f"rewards are broken down for 'Blue', not for {agent!r}")
        state, network = self.env.episode.state, self.env.episode.params.network  # type: ignore[attr-defined]
        planes = members(network.confidentiality, len(HOSTS))
        values = (planes * (1 << np.arange(len(planes)))[:, None]).sum(axis=0) / 10
        lost = np.where(members(state.rooted, len(HOSTS)), values, 0.0)
        down = np.where(np.arange(len(HOSTS)) == int(network.jewel), 10.0 * (not bool(state.service_alive)), 0.0)
        return {name: HostReward(-float(c), -float(a)) for name, c, a in zip(HOSTS, lost, down)}


class ChallengeWrapper:
    """Blue's side of the challenge: the same 52 bits, 145 actions, signatures and return values.

    What differs: actions are names instead of objects, there are no addresses, so that `get_observation` returns the
    52 bits instead of the raw reports, and `get_agent_state` and `get_ip_map` do not exist.

    Args:
        agent_name: "Blue".
        env: the game.
        agent: ignored, as by the original.
        reward_threshold: kept as an attribute.
        max_steps: `done` is True from this step on; None: never.

    Raises:
        ValueError: another agent, or a game of the original.
    """

    def __init__(
        self,
        agent_name: str,
        env: CybORG,
        agent: Any = None,
        reward_threshold: float | None = None,
        max_steps: int | None = None,
    ):
        if agent_name.lower() != "blue":
            raise ValueError(f"agent_name must be 'Blue', got {agent_name!r}")
        if not isinstance(env, CybORG):
            raise ValueError(f"env must be an envs_jax.adapters.cage2.CybORG, got {type(env).__name__}")
        self.agent_name, self.env, self.agent = agent_name, env, agent
        self.reward_threshold, self.max_steps = reward_threshold, max_steps
        self.action_space = spaces.Discrete(NUM_ACTIONS)
        self.observation_space = spaces.Box(-1.0, 1.0, (4 * len(HOSTS),), np.float32)
        self.reward_range = (-np.inf, np.inf)
        self.metadata: dict[str, Any] = {}
        self.step_counter: int | None = None

    def reset(self) -> np.ndarray:
        """Starts an episode; the first observation, i64 `[52]`."""
        self.step_counter = 0
        return self.env.reset()

    def step(self, action: int | None = None) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        """Plays an action: `(observation i64 [52], reward, done, info)`.

        Raises:
            ValueError: there is no episode, or the action is none of 0 .. 144.
        """
        reward = self.env.step(action)
        assert self.step_counter is not None
        self.step_counter += 1
        done = self.max_steps is not None and self.step_counter >= self.max_steps
        observation = self.env.observation
        info = dict.fromkeys(
            ("error", "error_msg", "info", "next_observation", "parameter_mask", "selection_masks", "action_name")
        )
        info |= {
            "observation": observation, "reward": reward, "done": done, "action_space": NUM_ACTIONS,
            "action": self.get_last_action("Blue"),
        }  # fmt: skip
        return observation.copy(), reward, done, info

    def get_attr(self, attribute: str) -> Any:
        """An attribute of the wrapper, or else of the game.

        Raises:
            AttributeError: neither has it.
        """
        return getattr(self if hasattr(self, attribute) else self.env, attribute)

    def get_observation(self, agent: str) -> np.ndarray:
        """Blue's last observation, i64 `[52]`."""
        if agent != "Blue":
            raise ValueError(f"only Blue's observation is known here, not that of {agent!r}")
        return self.env.observation.copy()

    def get_action_space(self, agent: str | None = None) -> int:
        """145, whoever asks."""
        del agent
        return NUM_ACTIONS

    @property
    def possible_actions(self) -> list[str]:
        """The names of the 145 actions."""
        return [describe(action, len(HOSTS), HOSTS) for action in range(NUM_ACTIONS)]

    def get_last_action(self, agent: str) -> str | None:
        return self.env.get_last_action(agent)

    def get_rewards(self) -> dict[str, float]:
        return self.env.get_rewards()

    def get_reward_breakdown(self, agent: str) -> dict[str, HostReward]:
        return self.env.get_reward_breakdown(agent)

    def set_seed(self, seed: int) -> None:
        self.env.set_seed(seed)

    def shutdown(self, **kwargs: Any) -> bool:
        del kwargs
        return True

    def close(self) -> None:
        """Nothing is open."""
