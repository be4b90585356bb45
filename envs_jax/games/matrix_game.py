"""Matrix games: two roles choose one action each, at once, and a table says what each earns."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_jax.core import Array, Environment, EnvParams, TimeStep, positive_integer, time_step
from envs_jax.registry import nearest
from envs_jax.spaces import Box, Discrete

# The row role's payoffs in zero-sum games, both roles' in the others; both roles name their actions alike.
GAMES = {
    "rock-paper-scissors": [[0, -1, 1], [1, 0, -1], [-1, 1, 0]],
    "matching-pennies": [[1, -1], [-1, 1]],
    "prisoners-dilemma": [[[3, 0], [5, 1]], [[3, 5], [0, 1]]],  # 0 cooperate, 1 defect
}


@struct.dataclass
class MatrixGameState:
    round: Array  # i32 []; rounds played


@struct.dataclass
class MatrixGameParams(EnvParams):
    payoffs: Array  # f32 [2, N, N]; payoffs[i, a, b]: what role i earns when row plays a and column plays b


class MatrixGame(Environment[MatrixGameState, MatrixGameParams]):
    """A game in normal form between "row" (0) and "column" (1), played for `num_rounds` rounds.

    Action: i32 [2], each in 0 .. N-1, chosen without seeing the other's.
    Observation: f32 [2, 1], always 1: nothing is ever revealed, so that the rounds are independent plays.
    Reward: f32 [2] per round, an entry of the payoff tables.
    Ending: terminated after `num_rounds` rounds; never truncated.
    State: `MatrixGameState`.
    Legal actions: None. Info: active bool [2], always true.

    The solutions are known, which is what the environment is for: whatever computes equilibria from play alone can be
    held to them.

    Args:
        payoffs: a name in `GAMES`; an N x N table of what row earns and column loses; or a pair of such tables, the
            earnings of row and of column.
        num_rounds: steps per episode.
    """

    num_agents: ClassVar[int] = 2
    roles: ClassVar[tuple[str, ...]] = ("row", "column")

    def __init__(self, payoffs: str | Sequence[Any] = "rock-paper-scissors", num_rounds: int = 1):
        self.payoffs = payoff_tables(payoffs)
        self.max_steps = positive_integer("num_rounds", num_rounds)

    @property
    def num_actions(self) -> int:
        """N."""
        return self.payoffs.shape[-1]

    @property
    def zero_sum(self) -> bool:
        """Whether the rewards of the two roles add up to 0, under the default parameters."""
        return not np.any(self.payoffs[0] + self.payoffs[1])

    @property
    def default_params(self) -> MatrixGameParams:
        return MatrixGameParams(jnp.asarray(self.payoffs))

    def reset(self, key: Array, params: MatrixGameParams) -> tuple[MatrixGameState, TimeStep]:
        """Starts an episode; ignores `key`: every episode starts alike."""
        del key
        return MatrixGameState(jnp.zeros((), jnp.int32)), self._time_step(jnp.zeros(2), False)

    def step(
        self, key: Array, state: MatrixGameState, action: Array, params: MatrixGameParams
    ) -> tuple[MatrixGameState, TimeStep]:
        """Plays one round with `action` i32 [2]; ignores `key`."""
        del key
        state = MatrixGameState(state.round + 1)
        return state, self._time_step(params.payoffs[:, action[0], action[1]], self.time_is_up(state.round))

    def observation_space(self, params: MatrixGameParams) -> Box:
        return Box(0.0, 1.0, (1,))

    def action_space(self, params: MatrixGameParams) -> Discrete:
        return Discrete(self.num_actions)

    def heuristics(self, names: Sequence[str]) -> tuple[Callable, Callable, Array]:
        """Mixed strategies by name: "uniform", "pure(k)" and "mixed(p_0,p_1,...)" with one weight per action.

        Returns:
            `(start, act, policy_params)`; a policy is its probabilities, f32 [N], and `policy_params` f32 [M, N] stacks
            one for each of the M `names`. `act` draws even where `deterministic` is asked: chance is the strategy.

        Raises:
            ValueError: a name is not one of these, or names no action of this game.
        """
        policies = [parse_strategy(name, self.num_actions) for name in names]
        return start, act, jnp.asarray(np.stack(policies))

    def _time_step(self, reward: Array, terminated: Array | bool) -> TimeStep:
        return time_step(jnp.ones((2, 1)), reward, terminated, info={"active": jnp.ones(2, bool)})


def start(policy_params: Array, key: Array) -> tuple[()]:
    """The empty memory of a mixed strategy; ignores `key`."""
    del policy_params, key
    return ()


def act(
    policy_params: Array, carry: tuple[()], time_step: TimeStep, key: Array, deterministic: bool
) -> tuple[Array, tuple[()], dict[str, Array]]:
    """Draws an action, i32 [], from the probabilities `policy_params` f32 [N]; consumes `key`."""
    del time_step, deterministic
    return jax.random.categorical(key, jnp.log(policy_params)).astype(jnp.int32), carry, {}


def payoff_tables(payoffs: str | Sequence[Any]) -> np.ndarray:
    """The tables of both roles, f32 [2, N, N], from what `MatrixGame` accepts; ValueError otherwise."""
    if isinstance(payoffs, str):
        if payoffs not in GAMES:
            raise ValueError(f"unknown matrix game {payoffs!r}{nearest(payoffs, GAMES)} Known: {', '.join(GAMES)}")
        payoffs = GAMES[payoffs]
    try:
        tables = np.asarray(payoffs, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"payoffs must be a name or tables with rows of equal length, got {payoffs!r}") from error
    if tables.ndim == 2:
        tables = np.stack([tables, -tables])
    num_actions = tables.shape[-1] if tables.ndim else 0
    if num_actions < 1 or tables.shape != (2, num_actions, num_actions) or not np.all(np.isfinite(tables)):
        raise ValueError(
            "payoffs must be one square table (zero-sum) or a pair of them, of finite numbers: both roles choose "
            f"from the same N actions; got shape {np.shape(payoffs)}: {payoffs!r}"
        )
    return tables


def parse_strategy(name: str, num_actions: int) -> np.ndarray:
    """The probabilities f32 [N] that a strategy's name stands for; ValueError if it stands for none."""
    match = re.fullmatch(r"(uniform|pure|mixed)(?:\(([^()]*)\))?", name.replace(" ", ""))
    kind, inside = match.groups() if match else ("", None)
    try:
        numbers = [] if inside is None else [float(number) for number in inside.split(",")]
    except ValueError:
        kind, numbers = "", []
    actions = np.arange(num_actions)
    if kind == "uniform" and inside is None:
        weights = np.ones(num_actions)
    elif kind == "pure" and len(numbers) == 1 and numbers[0] in actions:
        weights = actions == numbers[0]
    elif kind == "mixed" and len(numbers) == num_actions and min(numbers) >= 0 and 0 < sum(numbers) < math.inf:
        weights = np.array(numbers)
    else:
        raise ValueError(
            f"unknown strategy {name!r}{nearest(name, ('uniform', 'pure(0)', 'mixed'))} Allowed: 'uniform', 'pure(k)' "
            f"with k in 0 .. {num_actions - 1}, 'mixed(p_0,p_1,...)' with {num_actions} weights >= 0"
        )
    return (weights / np.sum(weights)).astype(np.float32)
