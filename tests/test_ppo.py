"""PPO on small worlds with known answers, its update against a plain loop, and what a sweep promises."""

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
from envs_jax.wrappers import FrameStack
from jaxrl.algorithms.ppo import PPOConfig, PPOHParams, make_ppo
from jaxrl.loop import scan_updates
from jaxrl.parts.networks import NetworkConfig
from jaxrl.types import Data
from programs import compiled, equations
from small_worlds import TOYS, AnyToy, BrightCorner, Counter, MaskedPairs, Recall, RecallParams, Target, WhichToy, shows

BASE = PPOConfig(num_envs=32, unroll_length=8, num_minibatches=2, network=NetworkConfig(hidden_sizes=(16,)))
GRU = NetworkConfig(torso="gru", hidden_sizes=(8,), gru_size=8)


def floats(**values):
    return jax.tree.map(jnp.float32, PPOHParams(**{"learning_rate": 1e-2, "entropy_cost": 0.0, **values}))


def trainer(env, num_updates, shown=None, **config):
    """`train(hparams, env_params)`: a whole training, and what its policy then does and expects at `shown` [n]."""
    agent = make_ppo(dataclasses.replace(BASE, **config), env)

    def train(hparams, env_params=env.default_params, key=0):
        data = Data(env_params=env_params)
        state = agent.init(jax.random.key(key), hparams, data)
        state, metrics = scan_updates(agent, state, hparams, num_updates, data)
        result = {"params": state.params, "metrics": metrics}
        if shown is not None:
            policy = agent.policy(state, data)
            carry = agent.start(policy, jax.random.key(0))
            act = jax.vmap(agent.act, (None, None, 0, None, None))
            result["action"], _, extras = act(policy, carry, shown, jax.random.key(0), True)
            result["value"] = extras["value"]
        return result

    return train


def late_return(result, num_updates=5):
    return np.asarray(result["metrics"]["episode/return"])[..., -num_updates:].mean(-1)


# --- known answers


@pytest.fixture(scope="module")
def train_toys():
    train = compiled(jax.vmap(trainer(AnyToy(), 60, shows([[-1.0], [0.0], [1.0]])), (None, 0)))
    which = WhichToy(jnp.arange(5, dtype=jnp.int32))
    return lambda **hparams: train(floats(discount=0.9, anneal_updates=60, **hparams), which)


@pytest.fixture(scope="module")
def toys(train_toys):
    return train_toys()


@pytest.mark.parametrize(
    ("which", "values", "actions"),
    [  # at the observations -1, 0, +1; None where they do not occur or do not matter
        (toy.ConstantReward, (None, 1.0, None), (None, None, None)),
        (toy.ObservedValue, (-1.0, None, 1.0), (None, None, None)),
        (toy.Discounting, (0.9, None, 1.0), (None, None, None)),
        (toy.ActionChoice, (None, 1.0, None), (None, 1, None)),
        (toy.ObservedAction, (1.0, None, 1.0), (0, None, 1)),
    ],
)
def test_toys_reach_their_known_values_and_actions(toys, which, values, actions):
    member = TOYS.index(which)
    for i in range(3):
        if values[i] is not None:
            assert float(toys["value"][member, i]) == pytest.approx(values[i], abs=0.05)
        if actions[i] is not None:
            assert int(toys["action"][member, i]) == actions[i]
    if actions != (None, None, None):
        assert late_return(toys)[member] > 0.95


def test_a_reward_for_entropy_keeps_the_policy_undecided(train_toys):
    undecided = train_toys(entropy_cost=10.0)
    assert abs(late_return(undecided)[TOYS.index(toy.ActionChoice)]) < 0.3
    np.testing.assert_allclose(undecided["metrics"]["entropy"][:, -1], np.log(2), atol=0.02)


def test_multi_discrete_with_masks_and_a_critic_that_sees_more():
    cases = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)  # sign and bonus
    legal = np.array([[True, sign > 0, True, True, sign > 0] for sign, _ in cases])
    shown = shows(cases[:, :1], critic_observation=jnp.tile(cases, 2), legal_actions=jnp.asarray(legal))
    train = compiled(trainer(MaskedPairs(), 100, shown, clip_values=False))
    result = train(floats(anneal_updates=100))
    np.testing.assert_array_equal(result["action"], [[1, 2], [1, 2], [0, 1], [0, 1]])
    np.testing.assert_allclose(result["value"], [6.0, -4.0, 1 / 3 + 5.0, 1 / 3 - 5.0], atol=0.3)
    returns = np.asarray(result["metrics"]["episode/return"])
    # An illegal action costs 10: one among the 256 of an update would pull the mean of 2/3 (bonus: 0 +- 0.3) down.
    assert returns.min() > -1.5


