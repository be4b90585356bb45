"""Decision Transformer: equal to PyTorch's, what its windows hold, how it acts, and that it follows its target."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from envs_jax.core import EnvSpec
from envs_jax.spaces import Box, Discrete
from jaxrl.algorithms.decision_transformer import DTConfig, DTHParams, make_decision_transformer
from jaxrl.data.dataset import load_dataset
from jaxrl.data.files import open_recording
from jaxrl.data.recording import Episode, Header, from_episodes
from jaxrl.loop import scan_updates
from jaxrl.parts.transformer import DecisionTransformer, Dropout, TransformerConfig, masked_squared_error, warmup_adamw
from jaxrl.run.config import shipped_configs
from jaxrl.types import Data
from programs import compiled, evaluation_returns
from small_worlds import shows
from torch_decision_transformer import GOLDEN, SIZES, UPDATES

SPEC = EnvSpec(Box(-np.inf, np.inf, (2,)), Box(-2.0, 2.0, (1,)))
CONFIG = DTConfig(
    context_length=4, batch_size=32, max_episode_steps=20,
    transformer=TransformerConfig(width=16, num_layers=1, num_heads=2, dropout=0.0),
)  # fmt: skip


def floats(**values):
    return jax.tree.map(jnp.float32, DTHParams(**{"warmup_updates": 10.0, **values}))


def test_the_number_of_parameters():
    """At S = 17, A = 6, K = 20 and the published sizes."""
    agent = make_decision_transformer(DTConfig(), EnvSpec(Box(-np.inf, np.inf, (17,)), Box(-1.0, 1.0, (6,))))
    state = jax.eval_shape(agent.init, jax.random.key(0), floats(), Data())
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == 730_118


# --- PyTorch


def from_torch(arrays, when):
    """The parameters that `torch_decision_transformer` stored, in the form of this module's."""
    weights = {name.removeprefix(f"{when}."): arrays[name] for name in arrays if name.startswith(f"{when}.")}

    def dense(name):
        return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

    def norm(name):
        return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    params = {
        "embed_time": {"embedding": weights["time.weight"]},
        "embed_return": dense("ret"),
        "embed_observation": dense("obs"),
        "embed_action": dense("act"),
        "norm_tokens": norm("norm_in"),
        "norm_features": norm("norm_out"),
        "head": dense("head"),
    }
    for i in range(SIZES["layers"]):
        layer = f"layers.{i}"
        attention = weights[f"{layer}.attention.in_proj_weight"].T, weights[f"{layer}.attention.in_proj_bias"]
        params[f"blocks_{i}"] = {
            "norm_attention": norm(f"{layer}.norm1"),
            "query_key_value": {"kernel": attention[0], "bias": attention[1]},
            "output": dense(f"{layer}.attention.out_proj"),
            "norm_network": norm(f"{layer}.norm2"),
            "expand": dense(f"{layer}.network.0"),
            "contract": dense(f"{layer}.network.2"),
        }
    return {"params": jax.tree.map(jnp.asarray, params)}


def test_equal_to_pytorch():
    """Predictions, both losses, and the parameters after three clipped AdamW updates with a warm-up."""
    arrays = dict(np.load(GOLDEN))
    config = TransformerConfig(SIZES["width"], SIZES["layers"], SIZES["heads"], dropout=0.0)
    network = DecisionTransformer(config, SIZES["action"], SIZES["times"])
    window = tuple(jnp.asarray(arrays[name]) for name in ("observation", "action", "return_to_go", "time", "mask"))
    params = from_torch(arrays, "before")

    def predict(params):
        return jax.vmap(lambda *inputs: network.apply(params, *inputs))(*window)

    def loss(params, count_padding=False):
        return masked_squared_error(predict(params), window[1], window[4], count_padding)

    @compiled
    def three_updates(params):
        opt_state = None
        for n in range(UPDATES["number"]):
            names = ("learning_rate", "warmup", "weight_decay", "max_grad_norm")
            optimizer = warmup_adamw(*(UPDATES[name] for name in names), jnp.int32(n))
            opt_state = optimizer.init(params) if opt_state is None else opt_state
            change, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
            params = jax.tree.map(jnp.add, params, change)
        return params

    predictions, plain, with_padding = compiled(lambda p: (predict(p), loss(p), loss(p, True)))(params)
    mask = arrays["mask"]
    np.testing.assert_allclose(predictions[mask], arrays["predictions"][mask], atol=1e-5)
    assert float(plain) == pytest.approx(float(arrays["loss"]), abs=1e-6)
    assert float(with_padding) == pytest.approx(float(arrays["loss_with_padding"]), abs=1e-6)
    found, expected = three_updates(params), from_torch(arrays, "after")
    # Attention does not depend on the keys' bias: its gradient is rounding, which Adam makes as large as any other.
    width = SIZES["width"]
    for tree in (params, found, expected):
        for i in range(SIZES["layers"]):
            mixed = tree["params"][f"blocks_{i}"]["query_key_value"]
            mixed["bias"] = jnp.delete(mixed["bias"], np.arange(width, 2 * width))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), params, expected)
    assert min(jax.tree.leaves(moved)) > 1e-3


