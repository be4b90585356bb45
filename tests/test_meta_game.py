"""Meta-games and their solvers on games whose solutions are known."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from jaxrl.parts import alpha_rank, meta_game, meta_solvers
from jaxrl.parts.meta_game import make_meta_game, nash_conv

generator = np.random.default_rng(0)  # the reference's seed and order of draws
SKEWED_RPS = np.array([[0.0, -1, 2], [1, 0, -1], [-2, 1, 0]])  # Nash (.25, .5, .25) for both
SKEWED_PENNIES = np.array([[2.0, -1], [-1, 1]])  # Nash (.4, .6) for both, value 0.2
RANDOM_16, RANDOM_32 = generator.uniform(-1, 1, (16, 16)), generator.uniform(-1, 1, (32, 32))
MATRICES = (SKEWED_RPS, SKEWED_PENNIES, RANDOM_16, RANDOM_32)
VALUES = (0.0, 0.2, 0.0746, 0.0221)

RPS = np.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])
PRISONERS_DILEMMA = np.array([[[3.0, 0], [5, 1]], [[3, 5], [0, 1]]])  # slot 1 defects
ALL_SOLVERS = {name: {} for name in meta_solvers.META_SOLVERS} | {"heuristics": {"num_heuristics": 2}}


def zero_sum(matrix):
    return np.stack([matrix, -matrix])


@functools.cache
def program(name, **options):
    """A solver compiled once per shape: payoffs [A, M_1, ..., M_A] and masks in, strategies out."""
    solve = functools.partial(meta_solvers.META_SOLVERS[name].solve, **ALL_SOLVERS[name], **options)
    return jax.jit(lambda payoffs, active: solve(make_meta_game(payoffs, active)))


def solve(name, payoffs, **options):
    return program(name, **options)(payoffs, tuple(np.ones(n, bool) for n in payoffs.shape[1:]))


def solve_padded(name, payoffs, capacity=6, **options):
    """The same with `capacity` slots per role, so that small games share one program."""
    game = padded_game(payoffs, capacity)
    strategies = program(name, **options)(game.payoffs, game.active)
    return [strategy[:n] for strategy, n in zip(strategies, payoffs.shape[1:], strict=True)]


def padded_game(payoffs, capacity, padding=0.0):
    """The game in `capacity` slots per role; the payoffs of empty slots read `padding`."""
    num_slots = payoffs.shape[1:]
    padded = np.full((len(num_slots), *[capacity] * len(num_slots)), padding, np.float32)
    padded[(slice(None), *map(slice, num_slots))] = payoffs
    return meta_game.MetaGame(padded, tuple(np.arange(capacity) < n for n in num_slots))


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def shift_game():
    """Three roles, two slots each; a role earns 2 for every other role that helps (slot 0), and helping costs 1."""
    payoffs = np.zeros((3, 2, 2, 2))
    for profile in itertools.product(range(2), repeat=3):
        for role in range(3):
            helpers = sum(profile[other] == 0 for other in range(3) if other != role)
            payoffs[(role, *profile)] = 2.0 * helpers - (profile[role] == 0)
    return payoffs


def mismatching_game():
    """Jordan's three roles: role i wants to match role i + 1, the last wants to differ from the first."""
    payoffs = np.zeros((3, 2, 2, 2))
    for a, b, c in itertools.product(range(2), repeat=3):
        payoffs[:, a, b, c] = [a == b, b == c, c != a]
    return payoffs


@pytest.fixture(scope="module")
def table_games():
    """The four matrices of the table in one program: padded to 32 slots."""
    return stack([padded_game(zero_sum(matrix), 32) for matrix in MATRICES])


@functools.partial(jax.jit, static_argnames="name")
def solve_games(name, games, num_iterations):
    solve = meta_solvers.META_SOLVERS[name].solve
    return jax.vmap(lambda game: solve(game, num_iterations=num_iterations))(games)


def exact_value(matrix):
    """max_x min_b (x Z)_b by linear programming."""
    num_rows, num_columns = matrix.shape
    result = linprog(
        np.r_[np.zeros(num_rows), -1.0],
        A_ub=np.c_[-matrix.T, np.ones(num_columns)],
        b_ub=np.zeros(num_columns),
        A_eq=np.r_[np.ones(num_rows), 0.0][None],
        b_eq=[1.0],
        bounds=[(0, None)] * num_rows + [(None, None)],
    )
    return -result.fun


