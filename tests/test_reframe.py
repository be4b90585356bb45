"""Re:Frame: its memory, its retrieval and its gate by hand, what it equals at first, and a run that resumes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from envs_jax.core import EnvSpec
from envs_jax.spaces import Box
from jaxrl.algorithms.decision_transformer import make_decision_transformer
from jaxrl.algorithms.reframe import (
    Reader,
    ReframeConfig,
    ReframeHParams,
    detached,
    make_reframe,
    reader_size,
    shuffled,
)
from jaxrl.data.dataset import load_dataset
from jaxrl.data.recording import DataError, Episode, Header, first_episodes, from_episodes, joined
from jaxrl.loop import scan_updates
from jaxrl.parts.associative_memory import (
    MemoryConfig,
    explained_variance,
    farthest_points,
    retrieve,
    training_rows,
    unit,
)
from jaxrl.parts.transformer import TransformerConfig
from jaxrl.run.config import ConfigError
from jaxrl.types import Data
from programs import bits, compiled
from small_worlds import shows

SPEC = EnvSpec(Box(-np.inf, np.inf, (2,)), Box(-2.0, 2.0, (1,)))
CONFIG = ReframeConfig(
    context_length=3, batch_size=8, max_episode_steps=10, max_retrieved=4,
    transformer=TransformerConfig(width=8, num_layers=1, dropout=0.1),
    memory=MemoryConfig(size=16, latent_size=4, encoder_size=8, key_size=4, batch_size=16, num_updates=300),
)  # fmt: skip
HPARAMS = jax.tree.map(
    jnp.float32, ReframeHParams(warmup_updates=1.0, reward_scale=0.1, num_retrieved=2.0, target_return=3.0)
)


def recording(num_episodes, seed):
    """Episodes of five steps whose action follows from the observation; every step pays 1."""
    rng, last, episodes = np.random.default_rng(seed), np.arange(5) == 4, []
    for _ in range(num_episodes):
        observation = rng.normal(size=(6, 2)).astype(np.float32)
        action = np.tanh(observation[:-1, :1]) * 2.0
        episodes.append(Episode(observation, action, np.ones(5, np.float32), last, np.zeros(5, bool)))
    return from_episodes(episodes, Header(SPEC.observation_space, SPEC.action_space))


@pytest.fixture(scope="module")
def data():
    return Data(dataset=load_dataset(recording(6, 0)), expert=load_dataset(recording(12, 1)))


@pytest.fixture(scope="module")
def trained(data):
    """Two seeds side by side: the first state, then after three updates, and their metrics."""
    agent = make_reframe(CONFIG, SPEC)

    def train(key, data):
        first = agent.init(key, HPARAMS, data)
        state, metrics = scan_updates(agent, first, HPARAMS, 3, data)
        return first, state, metrics, agent.policy(first, data), agent.policy(state, data)

    return agent, *compiled(jax.vmap(train, (0, None)))(jax.random.split(jax.random.key(0), 2), data)


def member(tree, i=0):
    return jax.tree.map(lambda leaf: leaf[i], tree)


# --- formulas


@dataclasses.dataclass
class Entries:
    latent: jax.Array
    valid: jax.Array


def test_retrieval_by_hand():
    """Cosines 0.6, 1 and -1 and an entry that does not count; two are asked for."""
    keys = jnp.array([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    entries = Entries(jnp.array([[10.0], [20.0], [1e6], [40.0]]), jnp.array([True, True, False, True]))
    found = retrieve(jnp.array([1.0, 0.0]), keys, entries, 2.0, 0.5, 3)
    assert found.rows.tolist() == [1, 0, 3]
    np.testing.assert_allclose(found.similarity, [1.0, 0.6, -1.0], atol=1e-6)
    weight = 1 / (1 + np.exp(-0.4 / 0.5))
    np.testing.assert_allclose(found.weights, [weight, 1 - weight, 0.0], atol=1e-6)
    np.testing.assert_allclose(found.latent, [20 * weight + 10 * (1 - weight)], rtol=1e-6)
    only = retrieve(jnp.array([1.0, 0.0]), keys, entries, 1.0, 0.5, 3)
    np.testing.assert_allclose(only.latent, [20.0])
    control = retrieve(jnp.array([1.0, 0.0]), keys, dataclasses.replace(entries, valid=jnp.arange(4) < 2), 2.0, 0.5, 3,
                       jax.random.key(0))  # fmt: skip
    assert set(control.rows.tolist()) <= {0, 1}
    np.testing.assert_allclose(control.weights, [0.5, 0.5, 0.0])


def test_the_gate_by_hand():
    """Features (1, 2); the value of the latent 3 is (3, 6); the gate's input is 1 + 3 + bias, the output map 2."""
    reader = Reader(width=2, key_size=1)
    params = {
        "make_key": {"kernel": jnp.ones((1, 1))},
        "make_query": {"kernel": jnp.ones((2, 1))},
        "make_value": {"kernel": jnp.array([[1.0, 2.0]])},
        "make_gate": {"kernel": jnp.array([[1.0], [0.0], [1.0], [0.0]]), "bias": jnp.array([-2.0])},
        "output": {"kernel": 2.0 * jnp.eye(2)},
    }
    fused, gate = reader.apply({"params": params}, jnp.array([1.0, 2.0]), jnp.array([3.0]), method="fuse")
    opened = 1 / (1 + np.exp(-2.0))
    assert float(gate) == pytest.approx(opened, rel=1e-6)
    np.testing.assert_allclose(fused, [1 + opened * 6, 2 + opened * 12], rtol=1e-6)