# --- parts


def window(rng, length=4):
    return (
        jnp.asarray(rng.normal(size=(length, 2)), jnp.float32),
        jnp.asarray(rng.normal(size=(length, 1)), jnp.float32),
        jnp.asarray(rng.normal(size=length), jnp.float32),
        jnp.arange(length),
        jnp.ones(length, bool),
    )


def test_nothing_comes_from_the_future_or_from_padding():
    network, rng = DecisionTransformer(CONFIG.transformer, 1, 24), np.random.default_rng(0)
    inputs = window(rng)
    params = compiled(network.init)(jax.random.key(0), *inputs)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
    apply = compiled(network.apply)
    before = apply(params, *inputs)
    for field in range(3):
        changed = list(inputs)
        changed[field] = changed[field].at[2].add(1.0)
        after = apply(params, *changed)
        # The action of step 2 is read from step 3 on, its return and observation from step 2 on.
        same = 3 if field == 1 else 2
        np.testing.assert_allclose(after[:same], before[:same], atol=1e-6)
        assert np.all(np.abs(after[same:] - before[same:]) > 1e-4)
    mask = jnp.array([True, True, False, True])
    hidden = apply(params, *inputs[:4], mask)
    changed = (inputs[0].at[2].add(1.0), *inputs[1:4], mask)
    np.testing.assert_allclose(apply(params, *changed)[3], hidden[3], atol=1e-6)


def test_dropout():
    drop, ones = Dropout(0.25), jnp.ones(40_000)
    dropped = drop.apply({}, ones, False, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.02)
    np.testing.assert_array_equal(drop.apply({}, ones, True), ones)


def test_the_loss_of_masked_entries():
    predictions, targets = jnp.array([[1.0], [2.0], [7.0]]), jnp.zeros((3, 1))
    mask = jnp.array([True, True, False])
    assert float(masked_squared_error(predictions, targets, mask)) == 2.5
    assert float(masked_squared_error(predictions, targets, mask, True)) == pytest.approx(5 / 3)
    assert float(masked_squared_error(predictions, targets, jnp.zeros(3, bool))) == 0.0


# --- the algorithm


def two_habits(num_episodes=60, length=6):
    """Episodes in which every action is 1.5 and every reward 1, or -1.5 and 0: the return tells which."""
    rng, episodes, last = np.random.default_rng(0), [], np.arange(length) == length - 1
    for i in range(num_episodes):
        good = i % 2
        action = np.full((length, 1), 1.5 if good else -1.5, np.float32)
        observation = rng.normal(size=(length + 1, 2))
        episodes.append(Episode(observation, action, np.full(length, float(good)), last, np.zeros(length, bool)))
    return load_dataset(from_episodes(episodes, Header(SPEC.observation_space, SPEC.action_space)))


@pytest.fixture(scope="module")
def trained():
    """Two targets side by side: all of the reward, or none."""
    agent, dataset = make_decision_transformer(CONFIG, SPEC), two_habits()

    def train(target, data):
        hparams = floats(learning_rate=3e-3, reward_scale=0.2, target_return=target)
        state = agent.init(jax.random.key(0), hparams, data)
        state, metrics = scan_updates(agent, state, hparams, 300, data)
        return agent.policy(state, data), metrics

    return agent, *compiled(jax.vmap(train, (0, None)))(jnp.array([6.0, 0.0]), Data(dataset=dataset))


def test_the_target_return_decides(trained):
    agent, policies, metrics = trained
    assert np.all(metrics["loss/action"][:, -20:].mean(1) < 0.01)
    act = compiled(lambda policy, carry, shown: agent.act(policy, carry, shown, jax.random.key(0), True)[:2])
    for target, (habit, reward) in enumerate([(1.5, 1.0), (-1.5, 0.0)]):
        policy = jax.tree.map(lambda leaf, target=target: leaf[target], policies)
        carry = agent.start(policy, jax.random.key(0))
        rng, rewards = np.random.default_rng(1), [0.0] + [reward] * 5
        for step in range(6):  # longer than the context of 4
            shown = jax.tree.map(lambda leaf: leaf[0], shows(rng.normal(size=(1, 2)).astype(np.float32)))
            action, carry = act(policy, carry, shown.replace(reward=jnp.float32(rewards[step])))
            assert action.shape == (1,)
            assert float(action[0]) == pytest.approx(habit, abs=0.35), (target, step)
        assert float(carry.remaining) == 6 * (1 - target) - 5 * reward
        expected = [(6 * (1 - target) - reward * t) * 0.2 for t in (2, 3, 4, 5)]
        np.testing.assert_allclose(carry.return_to_go, expected, atol=1e-6)


