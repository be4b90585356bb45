"""FlipIt: the published and re-derived formulas, play against them, and the optima of the one-resource game."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from envs_jax.games import flipit_theory as theory
from envs_jax.games.flipit import FlipIt
from envs_jax.spaces import Discrete
from poolflip_play import Result, assert_within, play

# beta_0 and beta_1 in continuous time.
CONTINUOUS = [
    ("P(10) v P(25)", theory.periodic_gain(1 / 10, 1 / 25), (1, 1), (1 / 10, 1 / 25), (0.7000, 0.1600)),
    ("P(40) v P(16)", theory.periodic_gain(1 / 40, 1 / 16), (2, 3), (1 / 40, 1 / 16), (0.1500, 0.6125)),
    ("P(4) v P(8)", theory.periodic_gain(1 / 4, 1 / 8), (1, 2), (1 / 4, 1 / 8), (0.5000, 0.0000)),
    (
        "P(10) v E(.05)",
        theory.renewal_gain(theory.periodic_transform(10, 0.05), 10, 0.05),
        (1, 1),
        (1 / 10, 0.05),
        (0.6869, 0.1631),
    ),
    (
        "E(.1) v P(25)",
        1 - theory.renewal_gain(theory.periodic_transform(25, 0.1), 25, 0.1),
        (1, 3),
        (0.1, 1 / 25),
        (0.5328, 0.2472),
    ),
    ("E(.1) v E(.05)", theory.exponential_gain(0.1, 0.05), (1, 2), (0.1, 0.05), (0.5667, 0.2333)),
    ("E(2/9) v E(1/9)", theory.exponential_gain(2 / 9, 1 / 9), (1, 2), (2 / 9, 1 / 9), (0.4444, 0.1111)),
]

# gamma_0, k and beta in discrete time; G(p) moves with probability p per tick.
DISCRETE = [
    ("periodic(8)", "periodic(12)", theory.discrete_periodic_gain(8, 12), (1, 1), (0.5833, 0.2083)),
    ("periodic(12)", "periodic(8)", theory.discrete_periodic_gain(12, 8), (1, 1), (0.2917, 0.5000)),
    ("periodic(10)", "periodic(25)", theory.discrete_periodic_gain(10, 25), (2, 3), (0.6200, 0.0600)),
    ("periodic(10)", "random(0.05)", theory.discrete_periodic_against_geometric(10, 0.05), (1, 1), (0.7025, 0.1475)),
    ("random(0.05)", "periodic(10)", theory.geometric_against_discrete_periodic(0.05, 10), (1, 1), (0.1876, 0.6624)),
    ("periodic(20)", "random(0.1)", theory.discrete_periodic_against_geometric(20, 0.1), (1, 1), (0.3892, 0.4608)),
    ("random(0.1)", "random(0.05)", theory.geometric_gain(0.1, 0.05), (1, 1), (0.5897, 0.2603)),
]
COIN = ("periodic(8)", "periodic(12)", theory.discrete_periodic_gain(8, 12, coin_ties=True), (1, 1), (0.5417, 0.2500))

# p, flip cost, check cost -> value, policy, period; and the best blind policy.
OPTIMA = [
    (0.02, 4, 1, 0.7292, "check", 11, 0.6340, 23),
    (0.05, 4, 1, 0.5260, "check", 8, 0.4498, 16),
    (-math.expm1(-0.25) / 3, 4, 1, 0.4003, "check", 7, 0.3515, 14),
    (0.1, 4, 1, 0.2832, "check", 7, 0.2660, 13),
    (0.1, 4, 0.25, 0.4207, "check", 3, 0.2660, 13),
    (0.1, 2, 0.2, 0.6027, "check", 2, 0.4619, 8),
    (0.2, 4, 1, 0.0558, "blind", 13, 0.0558, 13),
    (0.3, 4, 1, 0.0000, "sleep", 0, None, None),
]


def rate(name: str) -> float:
    """Moves per tick of a heuristic with one resource."""
    kind, value = name.rstrip(")").split("(")
    return 1 / float(value) if kind == "periodic" else float(value)


# Continuous time.


@pytest.mark.parametrize(("name", "gamma_0", "k", "alpha", "beta"), CONTINUOUS, ids=[row[0] for row in CONTINUOUS])
def test_benefits_in_continuous_time(name, gamma_0, k, alpha, beta):
    assert theory.benefit(gamma_0, k[0], alpha[0]) == pytest.approx(beta[0], abs=5.1e-5), name
    assert theory.benefit(1 - gamma_0, k[1], alpha[1]) == pytest.approx(beta[1], abs=5.1e-5), name


def test_uniform_gaps_against_exponential():
    gamma_0 = theory.renewal_gain(theory.uniform_transform(8, 12, 0.05), 10, 0.05)
    assert gamma_0 == pytest.approx(0.7849, abs=5.1e-5)


@pytest.mark.parametrize(("k_0", "k_1"), [(1, 2), (2, 1), (1.5, 1.5)])
def test_equilibria_are_mutual_best_responses(k_0, k_1):
    """No rate on a fine grid improves on an equilibrium rate, for either player and either family."""
    families = (
        (theory.periodic_equilibrium(k_0, k_1), theory.periodic_gain),
        (theory.exponential_equilibrium(k_0, k_1), theory.exponential_gain),
    )
    for (alpha, beta), gain in families:
        assert theory.benefit(gain(*alpha), k_0, alpha[0]) == pytest.approx(beta[0], abs=1e-12)
        assert theory.benefit(1 - gain(*alpha), k_1, alpha[1]) == pytest.approx(beta[1], abs=1e-12)
        for other in np.linspace(1e-4, 2, 2000):
            assert theory.benefit(gain(other, alpha[1]), k_0, other) <= beta[0] + 1e-12
            assert theory.benefit(1 - gain(alpha[0], other), k_1, other) <= beta[1] + 1e-12


def test_best_responses_beat_a_grid():
    grid = np.linspace(1e-3, 2, 4000)
    for alpha_0, k_1 in ((0.1, 1), (0.3, 1), (0.7, 1)):
        best = theory.periodic_best_response(alpha_0, k_1)
        values = [theory.benefit(1 - theory.periodic_gain(alpha_0, rate), k_1, rate) for rate in grid]
        reached = theory.benefit(1 - theory.periodic_gain(alpha_0, best), k_1, best) if best else 0.0
        assert reached >= max(values) - 1e-12
    best = theory.exponential_best_response(0.05, 2)
    values = [theory.benefit(theory.exponential_gain(rate, 0.05), 2, rate) for rate in grid]
    assert theory.benefit(theory.exponential_gain(best, 0.05), 2, best) >= max(values)
    assert theory.exponential_best_response(1.0, 2) == 0.0


@pytest.mark.parametrize(
    ("lam", "k_1", "u", "z", "beta"),
    [
        (0.1, 1, 0.5318, 5.3181, 0.5875),
        (0.1, 3, 1.0973, 10.9735, 0.3338),
        (0.05, 2, 0.5318, 10.6362, 0.5875),
        (0.02, 10, 0.8244, 41.2194, 0.4385),
        (0.1, 9.5, 4.7439, 47.4386, 0.0087),
    ],
)
def test_last_move_response_to_exponential(lam, k_1, u, z, beta):
    response = theory.last_move_best_response(lam, k_1)
    assert response is not None
    assert response[:3] == pytest.approx((u, z, beta), abs=5.1e-5)
    assert theory.benefit(response.gamma, k_1, 1 / response.z) == pytest.approx(response.beta)
    assert theory.last_move_best_response(lam, 1 / lam) is None


def test_last_move_defence():
    response = theory.last_move_best_response(0.1, 1)
    assert response is not None
    assert theory.benefit(1 - response.gamma, 1, 0.1) == pytest.approx(0.1244, abs=5.1e-5)
    # Below the ratio 0.8510 of costs the attacker is driven out, above it he is tolerated.
    assert theory.last_move_defence(0.84, 1) == (1.0, pytest.approx(0.16))
    lam, beta_0 = theory.last_move_defence(0.86, 1)
    assert lam < 1
    assert beta_0 > 1 - 0.86
    assert theory.last_move_against_periodic(10, 1, 2) == (-0.1, 0.8)


@pytest.mark.parametrize(("low", "high", "k_1", "z", "value"), [(8, 12, 1, 8.4853, 0.8787), (6, 14, 1, 7.2111, 0.8486)])
def test_greedy_wait_against_uniform(low, high, k_1, z, value):
    assert theory.greedy_wait_uniform(low, high, 0.0, k_1) == pytest.approx(z, abs=5.1e-5)
    assert theory.greedy_benefit_uniform(z, low, high, 0.0, k_1) == pytest.approx(value, abs=5.1e-5)


@pytest.mark.parametrize("tau", [0.0, 3.0, 9.0, 11.0])
def test_greedy_wait_maximises_the_local_benefit(tau):
    best = theory.greedy_wait_uniform(8, 12, tau, 0.3)
    values = [theory.greedy_benefit_uniform(z, 8, 12, tau, 0.3) for z in np.linspace(0.01, 12 - tau, 2000)]
    assert theory.greedy_benefit_uniform(best, 8, 12, tau, 0.3) >= max(values) - 1e-9


# Discrete time.


def simulate(rows, num_episodes: int, horizon: int, skip: int, tie: str = "defender") -> Result:
    env = FlipIt(horizon=horizon, tie=tie)
    return play(env, env.heuristics([r[0] for r in rows]), env.heuristics([r[1] for r in rows]), num_episodes, skip)


def assert_rows(rows, result: Result) -> None:
    for row, own, flips in zip(rows, result.own, result.num_flips, strict=True):
        blue, red, gamma_0, k, beta = row
        for agent, (gamma, name) in enumerate(((gamma_0, blue), (1 - gamma_0, red))):
            assert theory.benefit(gamma, k[agent], rate(name)) == pytest.approx(beta[agent], abs=5.1e-5)
            benefit = own[:, agent] - k[agent] * flips[:, agent]
            assert_within(benefit, beta[agent], what=f"{blue} v {red}, agent {agent}")


def test_play_agrees_with_the_formulas():
    assert_rows(DISCRETE, simulate(DISCRETE, 256, 1456, 256))


@pytest.mark.slow
def test_play_agrees_with_the_formulas_closely():
    assert_rows(DISCRETE, simulate(DISCRETE, 4096, 4096, 256))
    assert_rows([COIN], simulate([COIN], 4096, 4096, 256, tie="random"))


def last_move(delay: int):
    """`(start, act)`: knows the opponent's period d, probes once for his phase, then moves `delay` ticks after him."""

    def act(policy_params, carry, time_step, key, deterministic):
        del key, deterministic
        d = policy_params
        now, seen = time_step.info["time"], time_step.info["opponent_flip"][0]
        flips = jnp.where(seen < 0, now == d, (now - seen) % d == delay)
        return flips.astype(jnp.int32), carry, {}

    return lambda policy_params, key: (), act


