"""Returns and advantages against hand-computed arrays and plain NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl.parts.returns import discounted_returns, generalized_advantages, n_step_targets

T = 7
FALSE = np.zeros(3, bool)
modes = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])
advantages = jax.jit(generalized_advantages)  # one program for all properties


def rows(values):
    return jnp.asarray(values, jnp.float32)


@modes
@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [
        # delta = r + 0.5 v' - v = (1.5, 2.5, 3.5), decay 0.5 * 0.5
        (FALSE, FALSE, [2.34375, 3.375, 3.5]),
        # Termination at the second step: its delta loses 0.5 v', and nothing flows back over it.
        ([False, True, False], FALSE, [1.5 + 0.25 * 1.0, 1.0, 3.5]),
        # Truncation there: the successor's value stays, and nothing flows back over it.
        (FALSE, [False, True, False], [1.5 + 0.25 * 2.5, 2.5, 3.5]),
        # Both at once is a termination.
        ([False, True, False], [False, True, False], [1.75, 1.0, 3.5]),
    ],
)
def test_advantages_by_hand(mode, terminated, truncated, expected):
    terminated, truncated = np.asarray(terminated), np.asarray(truncated)
    estimate = mode(generalized_advantages)(
        rows([1, 2, 3]), rows([1, 1, 1]), rows([3, 3, 3]), terminated, terminated | truncated, 0.5, 0.5
    )
    np.testing.assert_allclose(estimate, expected, rtol=1e-6)


floats = st.floats(-10, 10, width=32)
trajectories = st.fixed_dictionaries(
    {
        "rewards": st.lists(floats, min_size=T, max_size=T),
        "values": st.lists(floats, min_size=T, max_size=T),
        "next_values": st.lists(floats, min_size=T, max_size=T),
        "ending": st.lists(st.sampled_from(["", "", "terminated", "truncated"]), min_size=T, max_size=T),
        "discount": st.floats(0, 1, width=32),
    }
)


def unpack(steps):
    ending = np.asarray(steps["ending"])
    rewards, values, next_values = (
        np.asarray(steps[name], np.float32) for name in ("rewards", "values", "next_values")
    )
    return rewards, values, next_values, ending == "terminated", ending != ""


@settings(max_examples=30, deadline=None, derandomize=True)
@given(trajectories, st.floats(0, 1, width=32))
def test_advantages_equal_a_sum_over_each_episode(steps, gae_lambda):
    rewards, values, next_values, terminated, ended = unpack(steps)
    discount, expected = steps["discount"], np.zeros(T)
    for t in range(T):  # equation 16 of the paper, term by term, up to the first ending
        for k in range(t, T):
            delta = rewards[k] + discount * next_values[k] * (not terminated[k]) - values[k]
            expected[t] += (discount * gae_lambda) ** (k - t) * delta
            if ended[k]:
                break
    estimate = advantages(rewards, values, next_values, terminated, ended, discount, gae_lambda)
    np.testing.assert_allclose(estimate, expected, rtol=1e-4, atol=1e-3)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(trajectories)
def test_lambda_one_is_the_discounted_return_and_lambda_zero_one_step(steps):
    rewards, values, next_values, terminated, ended = unpack(steps)
    discount = steps["discount"]
    # Values of one function, so that they telescope: the successor's is the next row's inside an episode.
    next_values[:-1] = np.where(ended[:-1], next_values[:-1], values[1:])
    target, expected = 0.0, np.zeros(T)
    for t in reversed(range(T)):
        last = ended[t] or t == T - 1
        target = rewards[t] + discount * (0.0 if terminated[t] else next_values[t] if last else target)
        expected[t] = target
    inputs = (rewards, values, next_values, terminated, ended, discount)
    np.testing.assert_allclose(advantages(*inputs, 1.0) + values, expected, rtol=1e-4, atol=1e-3)
    one_step = rewards + discount * np.where(terminated, 0.0, next_values)
    np.testing.assert_allclose(advantages(*inputs, 0.0) + values, one_step, rtol=1e-4, atol=1e-4)


def test_the_value_after_a_termination_is_not_read():
    ended = np.arange(T) == T - 1
    next_values = np.where(ended, np.nan, 0.0).astype(np.float32)
    estimate = advantages(np.ones(T, np.float32), np.ones(T, np.float32), next_values, ended, ended, 0.9, 0.9)
    np.testing.assert_array_equal(estimate, np.zeros(T))


@modes
def test_running_discounted_returns_by_hand(mode):
    running, last = mode(discounted_returns)(rows([1, 2, 3, 4]), jnp.array([False, True, False, False]), rows(8), 0.5)
    np.testing.assert_allclose(running, [5.0, 4.5, 3.0, 5.5])
    assert float(last) == 5.5
    # Continued over two calls it is the same sequence; an ending in the last row empties what is carried.
    first, carried = mode(discounted_returns)(rows([1, 2]), jnp.array([False, True]), rows(8), 0.5)
    second, _ = mode(discounted_returns)(rows([3, 4]), jnp.array([False, False]), carried, 0.5)
    np.testing.assert_array_equal(jnp.concatenate([first, second]), running)
    assert float(carried) == 0.0


@modes
@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [
        (FALSE, FALSE, (1 + 0.5 * 2 + 0.25 * 4, 0.125, 2)),
        ([False, True, False], FALSE, (1 + 0.5 * 2, 0.0, 1)),  # what follows the ending is another episode's
        (FALSE, [False, True, False], (1 + 0.5 * 2, 0.25, 1)),  # cut, but what follows has a value
        ([True, False, False], FALSE, (1.0, 0.0, 0)),
        ([False, False, True], FALSE, (3.0, 0.0, 2)),
        (FALSE, [True, False, True], (1.0, 0.5, 0)),
    ],
)
def test_n_step_targets_by_hand(mode, terminated, truncated, expected):
    terminated = np.asarray(terminated)
    ended = terminated | np.asarray(truncated)
    total, factor, last = mode(n_step_targets)(rows([1, 2, 4]), terminated, ended, jnp.float32(0.5))
    np.testing.assert_allclose([total, factor, last], expected)
    assert last.dtype == jnp.int32


def test_n_step_targets_ignore_rewards_behind_the_ending():
    ended = jnp.array([False, True, False])
    total, _, _ = n_step_targets(rows([1, 2, np.nan]), ended, ended, 1.0)
    assert float(total) == 3.0