def test_small_formulas():
    np.testing.assert_allclose(unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    points = jnp.array([[0.0], [1.0], [10.0], [4.0], [99.0]])
    assert farthest_points(points, jnp.int32(4), 4).tolist() == [0, 2, 3, 1]
    targets = jnp.array([[1.0], [3.0], [50.0]])
    mask = jnp.array([True, True, False])
    assert float(explained_variance(targets, targets, mask)) == 1.0
    assert float(explained_variance(targets, jnp.full((3, 1), 2.0), mask)) == 0.0
    rows = training_rows(jax.random.key(0), jnp.int32(41), 2000)
    assert set(rows.tolist()) == set(range(41)) - {0, 20, 40}


# --- the memory


def test_the_memory_holds_the_experts_steps(trained, data):
    _, first, state, *_ = trained
    memory, expert = member(first).memory, data.expert
    assert bits(memory) == bits(member(state).memory), "learning leaves the memory alone"
    assert np.all(memory.valid)
    assert len(set(memory.row.tolist())) == 16
    np.testing.assert_array_equal(memory.time, memory.row % 5)
    np.testing.assert_allclose(memory.experience.action, expert.transitions.action[memory.row] / 2.0, atol=1e-6)
    np.testing.assert_allclose(memory.experience.return_to_go, 0.1 * expert.return_to_go[memory.row], atol=1e-6)
    mean, std = (
        np.asarray(data.dataset.statistics.mean),
        np.std(np.asarray(data.dataset.transitions.observation), axis=0),
    )
    expected = (np.asarray(expert.transitions.observation)[memory.row] - mean) / std
    np.testing.assert_allclose(memory.experience.observation, expected, atol=1e-4)
    assert np.all(np.asarray(memory.explained) > 0.7), memory.explained


def test_a_memory_larger_than_the_experts_data_has_room_left(data):
    config = dataclasses.replace(CONFIG, memory=dataclasses.replace(CONFIG.memory, size=70, num_updates=1))
    state = compiled(make_reframe(config, SPEC).init)(jax.random.key(0), HPARAMS, data)
    assert int(state.memory.valid.sum()) == 60
    np.testing.assert_array_equal(state.memory.row[:60], np.arange(60))
    form = jax.eval_shape(make_reframe(config, SPEC).init, jax.random.key(0), HPARAMS, Data())
    assert [leaf.shape for leaf in jax.tree.leaves(form)] == [leaf.shape for leaf in jax.tree.leaves(state)]
    policy = make_reframe(config, SPEC).policy(state, data)
    dealt = shuffled(policy, jax.random.key(1)).memory
    assert sorted(dealt.latent[:60, 0].tolist()) == sorted(policy.memory.latent[:60, 0].tolist())
    assert dealt.latent[:60].tolist() != policy.memory.latent[:60].tolist()


# --- the policy


def walk(agent, policy, num_steps=5):
    """Actions and what `act` tells along made-up observations."""
    act = compiled(lambda policy, carry, shown: agent.act(policy, carry, shown, jax.random.key(0), True))
    rng, carry, actions, told = np.random.default_rng(2), agent.start(policy, jax.random.key(0)), [], []
    for step in range(num_steps):
        shown = member(shows(rng.normal(size=(1, 2)).astype(np.float32))).replace(reward=jnp.float32(step > 0))
        action, carry, extras = act(policy, carry, shown)
        actions.append(np.asarray(action))
        told.append(extras)
    return np.stack(actions), told


def test_at_first_it_is_a_decision_transformer_and_detached_it_stays_one(trained, data):
    agent, first, _, _, before, after = trained
    plain = make_decision_transformer(CONFIG, SPEC)
    begun = compiled(plain.init)(jax.random.split(jax.random.key(0), 2)[0], HPARAMS, data)
    assert bits(begun.params["params"]) == bits(member(first).params["backbone"]), "the same parameters to begin with"
    expected = walk(plain, plain.policy(begun, data))[0]
    found, told = walk(agent, member(before))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert float(told[0]["gate"]) == pytest.approx(1 / (1 + np.exp(2.0)), abs=0.25)
    policy = member(after)
    alone = dataclasses.replace(begun, params={"params": policy.params["backbone"]})
    expected = walk(plain, plain.policy(alone, data))[0]
    np.testing.assert_allclose(walk(agent, detached(policy))[0], expected, atol=1e-6)
    assert np.max(np.abs(walk(agent, policy)[0] - expected)) > 1e-6


def test_what_learning_moves_and_tells(trained):
    _, first, state, metrics, *_ = trained
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), first.params["reader"], state.params["reader"])
    assert all(change > 0 for change in jax.tree.leaves(moved)), moved
    assert np.all((metrics["gate"] > 0) & (metrics["gate"] < 1))
    assert np.all(np.abs(metrics["similarity"]) <= 1 + 1e-5)
    assert first.params["reader"]["make_gate"]["bias"].tolist() == [[-2.0], [-2.0]]


