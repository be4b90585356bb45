"""Closed forms of FlipIt: gains, best responses and equilibria against which play and learning can be checked.

Notation of van Dijk, Juels, Oprea, Rivest, "FlipIt: The Game of Stealthy Takeover" (J. Cryptology 2013): player i in
{0 defender, 1 attacker} moves at rate alpha_i at cost k_i per move, controls the resource a fraction gamma_i of the
time (gamma_0 + gamma_1 = 1) and has the benefit rate beta_i = gamma_i - k_i alpha_i. The unit of cost is one unit of
time in control. All values are long-run averages, re-derived for this project. The second half is for discrete time,
as `PoolFlip` plays it: both move, then control changes (the defender wins ties), then the controller gains 1 per tick;
q = 1 - p.

Plain Python numbers in and out; no batch axes. Arguments are trusted: rates, periods and costs are positive.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple


class Equilibrium(NamedTuple):
    """Nash equilibrium in rates."""

    alpha: tuple[float, float]
    beta: tuple[float, float]


def benefit(gamma: float, k: float, alpha: float) -> float:
    """beta = gamma - k alpha."""
    return gamma - k * alpha


# Periodic strategies P(delta) with random phases, alpha = 1 / delta.


def periodic_gain(alpha_0: float, alpha_1: float) -> float:
    """gamma_0 of periodic against periodic play."""
    return 1 - alpha_1 / (2 * alpha_0) if alpha_0 >= alpha_1 else alpha_0 / (2 * alpha_1)


def periodic_best_response(alpha_0: float, k_1: float) -> float:
    """The attacker's best rate against rate `alpha_0`; 0: do not play.

    At `alpha_0 = 1 / (2 k_1)` every rate in [0, alpha_0] is best; alpha_0 is returned.
    """
    return math.sqrt(alpha_0 / (2 * k_1)) if 2 * k_1 * alpha_0 <= 1 else 0.0


def periodic_equilibrium(k_0: float, k_1: float) -> Equilibrium:
    """Nash equilibrium among periodic strategies."""
    if k_0 > k_1:
        (alpha_1, alpha_0), (beta_1, beta_0) = periodic_equilibrium(k_1, k_0)
        return Equilibrium((alpha_0, alpha_1), (beta_0, beta_1))
    return Equilibrium((1 / (2 * k_1), k_0 / (2 * k_1**2)), (1 - k_0 / k_1, 0.0))


# Renewal strategies against exponential play E(lambda), that is Poisson moves of rate lambda.


def renewal_gain(transform: float, mean: float, lam: float) -> float:
    """gamma of the player whose gaps X have mean `mean` and `transform` = E[exp(-lam X)], against E(lam)."""
    return (1 - transform) / (lam * mean)


def periodic_transform(delta: float, lam: float) -> float:
    """E[exp(-lam X)] of P(delta)."""
    return math.exp(-lam * delta)


def uniform_transform(low: float, high: float, lam: float) -> float:
    """E[exp(-lam X)] of gaps uniform on [low, high]."""
    return (math.exp(-lam * low) - math.exp(-lam * high)) / (lam * (high - low))


def exponential_gain(lam_0: float, lam_1: float) -> float:
    """gamma_0 of E(lam_0) against E(lam_1)."""
    return lam_0 / (lam_0 + lam_1)


def exponential_best_response(lam_1: float, k_0: float) -> float:
    """The best rate of exponential play against E(lam_1); 0: do not play."""
    return max(0.0, math.sqrt(lam_1 / k_0) - lam_1)


def exponential_equilibrium(k_0: float, k_1: float) -> Equilibrium:
    """Nash equilibrium among exponential strategies."""
    total = k_0 + k_1
    return Equilibrium((k_1 / total**2, k_0 / total**2), ((k_1 / total) ** 2, (k_0 / total) ** 2))


# An attacker who, on moving, learns the time of the defender's last move (LM).


class LastMoveResponse(NamedTuple):
    """Best response of an LM attacker to exponential play: he waits z after each of his moves."""

    u: float  # lambda z
    z: float
    beta: float
    gamma: float


def last_move_best_response(lam: float, k_1: float) -> LastMoveResponse | None:
    """Best response to E(lam); greedy, optimal and periodic play agree here. None: never move (lam k_1 >= 1).

    u solves exp(-u) (1 + u) = 1 - lam k_1.
    """
    if lam * k_1 >= 1:
        return None
    # At u = 64 the left side is below every representable 1 - lam k_1 > 0.
    u = _bisect(lambda u: math.exp(-u) * (1 + u) - (1 - lam * k_1), 0.0, 64.0)
    return LastMoveResponse(u, u / lam, math.exp(-u), -math.expm1(-u) / u)


def last_move_defence(k_0: float, k_1: float) -> tuple[float, float]:
    """The best rate lambda of exponential play against an LM attacker who responds best, and its beta_0.

    With the response u as parameter: lambda(u) = (1 - exp(-u) (1 + u)) / k_1 and
    beta_0(u) = 1 - (1 - exp(-u)) / u - k_0 lambda(u). For k_0 / k_1 below 0.8510, the minimum of
    (exp(u) - 1) / (u (1 + u)), driving the attacker out by lambda = 1 / k_1 is best.
    """

    def rate(u: float) -> float:
        return (1 - math.exp(-u) * (1 + u)) / k_1

    def value(u: float) -> float:
        return 1 + math.expm1(-u) / u - k_0 * rate(u)

    best = max((0.001 * step for step in range(1, 40_000)), key=value)
    candidates = [(rate(best), value(best)), (1 / k_1, 1 - k_0 / k_1), (0.0, 0.0)]
    return max(candidates, key=lambda candidate: candidate[1])


def last_move_against_periodic(delta: float, k_0: float, k_1: float) -> tuple[float, float]:
    """(beta_0, beta_1) of P(delta) against an LM attacker who moves right after every move; k_1 < delta."""
    return -k_0 / delta, 1 - k_1 / delta


def greedy_benefit_uniform(z: float, low: float, high: float, tau: float, k_1: float) -> float:
    """Local benefit L(z) of waiting z > 0 against gaps uniform on [low, high], tau after the opponent's last move.

    L(z) = (int_0^z x f(x) dx + z int_z^inf f(x) dx - k_1) / z with f the density of the opponent's remaining wait.
    """
    first, last = max(low - tau, 0.0), high - tau
    density = 1 / (last - first)
    inside = min(max(z, first), last)
    return (density * ((inside**2 - first**2) / 2 + z * (last - inside)) - k_1) / z


def greedy_wait_uniform(low: float, high: float, tau: float, k_1: float) -> float:
    """The wait z that maximises `greedy_benefit_uniform`; greedy is not optimal against uniform gaps."""
    first, last = max(low - tau, 0.0), high - tau
    return min(last, math.sqrt(first**2 + 2 * k_1 * (last - first)))


# Discrete time.


def discrete_periodic_gain(d_0: int, d_1: int, coin_ties: bool = False) -> float:
    """gamma_0 of P(d_0) against P(d_1), phases uniform over the ticks; `coin_ties`: a fair coin decides ties."""
    gamma_0 = 1 - (d_0 - 1) / (2 * d_1) if d_0 <= d_1 else (d_1 + 1) / (2 * d_0)
    return gamma_0 - coin_ties / (2 * max(d_0, d_1))


def discrete_renewal_gain(transform: float, mean: float, p: float) -> float:
    """gamma_0 of a defender whose gaps X have `transform` = E[q^X], against a move with probability p per tick."""
    return (1 - transform) / (p * mean)


def discrete_periodic_against_geometric(d: int, p: float) -> float:
    """gamma_0 of a defender P(d) against a move with probability p per tick."""
    return discrete_renewal_gain((1 - p) ** d, d, p)


def geometric_against_discrete_periodic(p: float, d: int) -> float:
    """gamma_0 of a defender who moves with probability p per tick, against P(d)."""
    q = 1 - p
    return 1 - q * (1 - q**d) / (p * d)


def geometric_gain(p_0: float, p_1: float) -> float:
    """gamma_0 where each moves with his probability per tick."""
    return p_0 / (p_0 + p_1 - p_0 * p_1)


def last_move_attacks_discrete_periodic(d: int, k_1: float) -> float:
    """beta_1 of an LM attacker who moves one tick after every move of P(d); k_1 < d - 1."""
    return 1 - (1 + k_1) / d


def last_move_defends_discrete_periodic(d: int, k_0: float) -> float:
    """beta_0 of an LM defender who moves in the ticks of P(d) and wins the ties."""
    return 1 - k_0 / d


def blind_benefit(p: float, flip_cost: float, d: int) -> float:
    """beta_0 of flipping every d ticks against a move with probability p per tick."""
    return discrete_periodic_against_geometric(d, p) - flip_cost / d


def check_benefit(p: float, flip_cost: float, check_cost: float, m: int) -> float:
    """beta_0 of a check m ticks after the last known possession, and a flip in the next tick if it shows a loss."""
    q = 1 - p
    lost = 1 - q**m
    return (q * lost / p + lost * (1 - flip_cost) - check_cost) / (m + lost)


class GeometricResponse(NamedTuple):
    """The optimal defence against a move with probability p per tick."""

    beta: float
    policy: str  # "check" every `period` ticks, "blind" flips every `period` ticks, or "sleep"
    period: int


def best_response_to_geometric(p: float, flip_cost: float, check_cost: float, longest: int = 1000) -> GeometricResponse:
    """The best of blind flips, checks and never acting, with periods up to `longest`.

    It equals the optimum over all policies wherever relative value iteration was run beside it.
    """
    responses = [GeometricResponse(0.0, "sleep", 0)]
    for period in range(1, longest + 1):
        responses.append(GeometricResponse(blind_benefit(p, flip_cost, period), "blind", period))
        responses.append(GeometricResponse(check_benefit(p, flip_cost, check_cost, period), "check", period))
    return max(responses, key=lambda response: response.beta)


def finite_optimum_against_geometric(p: float, flip_cost: float, check_cost: float, horizon: int) -> float:
    """The best benefit per tick over all policies in an episode of `horizon` ticks that begins in possession.

    Dynamic programming backwards over what the defender can know: the ticks since he last knew that he owned the
    resource, or that he has lost it. In a tick both move, the defender wins ties, and a look reveals the result.
    """
    q = 1 - p
    owned = [q**age for age in range(horizon + 1)]  # probability after so many ticks of the opponent
    known, lost = [0.0] * (horizon + 1), 0.0  # values to go at an age, and known lost
    for ticks_left in range(1, horizon + 1):
        flipped = 1 - flip_cost + known[0]
        now = []
        for age in range(horizon + 1 - ticks_left):
            still = owned[age + 1]
            sleep = still + known[age + 1]
            check = still * (1 + known[0]) + (1 - still) * lost - check_cost
            now.append(max(sleep, check, flipped))
        known, lost = now, max(lost, flipped)
    return known[0] / horizon


def _bisect(decreasing: Callable[[float], float], low: float, high: float) -> float:
    """The root of a function that decreases from positive to negative on [low, high]."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if decreasing(middle) > 0 else (low, middle)
    return (low + high) / 2
