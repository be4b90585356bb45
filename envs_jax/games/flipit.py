"""FlipIt: one resource, two players, stealthy takeover (van Dijk, Juels, Oprea, Rivest, J. Cryptology 2013).

In discrete time and with the defaults of gym-flipit, the environment of QFlip (Oakley and Oprea, GameSec 2019). It is
`PoolFlip` with one resource and without checks: a player learns something only when he moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp

from envs_jax.core import Array
from envs_jax.games import heuristics
from envs_jax.games.poolflip import PoolFlip, PoolFlipParams, PoolFlipState
from envs_jax.spaces import Box, Discrete, Space


class FlipIt(PoolFlip):
    """One resource, two agents: blue (0) defends and owns it at first, red (1) attacks.

    Action: i32 [A]: 0 wait, 1 flip (take the resource and learn when the opponent last flipped it).
    Observation: f32 [A, 2] in [0, 1] ("both"): age of the own last flip; age of the opponent's last known flip (its
        last move, LM). "own" and "opponent" have one of them, [A, 1]. An age is
        log(1 + ticks since) / log(1 + horizon), 1 if never. gym-flipit shows the ticks themselves, -1 for never.
    Reward: f32 [A] per tick, by `utility` as in `PoolFlip`; "flipit" is 1 in control, else 0, minus the cost of a move.
        gym-flipit instead pays at moves alone.
    Ending: truncated after `horizon` ticks; never terminated.
    State, parameters, info, ties: as in `PoolFlip` with R = 1. Here a move that loses a tie is paid for; in gym-flipit
        it is cancelled.

    Args:
        horizon: ticks per episode.
        observation_mode: "both", "own" or "opponent".
        tie: who gets the resource when both flip: "defender" (blue), "incumbent" (who owned it) or "random".
        utility: the reward, as in `PoolFlip`.

    Raises:
        ValueError: an option is refused.
    """

    observation_modes: ClassVar[tuple[str, ...]] = ("both", "own", "opponent")

    def __init__(
        self, horizon: int = 1000, observation_mode: str = "both", tie: str = "defender", utility: str = "flipit"
    ):
        super().__init__(1, horizon, observation_mode, tie, utility)

    @property
    def default_params(self) -> PoolFlipParams:
        return super().default_params.replace(flip_cost=jnp.array([[1.0], [5.0]], jnp.float32))  # type: ignore[attr-defined]

    def observation_space(self, params: PoolFlipParams) -> Space:
        del params
        return Box(0.0, 1.0, (2 if self.observation_mode == "both" else 1,))

    def action_space(self, params: PoolFlipParams) -> Space:
        del params
        return Discrete(2)

    def heuristics(self, names: Sequence[str]) -> tuple[Any, Any, Any]:
        """As in `PoolFlip`, without those that check."""
        for name in names:
            if heuristics.KINDS[int(heuristics.parse(name).kind)] in heuristics.CHECKING:
                raise ValueError(f"{name!r} needs checks, which FlipIt does not have")
        return super().heuristics(names)

    def _shown(self, state: PoolFlipState) -> list[Array]:
        ages = {
            "own": self._age(state.last_flip, state),
            "opponent": self._age(state.believed_opponent_flip, state),
        }
        return [age for name, age in ages.items() if self.observation_mode in (name, "both")]
