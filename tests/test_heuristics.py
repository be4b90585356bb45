"""The heuristics of PoolFlip: names, timing, and the reference table of their cross-play."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from envs_jax.games import heuristics
from envs_jax.versus import agent_view
from jaxrl.rollout import episodes
from poolflip_play import assert_within, play

R, T = 3, 256
TABLE_NAMES = ("sleep", "periodic(4)", "exponential(0.25)", "uniform(4,2)", "guard(2)", "burst(6,18)")
# Blue rows, red columns, in the order of TABLE_NAMES; means of 4,096 episodes, rounded to 3 digits.
OWN_BLUE = [
    [1.000, 0.022, 0.049, 0.027, 0.004, 0.035],
    [1.000, 0.543, 0.682, 0.560, 0.284, 0.671],
    [1.000, 0.382, 0.530, 0.393, 0.213, 0.485],
    [1.000, 0.535, 0.674, 0.546, 0.292, 0.661],
    [1.000, 0.709, 0.794, 0.712, 0.418, 0.792],
    [1.000, 0.397, 0.575, 0.410, 0.221, 0.533],
]
BENEFIT_BLUE = [
    [1.000, 0.022, 0.049, 0.027, 0.004, 0.035],
    [0.667, 0.210, 0.349, 0.227, -0.049, 0.338],
    [0.706, 0.087, 0.236, 0.097, -0.082, 0.190],
    [0.668, 0.203, 0.342, 0.215, -0.040, 0.329],
    [0.833, 0.214, 0.396, 0.219, -0.413, 0.406],
    [0.667, 0.063, 0.242, 0.077, -0.112, 0.200],
]
BENEFIT_RED = [
    [0.000, 0.645, 0.656, 0.641, 0.815, 0.632],
    [0.000, 0.124, 0.023, 0.108, 0.208, -0.004],
    [0.000, 0.285, 0.175, 0.276, 0.362, 0.182],
    [0.000, 0.132, 0.030, 0.122, 0.201, 0.007],
    [0.000, -0.043, -0.089, -0.044, -0.255, -0.126],
    [0.000, 0.270, 0.129, 0.258, 0.399, 0.133],
]


def check_table(num_episodes: int) -> None:
    env, _ = envs_jax.make("poolflip-r3", horizon=T)
    pairs = list(itertools.product(TABLE_NAMES, TABLE_NAMES))
    blue, red = (env.heuristics([pair[side] for pair in pairs]) for side in (0, 1))  # type: ignore[attr-defined]
    result = play(env, blue, red, num_episodes)
    columns = (
        (result.own[..., 0], OWN_BLUE, "own_blue"),
        (result.benefit[..., 0], BENEFIT_BLUE, "u_blue"),
        (result.benefit[..., 1], BENEFIT_RED, "u_red"),
    )
    for values, table, what in columns:
        for pair, cell, expected in zip(pairs, values, np.ravel(table), strict=True):
            # Of the table: sampling, and rounding to 3 digits.
            reference_error = np.hypot(cell.std() / 64, 0.0005 / np.sqrt(3))
            assert_within(cell, expected, reference_error, f"{what} of {' v '.join(pair)}")


@pytest.mark.slow
def test_cross_play():
    check_table(num_episodes=128)


@pytest.mark.slow
def test_cross_play_closely():
    check_table(num_episodes=4096)


@pytest.mark.slow
def test_cross_play_of_renewal_strategies_over_long_episodes():
    """Per resource the closed forms of discrete time hold; simulated reference values over 4,096 ticks."""
    env, _ = envs_jax.make("poolflip-r3", horizon=4096)
    blue = env.heuristics(["periodic(4)", "exponential(0.25)", "exponential(0.25)", "periodic(4)"])  # type: ignore[attr-defined]
    red = env.heuristics(["exponential(0.25)", "periodic(4)", "exponential(0.25)", "periodic(4)"])  # type: ignore[attr-defined]
    result = play(env, blue, red, num_episodes=512)
    for own, expected, error in zip(result.own[..., 0], (0.6800, 0.3713, 0.5205, 0.532), (0.0007,) * 3 + (0.013,)):
        assert_within(own, expected, error)


# One rule at a time, against an opponent who sleeps.


@pytest.fixture(scope="module")
def alone():
    """`alone(name)`: actions i32 [T, E] and state ticks of a heuristic that plays red while blue sleeps."""
    env, params = envs_jax.make("poolflip-r3", horizon=T, role="red", opponents=["sleep"])
    policy = heuristics.make_heuristics(R)

    @jax.jit
    def run(policy_params):
        keys = jax.random.split(jax.random.key(0), 32)
        played = episodes(env, policy, policy_params, params, keys, jax.random.key(1), T, record=lambda *x: x[2])
        return played.record

    return lambda name: np.asarray(run(heuristics.parse(name)))


def gaps(actions: np.ndarray) -> list[np.ndarray]:
    """Per episode, the ticks between moves."""
    return [np.diff(np.flatnonzero(column)) for column in actions.T]


def test_sleep_never_moves(alone):
    assert not alone("sleep").any()


@pytest.mark.parametrize("name", ["periodic(4)", "greedy_exp(0.1)"])
def test_periodic_rules(alone, name):
    actions = alone(name)
    assert set(np.unique(actions)) == {0, 1, 3, 5}
    for flip in (1, 3, 5):
        period = {"periodic(4)": 4 * R, "greedy_exp(0.1)": 14}[name]
        between = np.concatenate(gaps(actions == flip))
        # greedy_exp moves once per tick: resources due together wait for each other, once.
        assert np.median(between) == period
        assert set(between) <= ({period} if name == "periodic(4)" else set(range(period, period + R)))
    first = (actions != 0).argmax(axis=0)
    assert len(set(first)) > 2  # random phases
    assert first.max() < period


def test_turns_go_round(alone):
    for name in ("periodic(4)", "uniform(4,2)", "burst(6,18)"):
        for column in alone(name).T:
            targets = (column[column > 0] - 1) // 2
            np.testing.assert_array_equal(np.diff(targets) % R, 1)


def test_uniform_gaps(alone):
    between = np.concatenate(gaps(alone("uniform(4,2)")))
    assert set(between) == {2, 3, 4, 5, 6}
    assert_within(between.astype(float), 4.0)
    assert_within((between == 6).astype(float), 0.2)


@pytest.mark.parametrize(("name", "rate"), [("exponential(0.25)", 1 - np.exp(-0.25)), ("random(0.4)", 0.4)])
def test_random_rules(alone, name, rate):
    actions = alone(name)
    assert_within((actions > 0).mean(axis=0), rate)
    for flip in (1, 3, 5):
        assert_within((actions == flip).mean(axis=0), rate / R)


def test_burst_has_campaigns_and_rests(alone):
    moves = alone("burst(6,18)") > 0
    np.testing.assert_array_equal(moves[24:], moves[:-24])
    np.testing.assert_array_equal(moves[:24].sum(axis=0), 6)
    assert len({tuple(column) for column in moves[:24].T}) > 8  # random phases


def test_guard_flips_what_is_lost_then_checks_the_stalest(alone):
    actions = alone("guard(3)")
    np.testing.assert_array_equal(actions[:3], np.array([[1], [3], [5]]) * np.ones((1, actions.shape[1])))
    for column in actions.T:
        checks = column[column > 0][3:]
        np.testing.assert_array_equal(checks, np.resize([2, 4, 6], len(checks)))
        assert set(np.diff(np.flatnonzero(column)[3:])) == {3}


def test_shadow_answers_a_flip_it_has_seen():
    """Red shadows a blue who flips resource 1 once: the check that shows it is followed by a flip w ticks later."""
    env, params = envs_jax.make("poolflip-r3", horizon=40)
    start, act = heuristics.make_heuristics(R)
    shadow = heuristics.parse("shadow(2,5)")

    @jax.jit
    def run(key):
        def tick(loop, blue):
            state, time_step, carry = loop
            red, carry, _ = act(shadow, carry, agent_view(time_step, jnp.int32(1)), key, False)
            state, time_step = env.step(key, state, jnp.stack([blue, red]), params)
            return (state, time_step, carry), red

        blue = jnp.zeros(40, jnp.int32).at[10].set(3)
        return jax.lax.scan(tick, (*env.reset(key, params), start(shadow, key)), blue)[1]

    actions = run(jax.random.key(0)).tolist()
    (flip,) = [tick for tick, action in enumerate(actions) if action % 2 == 1]
    assert actions[flip] == 3
    assert actions[flip - 5] == 4
    assert flip - 5 >= 10
    checks = [action for action in actions if action > 0 and action % 2 == 0]
    assert checks[:4] == [2, 4, 6, 2]


def test_rules_that_never_pay_sleep(alone):
    for name in ("greedy_exp(0.25)", "greedy_exp(0.1,10)", "exponential(0)", "random(0)"):
        assert not alone(name).any(), name


# As opponents and as a learner's policy.


@pytest.mark.slow
def test_guard_against_the_training_mixture():
    """Either role's margin of guard(2) over the uniform mixture of the first four columns (rows) of the table."""
    env, params = envs_jax.make("poolflip-r3", role="blue", opponents=list(TABLE_NAMES[:4]))
    policy, guard = heuristics.make_heuristics(R), heuristics.parse("guard(2)")
    keys = jax.random.split(jax.random.key(0), 256)

    @jax.jit
    @jax.vmap
    def play_as(role):
        return episodes(env, policy, guard, params.replace(role=role), keys, jax.random.key(1), T).episode_return

    margins = np.subtract(BENEFIT_BLUE, BENEFIT_RED)
    blue, red = np.asarray(play_as(jnp.arange(2))) / T
    assert_within(blue, margins[4, :4].mean(), reference_error=0.002)
    assert_within(red, -margins[:4, 4].mean(), reference_error=0.002)


