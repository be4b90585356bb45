"""Strings of symbols: the tasks, the teacher, preferences, and the environment's promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from envs_jax.testing import check_environment
from envs_jax.text.symbols import BEGIN, FIRST_SYMBOL, SEPARATOR, TASKS, Symbols
from programs import compiled

LENGTH = 4


def play(env, state, params, answer):
    """The tokens, who spoke, and the rewards of one episode, step by step."""

    def step(carry, t):
        action = answer[jnp.maximum(t - (env.prompt_length - 1), 0)]
        state, shown = env.step(jax.random.key(0), carry, action, params)
        return state, (shown.observation, shown.info["role"], shown.reward, shown.ended, shown.info["right"])

    return jax.lax.scan(step, state, jnp.arange(env.max_steps))[1]


@pytest.mark.parametrize("task", TASKS)
def test_an_episode(task):
    env, params = envs_jax.make("symbols", task=task, length=LENGTH, num_symbols=5)

    @compiled
    def run(key):
        state, first = env.reset(key, params)
        answer = env.demonstrate(key, state, params)
        wrong = answer.at[0].set(SEPARATOR)
        return state, first.observation, answer, play(env, state, params, answer), play(env, state, params, wrong)

    for seed in range(3):
        state, first, answer, good, bad = run(jax.random.key(seed))
        string = np.asarray(state.string)
        assert first.tolist() == [BEGIN, 0]
        assert set(string) <= set(range(FIRST_SYMBOL, FIRST_SYMBOL + 5))
        assert answer.tolist() == {"copy": string, "reverse": string[::-1], "sort": np.sort(string)}[task].tolist()
        tokens, speaks = np.asarray(good[0]).T
        assert tokens.tolist() == [*string, SEPARATOR, *answer]
        assert speaks.tolist() == [0] * LENGTH + [1] * LENGTH + [0]
        assert good[1].tolist() == [0] * (LENGTH + 1) + [1] * LENGTH
        assert good[2].tolist() == [0.0] * (2 * LENGTH) + [1.0]
        assert good[3].tolist() == [False] * (2 * LENGTH) + [True]
        assert not np.asarray(bad[2]).any()
        assert float(bad[4][-1]) == 1 - 1 / LENGTH


def test_faults_of_the_teacher_and_preferences():
    env, params = envs_jax.make("symbols", task="sort", fault_probability=0.5)

    @compiled
    def draw(key):
        state, _ = env.reset(key, params)
        return state.answer, env.demonstrate(key, state, params), env.prefer(key, state, params)

    answer, shown, (better, worse) = (jax.vmap(draw))(jax.random.split(jax.random.key(0), 400))
    share = np.mean(np.all(answer == shown, axis=1))
    assert abs(share - 0.5) < 0.08  # over 3 standard deviations
    assert (np.diff(shown) >= 0).all()  # a fault is the answer to another string
    np.testing.assert_array_equal(better, answer)
    assert np.any(better != worse, axis=1).all()
    short = Symbols(length=1, num_symbols=2)
    better, worse = short.prefer(jax.random.key(0), short.reset(jax.random.key(1), params)[0], params)
    assert {int(better[0]), int(worse[0])} == {FIRST_SYMBOL, FIRST_SYMBOL + 1}


@pytest.mark.slow  # the conformance test of all registered environments plays the default one
def test_the_promises_of_an_environment():
    check_environment(Symbols("reverse", length=3, num_symbols=4), num_steps=20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "sorted"}, "task must be one of copy, reverse, sort, got 'sorted'; did you mean 'sort'"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"num_symbols": 1}, "num_symbols must be at least 2, got 1"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        envs_jax.make("symbols", **options)