def test_a_member_of_a_batch_is_a_run_of_its_own(trained, data):
    agent, _, state, *_ = trained
    update = compiled(agent.update)
    alone = compiled(agent.init)(jax.random.split(jax.random.key(0), 2)[1], HPARAMS, data)
    for _ in range(3):
        alone, _ = update(alone, HPARAMS, data)
    for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(member(state, 1).params)):
        np.testing.assert_allclose(a, b, atol=2e-3)
    assert update._cache_size() == 1, "the second update compiled anew"


@pytest.mark.parametrize(
    "changes",
    [
        {"fusion": "prefix", "query": "situation"},
        pytest.param({"fusion": "wide"}, marks=pytest.mark.slow),
        pytest.param({"query": "situation"}, marks=pytest.mark.slow),
        pytest.param({"retrieval": "random"}, marks=pytest.mark.slow),
    ],
    ids=lambda changes: "-".join(changes.values()),
)
def test_variants_learn_and_act(changes, data):
    config = dataclasses.replace(CONFIG, **changes, memory=dataclasses.replace(CONFIG.memory, num_updates=1))
    agent = make_reframe(config, SPEC)

    @compiled
    def go(key, data):
        state = agent.init(key, HPARAMS, data)
        after, metrics = agent.update(state, HPARAMS, data)
        policy = agent.policy(after, data)
        shown = member(shows(np.zeros((1, 2), np.float32)))
        return state, after, metrics, agent.act(policy, agent.start(policy, key), shown, key, True)[0]

    state, after, metrics, action = go(jax.random.key(0), data)
    assert np.isfinite(float(metrics["loss/action"]))
    assert np.all(np.abs(action) <= 2.0)
    assert bits(state.params["reader"]) != bits(after.params["reader"])
    if "wide" in changes.values():
        extra = sum(leaf.size for leaf in jax.tree.leaves(state.params["reader"]))
        assert extra == pytest.approx(reader_size(config), rel=0.06)


