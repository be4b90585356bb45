"""Replay: what is drawn and how often, what a window holds, what is refused, and that nothing is copied."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxrl.parts.buffers import ReplayConfig, check_in_place, make_replay
from jaxrl.parts.sum_tree import init_tree, sample_leaves, set_leaves
from jaxrl.types import Transition
from programs import compiled

B, T, LENGTH, N, DISCOUNT = 3, 4, 12, 3, 0.9
NUM_BLOCKS = 8  # 32 steps of each environment: the rings wrap twice
CONFIG = ReplayConfig(capacity=B * LENGTH, warmup=20)


def history():
    """NumPy transitions [time, B] with endings of both kinds; an observation is (environment, time)."""
    time, env = np.meshgrid(np.arange(NUM_BLOCKS * T), np.arange(B), indexing="ij")
    random = np.random.default_rng(0)
    terminated, truncated = random.random((2, *time.shape)) < 0.15
    observation = np.stack([env, time], -1).astype(np.float32)
    return Transition(
        observation=observation,
        action=random.integers(0, 5, time.shape).astype(np.int32),
        reward=random.normal(size=time.shape).astype(np.float32),
        terminated=terminated,
        truncated=truncated,
        next_observation=observation + np.array([0.0, 0.5], np.float32),  # not the observation of the next step
        next_legal_actions=random.random((*time.shape, 5)) < 0.5,
    )


def window_by_hand(steps, time, env):
    """What `read` must return of the window that begins at `time`."""
    total, last = 0.0, time
    for last in range(time, time + N):
        total += DISCOUNT ** (last - time) * steps.reward[last, env]
        if steps.terminated[last, env] or steps.truncated[last, env]:
            break
    bootstrap = 0.0 if steps.terminated[last, env] else DISCOUNT ** (last - time + 1)
    first, end = (jax.tree.map(lambda leaf, at=at: leaf[at, env], steps) for at in (time, last))
    return first.observation, first.action, total, bootstrap, end.next_observation, end.next_legal_actions


@pytest.fixture(scope="module", params=[False, True], ids=["uniform", "prioritised"])
def filled(request):
    """The buffer after every block, and a large sample of it with what the windows hold."""
    replay = make_replay(dataclasses.replace(CONFIG, prioritized=request.param), B, T, N)
    steps = history()
    add = compiled(replay.add)
    draw = compiled(lambda state, key: replay.sample(state, key, 4096))
    read = compiled(lambda state, index: replay.read(state, index, DISCOUNT))
    state, states = replay.init(jax.tree.map(lambda leaf: jnp.asarray(leaf[0, 0]), steps)), []
    for block in range(NUM_BLOCKS):
        rows = slice(block * T, (block + 1) * T)
        state = add(state, jax.tree.map(lambda leaf, rows=rows: jnp.asarray(leaf[rows]), steps))
        sample = draw(state, jax.random.key(block))
        states.append(SimpleNamespace(state=state, sample=sample, windows=read(state, sample.index)))
    assert add._cache_size() == draw._cache_size() == read._cache_size() == 1
    return SimpleNamespace(replay=replay, steps=steps, states=states)


def test_every_complete_window_is_drawn_equally_often_and_no_other(filled):
    for block, after in enumerate(filled.states):
        now = (block + 1) * T
        starts = range(max(now - LENGTH, 0), now - N + 1)
        envs, times = np.asarray(after.windows.observation, int).T
        counts = np.zeros((B, now), int)
        np.add.at(counts, (envs, times), 1)
        assert set(times) == set(starts)  # in particular none that reaches past the newest step
        expected = 4096 / (B * len(starts))
        np.testing.assert_allclose(counts[:, starts], expected, atol=5 * np.sqrt(expected))
        np.testing.assert_array_equal(np.asarray(after.sample.index), envs * LENGTH + times % LENGTH)
        np.testing.assert_allclose(after.sample.density, 1.0, rtol=1e-5)


def test_windows_equal_a_plain_loop(filled):
    for after in filled.states:
        _, first = np.unique(after.sample.index, return_index=True)
        windows = jax.tree.map(lambda leaf, first=first: np.asarray(leaf)[first], after.windows)
        for i, (env, time) in enumerate(windows.observation.astype(int)):
            expected = window_by_hand(filled.steps, time, env)
            for leaf, value in zip(jax.tree.leaves(windows), expected, strict=True):
                np.testing.assert_allclose(leaf[i], value, rtol=1e-5, atol=1e-6)


def test_warm_from_the_stated_number_of_transitions_on(filled):
    warm = [bool(filled.replay.is_warm(after.state)) for after in filled.states]
    assert warm == [False] + [True] * (NUM_BLOCKS - 1)  # 12 transitions a block


# --- priorities


def test_priorities_decide_how_often_a_window_is_drawn():
    replay = make_replay(dataclasses.replace(CONFIG, prioritized=True), B, T, N)
    block = {"x": jnp.zeros((T, B))}

    @compiled
    def play(key):
        state = replay.add(replay.add(replay.init({"x": jnp.zeros(())}), block), block)
        # The window at step 2 of environment 1 is named twice: the largest value counts, not the last one.
        index = jnp.array([0, LENGTH + 2, LENGTH + 2, 2 * LENGTH + 5], jnp.int32)
        state = replay.set_priorities(state, index, jnp.array([3.0, 6.0, 2.0, 0.5]))
        before = replay.sample(state, key, 20_000)
        return before, state, replay.add(state, block)

    sample, state, later = play(jax.random.key(0))
    priorities = np.zeros(B * LENGTH)
    priorities.reshape(B, LENGTH)[:, :6] = 1.0  # 8 steps hold 6 windows of 3
    priorities[[0, LENGTH + 2, 2 * LENGTH + 5]] = 3.0, 6.0, 0.5
    np.testing.assert_array_equal(np.ravel(state.priorities[0])[: B * LENGTH], priorities)
    chances = priorities / priorities.sum()
    counts = np.bincount(sample.index, minlength=B * LENGTH)
    np.testing.assert_allclose(counts / 20_000, chances, atol=5 * np.sqrt(0.25 / 20_000))
    assert (counts[priorities == 0] == 0).all()
    np.testing.assert_array_equal(sample.priority, priorities[sample.index].astype(np.float32))
    np.testing.assert_allclose(sample.density, chances[sample.index] * B * 6, rtol=1e-5)
    # Windows that the next block completes get the largest priority so far; those it begins wait.
    priorities.reshape(B, LENGTH)[:, 6:10] = 6.0
    np.testing.assert_array_equal(np.ravel(later.priorities[0])[: B * LENGTH], priorities)


@pytest.mark.parametrize("num_leaves", [1, 32, 33, 1025])
def test_a_sum_tree_holds_sums_and_never_draws_zeros(num_leaves):
    """Values over eight orders of magnitude, most of them 0, changed three times."""
    random = np.random.default_rng(num_leaves)
    tree, values = init_tree(num_leaves), np.zeros(num_leaves, np.float32)
    change = compiled(set_leaves)
    for _ in range(3):
        index = random.permutation(num_leaves)[: num_leaves // 2 + 1].astype(np.int32)
        new = np.exp(random.uniform(-9.0, 9.0, index.shape)) * (random.random(index.shape) < 0.1)
        new[0] = 1.0
        values[index] = new
        tree = change(tree, index, jnp.asarray(new, jnp.float32))
    np.testing.assert_array_equal(np.ravel(tree[0])[:num_leaves], values)
    for below, level in itertools.pairwise(tree):
        np.testing.assert_allclose(np.ravel(level)[: below.shape[0]], np.sum(below, -1), rtol=1e-6)
    assert tree[-1].shape == (1, 32)

    index, drawn = compiled(lambda key: sample_leaves(tree, key, 50_000))(jax.random.key(0))
    np.testing.assert_array_equal(drawn, values[index])
    assert np.min(drawn) > 0.0
    chances = values / values.sum(dtype=np.float64)
    counts = np.bincount(index, minlength=num_leaves)
    np.testing.assert_allclose(counts / 50_000, chances, atol=5 * np.sqrt(0.25 / 50_000))


def test_rounding_never_leads_to_a_zero(monkeypatch):
    """Draws at the very boundaries between leaves, where sums of floats on different levels disagree."""

    @compiled
    def draw(tree, uniform):
        monkeypatch.setattr(jax.random, "uniform", lambda key, shape: uniform)
        return sample_leaves(tree, jax.random.key(0), len(uniform))

    for seed in range(60):
        random = np.random.default_rng(seed)
        values = np.float32(random.random(1024) * (random.random(1024) < 0.2))
        tree = set_leaves(init_tree(1024), jnp.arange(1024, dtype=jnp.int32), jnp.asarray(values))
        boundary = np.float32(np.cumsum(values, dtype=np.float64) / values.sum(dtype=np.float64))
        around = boundary[None] * np.float32(1.0 + 2.0**-23 * np.arange(-4, 5))[:, None]
        index, drawn = draw(tree, np.clip(around, 0.0, np.float32(1.0 - 2.0**-24)).ravel())
        assert np.min(drawn) > 0.0
        np.testing.assert_array_equal(drawn, values[index])


# --- memory and refusals


@struct.dataclass
class Holder:
    buffer: object


@pytest.mark.parametrize("prioritized", [False, True])
def test_updates_are_in_place_and_the_check_notices_a_copy(prioritized):
    replay = make_replay(ReplayConfig(capacity=B * T * 10_000, prioritized=prioritized), B, T, N)
    state = jax.eval_shape(lambda: Holder(replay.init({"x": jnp.zeros(8)})))

    def update(state, key):
        buffer = replay.add(state.buffer, {"x": jnp.ones((T, B, 8))})
        sample = replay.sample(buffer, key, 16)
        return Holder(replay.set_priorities(buffer, sample.index, 2.0 * sample.priority))

    def scanned(state, keys):
        return jax.lax.scan(lambda state, key: (update(state, key), None), state, keys)[0]

    def choosing(state, keys):
        after = scanned(state, keys)
        return jax.tree.map(lambda new, old: jnp.where(jnp.sum(new) > 0, new, old), after, state)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))
    check_in_place(scanned, state, keys)
    members = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), state)
    check_in_place(jax.vmap(scanned, (0, None)), members, keys)
    with pytest.raises(AssertionError, match="bytes of temporary memory"):
        check_in_place(choosing, state, keys)


@pytest.mark.parametrize(
    ("config", "n_step", "message"),
    [
        (
            ReplayConfig(capacity=100),
            1,
            "a positive multiple of num_envs * unroll_length = 12, at most 2**30, got 100 ",
        ),
        (ReplayConfig(capacity=0), 1, "got 0 (nearest: 12)"),
        (ReplayConfig(capacity=12 * 2**27), 1, "at most 2**30"),
        (ReplayConfig(capacity=12, warmup=12), 2, "at least num_envs * (unroll_length + n_step - 1) = 15, got 12"),
        (ReplayConfig(capacity=36, warmup=37), 3, "between num_envs * n_step = 9 and the capacity of 36, got 37"),
        (ReplayConfig(capacity=36, warmup=8), 3, "config.replay.warmup must lie between"),
    ],
)
def test_refusals(config, n_step, message):
    with pytest.raises(ValueError) as refusal:
        make_replay(config, B, T, n_step)
    assert message in str(refusal.value)
