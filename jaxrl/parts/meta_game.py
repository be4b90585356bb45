"""Meta-games: the game whose actions are whole policies, and what is measured on it.

Letters: A roles, M_i slots of role i (its population's capacity), S seeds. A meta-game is a payoff tensor over all
joint profiles plus masks of the slots that are filled so far; its shapes never change while populations grow, so that
every function here runs inside one compiled loop and under `vmap`. Solvers are in `jaxrl.parts.meta_solvers`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = jax.Array
Strategies = tuple[Array, ...]  # for each role i, f32 [M_i]: the probability of each slot


@struct.dataclass
class MetaGame:
    """An empirical normal-form game; made by `make_meta_game`, which keeps what lies outside the masks at 0."""

    payoffs: Array  # f32 [A, M_1, ..., M_A]; payoffs[i, s] is the utility of role i under the joint profile s
    active: tuple[Array, ...]  # for each role i, bool [M_i]: the slots that hold a policy

    @property
    def num_roles(self) -> int:
        return len(self.active)

    @property
    def num_slots(self) -> tuple[int, ...]:
        return tuple(mask.shape[0] for mask in self.active)


def make_meta_game(
    payoffs: Array | np.ndarray, active: Sequence[Array | np.ndarray] | Array | np.ndarray | None = None
) -> MetaGame:
    """A meta-game from measured payoffs.

    Args:
        payoffs: `[A, M_1, ..., M_A]`; entries of profiles with an empty slot are never read, not even as NaN.
        active: for each role the mask `[M_i]` of filled slots, at least one each, or one array `[A, M]` where all
            capacities are equal. None: every slot is filled.

    Raises:
        ValueError: the shapes do not form a game.

    Example:
        >>> pennies = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
        >>> game = make_meta_game(jnp.stack([pennies, -pennies]))
    """
    payoffs = jnp.asarray(payoffs, jnp.float32)
    num_roles = payoffs.ndim - 1
    if num_roles < 2 or payoffs.shape[0] != num_roles:
        raise ValueError(f"payoffs must have shape [A, M_1, ..., M_A] with A >= 2 roles, got {payoffs.shape}")
    if active is None:
        active = [jnp.ones(num_slots, bool) for num_slots in payoffs.shape[1:]]
    masks = tuple(jnp.asarray(mask, bool) for mask in active)
    if tuple(mask.shape for mask in masks) != tuple((num_slots,) for num_slots in payoffs.shape[1:]):
        shapes = [mask.shape for mask in masks]
        raise ValueError(f"active must hold one mask per role, lengths {payoffs.shape[1:]}, got shapes {shapes}")
    return MetaGame(jnp.where(joint_mask(masks)[None], payoffs, 0.0), masks)


def joint_mask(active: Sequence[Array]) -> Array:
    """bool [M_1, ..., M_A]: the joint profiles all of whose slots are filled."""
    return functools.reduce(jnp.logical_and, jnp.meshgrid(*active, indexing="ij"))


def deviation_payoffs(game: MetaGame, strategies: Strategies, role: int) -> Array:
    """u_i(a, sigma_-i): what each slot `a` of `role` earns while the other roles keep to `strategies`; f32 [M_i]."""
    values = game.payoffs[role]
    for other in reversed(range(game.num_roles)):  # from the last axis on, so that earlier axes keep their place
        if other != role:
            values = jnp.tensordot(values, strategies[other], (other, 0), precision=jax.lax.Precision.HIGHEST)
    return values


def expected_payoffs(game: MetaGame, strategies: Strategies) -> Array:
    """u_i(sigma) for every role; f32 [A]. In a zero-sum game of two roles the first entry is the meta-game's value."""
    own = [jnp.sum(strategies[i] * deviation_payoffs(game, strategies, i)) for i in range(game.num_roles)]
    return jnp.stack(own)


def best_response_gains(game: MetaGame, strategies: Strategies) -> Array:
    """max_a u_i(a, sigma_-i) - u_i(sigma), a over the filled slots: what role i gains by deviating alone; f32 [A]."""
    gains = []
    for role, active in enumerate(game.active):
        values = deviation_payoffs(game, strategies, role)
        gains.append(jnp.max(jnp.where(active, values, -jnp.inf)) - jnp.sum(strategies[role] * values))
    return jnp.stack(gains)


def nash_conv(game: MetaGame, strategies: Strategies) -> Array:
    """Sum over roles of `best_response_gains`; f32 []. 0 exactly at a Nash equilibrium, for any number of roles.

    With two zero-sum roles it is max_a (Z y)_a - min_b (x Z)_b, twice the mean exploitability.
    Source: Lanctot et al. 2017, arXiv 1711.00832 (NashConv). Here deviations range over the meta-game's
    policies only; deviations to policies outside it are what a fresh best response measures.
    """
    return jnp.sum(best_response_gains(game, strategies))


def strategy_entropy(strategy: Array) -> Array:
    """-sum_a p_a log p_a in nats, with 0 log 0 = 0, over the last axis; `[..., M]` gives `[...]`."""
    return jnp.sum(jax.scipy.special.entr(strategy), -1)


def joint_policy_correlation(returns: Array) -> Array:
    """The average proportional loss (D - O) / D from playing with partners of another training run; f32 [].

    Args:
        returns: `[S, S]`; entry (r, c) is the mean return of the first role from seed r with the other from seed c,
            of one role or summed over the roles. D is the mean of the diagonal, O of the rest.

    0: policies of different runs fit together as well as those of one run. The ratio needs returns whose diagonal
    mean is well above 0 (a share of control, not a zero-sum margin).
    Source: Lanctot et al. 2017, arXiv 1711.00832 (R_-).

    Raises:
        ValueError: fewer than two seeds, or not a square matrix.
    """
    if returns.ndim != 2 or returns.shape[0] != returns.shape[1] or returns.shape[0] < 2:
        raise ValueError(f"returns must be a square matrix [S, S] of at least 2 seeds, got {returns.shape}")
    num_seeds = returns.shape[0]
    diagonal = jnp.trace(returns) / num_seeds
    off_diagonal = (jnp.sum(returns) - jnp.trace(returns)) / (num_seeds * (num_seeds - 1))
    return (diagonal - off_diagonal) / diagonal