@pytest.mark.parametrize(
    ("name", "num_iterations", "published"),
    [
        ("rm+", 100, (1.5e-2, 1.5e-2, 6.2e-3, 3.3e-3)),
        ("rm+", 1000, (1.6e-3, 2.3e-3, 2.9e-4, 7.7e-5)),
        ("rm+", 5000, (3.8e-4, 3.4e-4, 5.3e-5, 8.9e-6)),
        ("fp", 1000, (4.5e-2, 5.1e-2, 7.0e-2, 8.0e-2)),
        ("fp", 5000, (2.0e-2, 2.3e-2, 3.5e-2, 3.6e-2)),
        ("prd", 20_000, (4.3e-3, 6.3e-3, 1.5e-2, 2.1e-2)),
    ],
)
def test_nash_conv_is_within_twice_the_reference_and_brackets_the_exact_value(
    table_games, name, num_iterations, published
):
    rows, columns = solve_games(name, table_games, num_iterations)
    measured = jax.vmap(nash_conv)(table_games, (rows, columns))
    for i, matrix in enumerate(MATRICES):
        row = np.asarray(rows[i, : matrix.shape[0]], np.float64)
        column = np.asarray(columns[i, : matrix.shape[1]], np.float64)
        row, column = row / row.sum(), column / column.sum()
        lower, upper = (row @ matrix).min(), (matrix @ column).max()
        value = exact_value(matrix)
        assert value == pytest.approx(VALUES[i], abs=5e-5)
        assert lower - 1e-12 <= value <= upper + 1e-12
        assert upper - lower <= 2 * published[i]
        assert float(measured[i]) == pytest.approx(upper - lower, abs=1e-6)


def test_regret_matching_finds_the_known_equilibria(table_games):
    rows, columns = solve_games("rm+", table_games, 5000)
    for strategies in (rows, columns):
        np.testing.assert_allclose(strategies[0, :3], [0.25, 0.5, 0.25], atol=1e-3)
        np.testing.assert_allclose(strategies[1, :2], [0.4, 0.6], atol=1e-3)


@pytest.mark.parametrize(("name", "tolerance"), [("rm+", 1e-4), ("prd", 1e-4), ("alpharank", 1e-4), ("fp", 2e-2)])
@pytest.mark.parametrize("matrix", [RPS, np.array([[1.0, -1], [-1, 1]])], ids=["rock-paper-scissors", "pennies"])
def test_symmetric_zero_sum_games_are_played_uniformly(name, tolerance, matrix):
    for strategy in solve_padded(name, zero_sum(matrix)):
        np.testing.assert_allclose(strategy, 1 / len(matrix), atol=tolerance)


@pytest.mark.parametrize("name", ["fp", "prd", "alpharank"])
def test_the_prisoners_defect(name):
    options = {"alpha": 0.5} if name == "alpharank" else {}
    for strategy in solve_padded(name, PRISONERS_DILEMMA, **options):
        assert strategy[1] > 0.99


@pytest.mark.parametrize("name", ["fp", "prd", "alpharank"])
def test_three_roles_leave_the_dominated_slot(name):
    game = make_meta_game(shift_game())
    options = {"alpha": 0.5} if name == "alpharank" else {}
    strategies = solve(name, shift_game(), **options)
    assert len(strategies) == 3
    for strategy in strategies:
        assert strategy[1] > 0.98
    assert float(nash_conv(game, strategies)) < 0.06


def test_nash_conv_of_three_roles_by_hand():
    game = make_meta_game(mismatching_game())
    half = (jnp.full(2, 0.5),) * 3
    assert float(nash_conv(game, half)) == pytest.approx(0.0, abs=1e-6)  # its only equilibrium
    pure = (jnp.array([1.0, 0.0]),) * 3  # (0, 0, 0): only the last role gains by moving
    np.testing.assert_allclose(meta_game.best_response_gains(game, pure), [0, 0, 1])
    np.testing.assert_allclose(meta_game.expected_payoffs(game, pure), [1, 1, 0])
    assert float(nash_conv(game, pure)) == 1.0


