"""One role of a two-role environment, played against policies that are given as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_jax.core import Array, Environment, EnvParams, PyTree, TimeStep, draw_index
from envs_jax.registry import nearest
from envs_jax.spaces import Space
from envs_jax.timeline import Played, Timeline


@struct.dataclass
class VersusParams(EnvParams):
    game: EnvParams  # parameters of the two-role environment
    role: Array  # i32 []; the role that learns
    opponents: PyTree  # policy parameters, every leaf leads with [M]
    weights: Array  # f32 [M]; how often each opponent is drawn, any positive scale
    opponent: Array  # i32 []; the opponent of this episode


@struct.dataclass
class VersusState:
    game: PyTree  # state of the two-role environment
    opponent_carry: PyTree
    opponent_time_step: TimeStep  # what the opponent sees


class Versus(Environment[VersusState, VersusParams]):
    """Single-agent view of a two-role environment.

    Observation, action, legal actions and reward are those of the role `params.role`; `info` holds that role's
    entries. The opponent is drawn once per episode from `params.opponents` by `params.weights` and stays fixed
    within it. Both roles must share one layout of observations and actions. Endings and state are the game's.

    `role` is data: vmapping over it trains both sides at once.

    Args:
        env: an environment with `num_agents == 2`.
        start: `start(policy_params, key) -> carry`, an opponent's first memory.
        act: `act(policy_params, carry, time_step, key, deterministic) -> (action, carry, extras)`.
        default_params: made by `versus_params`.
    """

    def __init__(self, env: Environment, start: Callable, act: Callable, default_params: VersusParams):
        if env.num_agents != 2:
            raise ValueError(f"Versus needs an environment with two roles, {type(env).__name__} has {env.num_agents}")
        self.env, self.start, self.act = env, start, act
        self.max_steps, self.frames_per_second = env.max_steps, env.frames_per_second
        self._default_params = default_params

    @property
    def default_params(self) -> VersusParams:
        return self._default_params

    def reset(self, key: Array, params: VersusParams) -> tuple[VersusState, TimeStep]:
        key_game, key_opponent = jax.random.split(key)
        game, both = self.env.reset(key_game, params.game)
        carry = self.start(self._opponent(params), key_opponent)
        return VersusState(game, carry, agent_view(both, 1 - params.role)), agent_view(both, params.role)

    def step(self, key: Array, state: VersusState, action: Array, params: VersusParams) -> tuple[VersusState, TimeStep]:
        key_game, key_opponent = jax.random.split(key)
        opponent_action, carry, _ = self.act(
            self._opponent(params), state.opponent_carry, state.opponent_time_step, key_opponent, False
        )
        first = jnp.where(params.role == 0, action, opponent_action)
        second = jnp.where(params.role == 0, opponent_action, action)
        game, both = self.env.step(key_game, state.game, jnp.stack([first, second]), params.game)
        return VersusState(game, carry, agent_view(both, 1 - params.role)), agent_view(both, params.role)

    def sample_params(self, key: Array, params: VersusParams) -> VersusParams:
        """Draws the opponent of the episode (and whatever the game itself draws); consumes `key`."""
        key_game, key_opponent = jax.random.split(key)
        opponent = draw_index(key_opponent, params.weights)
        return dataclasses.replace(params, game=self.env.sample_params(key_game, params.game), opponent=opponent)

    def observation_space(self, params: VersusParams) -> Space:
        return self.env.observation_space(params.game)

    def action_space(self, params: VersusParams) -> Space:
        return self.env.action_space(params.game)

    def critic_observation_space(self, params: VersusParams) -> Space | None:
        return self.env.critic_observation_space(params.game)

    def render(self, state: VersusState) -> Any:
        return self.env.render(state.game)

    def film(self, played: Played) -> list[Any]:
        return self.env.film(_game_of(played))

    def timeline(self, played: Played) -> Timeline:
        """The game's, with the moves of the opponent where its states tell them."""
        return self.env.timeline(_game_of(played))

    @property
    def can_render(self) -> bool:
        return self.env.can_render

    @property
    def has_timeline(self) -> bool:
        return self.env.has_timeline

    def _opponent(self, params: VersusParams) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[params.opponent], params.opponents)


def _game_of(played: Played) -> Played:
    """An episode as the game sees it: the opponent's actions are unknown, the time steps are those of the learner."""
    actions = np.full((played.length, 2, *played.actions.shape[1:]), -1)
    actions[:, int(played.params.role)] = played.actions
    return Played(played.params.game, played.states.game, actions, played.time_steps)


def versus_params(
    game: EnvParams, opponents: PyTree, role: int | Array = 0, weights: Array | None = None
) -> VersusParams:
    """Parameters for meeting `opponents` (every leaf `[M, ...]`), drawn uniformly unless `weights` `[M]` say else."""
    num_opponents = jax.tree.leaves(opponents)[0].shape[0]
    weights = jnp.ones(num_opponents) if weights is None else jnp.asarray(weights, jnp.float32)
    if weights.shape != (num_opponents,):
        raise ValueError(f"weights must have shape ({num_opponents},), got {weights.shape}")
    return VersusParams(game, jnp.asarray(role, jnp.int32), opponents, weights, jnp.zeros((), jnp.int32))


def agent_view(time_step: TimeStep, agent: Array) -> TimeStep:
    """What one agent sees: the entry `agent` of every leaf that leads with A; the endings are shared."""
    ended = (time_step.terminated, time_step.truncated)
    shared = time_step.replace(terminated=None, truncated=None)  # type: ignore[attr-defined]
    view = jax.tree.map(lambda leaf: jnp.take(leaf, agent, axis=0, mode="clip"), shared)
    return view.replace(terminated=ended[0], truncated=ended[1])


def make_versus(
    env: Environment, params: EnvParams, role: str | None, opponents: Sequence[str] | None
) -> tuple[Versus, VersusParams]:
    """`Versus` against an environment's own heuristics, given by name such as `"periodic(4)"`.

    The environment provides `heuristics(names) -> (start, act, policy_params)` with policy parameters `[M]`.

    Raises:
        ValueError: the environment has no such roles or heuristics.
    """
    heuristics = getattr(env, "heuristics", None)
    if env.num_agents != 2 or heuristics is None:
        raise ValueError(f"{type(env).__name__} has no two roles with heuristics: 'role' and 'opponents' do not apply")
    if role not in env.roles:
        raise ValueError(f"unknown role {role!r}{nearest(str(role), env.roles)} Allowed: {', '.join(env.roles)}")
    if not opponents or isinstance(opponents, str):
        raise ValueError(f"opponents must be a list of at least one name, got {opponents!r}")
    start, act, policy_params = heuristics(tuple(opponents))
    versus = Versus(env, start, act, versus_params(params, policy_params, env.roles.index(role)))
    return versus, versus.default_params