def test_continuous_actions_with_normalised_observations_and_rewards():
    shown = shows([[900.0], [1100.0]])
    config = {"normalize_observations": True, "normalize_rewards": True}
    result = compiled(trainer(Target(), 100, shown, **config))(floats(anneal_updates=100))
    np.testing.assert_allclose(result["action"], [[7.0, -1.0], [7.0, 1.0]], atol=0.4)
    assert abs(np.asarray(result["value"])).max() < 5.0  # in units of the return's deviation, not of -50


def test_images():
    network = NetworkConfig(torso="cnn", hidden_sizes=(8,), cnn_channels=(4,))
    images = np.zeros((2, 5, 5, 1), np.uint8)
    images[0, 0, 0], images[1, 4, 4] = 255, 255
    result = compiled(trainer(BrightCorner(), 40, shows(images), network=network))(floats())
    np.testing.assert_array_equal(result["action"], [0, 1])
    assert late_return(result) > 0.9


def test_frames_remember_as_far_as_they_reach_and_no_further():
    """The first observation pays in the last step: three frames reach back to it over three steps, not over four."""
    train = compiled(jax.vmap(trainer(FrameStack(Recall(), 3), 60), (None, 0)))
    within, beyond = late_return(train(floats(), RecallParams(jnp.array([3, 4], jnp.int32))))
    assert within > 0.9
    assert abs(beyond) < 0.25


@pytest.mark.slow
def test_a_recurrent_network_remembers():
    train = compiled(trainer(Recall(), 60, network=GRU, num_envs=64, unroll_length=10))
    assert late_return(train(floats())) > 0.9


# --- the update against a plain loop


@pytest.fixture(scope="module", params=["mlp", "gru"])
def second_update(request):
    """Two updates with learning rate 0, taken apart: what was collected for the second, and what it measured."""
    env = Counter(random_length=True)
    network = GRU if request.param == "gru" else BASE.network
    config = dataclasses.replace(
        BASE, num_envs=6, unroll_length=7, num_epochs=1, num_minibatches=1, network=network,
        normalize_advantages=False, normalize_observations=True, normalize_rewards=True,
    )  # fmt: skip
    agent = make_ppo(config, env)
    data = Data(env_params=env.default_params)
    # So small a clip shows any difference between the probability an action was drawn with and the replayed one.
    frozen = floats(learning_rate=0.0, clip_epsilon=1e-4, discount=0.9, gae_lambda=0.8, max_grad_norm=1e6)
    collect, learn = compiled(agent.collect), compiled(agent.learn)
    state = compiled(agent.init)(jax.random.key(1), frozen, data)
    state, first_batch = collect(state, frozen, data)
    before, _ = learn(state, frozen, first_batch, data)
    collected, batch = collect(before, frozen, data)
    after, metrics = learn(collected, frozen, batch, data)
    return SimpleNamespace(**locals())


def play_by_hand(agent, state, batch):
    """Values of observations and true successors f32 [T, B], the memory carried step by step."""
    policy = agent.policy(state, None)
    num_envs = batch.discounted_return.shape[0]

    @compiled
    def act(carry, observation):
        _, carry, extras = jax.vmap(agent.act, (None, 0, 0, None, None))(
            policy, carry, shows(observation), jax.random.key(0), True
        )
        return carry, extras["value"]

    start = jax.tree.map(lambda x: jnp.stack([x] * num_envs), agent.start(policy, jax.random.key(0)))
    carry, values, next_values, steps = batch.carry, [], [], batch.transitions
    for observation, successor, ended in zip(steps.observation, steps.next_observation, steps.ended):
        carry, value = act(carry, observation)
        _, next_value = act(carry, successor)
        carry = jax.tree.map(lambda a, b, ended=ended: jnp.where(ended[:, None], a, b), start, carry)
        values.append(value)
        next_values.append(next_value)
    return np.stack(values), np.stack(next_values)