def test_deviation_payoffs_equal_the_full_contraction():
    generator = np.random.default_rng(1)
    payoffs = generator.normal(size=(3, 2, 3, 4)).astype(np.float32)
    x, y, z = (generator.dirichlet(np.ones(n)).astype(np.float32) for n in (2, 3, 4))
    game, strategies = make_meta_game(payoffs), (jnp.array(x), jnp.array(y), jnp.array(z))
    for role, (own, equation) in enumerate([(x, "abc,b,c->a"), (y, "abc,a,c->b"), (z, "abc,a,b->c")]):
        others = [s for s in (x, y, z) if s is not own]
        expected = np.einsum(equation, payoffs[role], *others)
        np.testing.assert_allclose(meta_game.deviation_payoffs(game, strategies, role), expected, atol=1e-6)
    expected = np.einsum("iabc,a,b,c->i", payoffs, x, y, z)
    np.testing.assert_allclose(meta_game.expected_payoffs(game, strategies), expected, atol=1e-6)
    assert float(nash_conv(game, strategies)) > 0


@pytest.mark.parametrize(
    ("payoffs", "alpha", "expected"),
    [
        (zero_sum(SKEWED_RPS), 0.1, [[0.3805, 0.3745, 0.2450]] * 2),
        (zero_sum(SKEWED_PENNIES), 0.1, [[0.5, 0.5], [0.4116, 0.5884]]),
        (np.array([np.diag([3.0, 2.0]), np.diag([2.0, 3.0])]), 0.5, [[0.5, 0.5]] * 2),  # battle of the sexes
    ],
)
def test_alpharank_vectors(payoffs, alpha, expected):
    strategies = solve_padded("alpharank", payoffs, alpha=alpha)
    for strategy, masses in zip(strategies, expected, strict=True):
        np.testing.assert_allclose(strategy, masses, atol=6e-5)


def test_alpharank_equals_a_plain_chain_of_three_roles():
    """An independent f64 chain over (2, 3, 2) slots, its stationary law by a linear solve."""
    payoffs, alpha, size = np.random.default_rng(2).uniform(-1, 1, (3, 2, 3, 2)), 0.05, 50
    profiles = list(itertools.product(range(2), range(3), range(2)))
    chain = np.zeros((12, 12))
    for (i, source), (j, target) in itertools.product(enumerate(profiles), repeat=2):
        changed = [role for role in range(3) if source[role] != target[role]]
        if len(changed) == 1:
            gain = payoffs[(changed[0], *target)] - payoffs[(changed[0], *source)]
            chain[i, j] = (1 - np.exp(-alpha * gain)) / (1 - np.exp(-alpha * size * gain)) / (1 + 2 + 1)
    chain += np.diag(1 - chain.sum(1))
    chain = (1 - 1e-6) * chain + 1e-6 / 12
    law = np.linalg.lstsq(np.r_[chain.T - np.eye(12), np.ones((1, 12))], np.r_[np.zeros(12), 1], rcond=None)[0]
    masses = jax.jit(lambda game: alpha_rank.alpharank_masses(game, alpha=alpha, population_size=size))(
        make_meta_game(payoffs)
    )
    np.testing.assert_allclose(masses, law.reshape(2, 3, 2), atol=2e-5)