@pytest.mark.parametrize("role", ["blue", "red"])
def test_a_fixed_period_is_fully_exploited(role):
    d, k = 10, 2
    env = FlipIt(horizon=45 * d)
    periodic, learner = env.heuristics([f"periodic({d})"]), (*last_move(int(role == "red")), jnp.array([d]))
    sides = (learner, periodic) if role == "blue" else (periodic, learner)
    result = play(env, *sides, num_episodes=20, skip=5 * d)
    agent = env.roles.index(role)
    benefit = result.own[..., agent] - k * result.num_flips[..., agent]
    formula = (
        theory.last_move_defends_discrete_periodic if role == "blue" else theory.last_move_attacks_discrete_periodic
    )
    np.testing.assert_allclose(benefit, formula(d, k), atol=1e-6)


# The optima.


def optimal_gains(longest: int = 400, num_iterations: int = 4000) -> np.ndarray:
    """Relative value iteration for each row of OPTIMA, over {ticks since known to own, known to have lost}."""
    p, flip_cost, check_cost = (np.array(column, float)[:, None] for column in list(zip(*OPTIMA, strict=True))[:3])
    still = (1 - p) ** np.arange(1, longest + 1)[None, :]  # [row, age]: owned at the end of the tick of this age
    value, lost, gain = np.zeros_like(still), np.zeros_like(p), np.zeros_like(p)
    for _ in range(num_iterations):
        flip = 1 - flip_cost + value[:, :1]
        older = np.concatenate([value[:, 1:], value[:, -1:]], axis=1)
        check = still - check_cost + still * value[:, :1] + (1 - still) * lost
        # Half-steps make the chain aperiodic.
        new = 0.5 * value + 0.5 * np.maximum(np.maximum(flip, check), still + older)
        new_lost = 0.5 * lost + 0.5 * np.maximum(flip, lost)
        gain = 2 * (new[:, :1] - value[:, :1])
        value, lost = new - new[:, :1], new_lost - new[:, :1]
    return gain[:, 0]


