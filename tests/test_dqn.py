"""DQN on small worlds with known answers, its update against a plain loop, and what a run of it promises."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from envs_jax.control import toy
from envs_jax.core import EnvSpec
from envs_jax.games.matrix_game import MatrixGame
from envs_jax.spaces import Box, Discrete
from jaxrl.algorithms.dqn import DQNConfig, DQNHParams, DQNPolicy, make_dqn
from jaxrl.loop import scan_updates
from jaxrl.parts.buffers import ReplayConfig, check_in_place, make_replay
from jaxrl.parts.networks import NetworkConfig, QNetwork
from jaxrl.types import Data
from programs import compiled, equations, evaluation_returns
from small_worlds import TOYS, AnyToy, Counter, WhichToy, shows

BASE = DQNConfig(
    num_envs=8, unroll_length=4, num_gradient_steps=4, batch_size=32,
    replay=ReplayConfig(capacity=1024, warmup=64), network=NetworkConfig(hidden_sizes=(16,)),
)  # fmt: skip


def floats(**values):
    return jax.tree.map(jnp.float32, DQNHParams(**{"learning_rate": 1e-2, "epsilon_updates": 20.0, **values}))


class MaskedCounter(Counter):
    """A `Counter` of random length: each count forbids one of three actions, the greatest count all but the last."""

    def __init__(self):
        super().__init__(random_length=True)

    def show(self, count, params, reward, key):
        return super().show(count, params, reward, key).replace(legal_actions=legal_by(jnp, count))


def legal_by(numpy, count):
    """Legal actions `[..., 3]` of a `MaskedCounter`."""
    actions = numpy.arange(3).reshape((1,) * numpy.ndim(count) + (3,))
    count = numpy.expand_dims(count, -1)
    return numpy.where(count < 5, actions != count % 3, actions == 2)


def network_of(config, num_actions):
    """`(params, observations [n, ...]) -> [n, N]`, NumPy."""
    apply = compiled(jax.vmap(QNetwork(config.network, num_actions, config.dueling).apply, (None, 0)))
    return lambda params, observations: np.asarray(apply(params, observations))


# --- known answers


@pytest.mark.parametrize(
    "changes",
    [
        {"double": False, "dueling": False},
        {"n_step": 3, "replay": ReplayConfig(1024, 64, prioritized=True)},
    ],
    ids=["plain", "all"],
)
def test_toys_reach_their_known_action_values(changes):
    config = dataclasses.replace(BASE, **changes)
    env = AnyToy()
    agent = make_dqn(config, env)
    hparams = floats(discount=0.9, tau=0.2, anneal_updates=150.0)

    def train(which):
        data = Data(env_params=which)
        state = agent.init(jax.random.key(0), hparams, data)
        state, metrics = scan_updates(agent, state, hparams, 150, data)
        act = jax.vmap(agent.act, (None, None, 0, None, None))
        shown = shows([[-1.0], [0.0], [1.0]])
        return state.params, act(agent.policy(state, data), (), shown, jax.random.key(0), True)[0], metrics

    params, actions, metrics = compiled(jax.vmap(train))(WhichToy(jnp.arange(5, dtype=jnp.int32)))
    q_values, seen = network_of(config, 2), jnp.array([[-1.0], [0.0], [1.0]])
    values = [q_values(jax.tree.map(lambda leaf, i=i: leaf[i], params), seen) for i in range(5)]
    known = {  # at the observations -1, 0, +1, of both actions; NaN where an observation does not occur
        toy.ConstantReward: [[np.nan, np.nan], [1.0, 1.0], [np.nan, np.nan]],
        toy.ObservedValue: [[-1.0, -1.0], [np.nan, np.nan], [1.0, 1.0]],
        toy.Discounting: [[0.9, 0.9], [np.nan, np.nan], [1.0, 1.0]],
        toy.ActionChoice: [[np.nan, np.nan], [-1.0, 1.0], [np.nan, np.nan]],
        toy.ObservedAction: [[1.0, -1.0], [np.nan, np.nan], [-1.0, 1.0]],
    }
    for which, expected in known.items():
        occurs = ~np.isnan(expected)
        learned = np.where(occurs, values[TOYS.index(which)], np.nan)
        np.testing.assert_allclose(learned, expected, atol=0.05, err_msg=which.__name__)
    assert int(actions[TOYS.index(toy.ActionChoice), 1]) == 1
    assert np.asarray(actions)[TOYS.index(toy.ObservedAction), ::2].tolist() == [0, 1]
    np.testing.assert_allclose(np.asarray(metrics["epsilon"])[0, [0, 10, 20, 149]], [1.0, 0.525, 0.05, 0.05], rtol=1e-5)


# --- acting


@pytest.mark.parametrize(("epsilon", "legal"), [(0.3, [True, False, True]), (1.0, [True, True, False]), (0.0, None)])
def test_epsilon_greedy_draws_legal_actions_as_often_as_stated(epsilon, legal):
    env = Counter()
    agent = make_dqn(BASE, env)
    params = compiled(agent.init)(jax.random.key(0), floats(), Data(env_params=env.default_params)).params
    observation = jnp.array([1.0, 3.0])
    values = network_of(BASE, 3)(params, observation[None])[0]
    allowed = np.ones(3, bool) if legal is None else np.array(legal)
    greedy = np.argmax(np.where(allowed, values, -np.inf))
    expected = epsilon * allowed / allowed.sum() + (1.0 - epsilon) * (np.arange(3) == greedy)

    step = shows(observation[None], legal_actions=None if legal is None else jnp.array([legal]))
    step = jax.tree.map(lambda leaf: leaf[0], step)
    policy = DQNPolicy(params, jnp.float32(epsilon))
    draw = compiled(jax.vmap(lambda key: agent.act(policy, (), step, key, False)[0]))
    counts = np.bincount(draw(jax.random.split(jax.random.key(1), 20_000)), minlength=3)
    np.testing.assert_allclose(counts / 20_000, expected, atol=5 * np.sqrt(0.25 / 20_000))
    assert (counts[expected == 0.0] == 0).all()
    assert int(agent.act(policy, (), step, jax.random.key(0), True)[0]) == greedy


# --- the update against a plain loop


@pytest.fixture(scope="module")
def runs():
    """Some updates of everything at once: double, dueling, 3 steps, priorities, masks; then one taken apart."""
    config = dataclasses.replace(
        BASE, n_step=3, num_gradient_steps=1, batch_size=128, target_period=2,
        replay=ReplayConfig(1024, 64, prioritized=True),
    )  # fmt: skip
    env = MaskedCounter()
    agent, data = make_dqn(config, env), Data(env_params=env.default_params)
    hparams = floats(tau=0.75, discount=0.9, huber_threshold=3.0, epsilon_end=1.0, anneal_updates=10.0)
    update, collect, learn = compiled(agent.update), compiled(agent.collect), compiled(agent.learn)
    states, rows = [compiled(agent.init)(jax.random.key(1), hparams, data)], []
    for _ in range(5):
        state, metrics = update(states[-1], hparams, data)
        states.append(state)
        rows.append(metrics)
    # A target network that ranks the actions otherwise than the network does.
    layers = state.params["params"]
    reverse = {"params": {**layers, "head": jax.tree.map(jnp.negative, layers["head"])}}
    before = dataclasses.replace(state, target_params=reverse)
    whole, whole_metrics = update(before, hparams, data)
    collected, batch = collect(before, hparams, data)
    after, metrics = learn(collected, hparams, batch, data)
    return SimpleNamespace(**locals())


def test_the_second_update_does_not_recompile(runs):
    assert runs.update._cache_size() == 1


def test_learn_after_collect_is_update(runs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), runs.metrics, runs.whole_metrics)
    whole, parts = (dataclasses.replace(s, key=jax.random.key_data(s.key)) for s in (runs.whole, runs.after))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, parts)


def test_nothing_is_learned_before_the_buffer_is_warm(runs):
    first, second, third = runs.states[1:4]
    assert int(first.buffer.num_steps) == 4
    jax.tree.map(
        np.testing.assert_array_equal,
        (runs.states[0].params, runs.states[0].opt_state),
        (first.params, first.opt_state),
    )
    assert float(runs.rows[0]["loss/q"]) == 0.0
    assert int(first.num_updates) == 1
    np.testing.assert_array_equal(np.ravel(first.buffer.priorities[0]).max(), 1.0)  # nor is a priority
    for before, after in ((first, second), (second, third)):
        moved = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), before.params, after.params)
        assert max(jax.tree.leaves(moved)) > 1e-3


def test_the_target_network_follows_at_its_period(runs):
    """Two gradient steps a period, the first of them in the update of counter 1: the target moves in every other."""
    for count, (before, after) in enumerate(zip(runs.states, runs.states[1:], strict=False)):
        moves = count >= 1 and (count + 1) % 2 == 0
        expected = before.target_params
        if moves:
            expected = jax.tree.map(lambda new, old: 0.75 * new + 0.25 * old, after.params, before.target_params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.target_params, expected)


def test_the_learning_rate_anneals_to_nothing(runs):
    over = dataclasses.replace(runs.hparams, anneal_updates=jnp.float32(5.0))
    after, metrics = runs.learn(runs.collected, over, runs.batch, runs.data)
    jax.tree.map(np.testing.assert_array_equal, after.params, runs.collected.params)
    assert float(metrics["grad_norm"]) > 0.1


def test_collected_actions_are_legal(runs):
    steps = runs.batch.transitions
    np.testing.assert_array_equal(steps.legal_actions, legal_by(np, np.asarray(steps.observation)[..., 0]))
    np.testing.assert_array_equal(steps.next_legal_actions, legal_by(np, np.asarray(steps.next_observation)[..., 0]))
    chosen = np.take_along_axis(np.asarray(steps.legal_actions), np.asarray(steps.action)[..., None], -1)
    assert chosen.all()
    assert not np.asarray(steps.legal_actions).all()


def test_loss_and_priorities_equal_a_plain_loop(runs):
    config, before, after = runs.config, runs.collected, runs.after
    replay = make_replay(config.replay, config.num_envs, config.unroll_length, config.n_step)
    kept = dataclasses.replace(runs.batch.transitions, legal_actions=None, extras={})

    @compiled
    def drawn(state):
        filled = replay.add(state.buffer, kept)
        return filled, replay.sample(filled, jax.random.split(state.key)[1], config.batch_size)

    filled, sample = drawn(before)
    steps = jax.tree.map(np.asarray, after.buffer.items)
    priorities, length = np.ravel(filled.priorities[0]), config.replay.capacity // config.num_envs
    q_values = network_of(config, 3)
    values, online, target = (
        q_values(params, observations.reshape(-1, 2)).reshape(-1, length, 3)
        for params, observations in (
            (before.params, steps.observation),
            (before.params, steps.next_observation),
            (before.target_params, steps.next_observation),
        )
    )

    errors, chosen, seen, other_choices = [], [], set(), 0
    for index in np.asarray(sample.index):
        env, first = divmod(int(index), length)
        total = 0.0
        for k in range(config.n_step):
            at = (env, (first + k) % length)
            total += 0.9**k * steps.reward[at]
            if steps.terminated[at] or steps.truncated[at]:
                break
        seen |= {(k, bool(steps.terminated[at]), bool(steps.truncated[at]))}
        best = np.argmax(np.where(steps.next_legal_actions[at], online[at], -np.inf))
        other_choices += best != np.argmax(np.where(steps.next_legal_actions[at], target[at], -np.inf))
        if not steps.terminated[at]:
            total += 0.9 ** (k + 1) * target[at][best]
        chosen.append(values[env, first, steps.action[env, first]])
        errors.append(total - chosen[-1])
    # Windows that are whole, and windows cut by either ending.
    assert {(2, False, False), (1, True, False), (1, False, True)} <= seen
    assert other_choices > 0

    errors, density = np.abs(errors), priorities[sample.index] / priorities.sum() * np.count_nonzero(priorities)
    weights = density**-0.7  # the importance exponent is half-way from 0.4 to 1: 5 of 10 updates are over
    huber = np.where(errors <= 3.0, errors**2 / 2, 3.0 * (errors - 1.5))
    assert np.ptp(weights) > 0.1
    assert (errors > 3.0).any()
    assert (errors < 3.0).any()
    assert float(runs.metrics["loss/q"]) == pytest.approx(np.mean(weights / weights.max() * huber), rel=1e-4)
    assert float(runs.metrics["q/mean"]) == pytest.approx(np.mean(chosen), rel=1e-4)

    expected = priorities.copy()
    expected[sample.index] = 0.0
    np.maximum.at(expected, np.asarray(sample.index), np.float32((errors + 1e-6) ** 0.6))
    np.testing.assert_allclose(np.ravel(after.buffer.priorities[0]), expected, rtol=1e-4, atol=1e-6)


# --- sweeps, memory, export, refusals


def test_a_member_equals_its_single_run():
    env, params = envs_jax.make("toy-observed-action")
    agent, data = make_dqn(BASE, env), Data(env_params=params)

    def train(seed, hparams):
        state, metrics = scan_updates(agent, agent.init(jax.random.key(seed), hparams, data), hparams, 5, data)
        return state.params, state.target_params, metrics

    rates = jax.tree.map(lambda *leaves: jnp.stack(leaves), floats(), floats(learning_rate=1e-3))
    members = compiled(jax.vmap(train))(jnp.arange(2), rates)
    alone = compiled(train)(1, floats(learning_rate=1e-3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-5), members, alone)
    assert float(np.max(np.abs(members[2]["loss/q"][0] - members[2]["loss/q"][1]))) > 0.0


@pytest.mark.parametrize("over", [lambda train: train, pytest.param(jax.vmap, marks=pytest.mark.slow)])
def test_the_buffer_is_updated_in_place(over):
    replay = ReplayConfig(capacity=2**20, warmup=64, prioritized=True)
    env, params = envs_jax.make("toy-observed-action")
    agent, data = make_dqn(dataclasses.replace(BASE, n_step=3, replay=replay), env), Data(env_params=params)

    def start(key):
        return agent.init(key, floats(), data)

    def train(state):
        return scan_updates(agent, state, floats(), 2, data)

    keys = jax.random.split(jax.random.key(0), 2)
    check_in_place(over(train), jax.eval_shape(over(start), keys if over is jax.vmap else keys[0]))


def test_the_program_never_calls_the_host():
    env, params = envs_jax.make("toy-observed-action")
    agent, data = make_dqn(BASE, env), Data(env_params=params)
    jaxpr = jax.make_jaxpr(lambda: agent.update(agent.init(jax.random.key(0), floats(), data), floats(), data))()
    names = {equation.primitive.name for equation in equations(jaxpr.jaxpr)}
    assert {"scan", "dot_general", "cond"} <= names
    assert not [name for name in names if "callback" in name or name in ("infeed", "outfeed")]


@pytest.mark.parametrize("dueling", [False, True])
def test_described_layers_compute_the_action_values(dueling):
    """Up to a constant per observation nothing changes the greedy action: here the values themselves are kept."""
    config = dataclasses.replace(BASE, dueling=dueling)
    spec = EnvSpec(Box(-1.0, 1.0, (5,)), Discrete(3))
    agent = make_dqn(config, spec)
    state = compiled(agent.init)(jax.random.key(2), floats(), Data())
    observations = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    values = observations
    for layer in agent.export(agent.policy(state, Data()))["layers"]:
        if layer["kind"] == "dense":
            values = values @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
            values = np.tanh(values) if layer["activation"] == "tanh" else values
    np.testing.assert_allclose(values, network_of(config, 3)(state.params, observations), rtol=1e-4, atol=1e-5)


def test_without_an_environment_there_is_nothing_to_collect():
    agent = make_dqn(BASE, EnvSpec(Box(0, 255, (4, 4, 1), jnp.uint8), Discrete(3)))
    assert agent.collect is None
    assert agent.steps_per_update == 32
    state = jax.eval_shape(agent.init, jax.random.key(0), floats(), Data())
    assert state.rollout is None
    assert state.buffer.items.observation.shape == (8, 128, 4, 4, 1)
    assert state.buffer.items.observation.dtype == jnp.uint8


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DQNConfig(num_gradient_steps=0), "config.num_gradient_steps must be at least 1, got 0"),
        (lambda: DQNConfig(num_envs=24), "config.replay.capacity must be a positive multiple"),
        (lambda: DQNConfig(n_step=40), "config.replay.warmup must lie between num_envs * n_step = 1280"),
        (lambda: DQNConfig(network=NetworkConfig(torso="gru")), "config.network.torso must be mlp or cnn"),
        (lambda: DQNConfig(network=NetworkConfig(shared_torso=True)), "config.network.shared_torso must be false"),
        (lambda: make_dqn(BASE, MatrixGame()), "DQN trains one agent"),
        (lambda: make_dqn(BASE, envs_jax.make("pendulum")[0]), "DQN needs a Discrete action space, got Box"),
        (
            lambda: make_dqn(dataclasses.replace(BASE, network=NetworkConfig(torso="cnn")), Counter()),
            "config.network.torso='cnn' needs observations [height, width, channels], got (2,)",
        ),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError) as refusal:
        build()
    assert message in str(refusal.value)


# --- the shipped configuration


@pytest.mark.slow
def test_cartpole_is_solved():
    assert (evaluation_returns("dqn_cartpole", 10) >= 475).sum() >= 9