@pytest.mark.parametrize(
    ("name", "matrix", "capacity"),
    [(name, SKEWED_RPS, 6) for name in ALL_SOLVERS] + [("rm+", RANDOM_16[:, :12], 20), ("prd", RANDOM_16[:, :12], 20)],
)
def test_padding_changes_nothing_and_gets_no_probability(name, matrix, capacity):
    game = padded_game(zero_sum(matrix), capacity, padding=np.nan)
    padded = program(name)(game.payoffs, game.active)
    for expected, strategy in zip(solve(name, zero_sum(matrix)), padded, strict=True):
        np.testing.assert_allclose(strategy[: len(expected)], expected, atol=1e-6)
        assert np.all(np.asarray(strategy[len(expected) :]) == 0.0)
        assert float(jnp.sum(strategy)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", list(ALL_SOLVERS))
def test_masked_slots_never_get_probability_and_masks_never_recompile(name):
    """A population that grows, also with holes, over one tensor whose empty slots would pay best."""
    matrix = np.random.default_rng(3).uniform(-1, 1, (6, 6))
    masks = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 1], [1, 1, 1, 1, 1, 1]], bool)
    cache_sizes = set()
    for rows, columns in itertools.product(masks, masks):
        payoffs = zero_sum(matrix)
        payoffs[0][~rows], payoffs[1][:, ~columns] = 100.0, 100.0
        strategies = program(name)(payoffs.astype(np.float32), (rows, columns))
        for strategy, mask in zip(strategies, (rows, columns), strict=True):
            assert np.all(np.asarray(strategy)[~mask] == 0.0)
            assert np.all(np.asarray(strategy) >= 0.0)
            assert float(jnp.sum(strategy)) == pytest.approx(1.0, abs=1e-5)
        cache_sizes.add(program(name)._cache_size())
    assert len(cache_sizes) == 1


def test_a_dominated_row_changes_little():
    row, column = solve_padded("rm+", zero_sum(RANDOM_16), capacity=20)
    wider = np.r_[RANDOM_16, RANDOM_16.min(0, keepdims=True) - 0.1]
    wide_row, wide_column = solve_padded("rm+", zero_sum(wider), capacity=20)
    np.testing.assert_allclose(wide_row[:16], row, atol=1e-3)
    assert float(wide_row[16]) < 1e-3
    np.testing.assert_allclose(wide_column, column, atol=1e-3)


@pytest.mark.parametrize("name", list(ALL_SOLVERS))
def test_jit_equals_eager_and_vmap_equals_a_loop(name):
    options = {"num_iterations": 200} if name in ("rm+", "fp", "prd") else {}
    solver = meta_solvers.make_meta_solver(name, zero_sum=True, **ALL_SOLVERS[name], **options)
    matrices = (SKEWED_RPS, RPS + 0.1 * np.eye(3), np.random.default_rng(4).normal(size=(3, 3)))
    games = [make_meta_game(zero_sum(matrix)) for matrix in matrices]
    batched = jax.jit(jax.vmap(solver))(stack(games))
    compiled = jax.jit(solver)
    for i, game in enumerate(games):
        single = compiled(game)
        for role in range(2):
            assert single[role].dtype == jnp.float32
            assert single[role].shape == (3,)
            np.testing.assert_allclose(batched[role][i], single[role], atol=1e-6)
    for expected, strategy in zip(solver(games[0]), compiled(games[0]), strict=True):
        np.testing.assert_allclose(strategy, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["rm+", "prd", "alpharank"])
def test_renaming_slots_renames_the_solution(name):
    generator = np.random.default_rng(5)
    matrix = generator.uniform(-1, 1, (6, 6))
    rows, columns = generator.permutation(6), generator.permutation(6)
    row, column = solve_padded(name, zero_sum(matrix))
    new_row, new_column = solve_padded(name, zero_sum(matrix[rows][:, columns]))
    np.testing.assert_allclose(new_row, row[rows], atol=1e-5)
    np.testing.assert_allclose(new_column, column[columns], atol=1e-5)


def test_scale_and_constant_sum_do_not_change_regret_matching():
    reference = solve_padded("rm+", zero_sum(SKEWED_RPS))
    share = np.stack([0.5 + SKEWED_RPS / 8, 0.5 - SKEWED_RPS / 8])  # payoffs add up to 1
    for payoffs in (16.0 * zero_sum(SKEWED_RPS), share):
        for strategy, expected in zip(solve_padded("rm+", payoffs), reference, strict=True):
            np.testing.assert_allclose(strategy, expected, atol=1e-6)


def test_solvers_without_payoffs():
    active = (np.array([1, 1, 1, 0, 0, 0], bool), np.array([1, 1, 0, 1, 0, 0], bool))
    payoffs = np.zeros((2, 6, 6), np.float32)
    np.testing.assert_allclose(program("uniform")(payoffs, active)[0], [1 / 3, 1 / 3, 1 / 3, 0, 0, 0], atol=1e-7)
    np.testing.assert_array_equal(program("last")(payoffs, active), [[0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]])
    np.testing.assert_array_equal(program("heuristics")(payoffs, active), [[0.5, 0.5, 0, 0, 0, 0]] * 2)