def test_acting_sees_what_training_saw(trained):
    """The prediction in a window is the action that `act` chooses when it is led through the same steps."""
    agent, policies, _ = trained
    policy = jax.tree.map(lambda leaf: leaf[0], policies)
    network = DecisionTransformer(CONFIG.transformer, 1, 24)
    act = compiled(lambda policy, carry, shown: agent.act(policy, carry, shown, jax.random.key(0), True)[:2])
    carry = agent.start(policy, jax.random.key(0))
    rng, observations, chosen, begin = np.random.default_rng(2), [], [], []
    for step in range(6):
        observations.append(rng.normal(size=2).astype(np.float32))
        shown = jax.tree.map(lambda leaf: leaf[0], shows(observations[-1][None]))
        action, carry = act(policy, carry, shown.replace(reward=jnp.float32(step > 0)))
        chosen.append(np.asarray(action) / 2.0)
        begin.append(max(step - 3, 0))
    statistics = policy.statistics
    std = np.sqrt(statistics.squares / statistics.count)
    standardised = (np.stack(observations) - np.asarray(statistics.mean)) / std
    returns = 0.2 * (6.0 - np.arange(6, dtype=np.float32))
    for step in (1, 5):
        here = slice(begin[step], step + 1)
        inputs = (standardised[here], np.stack(chosen)[here], returns[here], np.arange(6)[here])
        found = network.apply(policy.params, *map(jnp.asarray, inputs), jnp.ones(step + 1 - begin[step], bool))
        np.testing.assert_allclose(found[-1], chosen[step], atol=1e-4)


def test_dropout_and_the_paddings_loss_train():
    config = dataclasses.replace(
        CONFIG, corl_loss=True, transformer=dataclasses.replace(CONFIG.transformer, dropout=0.1)
    )
    agent, data, hparams = make_decision_transformer(config, SPEC), Data(dataset=two_habits(10)), floats()
    state = agent.init(jax.random.key(0), hparams, data)
    update = compiled(agent.update)
    _, first = update(state, hparams, data)
    _, again = update(state, hparams, data)
    other = dataclasses.replace(state, key=jax.random.key(5))
    assert float(first["loss/action"]) == float(again["loss/action"])
    assert float(first["loss/action"]) != float(update(other, hparams, data)[1]["loss/action"])
    # At first about 0 is predicted where 0.75 or -0.75 was done, and a quarter of the entries is padding.
    assert float(first["loss/action"]) == pytest.approx(0.75 * 0.75**2, rel=0.25)


@pytest.mark.parametrize(
    ("config", "spec", "message"),
    [
        (CONFIG, EnvSpec(SPEC.observation_space, Discrete(2)), "needs vectors of floats"),
        (CONFIG, EnvSpec(SPEC.observation_space, Box(-np.inf, np.inf, (1,))), "finite bounds"),
        (CONFIG, EnvSpec(Box(0.0, 1.0, (4, 4, 1)), SPEC.action_space), "needs vectors of floats"),
    ],
)
def test_spaces_that_are_refused(config, spec, message):
    with pytest.raises(ValueError, match=message):
        make_decision_transformer(config, spec)


def test_settings_that_are_refused():
    with pytest.raises(ValueError, match=r"config\.context_length must be at least 1, got 0"):
        DTConfig(context_length=0)
    with pytest.raises(ValueError, match=r"num_heads must divide width = 16, got 3"):
        TransformerConfig(width=16, num_heads=3)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1"):
        TransformerConfig(dropout=1.0)
    run = jaxrl.load_config("dt_pendulum", ["config.max_episode_steps=100"])
    with pytest.raises(ValueError, match=r"max_episode_steps must be at least 200 \(the longest episode\), got 100"):
        jaxrl.make_algorithm(run)


@pytest.mark.slow
def test_the_pendulum_is_better_than_its_data():
    data = open_recording(shipped_configs()["dt_pendulum"].parent / "data" / "pendulum_medium.hdf5")
    returns = evaluation_returns("dt_pendulum", 2)
    assert np.all(returns > data.header.facts["mean_return"]), returns
