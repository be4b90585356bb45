"""`scan_updates` on an algorithm of three lines: one scan or many chunks, and how rows of metrics are joined."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.loop import scan_updates
from jaxrl.types import Algorithm, Data
from programs import bits

DATA = Data(dataset=jnp.float32(0.1))


def init(key, hparams, data):
    return {"key": key, "sum": jnp.zeros(3), "updates": jnp.zeros((), jnp.int32)}


def update(state, hparams, data):
    """A random walk; update i finishes i mod 3 episodes with return i, of length 10 i."""
    key, key_step = jax.random.split(state["key"])
    i = state["updates"]
    metrics = {
        "loss/walk": jnp.sum(state["sum"]),
        "episode/return": i.astype(jnp.float32),
        "episode/length": 10.0 * i.astype(jnp.float32),
        "episode/count": i % 3,
    }
    total = state["sum"] * 0.9 + hparams * jax.random.normal(key_step, (3,)) + data.dataset
    return {"key": key, "sum": total, "updates": i + 1}, metrics


AGENT = Algorithm(init, update)


@functools.cache
def run(chunk, log_every=1):
    """Twelve updates in chunks."""
    play = jax.jit(lambda state, hparams: scan_updates(AGENT, state, hparams, chunk, DATA, log_every))
    state, rows = init(jax.random.key(0), None, DATA), []
    for _ in range(12 // chunk):
        state, metrics = play(state, jnp.float32(0.5))
        rows.append(metrics)
    assert play._cache_size() == 1
    return state, jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


def test_chunks_equal_one_scan_bitwise():
    whole = run(12)
    assert all(values.shape == (12,) for values in whole[1].values())
    for chunk in (1, 4):
        assert bits(run(chunk)) == bits(whole)
    assert bits(run(4, log_every=2)) == bits(run(12, log_every=2))


def test_rows_are_sums_of_counts_and_means_weighted_by_them():
    state, single = run(12)
    reduced_state, reduced = run(12, log_every=2)
    assert bits(state) == bits(reduced_state)
    by_row = {name: values.reshape(6, 2) for name, values in single.items()}
    count = by_row["episode/count"]  # 0 1, 2 0, 1 2, 0 1, 2 0, 1 2
    np.testing.assert_array_equal(reduced["episode/count"], [1, 2, 3, 1, 2, 3])
    assert reduced["episode/count"].dtype == np.int32
    np.testing.assert_allclose(reduced["loss/walk"], by_row["loss/walk"].mean(1), rtol=1e-6)
    for name in ("episode/return", "episode/length"):
        np.testing.assert_allclose(reduced[name], np.average(by_row[name], axis=1, weights=count), rtol=1e-6)


def test_a_row_without_an_episode_is_zero_and_a_nan_is_not_averaged_away():
    def poisoned(state, hparams, data):
        state, metrics = update(state, hparams, data)
        loss = jnp.where(state["updates"] == 2, jnp.nan, 1.0)
        return state, metrics | {"loss/walk": loss, "episode/count": jnp.zeros((), jnp.int32)}

    start = init(jax.random.key(0), None, DATA)
    metrics = jax.jit(lambda state: scan_updates(Algorithm(init, poisoned), state, 0.5, 4, DATA, 2)[1])(start)
    np.testing.assert_array_equal(metrics["episode/return"], [0.0, 0.0])
    np.testing.assert_array_equal(np.isnan(metrics["loss/walk"]), [True, False])


def test_members_of_a_sweep_equal_their_single_runs():
    keys = jax.random.split(jax.random.key(1), 2)
    steps = jnp.array([0.1, 1.0])

    def train(key, hparams):
        return scan_updates(AGENT, init(key, hparams, DATA), hparams, 5, DATA)[0]["sum"]

    swept = jax.jit(jax.vmap(jax.vmap(train, (0, None)), (None, 0)))(keys, steps)
    single = jax.jit(train)
    for i, hparams in enumerate(steps):
        for j, key in enumerate(keys):
            np.testing.assert_allclose(swept[i, j], single(key, hparams), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("log_every", [0, -1, 5, 24])
def test_rows_that_do_not_divide_are_refused(log_every):
    with pytest.raises(ValueError, match=f"log_every={log_every} must divide num_updates=12"):
        scan_updates(AGENT, None, None, 12, DATA, log_every)
