"""alpha-rank: policies ranked by how long evolution stays with them; any number of roles, any utilities.

Source: Omidshafiei et al. 2019, "alpha-Rank: Multi-Agent Evaluation by Evolution", arXiv 1903.01373.
Letters as in `jaxrl.parts.meta_game`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxrl.parts.meta_game import Array, MetaGame, Strategies, joint_mask

MAX_PROFILES = 4096  # a chain of 64 MiB
UNIFORM_MIXTURE = 1e-6
NUM_SQUARINGS = 30


def alpharank(game: MetaGame, *, alpha: float = 0.1, population_size: int = 50) -> Strategies:
    """The marginals of `alpharank_masses`: how often evolution shows each policy."""
    masses = alpharank_masses(game, alpha=alpha, population_size=population_size)
    roles = range(game.num_roles)
    return tuple(jnp.sum(masses, tuple(other for other in roles if other != role)) for role in roles)


def alpharank_masses(game: MetaGame, *, alpha: float = 0.1, population_size: int = 50) -> Array:
    """alpha-rank: stationary law of the evolutionary chain over joint profiles; f32 [M_1, ..., M_A].

    From profile s a mutant of one role that would gain d fixates with probability
    rho(d) = (1 - exp(-alpha d)) / (1 - exp(-alpha m d)), 1/m at d = 0, m the population size; the mutant is drawn
    with probability eta = 1 / sum_i (n_i - 1), n_i filled slots. The chain is nearly reducible, which defeats
    eigen-solvers in f32: it is mixed with 1e-6 of the uniform law and squared 30 times.

    Args:
        alpha: ranking intensity. Choose alpha m max|d| well above 1 and at most about 80; a worse mutant's rate
            vanishes in f32 beyond.
        population_size: m.

    Raises:
        ValueError: more joint profiles than `MAX_PROFILES`; the time grows with the cube of their number.
    """
    num_profiles = math.prod(game.num_slots)
    if num_profiles > MAX_PROFILES:
        raise ValueError(
            f"alpha-rank squares a matrix over all joint profiles: at most {MAX_PROFILES} of them, "
            f"got {num_profiles} (capacities {game.num_slots})"
        )
    # Axes: source profile (first A), target profile (last A). A mutation changes one role's slot.
    chain = jnp.zeros(game.num_slots * 2, jnp.float32)
    for role in range(game.num_roles):
        chain += _fixation(game, role, alpha, population_size)
    num_mutants = sum(jnp.sum(active) - 1 for active in game.active)
    chain /= jnp.maximum(num_mutants, 1)
    filled = joint_mask(game.active).reshape(-1)
    chain = jnp.where(filled[None, :], chain.reshape(num_profiles, num_profiles), 0.0)
    chain += jnp.diag(1.0 - jnp.sum(chain, -1))
    uniform_law = filled / jnp.sum(filled, dtype=jnp.float32)
    chain = (1.0 - UNIFORM_MIXTURE) * chain + UNIFORM_MIXTURE * uniform_law[None, :]

    def square(_: Array, chain: Array) -> Array:
        chain = jnp.dot(chain, chain, precision=jax.lax.Precision.HIGHEST)
        return chain / jnp.sum(chain, -1, keepdims=True)  # rounding would double with every squaring

    chain = jax.lax.fori_loop(0, NUM_SQUARINGS, square, chain)
    return jnp.dot(uniform_law, chain).reshape(game.num_slots)


def _fixation(game: MetaGame, role: int, alpha: float, population_size: int) -> Array:
    """Fixation probabilities of the mutants of one role; f32 [M_1, ..., M_A, M_1, ..., M_A], 0 where s = s'."""
    num_roles, num_slots = game.num_roles, game.num_slots
    payoffs = game.payoffs[role]
    # [M_1, ..., M_A, M_role]: the gain of moving from each profile to each slot of this role.
    gains = jnp.expand_dims(jnp.moveaxis(payoffs, role, -1), role) - payoffs[..., None]
    scaled = alpha * gains
    # rho in terms of |d|, so that no exponential overflows; its lower bound gives the limit 1/m at d = 0.
    size = jnp.maximum(jnp.abs(scaled), 1e-30)
    rate = jnp.expm1(-size) / jnp.expm1(-population_size * size)
    rate *= jnp.exp(jnp.minimum(scaled, 0.0) * (population_size - 1))
    rate = jnp.expand_dims(rate, tuple(num_roles + other for other in range(num_roles) if other != role))
    for other, slots in enumerate(num_slots):
        same = jnp.eye(slots, dtype=jnp.float32)
        axes = tuple(axis for axis in range(2 * num_roles) if axis not in (other, num_roles + other))
        rate *= jnp.expand_dims(1.0 - same if other == role else same, axes)
    return rate