def test_losses_equal_a_plain_loop_over_the_collected_steps(second_update):
    u = second_update
    steps = jax.tree.map(np.asarray, u.batch.transitions)
    assert steps.terminated.any()
    assert steps.truncated[:-1].any()
    assert not steps.ended[-1].all()
    values, next_values = play_by_hand(u.agent, u.collected, u.batch)
    np.testing.assert_allclose(steps.extras["value"], values, atol=1e-5)

    running, returns = np.zeros(6), []
    for batch in (u.first_batch, u.batch):
        np.testing.assert_allclose(batch.discounted_return, running, rtol=1e-5)
        for reward, ended in zip(np.asarray(batch.transitions.reward), np.asarray(batch.transitions.ended)):
            running = 0.9 * running + reward
            returns.append(running)
            running = np.where(ended, 0.0, running)
    rewards = steps.reward / np.std(returns)

    advantages, advantage = [], np.zeros(6)
    for t in reversed(range(7)):
        delta = rewards[t] + 0.9 * np.where(steps.terminated[t], 0.0, next_values[t]) - values[t]
        advantage = delta + 0.9 * 0.8 * np.where(steps.ended[t], 0.0, advantage)
        advantages.append(advantage)
    np.testing.assert_allclose(u.metrics["loss/policy"], -np.mean(advantages), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(u.metrics["loss/value"], 0.5 * np.mean(np.square(advantages)), rtol=1e-4)


def test_replayed_probabilities_equal_the_collected_ones(second_update):
    metrics = second_update.metrics
    assert float(metrics["clip_fraction"]) == 0.0
    assert abs(float(metrics["approx_kl"])) < 1e-7
    assert 0.5 < float(metrics["entropy"]) <= np.log(3) + 1e-6


def test_observation_statistics_are_those_of_all_collected_observations(second_update):
    u = second_update
    seen = np.concatenate([np.asarray(b.transitions.observation).reshape(-1, 2) for b in (u.first_batch, u.batch)])
    statistics = u.after.statistics
    assert float(statistics.count) == len(seen)
    np.testing.assert_allclose(statistics.mean, seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.squares / statistics.count, seen.var(0), rtol=1e-4)


@pytest.mark.parametrize("second_update", ["mlp"], indirect=True)
def test_learn_after_collect_is_update(second_update):
    u = second_update
    state, metrics = compiled(u.agent.update)(u.before, u.frozen, u.data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), metrics, u.metrics)
    np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(u.after.key))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        dataclasses.replace(state, key=None),
        dataclasses.replace(u.after, key=None),
    )


def test_the_learning_rate_anneals_to_nothing(second_update):
    u = second_update

    def changed(num_updates, anneal_updates):
        state = dataclasses.replace(u.collected, num_updates=jnp.int32(num_updates))
        after, _ = u.learn(state, floats(anneal_updates=anneal_updates), u.batch, u.data)
        assert int(after.num_updates) == num_updates + 1
        moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), after.params, state.params)
        return max(jax.tree.leaves(moved))

    whole = changed(0, 10)
    assert whole > 1e-3
    assert changed(5, 10) == pytest.approx(whole / 2, rel=1e-3)
    assert changed(10, 10) == changed(11, 10) == 0.0
    assert changed(1000, 0) == pytest.approx(whole, rel=1e-3)


def test_costs_and_limits_reach_what_they_name(second_update):
    u = second_update
    state = dataclasses.replace(u.collected, opt_state=jax.tree.map(jnp.zeros_like, u.collected.opt_state))

    def changed(**hparams):
        after, _ = u.learn(state, floats(**hparams), u.batch, u.data)
        moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), after.params, state.params)["params"]
        return tuple(max(jax.tree.leaves([moved[part], moved[f"{part}_head"]])) for part in ("actor", "critic"))

    actor, critic = changed()
    assert min(actor, critic) > 1e-3
    without_values = changed(value_cost=0.0)
    assert without_values[0] > 1e-3
    assert without_values[1] == 0.0
    assert max(changed(max_grad_norm=1e-9)) < 1e-5  # far below the epsilon of Adam


# --- sweeps and programs

NUM_SEEDS, LEARNING_RATES = 8, [0.0, 1e-4, 1e-2, 3.0]


@pytest.fixture(scope="module")
def sweep():
    """8 seeds x 4 learning rates of one function, three updates at a time."""
    env, params = envs_jax.make("toy-observed-action")
    agent = make_ppo(dataclasses.replace(BASE, num_envs=16), env)
    data = Data(env_params=params)

    def start(seed, hparams):
        return agent.init(jax.random.key(seed), hparams, data)

    def chunk(state, hparams):
        return scan_updates(agent, state, hparams, 3, data)

    def grid(function):
        return compiled(jax.vmap(jax.vmap(function, (0, None)), (0 if function is chunk else None, 0)))

    settings = jax.vmap(lambda rate: dataclasses.replace(floats(), learning_rate=rate))(jnp.array(LEARNING_RATES))
    members, play = grid(start)(jnp.arange(NUM_SEEDS), settings), grid(chunk)
    return SimpleNamespace(**locals())