@pytest.mark.parametrize(
    ("name", "kind", "values"),
    [
        ("sleep", "sleep", (0, 0)),
        ("sleep()", "sleep", (0, 0)),
        (" uniform( 4 , 2 ) ", "uniform", (4, 2)),
        ("exponential(0.25)", "exponential", (1 - np.exp(-0.25), 0)),
        ("greedy_exp(0.1)", "greedy_exp", (14, 0)),
        ("greedy_exp(0.1,1)", "greedy_exp", (5, 0)),
        ("shadow(4,1)", "shadow", (4, 1)),
    ],
)
def test_parse(name, kind, values):
    parsed = heuristics.parse(name)
    assert heuristics.KINDS[int(parsed.kind)] == kind
    np.testing.assert_allclose(parsed.values, values, rtol=1e-6)
    assert (parsed.kind.dtype, parsed.values.dtype) == (jnp.int32, jnp.float32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("periodc(4)", "unknown heuristic 'periodc.4.'; did you mean 'periodic'"),
        ("periodic", "has 0 arguments, it must read 'periodic.d.'"),
        ("periodic(4,2)", "has 2 arguments, it must read 'periodic.d.'"),
        ("sleep(1)", "has 1 arguments, it must read 'sleep'"),
        ("periodic(4.5)", "d in 'periodic.4.5.' must be an integer from 1"),
        ("periodic(0)", "d in 'periodic.0.' must be an integer from 1"),
        ("periodic(nan)", "must be an integer from 1"),
        ("random(1.5)", "rho in 'random.1.5.' must be a number from 0 to 1"),
        ("uniform(2,2)", "h in 'uniform.2,2.' must be below d"),
        ("guard(x)", "must be numbers"),
        ("guard(2", "is written like"),
        ("", "is written like"),
    ],
)
def test_refused_names(name, message):
    with pytest.raises(ValueError, match=message):
        heuristics.parse(name)
    with pytest.raises(ValueError, match=message):
        envs_jax.make("poolflip-r3", role="blue", opponents=["sleep", name])
