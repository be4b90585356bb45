"""Conservative Q-learning: bandits with known answers, the discrete loss by hand, what the penalty does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import torch_cql
from envs_jax.core import EnvSpec
from envs_jax.spaces import Box, Discrete, MultiDiscrete
from jaxrl.algorithms import cql
from jaxrl.algorithms.cql import CQLConfig, CQLHParams, discrete_form, make_cql
from jaxrl.data.dataset import load_dataset
from jaxrl.data.recording import Episode, Header, from_episodes
from jaxrl.loop import scan_updates
from jaxrl.parts.networks import NetworkConfig, QNetwork
from jaxrl.parts.soft_actor_critic import total_loss
from jaxrl.types import Data, Transition
from programs import compiled, evaluation_returns
from small_worlds import shows

OBSERVATIONS = Box(-1.0, 1.0, (1,))
CONFIG = CQLConfig(
    batch_size=64, num_sampled_actions=4, normalize_observations=False,
    network=NetworkConfig(hidden_sizes=(32, 32), activation="relu"),
)  # fmt: skip
FAST = {"learning_rate": 3e-3, "policy_learning_rate": 3e-3, "tau": 0.1, "discount": 0.9}


def floats(**values):
    return jax.tree.map(jnp.float32, CQLHParams(**(FAST | values)))


def bandit(actions, rewards, space):
    """Episodes of one step, all at the same observation."""
    yes, no = np.ones(1, bool), np.zeros(1, bool)
    episodes = [
        Episode(np.ones((2, 1)), action[None], np.array([reward]), yes, no) for action, reward in zip(actions, rewards)
    ]
    return Data(dataset=load_dataset(from_episodes(episodes, Header(OBSERVATIONS, space))))


def train(agent, data, num_updates, weights, **values):
    """States of several penalty weights, side by side."""

    def run(weight, data):
        hparams = floats(penalty_weight=weight, **values)
        return scan_updates(agent, agent.init(jax.random.key(0), hparams, data), hparams, num_updates, data)

    return compiled(jax.vmap(run, (0, None)))(jnp.array(weights), data)


def test_a_discrete_bandit():
    """Action 0 pays 1, action 1 pays 2, action 2 never occurs: only the penalty says that it is worth nothing."""
    actions = np.arange(200) % 2
    agent = make_cql(CONFIG, EnvSpec(OBSERVATIONS, Discrete(3)))
    states, metrics = train(agent, bandit(actions, 1.0 + actions, Discrete(3)), 300, [0.0, 1.0])
    network = QNetwork(CONFIG.network, 3)
    values = jax.vmap(lambda params: network.apply(params, jnp.ones(1)))(states.params["critic"])
    np.testing.assert_allclose(values[0, :2], [1.0, 2.0], atol=0.05)
    assert np.all(values[1, 2] < values[1, :2] - 2.0)
    assert metrics["gap"][1, -1] < metrics["gap"][0, -1]
    policy = agent.policy(jax.tree.map(lambda leaf: leaf[1], states), None)
    shown = jax.tree.map(lambda leaf: leaf[0], shows([[1.0]]))
    assert int(agent.act(policy, (), shown, jax.random.key(0), True)[0]) == 1
    masked = shown.replace(legal_actions=jnp.array([True, False, True]))
    assert int(agent.act(policy, (), masked, jax.random.key(0), True)[0]) == 0


def test_the_discrete_loss_by_hand():
    """Double Q-learning: the network chooses, the target network values; nothing follows a termination."""
    init_params, _, losses = discrete_form(CONFIG, EnvSpec(OBSERVATIONS, Discrete(3)))
    params, target = (init_params(jax.random.key(i))["critic"] for i in (0, 1))
    rng = np.random.default_rng(0)
    observation, after = rng.normal(size=(2, 6, 1)).astype(np.float32)
    action, reward = np.array([0, 1, 2, 0, 1, 2]), rng.normal(size=6).astype(np.float32)
    terminated, no = np.arange(6) % 2 == 0, np.zeros(6, bool)
    steps = jax.tree.map(jnp.asarray, Transition(observation, action, reward, terminated, no, after))
    found = losses({"critic": params}, target, steps, floats(penalty_weight=2.0), jax.random.key(0))

    apply = jax.vmap(QNetwork(CONFIG.network, 3).apply, (None, 0))
    values, judged, valued = (
        np.asarray(apply(p, x)) for p, x in ((params, observation), (params, after), (target, after))
    )
    rows = np.arange(6)
    goal = reward + 0.9 * np.where(terminated, 0, valued[rows, judged.argmax(1)])
    assert float(found["loss/critic"]) == pytest.approx(np.mean((values[rows, action] - goal) ** 2), rel=1e-5)
    gap = np.mean(np.log(np.exp(values).sum(1)) - values[rows, action])
    assert float(found["loss/penalty"]) == pytest.approx(2 * gap, rel=1e-5)


@pytest.fixture(scope="module")
def pulled():
    """Rewards rise with the action, 0 to 10, up to 6 of 10: there the data ends."""
    space = Box(0.0, 10.0, (1,))
    actions = np.random.default_rng(0).uniform(0.0, 6.0, 1000).astype(np.float32)[:, None]
    data = bandit(actions, actions[:, 0] / 2.0, space)
    agent = make_cql(CONFIG, EnvSpec(OBSERVATIONS, space))
    return agent, *train(agent, data, 500, [0.0, 5.0])


def test_a_continuous_bandit(pulled):
    """Without the penalty the critics extrapolate and the policy leaves the data; with it, it stays."""
    agent, states, metrics = pulled
    shown = jax.tree.map(lambda leaf: leaf[0], shows([[1.0]]))
    chosen = []
    for i in (0, 1):
        policy = agent.policy(jax.tree.map(lambda leaf, i=i: leaf[i], states), None)
        chosen.append(float(agent.act(policy, (), shown, jax.random.key(0), True)[0][0]))
    assert chosen[0] > 8.0
    assert chosen[1] < 7.0
    assert metrics["gap"][1, -20:].mean() < metrics["gap"][0, -20:].mean() - 0.5


def test_each_loss_trains_its_own(pulled):
    """With no learning rate for the critics they stay, and the policy moves; and the other way round."""
    agent, states, _ = pulled
    state = jax.tree.map(lambda leaf: leaf[1], states)
    actions = np.linspace(0, 6, 50, dtype=np.float32)[:, None]
    data = bandit(actions, actions[:, 0], Box(0.0, 10.0, (1,)))
    update = compiled(agent.update)
    for still, moving, rates in (("critic", "actor", (0.0, 1e-3)), ("actor", "critic", (1e-3, 0.0))):
        hparams = floats(learning_rate=rates[0], policy_learning_rate=rates[1])
        after, _ = update(state, hparams, data)
        moved = {
            name: max(
                float(jnp.max(jnp.abs(a - b)))
                for a, b in zip(jax.tree.leaves(state.params[name]), jax.tree.leaves(after.params[name]))
            )
            for name in (still, moving)
        }
        assert moved[still] == 0.0
        assert moved[moving] > 1e-4
        difference = jax.tree.map(
            lambda new, old, mean: jnp.max(jnp.abs(mean - (0.1 * new + 0.9 * old))),
            after.params["critic"], state.target_params, after.target_params,
        )  # fmt: skip
        assert max(map(float, jax.tree.leaves(difference))) < 1e-6


@pytest.mark.parametrize(("target_gap", "sign"), [(-100.0, 1.0), (100.0, -1.0)])
def test_the_learned_weight_moves_towards_its_gap(target_gap, sign):
    agent = make_cql(dataclasses.replace(CONFIG, lagrange=True), EnvSpec(OBSERVATIONS, Box(-1.0, 1.0, (1,))))
    actions = np.linspace(-1, 1, 50, dtype=np.float32)[:, None]
    data, hparams = bandit(actions, actions[:, 0], Box(-1.0, 1.0, (1,))), floats(target_gap=target_gap)
    after, metrics = compiled(agent.update)(agent.init(jax.random.key(0), hparams, data), hparams, data)
    assert float(after.params["log_penalty"]) * sign > 0
    assert np.isfinite(metrics["loss/lagrange"])


@pytest.mark.parametrize(
    ("config", "space", "message"),
    [
        (CONFIG, MultiDiscrete((2, 2)), "CQL needs vectors of floats"),
        (CONFIG, Box(-np.inf, np.inf, (1,)), "finite bounds"),
        (dataclasses.replace(CONFIG, lagrange=True), Discrete(2), "lagrange must be false"),
    ],
)
def test_what_is_refused(config, space, message):
    with pytest.raises(ValueError, match=message):
        make_cql(config, EnvSpec(OBSERVATIONS, space))


def test_settings_that_are_refused():
    with pytest.raises(ValueError, match=r"config\.num_sampled_actions must be at least 1, got 0"):
        CQLConfig(num_sampled_actions=0)


# --- PyTorch


def from_torch(arrays, prefix):
    """A network that `torch_cql` stored, in the form of `Actor` and `QNetwork`."""
    leaves = [arrays[f"{prefix}.{i}"] for i in range(6)]
    layers = [{"kernel": jnp.asarray(leaves[i].T), "bias": jnp.asarray(leaves[i + 1])} for i in (0, 2, 4)]
    return {"params": {"torso": {"dense_0": layers[0], "dense_1": layers[1]}, "head": layers[2]}}


def twins(arrays, prefix):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(from_torch(arrays, f"{prefix}{i}") for i in (0, 1)))


@pytest.mark.parametrize("variant", torch_cql.VARIANTS)
def test_equal_to_pytorch(variant, monkeypatch):
    """Losses and gradients of one update, with equal weights, rows and sampled actions."""
    arrays, sizes, numbers = dict(np.load(torch_cql.GOLDEN)), torch_cql.SIZES, torch_cql.NUMBERS
    importance, lagrange, best_of, entropy = torch_cql.VARIANTS[variant]
    config = CQLConfig(
        batch_size=sizes["batch"], num_sampled_actions=sizes["samples"], importance_correction=importance,
        lagrange=lagrange, max_backup=best_of, entropy_backup=entropy,
        network=NetworkConfig(hidden_sizes=(sizes["width"],) * 2, activation="relu"),
    )  # fmt: skip
    spec = EnvSpec(Box(-np.inf, np.inf, (sizes["observation"],)), Box(-1.0, 1.0, (sizes["action"],)))
    observation, action, reward, terminated, after = (jnp.asarray(arrays[f"rows.{i}"]) for i in range(5))
    steps = Transition(observation, action, reward, terminated > 0, jnp.zeros(len(reward), bool), after)
    noise = {name: jnp.asarray(arrays[f"noise.{name}"]) for name in ("now", "target", "many_targets")}
    drawn = cql.Noise(
        now=noise["now"],
        target=jnp.swapaxes(noise["many_targets"], 0, 1) if best_of else noise["target"],
        **{name: jnp.swapaxes(arrays[f"noise.{name}"], 0, 1) for name in ("uniform", "here", "there")},
    )
    monkeypatch.setattr(cql, "continuous_noise", lambda config, size, key: drawn)
    _, _, losses = cql.continuous_form(config, spec)
    params = {"actor": from_torch(arrays, "actor"), "critic": twins(arrays, "critic")}
    params |= {name: jnp.float32(numbers[name]) for name in ("log_temperature", "log_penalty")}
    hparams = floats(discount=numbers["discount"], penalty_weight=numbers["alpha"], target_gap=numbers["target_gap"])

    @compiled
    def update(params, target):
        def loss(params):
            metrics = losses(params, target, steps, hparams, jax.random.key(0))
            return total_loss(metrics), metrics

        return jax.grad(loss, has_aux=True)(params)

    gradient, metrics = update(params, twins(arrays, "target"))
    found = [
        metrics["loss/policy"], metrics["loss/critic"] + metrics["loss/penalty"], metrics["loss/temperature"],
        metrics.get("loss/lagrange"),
    ]  # fmt: skip
    for i, value in enumerate(found if lagrange else found[:3]):
        assert float(value) == pytest.approx(float(arrays[f"{variant}.losses.{i}"]), abs=1e-4, rel=1e-5)
    expected = {
        "actor": from_torch(arrays, f"{variant}.actor"),
        "critic": twins(arrays, f"{variant}.critic"),
        "log_temperature": arrays[f"{variant}.log_temperature.0"],
        "log_penalty": arrays[f"{variant}.log_penalty.0"] * lagrange,
    }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradient, expected)
    assert all(float(jnp.max(jnp.abs(leaf))) > 1e-3 for leaf in jax.tree.leaves(gradient["critic"]))


def test_rates_fall_along_half_a_cosine():
    """At the start, half-way and at the end of the schedule; without one they stay."""
    agent, data = (
        make_cql(CONFIG, EnvSpec(OBSERVATIONS, Discrete(3))),
        bandit(np.arange(20) % 3, np.ones(20), Discrete(3)),
    )

    def moved(num_updates, cosine_updates):
        hparams = floats(cosine_updates=cosine_updates)
        state = agent.init(jax.random.key(0), hparams, data)
        after, _ = agent.update(dataclasses.replace(state, num_updates=num_updates), hparams, data)
        changes = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), state.params, after.params)
        return jnp.max(jnp.stack(jax.tree.leaves(changes)))

    steps = compiled(jax.vmap(moved))(jnp.array([0, 5, 10, 12, 12]), jnp.array([10.0, 10.0, 10.0, 10.0, 0.0]))
    np.testing.assert_allclose(steps / steps[0], [1.0, 0.5, 0.0, 0.0, 1.0], atol=1e-3)


@pytest.mark.slow
def test_the_pendulum_needs_the_penalty():
    """The data's mean return is -221; random play has -1229."""
    returns = evaluation_returns("cql_pendulum", 3)
    assert np.all(returns > -221), returns
