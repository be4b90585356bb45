"""PoolFlip: two sides fight for a pool of resources and see each other's moves only where they look.

After Cadet et al., "PoolFlip: A Multi-Agent Reinforcement Learning Security Environment for Cyber Defense"
(arXiv 2508.19488), which extends FlipIt (van Dijk et al., J. Cryptology 2013). Actions and roles are the paper's;
observations, costs, utilities and tie rules are choices of this project.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_jax.core import Array, Environment, EnvParams, TimeStep, constant, positive_integer, time_step
from envs_jax.registry import nearest
from envs_jax.spaces import Box, Discrete, Space
from envs_jax.timeline import Played, Timeline

NEVER = -1  # the tick of a flip, or of a look, that has not happened
TIES = ("defender", "incumbent", "random")
UTILITIES = (
    "flipit",
    "ownership",
    "ownership_margin",
    "ownership_floor",
    "ownership_any",
    "ownership_all",
    "ownership_majority",
)


@struct.dataclass
class PoolFlipState:
    """Ticks count from 0; -1 stands for never. Row i of an `[A, R]` field belongs to agent i."""

    owner: Array  # i32 [R]; the agent that controls each resource
    held_since: Array  # i32 [R]; tick at which the owner took it
    last_flip: Array  # i32 [A, R]; tick of the agent's own last flip, also of a resource that it already owned
    believed_owner: Array  # i32 [A, R]; the owner as the agent last learned it
    believed_opponent_flip: Array  # i32 [A, R]; the latest flip of the opponent that the agent knows of
    knowledge_time: Array  # i32 [A, R]; tick at which the agent last learned about the resource
    time: Array  # i32 []; ticks played


@struct.dataclass
class PoolFlipParams(EnvParams):
    """Costs are in the unit of FlipIt: 1 = one resource (of R equal ones) owned for one tick."""

    flip_cost: Array  # f32 [A, R]
    check_cost: Array  # f32 [A, R]
    value: Array  # f32 [R]; relative worth of the resources, any positive scale
    control_floor: Array = constant(0.5)  # f32 []; tau of the utility "ownership_floor"
    floor_penalty: Array = constant(1.0)  # f32 []; kappa of the utility "ownership_floor"
    flip_success: Array | None = None  # f32 [A]; probability that a flip takes effect; None: certain, nothing is drawn


class PoolFlip(Environment[PoolFlipState, PoolFlipParams]):
    """R resources, two agents: blue (0) defends and owns everything at first, red (1) attacks. One action per tick.

    Action: i32 [A], each in 0 .. 2R: 0 sleep, 1 + 2r flip resource r (try to take it), 2 + 2r check resource r (learn
        who owns it and when the opponent last flipped it). A flip teaches the same as a check.
    Observation: f32 [A, 4R + 1] in [0, 1] ("full"), the same layout for both roles, all R of each block in turn:
        believes to own r (0 or 1); age of the own last flip; age of the opponent's last known flip; age of the
        knowledge; and time / horizon. "paper" (3R) has the first three blocks. An age is
        log(1 + ticks since) / log(1 + horizon), 1 if never. Nothing else is ever revealed: neither reward nor moves.
    Reward: f32 [A] per tick, by `utility`. With o the owned share of the total value (0 .. 1) and c the cost of the
        tick's action / R, for agent i against j (the value of an episode is the mean over its ticks):
        "flipit" o_i - c_i; "ownership" o_i - o_j; "ownership_margin" (o_i - o_j) - (c_i - c_j);
        "ownership_floor" o_i - c_i - kappa max(0, tau - o_i); "ownership_any", "_all", "_majority": 1 if i owns at
        least one / all / more than half of the resources, minus c_i.
    Ending: truncated after `horizon` ticks; never terminated.
    State: `PoolFlipState`, integer ticks and owners.
    Legal actions: None, or bool [A, 2R + 1] with `mask_known_flips` or without `allow_checks`.
    Info, every leaf [A, ...]: of the last tick, for measuring only (they reveal what a player must not see): own f32
        (share owned), cost f32, num_flips, num_checks, wasted_flips i32 (flips of a resource owned already),
        dwell i32 [A, R] (ticks since the agent took the resource, 0 where it is not the owner). The agent's own
        knowledge, for heuristics: believed_own bool [A, R]; own_flip, opponent_flip (known), knowledge_time i32
        [A, R], ticks, -1 never; time i32, the tick to be played; active bool.

    A flip takes effect, and what it or a check reveals is the state after both agents' moves of that tick. Both pay,
    whoever wins a tie. A flip that fails (`flip_success`) costs and reveals like any other.

    Args:
        num_resources: R, at least 1.
        horizon: ticks per episode.
        observation_mode: "full" or "paper".
        tie: who gets a resource that both flip in one tick: "defender" (blue), "incumbent" (who owned it) or "random".
        utility: the reward, see above.
        allow_checks: whether checks are legal; if not, players learn only by flipping. Heuristics check all the same.
        mask_known_flips: forbid to flip a resource that the agent, by what it learned in the last tick, owns.
        flip_success: default of `PoolFlipParams.flip_success`, one number or one per agent, in 0 .. 1. At 1 the
            parameter is None, which saves the random numbers.

    Raises:
        ValueError: an option is refused.
    """

    num_agents: ClassVar[int] = 2
    roles: ClassVar[tuple[str, ...]] = ("blue", "red")
    observation_modes: ClassVar[tuple[str, ...]] = ("full", "paper")
    frames_per_second = 8.0

    def __init__(
        self,
        num_resources: int = 3,
        horizon: int = 256,
        observation_mode: str = "full",
        tie: str = "defender",
        utility: str = "ownership_margin",
        allow_checks: bool = True,
        mask_known_flips: bool = False,
        flip_success: float | Sequence[float] = 1.0,
    ):
        _check_choice("observation_mode", observation_mode, self.observation_modes)
        _check_choice("tie", tie, TIES)
        _check_choice("utility", utility, UTILITIES)
        success = np.asarray(flip_success, np.float32)
        if success.shape not in ((), (self.num_agents,)) or not np.all((success >= 0.0) & (success <= 1.0)):
            raise ValueError(f"flip_success must be one probability or one per agent, got {flip_success!r}")
        self.num_resources = positive_integer("num_resources", num_resources)
        self.horizon = self.max_steps = positive_integer("horizon", horizon)
        self.flip_success = None if np.all(success == 1.0) else np.broadcast_to(success, (self.num_agents,))
        self.observation_mode, self.tie, self.utility = observation_mode, tie, utility
        self.allow_checks, self.mask_known_flips = allow_checks, mask_known_flips
        # All that an observation can show: the ages 0 .. horizon (the first is 0, the last is 1 and stands for never),
        # then the times. Looking them up costs a fifth of taking logarithms, and gives the same bits on every device.
        ticks = np.arange(horizon + 1)
        self._table = np.concatenate([np.log1p(ticks) / np.log1p(horizon), ticks / horizon]).astype(np.float32)

    @property
    def default_params(self) -> PoolFlipParams:
        shape = (self.num_agents, self.num_resources)
        return PoolFlipParams(
            flip_cost=jnp.full(shape, 4.0, jnp.float32),
            check_cost=jnp.full(shape, 1.0, jnp.float32),
            value=jnp.ones(self.num_resources),
            flip_success=None if self.flip_success is None else jnp.asarray(self.flip_success),
        )

    @property
    def zero_sum(self) -> bool:
        """Whether the rewards of the two agents add up to 0 at every tick."""
        return self.utility in ("ownership", "ownership_margin")

    def reset(self, key: Array, params: PoolFlipParams) -> tuple[PoolFlipState, TimeStep]:
        """Starts an episode; ignores `key`: every episode starts alike."""
        del key
        zeros = jnp.zeros((self.num_agents, self.num_resources), jnp.int32)
        state = PoolFlipState(
            owner=zeros[0],
            held_since=zeros[0],
            last_flip=zeros + NEVER,
            believed_owner=zeros,
            believed_opponent_flip=zeros + NEVER,
            knowledge_time=zeros + NEVER,
            time=jnp.zeros((), jnp.int32),
        )
        idle = zeros.astype(bool)
        first = self._time_step(state, idle, idle, state.owner, params)
        return state, first.replace(reward=jnp.zeros(self.num_agents))  # type: ignore[attr-defined]

    def step(
        self, key: Array, state: PoolFlipState, action: Array, params: PoolFlipParams
    ) -> tuple[PoolFlipState, TimeStep]:
        """Plays one tick with `action` i32 [A]; consumes `key` where chance decides (ties, flips that fail)."""
        key_success, key_tie = jax.random.split(key)
        resources = jnp.arange(self.num_resources, dtype=jnp.int32)[None, :]
        flips = action[:, None] == 1 + 2 * resources
        checks = action[:, None] == 2 + 2 * resources
        effective = flips
        if params.flip_success is not None:
            effective &= jax.random.bernoulli(key_success, params.flip_success)[:, None]

        if self.tie == "defender":
            tie_winner = jnp.zeros_like(state.owner)
        elif self.tie == "incumbent":
            tie_winner = state.owner
        else:
            tie_winner = jnp.full_like(state.owner, jax.random.bernoulli(key_tie))
        by_blue, by_red = effective
        taker = jnp.where(by_blue & by_red, tie_winner, by_red.astype(jnp.int32))
        owner = jnp.where(by_blue | by_red, taker, state.owner)

        last_flip = jnp.where(effective, state.time, state.last_flip)
        looks = flips | checks
        new_state = PoolFlipState(
            owner=owner,
            held_since=jnp.where(owner == state.owner, state.held_since, state.time),
            last_flip=last_flip,
            believed_owner=jnp.where(looks, owner, state.believed_owner),
            believed_opponent_flip=jnp.where(looks, last_flip[::-1], state.believed_opponent_flip),
            knowledge_time=jnp.where(looks, state.time, state.knowledge_time),
            time=state.time + 1,
        )
        return new_state, self._time_step(new_state, flips, checks, state.owner, params)

    def observe(self, state: PoolFlipState) -> Array:
        """What each agent knows, f32 [A, size of the observation space]."""
        shown = jnp.concatenate(self._shown(state), axis=-1)
        return jnp.asarray(self._table).at[shown].get(mode="promise_in_bounds")

    def reward(self, own: Array, cost: Array, owned: Array, params: PoolFlipParams) -> Array:
        """The utility of one tick.

        Args:
            own: f32 [A], share of the value owned.
            cost: f32 [A], cost of the action / R.
            owned: bool [A, R].
            params: `control_floor` and `floor_penalty` are read.

        Returns:
            f32 [A].
        """
        if self.utility == "ownership":
            return own - own[::-1]
        if self.utility == "ownership_margin":
            return (own - own[::-1]) - (cost - cost[::-1])
        if self.utility == "ownership_floor":
            return own - cost - params.floor_penalty * jnp.maximum(0.0, params.control_floor - own)
        if self.utility == "flipit":
            return own - cost
        count = jnp.sum(owned, axis=-1)
        least = {"any": 1, "all": self.num_resources, "majority": self.num_resources // 2 + 1}
        return (count >= least[self.utility.removeprefix("ownership_")]).astype(jnp.float32) - cost

    def observation_space(self, params: PoolFlipParams) -> Space:
        del params
        size = 4 * self.num_resources + 1 if self.observation_mode == "full" else 3 * self.num_resources
        return Box(0.0, 1.0, (size,))

    def action_space(self, params: PoolFlipParams) -> Space:
        del params
        return Discrete(1 + 2 * self.num_resources)

    def heuristics(self, names: Sequence[str]) -> tuple[Any, Any, Any]:
        """The policies `names` as `(start, act, policy_params)`, policy parameters [M]; see `games.heuristics`."""
        from envs_jax.games import heuristics

        start, act = heuristics.make_heuristics(self.num_resources)
        return start, act, heuristics.stack([heuristics.parse(name) for name in names])

    def render(self, state: PoolFlipState) -> Any:
        from envs_jax.games.poolflip_render import draw

        return draw(state, self.horizon)

    def timeline(self, played: Played) -> Timeline:
        from envs_jax.games.poolflip_render import timeline

        return timeline(played)

    def _shown(self, state: PoolFlipState) -> list[Array]:
        """The blocks of the observation, i32 [A, ...], as places in the table."""
        never = self.horizon
        believed_own = jnp.where(self._believed_own(state), never, 0)
        blocks = [believed_own, self._age(state.last_flip, state), self._age(state.believed_opponent_flip, state)]
        if self.observation_mode == "full":
            time = jnp.full((self.num_agents, 1), never + 1 + state.time, jnp.int32)
            blocks += [self._age(state.knowledge_time, state), time]
        return blocks

    def _age(self, tick: Array, state: PoolFlipState) -> Array:
        return jnp.where(tick == NEVER, self.horizon, state.time - tick)

    def _believed_own(self, state: PoolFlipState) -> Array:
        return state.believed_owner == self._agents()

    def _agents(self) -> Array:
        return jnp.arange(self.num_agents, dtype=jnp.int32)[:, None]

    def _time_step(
        self, state: PoolFlipState, flips: Array, checks: Array, owner_before: Array, params: PoolFlipParams
    ) -> TimeStep:
        """What is shown of `state` after the moves `flips` and `checks`, bool [A, R], of the last tick."""
        agents = self._agents()
        owned = state.owner[None, :] == agents
        own = jnp.sum(owned * params.value[None, :], axis=-1) / jnp.sum(params.value)
        cost = jnp.sum(flips * params.flip_cost + checks * params.check_cost, axis=-1) / self.num_resources
        info = {
            "own": own,
            "cost": cost,
            "num_flips": jnp.sum(flips, axis=-1, dtype=jnp.int32),
            "num_checks": jnp.sum(checks, axis=-1, dtype=jnp.int32),
            "wasted_flips": jnp.sum(flips & (owner_before[None, :] == agents), axis=-1, dtype=jnp.int32),
            "dwell": jnp.where(owned, state.time - state.held_since, 0),
            "believed_own": self._believed_own(state),
            "own_flip": state.last_flip,
            "opponent_flip": state.believed_opponent_flip,
            "knowledge_time": state.knowledge_time,
            "time": jnp.full(self.num_agents, state.time, jnp.int32),
            "active": jnp.ones(self.num_agents, bool),
        }
        return time_step(
            self.observe(state),
            self.reward(own, cost, owned, params),
            truncated=self.time_is_up(state.time),
            legal_actions=self._legal_actions(state),
            info=info,
        )

    def _legal_actions(self, state: PoolFlipState) -> Array | None:
        if self.allow_checks and not self.mask_known_flips:
            return None
        certain = self._believed_own(state) & (state.knowledge_time == state.time - 1)
        flips = ~certain if self.mask_known_flips else jnp.ones_like(certain)
        choices = jnp.stack([flips, jnp.full_like(certain, self.allow_checks)], axis=-1)
        choices = choices.reshape(self.num_agents, -1)
        return jnp.concatenate([jnp.ones((self.num_agents, 1), bool), choices], axis=-1)


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}{nearest(str(value), allowed)} Allowed: {', '.join(allowed)}")