def test_the_memory_adds_little_at_the_published_sizes():
    config = ReframeConfig(memory=MemoryConfig(num_updates=1))
    spec = EnvSpec(Box(-np.inf, np.inf, (17,)), Box(-1.0, 1.0, (6,)))
    state = jax.eval_shape(make_reframe(config, spec).init, jax.random.key(0), HPARAMS, Data())
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in state.params.items()}
    assert sizes["backbone"] == 730_118
    assert sizes["reader"] == reader_size(config) < 0.1 * sizes["backbone"]


# --- settings and runs


def test_data_sets_joined_and_cut():
    both = joined(first_episodes(recording(3, 0), 2), recording(2, 1))
    assert both.lengths.tolist() == [5, 5, 5, 5]
    assert len(list(both.episodes())) == 4
    assert load_dataset(both).episode_start.tolist() == [0] * 5 + [5] * 5 + [10] * 5 + [15] * 5
    with pytest.raises(DataError, match=r"num_episodes must be in \[0, 3\]"):
        first_episodes(recording(3, 0), 4)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("reframe_pendulum", ["data.expert=''"], "name one as data.expert"),
        ("dt_pendulum", ["data.expert='data/pendulum_expert.hdf5'"], "data.expert is not read by"),
        ("dt_pendulum", ["data.mix_expert=true"], "data.expert, which is empty"),
        ("reframe_pendulum", ["hparams.num_retrieved=9"], "at most config.max_retrieved = 8, got 9"),
        ("reframe_pendulum", ["config.fusion='early'"], "config.fusion must be one of late, prefix, wide"),
        ("reframe_pendulum", ["config.max_retrieved=2000"], r"must be in \[1, 1024\]"),
        ("reframe_pendulum", ["config.memory.size=0"], "memory.size must be at least 1"),
    ],
)
def test_settings_that_are_refused(name, changes, message):
    with pytest.raises(ConfigError, match=message):
        jaxrl.load_config(name, changes)


QUICK = [
    "num_updates=4", "log.every=2", "log.chunk=2", "evaluation.num_episodes=2", "evaluation.max_steps=12",
    "config.batch_size=4", "config.context_length=3", "config.transformer.width=8", "config.transformer.num_layers=1",
    "config.memory.size=64", "config.memory.num_updates=5", "data.num_episodes=4", "data.num_expert_episodes=3",
]  # fmt: skip


@pytest.mark.slow
def test_a_run_resumes_exactly_and_can_be_asked_for_another_return(tmp_path):
    pytest.importorskip("h5py")
    state, log = jaxrl.fit(jaxrl.load_config("reframe_pendulum", QUICK), progress=False)
    short = [*QUICK, "num_updates=2"]
    jaxrl.fit(jaxrl.load_config("reframe_pendulum", short), tmp_path / "run", progress=False)
    again = jaxrl.load_config("reframe_pendulum", QUICK)
    resumed, more = jaxrl.fit(again, tmp_path / "run", resume=True, progress=False)
    assert bits(resumed) == bits(state)
    assert more[-1]["loss/action"] == log[-1]["loss/action"]
    stored, run = jaxrl.load_state(tmp_path / "run", ["hparams.target_return=-900"])
    assert float(stored.target_return) == -900.0
    agent, data = jaxrl.make_algorithm(run), jaxrl.load_data(run, dataset=False)
    assert float(agent.start(agent.policy(stored, data), jax.random.key(0)).remaining) == -900.0
    with pytest.raises(ValueError, match=r"a policy that acts on \.reward cannot be exported"):
        jaxrl.export_policy(agent, stored, tmp_path / "policy.stablehlo", data, spec=jaxrl.make_env(run)[0])