def test_optimal_defence_against_geometric_moves():
    gains = optimal_gains()
    for row, gain in zip(OPTIMA, gains, strict=True):
        p, flip_cost, check_cost, value, policy, period, blind, blind_period = row
        response = theory.best_response_to_geometric(p, flip_cost, check_cost)
        assert response == (pytest.approx(value, abs=5.1e-5), policy, period), row
        assert gain == pytest.approx(response.beta, abs=1e-4), row
        values = [theory.blind_benefit(p, flip_cost, d) for d in range(1, 200)]
        if blind is None:
            assert max(values) < 0
        else:
            assert max(values) == pytest.approx(blind, abs=5.1e-5)
            assert np.argmax(values) + 1 == blind_period


def test_checking_policy_reaches_its_value():
    """Check m ticks after the last known possession, flip in the tick after a check that shows a loss."""

    def act(policy_params, carry, time_step, key, deterministic):
        del key, deterministic
        info = time_step.info
        is_time = info["time"] - info["knowledge_time"][0] >= policy_params
        return jnp.where(~info["believed_own"][0], 1, jnp.where(is_time, 2, 0)), carry, {}

    rows = [row for row in OPTIMA if row[4] == "check"]
    env, _ = envs_jax.make("poolflip-r1", horizon=1256)
    blue = (lambda policy_params, key: (), act, jnp.array([row[5] for row in rows]))
    red = env.heuristics([f"random({row[0]})" for row in rows])
    result = play(env, blue, red, num_episodes=256, skip=256)
    columns = (moves[..., 0] for moves in (result.own, result.num_flips, result.num_checks))
    for row, own, flips, checks in zip(rows, *columns, strict=True):
        assert_within(own - row[1] * flips - row[2] * checks, row[3], 5e-5, str(row))