def test_a_sweep_ranks_its_members_without_recompiling(sweep):
    state, rows = sweep.members, []
    for _ in range(12):
        state, metrics = sweep.play(state, sweep.settings)
        rows.append(metrics["episode/return"])
    assert sweep.play._cache_size() == 1
    returns = np.asarray(jnp.concatenate(rows, -1))
    assert returns.shape == (4, NUM_SEEDS, 36)
    final = returns[..., -6:].mean((1, 2))
    assert np.argmax(final) == LEARNING_RATES.index(1e-2)
    assert final[2] > 0.95
    assert abs(final[0]) < 0.2
    assert len({row.tobytes() for row in returns[2]}) == NUM_SEEDS


def test_a_member_equals_its_single_run(sweep):
    state, metrics = sweep.play(sweep.members, sweep.settings)
    single = compiled(lambda seed, hparams: sweep.chunk(sweep.start(seed, hparams), hparams))
    for rate, seed in ((2, 0), (1, 5)):
        alone, alone_metrics = single(seed, floats(learning_rate=LEARNING_RATES[rate]))
        member = jax.tree.map(lambda leaf, at=(rate, seed): leaf[at], (state.params, metrics))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), member, (alone.params, alone_metrics))
    assert single._cache_size() == 1


@pytest.mark.parametrize(
    "config", [BASE, dataclasses.replace(BASE, network=GRU, normalize_observations=True, normalize_rewards=True)]
)
def test_the_program_never_calls_the_host(config):
    env, params = envs_jax.make("pendulum")
    agent, data = make_ppo(config, env), Data(env_params=params)

    def train(hparams):
        return scan_updates(agent, agent.init(jax.random.key(0), hparams, data), hparams, 2, data)

    names = {equation.primitive.name for equation in equations(jax.make_jaxpr(train)(floats()).jaxpr)}
    assert {"scan", "dot_general"} <= names
    assert not [name for name in names if "callback" in name or name in ("infeed", "outfeed", "device_put")]


# --- refusals


class TwoViews(Recall):
    def critic_observation_space(self, params):
        return Box(0.0, 1.0, (3,))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: PPOConfig(num_envs=3, unroll_length=5, num_minibatches=4),
            "config.num_minibatches=4 must divide num_envs * unroll_length = 15",
        ),
        (
            lambda: PPOConfig(num_envs=6, unroll_length=128, num_minibatches=4, network=GRU),
            "config.num_minibatches=4 must divide num_envs (a recurrent network keeps time whole) = 6",
        ),
        (lambda: PPOConfig(num_envs=0), "config.num_envs must be at least 1, got 0"),
        (lambda: PPOConfig(num_epochs=-1), "config.num_epochs must be at least 1, got -1"),
        (lambda: make_ppo(BASE, MatrixGame()), "PPO trains one agent"),
        (
            lambda: make_ppo(dataclasses.replace(BASE, network=NetworkConfig(torso="cnn")), Recall()),
            "config.network.torso='cnn' needs observations [height, width, channels], got (1,)",
        ),
        (
            lambda: make_ppo(
                dataclasses.replace(BASE, network=NetworkConfig(torso="cnn")),
                EnvSpec(Box(0.0, 1.0, (4, 4, 1)), Discrete(2), Box(0.0, 1.0, (3,))),
            ),
            "needs observations [height, width, channels], got (3,)",
        ),
        (
            lambda: make_ppo(dataclasses.replace(BASE, network=NetworkConfig(shared_torso=True)), TwoViews()),
            "config.network.shared_torso must be false",
        ),
        (lambda: make_ppo(BASE, EnvSpec(Box(0.0, 1.0, (1,)), Box(0, 9, (2,), jnp.int32))), "actions must be Discrete"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError) as refusal:
        build()
    assert message in str(refusal.value)


def test_without_an_environment_there_is_nothing_to_collect():
    env, params = envs_jax.make("pendulum")
    agent = make_ppo(BASE, env.spec(params))
    assert agent.collect is None
    assert agent.steps_per_update == 32 * 8
    state = jax.eval_shape(agent.init, jax.random.key(0), floats(), Data())
    assert state.rollout is None