@pytest.mark.parametrize("name", ["rm+", "fp", "prd", "alpharank", "uniform", "last"])
def test_a_single_policy_per_role_is_played(name):
    np.testing.assert_allclose(solve_padded(name, np.full((2, 1, 1), 0.7)), [[1.0]] * 2, atol=1e-6)


def test_entropy_in_nats():
    strategies = jnp.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(meta_game.strategy_entropy(strategies), [np.log(2), 0, np.log(3)], atol=1e-6)


def test_joint_policy_correlation_by_hand():
    returns = jnp.array([[1.0, 0.5, 0.3], [0.4, 0.8, 0.6], [0.2, 0.4, 0.6]])
    assert float(meta_game.joint_policy_correlation(returns)) == pytest.approx((0.8 - 0.4) / 0.8)
    assert float(meta_game.joint_policy_correlation(jnp.ones((4, 4)))) == pytest.approx(0.0)
    for shape in ((1, 1), (2, 3), (3,)):
        with pytest.raises(ValueError, match="square matrix"):
            meta_game.joint_policy_correlation(jnp.ones(shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "rm", "zero_sum": True}, "unknown meta-solver 'rm'; did you mean 'rm\\+'"),
        ({"name": "rm+", "zero_sum": False}, "'rm\\+' needs a zero-sum utility: its average.*'prd' or 'alpharank'"),
        ({"name": "fp", "zero_sum": False}, "needs a zero-sum utility"),
        ({"name": "rm+", "zero_sum": True, "num_roles": 3}, "solves games of 2 roles, got 3"),
        ({"name": "rm+", "zero_sum": True, "iterations": 5}, "no option 'iterations'; did you mean 'num_iterations'"),
        ({"name": "uniform", "zero_sum": True, "alpha": 1.0}, "Allowed: none"),
        ({"name": "fp", "zero_sum": True, "num_iterations": 0}, "num_iterations must be a positive integer, got 0"),
        ({"name": "fp", "zero_sum": True, "num_iterations": 10.0}, "positive integer, got 10.0"),
        ({"name": "prd", "zero_sum": False, "step_size": -1.0}, "step_size must be a positive number"),
        ({"name": "heuristics", "zero_sum": False}, "needs the option 'num_heuristics'"),
    ],
)
def test_bad_solvers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        meta_solvers.make_meta_solver(**arguments)


def test_double_oracle_solves_rock_paper_scissors():
    """PSRO with an exact oracle: both roles start from rock alone and add best responses to the meta-strategies."""
    rows, columns = [0], [0]  # the action that each slot of a population plays
    for _ in range(6):
        empirical = zero_sum(RPS[np.ix_(rows, columns)])
        weights = solve_padded("rm+", empirical, capacity=8)
        mixed = [
            np.bincount(members, np.asarray(strategy), minlength=3)
            for members, strategy in zip((rows, columns), weights, strict=True)
        ]
        rows.append(int(np.argmax(RPS @ mixed[1])))
        columns.append(int(np.argmin(mixed[0] @ RPS)))
    assert float(nash_conv(make_meta_game(zero_sum(RPS)), tuple(map(jnp.asarray, mixed)))) < 1e-2


def test_general_sum_utilities_have_solvers():
    for name in ("prd", "alpharank", "uniform", "last"):
        meta_solvers.make_meta_solver(name, zero_sum=False, num_roles=3)


def test_bad_games_are_refused():
    with pytest.raises(ValueError, match="payoffs must have shape"):
        make_meta_game(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="payoffs must have shape"):
        make_meta_game(np.zeros((3, 4, 4)))
    with pytest.raises(ValueError, match="one mask per role"):
        make_meta_game(np.zeros((2, 4, 4)), np.ones((2, 3), bool))
    with pytest.raises(ValueError, match="at most 4096"):
        alpha_rank.alpharank(make_meta_game(np.zeros((2, 65, 64))))
