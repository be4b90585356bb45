"""Meta-solvers: from a meta-game to one mixed strategy per role.

`solve(game, **options) -> strategies`: pure, fixed numbers of iterations, f32, usable under `jit` and `vmap`; slots
outside the masks get probability exactly 0. Letters as in `jaxrl.parts.meta_game`; x_i is the strategy of role i and
v_i = u_i(., x_-i) its deviation payoffs.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from numbers import Integral, Real

import chex
import jax
import jax.numpy as jnp

from envs_jax.registry import nearest
from jaxrl.parts.alpha_rank import alpharank
from jaxrl.parts.meta_game import Array, MetaGame, Strategies, deviation_payoffs


def uniform(game: MetaGame) -> Strategies:
    """1/n over the n filled slots of each role: a population without a solver."""
    return tuple(_uniform(active) for active in game.active)


def last(game: MetaGame) -> Strategies:
    """The filled slot of the highest index alone: iterated best response."""
    num_slots = game.num_slots
    newest = [jnp.max(jnp.where(active, jnp.arange(n), -1)) for active, n in zip(game.active, num_slots)]
    return tuple(jax.nn.one_hot(index, n, dtype=jnp.float32) for index, n in zip(newest, num_slots))


def heuristics(game: MetaGame, *, num_heuristics: int) -> Strategies:
    """1/H over the first H = `num_heuristics` slots, which must be filled: oracles learn against those alone."""
    return tuple(_uniform(active & (jnp.arange(active.shape[0]) < num_heuristics)) for active in game.active)


def regret_matching_plus(game: MetaGame, *, num_iterations: int = 2000) -> Strategies:
    """RM+, roles alternating, averaged with weights t: an approximate Nash equilibrium of two zero-sum roles.

    q_i <- max(q_i + v_i - x_i . v_i, 0), x_i <- q_i / sum(q_i) (uniform where all q_i are 0); the second role answers
    the first one's new strategy. The result is sum_t t x_i(t) / sum_t t. NashConv falls about as 1/t in practice.
    Source: Tammelin et al. 2015, "Solving Heads-up Limit Texas Hold'em" (CFR+ with one information set each).
    """
    chex.assert_shape(game.payoffs, (2, None, None))
    # Only the antisymmetric part is played, so that payoffs whose sum is a constant (or rounding) count as zero-sum.
    matrix = 0.5 * (game.payoffs[0] - game.payoffs[1])
    row_active, column_active = game.active
    start = uniform(game)

    def respond(regrets: Array, strategy: Array, values: Array, active: Array) -> tuple[Array, Array]:
        gains = jnp.where(active, values - jnp.sum(strategy * values), 0.0)
        regrets = jnp.maximum(regrets + gains, 0.0)
        return regrets, _normalise(regrets, active)

    def iterate(index: Array, carry: tuple) -> tuple:
        (row_regrets, column_regrets), (row, column), averages = carry
        row_regrets, row = respond(row_regrets, row, _dot(matrix, column), row_active)
        column_regrets, column = respond(column_regrets, column, -_dot(row, matrix), column_active)
        weight = 2.0 / (index.astype(jnp.float32) + 2.0)  # of x(t), t = index + 1, in the mean weighted by t
        averages = _average(averages, (row, column), weight)
        return (row_regrets, column_regrets), (row, column), averages

    zeros = jax.tree.map(jnp.zeros_like, start)
    return jax.lax.fori_loop(0, num_iterations, iterate, (zeros, start, zeros))[2]


def fictitious_play(game: MetaGame, *, num_iterations: int = 2000) -> Strategies:
    """Every role plays its best response to the others' empirical frequencies, all at once; the frequencies result.

    Frequencies start uniform with weight 1. Ties go to the lowest slot. Converges in zero-sum games of two roles and
    in potential games, not in general. Source: Brown 1951; Robinson 1951.
    """

    def iterate(index: Array, averages: Strategies) -> Strategies:
        responses = []
        for role, active in enumerate(game.active):
            values = jnp.where(active, deviation_payoffs(game, averages, role), -jnp.inf)
            responses.append(jax.nn.one_hot(jnp.argmax(values), active.shape[0], dtype=jnp.float32))
        return _average(averages, tuple(responses), 1.0 / (index.astype(jnp.float32) + 2.0))

    return jax.lax.fori_loop(0, num_iterations, iterate, uniform(game))


def projected_replicator_dynamics(
    game: MetaGame, *, num_iterations: int = 20_000, step_size: float = 1e-2, floor: float = 1e-6
) -> Strategies:
    """PRD: x_i <- x_i + step_size x_i (v_i - x_i . v_i), at least `floor` on filled slots, renormalised; the mean.

    The floor keeps every policy in play (exploration). The step is not scale-free: step_size times the range of the
    payoffs should stay well below 1. The defaults cover twice the time of OpenSpiel's (1e5 steps of 1e-3) in a fifth
    of the steps. Source: Lanctot et al. 2017, arXiv 1711.00832.
    """

    def iterate(index: Array, carry: tuple[Strategies, Strategies]) -> tuple[Strategies, Strategies]:
        strategies, averages = carry
        moved = []
        for role, active in enumerate(game.active):
            values, strategy = deviation_payoffs(game, strategies, role), strategies[role]
            strategy = strategy * (1.0 + step_size * (values - jnp.sum(strategy * values)))
            moved.append(_normalise(jnp.where(active, jnp.maximum(strategy, floor), 0.0), active))
        strategies = tuple(moved)
        return strategies, _average(averages, strategies, 1.0 / (index.astype(jnp.float32) + 1.0))

    start = uniform(game)
    return jax.lax.fori_loop(0, num_iterations, iterate, (start, jax.tree.map(jnp.zeros_like, start)))[1]


def _uniform(active: Array) -> Array:
    return active / jnp.sum(active, dtype=jnp.float32)


def _normalise(weights: Array, active: Array) -> Array:
    """`weights` [M] >= 0 scaled to sum 1, uniform over the filled slots where all are 0."""
    total = jnp.sum(weights)
    return jnp.where(total > 0.0, weights / jnp.where(total > 0.0, total, 1.0), _uniform(active))


def _average(averages: Strategies, strategies: Strategies, weight: Array) -> Strategies:
    return jax.tree.map(lambda average, new: average + weight * (new - average), averages, strategies)


def _dot(left: Array, right: Array) -> Array:
    return jnp.dot(left, right, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class MetaSolver:
    """One row of `META_SOLVERS`."""

    solve: Callable[..., Strategies]
    zero_sum_reason: str = ""  # why the utility must be zero-sum; empty where it need not be
    num_roles: int | None = None  # the only number of roles it can solve; None: any


META_SOLVERS = {
    "rm+": MetaSolver(regret_matching_plus, "its average is a Nash equilibrium of zero-sum games alone", 2),
    "fp": MetaSolver(fictitious_play, "its frequencies may cycle for ever in general-sum games"),
    "prd": MetaSolver(projected_replicator_dynamics),
    "alpharank": MetaSolver(alpharank),
    "uniform": MetaSolver(uniform),
    "last": MetaSolver(last),
    "heuristics": MetaSolver(heuristics),
}


def make_meta_solver(
    name: str, *, zero_sum: bool, num_roles: int = 2, **options: int | float
) -> Callable[[MetaGame], Strategies]:
    """A meta-solver by name, with its options bound and checked.

    Args:
        name: a key of `META_SOLVERS`.
        zero_sum: whether the utilities of the roles add up to a constant.
        num_roles: A.
        **options: keyword arguments of the solver, such as `num_iterations`.

    Raises:
        ValueError: unknown name or option (with the nearest), an option out of range, or a game it cannot solve.

    Example:
        >>> solve = make_meta_solver("rm+", zero_sum=True, num_iterations=500)
        >>> row, column = solve(game)
    """
    if name not in META_SOLVERS:
        raise ValueError(f"unknown meta-solver {name!r}{nearest(name, META_SOLVERS)} Known: {', '.join(META_SOLVERS)}")
    solver = META_SOLVERS[name]
    if solver.num_roles not in (None, num_roles):
        raise ValueError(f"meta-solver {name!r} solves games of {solver.num_roles} roles, got {num_roles}")
    if solver.zero_sum_reason and not zero_sum:
        raise ValueError(
            f"meta-solver {name!r} needs a zero-sum utility: {solver.zero_sum_reason}; "
            "for a general-sum utility use 'prd' or 'alpharank'"
        )
    allowed = dict(inspect.signature(solver.solve, eval_str=True).parameters)
    del allowed["game"]
    for key, value in options.items():
        if key not in allowed:
            raise ValueError(
                f"meta-solver {name!r} has no option {key!r}{nearest(key, allowed)} "
                f"Allowed: {', '.join(allowed) or 'none'}"
            )
        kind, kind_name = (Integral, "integer") if allowed[key].annotation is int else (Real, "number")
        if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < math.inf:
            raise ValueError(f"{key} must be a positive {kind_name}, got {value!r}")
    missing = [key for key, value in allowed.items() if value.default is value.empty and key not in options]
    if missing:
        raise ValueError(f"meta-solver {name!r} needs the option {missing[0]!r}")
    return functools.partial(solver.solve, **options)