# The environment.


@pytest.mark.parametrize(("mode", "shown"), [("both", [0, 1]), ("own", [0]), ("opponent", [1])])
def test_observation_is_the_ages_of_known_moves(mode, shown):
    env = FlipIt(horizon=20, observation_mode=mode)
    params = env.default_params
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    state, time_step = reset(jax.random.key(0), params)
    np.testing.assert_array_equal(time_step.observation, np.ones((2, len(shown)), np.float32))
    for moves in ((0, 1), (0, 0), (1, 0), (0, 1)):
        state, time_step = step(jax.random.key(0), state, jnp.array(moves, jnp.int32), params)
    # After four ticks blue last flipped at tick 2 and then saw red's flip of tick 0; red at tick 3, and saw that of 2.
    ages = np.log1p([[2, 4], [1, 2]]) / np.log1p(20)
    np.testing.assert_allclose(time_step.observation, ages[:, shown], rtol=1e-6)
    np.testing.assert_allclose(time_step.reward, [0.0, 1.0 - 5.0])


def test_one_role_against_heuristics():
    env, params = envs_jax.make("flipit", role="red", opponents=["periodic(10)"])
    assert env.action_space(params) == Discrete(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observation_mode": "full"}, "unknown observation_mode 'full'.*both, own, opponent"),
        ({"role": "blue", "opponents": ["guard(2)"]}, "needs checks"),
        ({"horizon": 0}, "horizon must be an integer of at least 1, got 0"),
        ({"num_resources": 2}, "no option 'num_resources'"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        envs_jax.make("flipit", **options)


def test_finite_optimum_is_the_best_of_all_policies_and_tends_to_the_long_run():
    finite = theory.finite_optimum_against_geometric
    # One tick in possession: keep it with probability q, or flip for certain.
    assert finite(0.3, 4.0, 1.0, 1) == pytest.approx(0.7)
    assert finite(0.9, 0.25, 1.0, 1) == pytest.approx(0.75)
    # Two ticks without any look: q + q^2.
    assert finite(0.1, 4.0, 1.0, 2) == pytest.approx((0.9 + 0.81) / 2)
    for p, flip_cost, check_cost in ((0.02, 4.0, 1.0), (0.1, 4.0, 0.25), (0.2, 4.0, 1.0), (0.3, 4.0, 1.0)):
        long_run = theory.best_response_to_geometric(p, flip_cost, check_cost).beta
        short, long = finite(p, flip_cost, check_cost, 256), finite(p, flip_cost, check_cost, 1024)
        assert long_run - 1e-9 < long < short < long_run + 0.1
        assert long - long_run < 0.02
