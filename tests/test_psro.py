"""PSRO: known equilibria of matrix games, the promises of a compiled population loop, and payoffs of PoolFlip."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from envs_jax.control.cartpole import CartPole
from envs_jax.versus import versus_params
from exact_oracle import ExactConfig, ExactHParams
from jaxrl.algorithms.population import GroupedVersus
from jaxrl.algorithms.ppo import PPOConfig, PPOHParams
from jaxrl.algorithms.psro import OracleConfig, PSROConfig, make_population, make_psro
from jaxrl.loop import scan_updates
from jaxrl.parts.networks import NetworkConfig
from jaxrl.parts.roles import Mixture, mix, systematic_draw, take
from jaxrl.results.export import export_policy, load_policy
from jaxrl.rollout import start_rollout, unroll
from jaxrl.run.checkpoint import CheckpointWriter, restore
from jaxrl.run.config import ConfigError, load_config, make_config
from jaxrl.run.program import load_data, make_algorithm, make_env
from jaxrl.run.runner import fit
from jaxrl.run.sweep import sweep
from jaxrl.types import Data
from programs import bits, compiled, equations

EXACT_ORACLE = OracleConfig("exact_oracle:EXACT", 1, ExactConfig())
ROCK_PAPER_SCISSORS = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])


MATRIX = PSROConfig(("pure(0)",), capacity=6, num_episodes=2, num_groups=4, oracle=EXACT_ORACLE)
EXACT = ExactHParams(jnp.float32(0))


def matrix_psro(payoffs="rock-paper-scissors", **config):
    env, params = envs_jax.make("matrix-game", payoffs=payoffs)
    return make_psro(dataclasses.replace(MATRIX, **config), env), Data(params)


@functools.cache
def matrix_run(num_updates=6, payoffs="rock-paper-scissors", **config):
    """The state after every iteration, leaves `[num_updates, ...]`, and the metrics."""
    agent, data = matrix_psro(payoffs, **config)

    @compiled
    def train(key, data):
        def step(state, _):
            state, metrics = agent.update(state, EXACT, data)
            return state, (state, metrics)

        return jax.lax.scan(step, agent.init(key, EXACT, data), None, num_updates)[1]

    return train(jax.random.key(0), data)


def action_probabilities(state):
    """What the meta-strategies play of a matrix game, `[2, N]`."""
    members = state.params
    strategy = jnp.where(members.learned[..., None], members.network, members.heuristic)
    return np.einsum("im,ima->ia", state.strategies, strategy)


# --- matrix games


@pytest.mark.parametrize("options", [{}, {"num_groups": 0}])
def test_rock_paper_scissors_is_solved_in_six_iterations(options):
    states, metrics = matrix_run(**options)
    row, column = action_probabilities(take(states, -1))
    gains = np.max(ROCK_PAPER_SCISSORS @ column) + np.max(-row @ ROCK_PAPER_SCISSORS)
    assert gains < 1e-2  # NashConv in the whole game, not only among the members
    np.testing.assert_allclose([row, column], 1 / 3, atol=5e-3)
    assert np.all(metrics["meta/nash_conv"] < 1e-2)
    np.testing.assert_allclose(metrics["meta/newest_gain/row"][:2], 1.0)  # paper on rock, then scissors on paper
    assert np.all(np.abs(metrics["meta/newest_gain/row"][2:]) < 1e-2)


def test_empty_slots_never_get_probability():
    states, _ = matrix_run()
    for k in range(6):
        filled = np.arange(7) < 2 + k
        for strategy in np.asarray(states.strategies[k]):
            assert np.all(strategy[~filled] == 0.0)
            np.testing.assert_allclose(strategy[filled].sum(), 1.0, atol=1e-6)


def test_payoffs_are_the_games():
    state = take(matrix_run()[0], -1)
    strategy = jnp.where(state.params.learned[..., None], state.params.network, state.params.heuristic)
    expected = np.einsum("ma,ab,nb->mn", strategy[0], ROCK_PAPER_SCISSORS, strategy[1])  # all are pure
    np.testing.assert_allclose(state.payoffs[0], expected, atol=1e-6)
    np.testing.assert_allclose(state.payoffs[1], -state.payoffs[0], atol=1e-6)


def test_last_is_iterated_best_response_and_cycles():
    states, _ = matrix_run(4, meta_solver="last")
    np.testing.assert_array_equal(states.strategies.argmax(-1), np.tile([[1], [2], [3], [4]], 2))
    played = [action_probabilities(take(states, k))[0].argmax() for k in range(4)]
    assert played == [1, 2, 0, 1]  # paper, scissors, rock, paper: it never settles


def test_general_sum_game_with_alpharank_finds_defection():
    states, _ = matrix_run(2, "prisoners-dilemma", meta_solver="alpharank")
    assert np.all(action_probabilities(take(states, -1))[:, 1] > 0.9)


# --- one program


def test_the_number_of_iterations_does_not_change_the_program():
    agent, data = matrix_psro()
    state = jax.eval_shape(agent.init, jax.random.key(0), EXACT, data)

    def program(num_updates):
        jaxpr = jax.make_jaxpr(lambda state: scan_updates(agent, state, EXACT, num_updates, data))(state)
        return [equation.primitive.name for equation in equations(jaxpr.jaxpr)]

    two, twenty = program(2), program(20)
    assert two == twenty
    assert "scan" in two
    assert not [name for name in two if "callback" in name]


def test_a_run_compiles_once_resumes_bit_by_bit_and_sweeps(tmp_path):
    agent, data = matrix_psro()
    keys = jax.random.split(jax.random.key(0), 2)
    games = Data(data.env_params.replace(payoffs=jnp.stack([data.env_params.payoffs, 2 * data.env_params.payoffs])))
    init = compiled(jax.vmap(lambda key, data: agent.init(key, EXACT, data)))
    chunk = compiled(jax.vmap(lambda state, data: scan_updates(agent, state, EXACT, 2, data)[0]))
    state = init(keys, games)
    for _ in range(3):
        state = chunk(state, games)
    assert chunk._cache_size() == 1

    halfway = chunk(init(keys, games), games)
    writer = CheckpointWriter(tmp_path, keep=1)
    writer.save(halfway, 2, {})
    writer.wait()
    stored, _ = restore(tmp_path / "000000002", jax.eval_shape(init, keys, games))
    assert bits(stored) == bits(halfway)
    assert bits(chunk(chunk(stored, games), games)) == bits(state)
    # Twice the payoffs, twice the game: parameters of the game are swept like seeds.
    np.testing.assert_allclose(2 * state.payoffs[0, :, :3, :3], state.payoffs[1, :, :3, :3], atol=1e-6)


# --- PPO as the oracle, on PoolFlip

POOLFLIP = {"heuristics": ("sleep", "periodic(4)"), "capacity": 2, "num_episodes": 8, "num_groups": 4}
ORACLE = OracleConfig(
    "ppo", 4, PPOConfig(num_envs=8, unroll_length=4, num_minibatches=1, network=NetworkConfig(hidden_sizes=(8,)))
)
HPARAMS = jax.tree.map(jnp.float32, PPOHParams())


@pytest.fixture(scope="module")
def small():
    """A small PSRO with `meta=last` on PoolFlip, two seeds in one program: agent, data, population, states, metrics."""
    env, params = envs_jax.make("poolflip-r3", horizon=8)
    config = PSROConfig(meta_solver="last", oracle=ORACLE, **POOLFLIP)
    agent, population, data = make_psro(config, env), make_population(config, env), Data(params)

    def train(key):
        first = agent.init(key, HPARAMS, data)

        def step(state, _):
            state, metrics = agent.update(state, HPARAMS, data)
            return state, (state, metrics)

        return first, *jax.lax.scan(step, first, None, 2)[1]

    return agent, data, population, compiled(jax.vmap(train))(jax.random.split(jax.random.key(3), 2))


@pytest.mark.slow
def test_last_is_a_hand_written_loop_of_best_responses(small):
    """Of one seed alone, where the run trained two in one program: a vmapped seed is the single one, too."""
    _, data, population, (first, states, _) = small
    respond, play = compiled(population.best_responses), compiled(population.play)
    key, bank = first.key[1], take(first.params, 1)
    newest = 1  # the last heuristic
    for k in range(2):
        key, key_oracles = jax.random.split(key)
        strategies = jnp.zeros((2, 4)).at[:, newest].set(1.0)
        response, _ = respond(key_oracles, HPARAMS, data.env_params, bank, strategies)
        newest = 2 + k
        bank = jax.tree.map(lambda leaf, new, slot=newest: leaf.at[:, slot].set(new), bank, response)
        for one, other in zip(
            jax.tree.leaves(take(states.params.network, (1, k, slice(None), newest))),
            jax.tree.leaves(response.network),
        ):
            np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_array_equal(states.strategies[1, k].argmax(-1), newest)
    played = play(take(bank, (0, [3, 0])), take(bank, (1, [2, 3])), data.env_params, first.episodes_key[1])
    measured = states.payoffs[1, -1][:, [3, 0], [2, 3]].T
    np.testing.assert_allclose(jnp.mean(population.utility(played), 1), measured, atol=1e-5)


def test_utilities_are_zero_sum_and_per_tick(small):
    *_, (first, states, metrics) = small
    np.testing.assert_allclose(states.payoffs[:, -1, 0], -states.payoffs[:, -1, 1], atol=1e-6)
    own, cost = states.info["own"][:, -1], states.info["cost"][:, -1]
    np.testing.assert_allclose(own.sum(1), 1.0, atol=1e-6)
    np.testing.assert_allclose(states.payoffs[:, -1, 0], own[:, 0] - own[:, 1] - cost[:, 0] + cost[:, 1], atol=1e-5)
    assert np.all(first.payoffs[:, 0, 0, 0] == 1.0)  # nobody moves: blue keeps everything
    assert all(np.all(np.isfinite(values)) for values in metrics.values())
    assert {"play/blue/own", "newest/red/num_flips", "strategy/red/periodic(4)", "utility/blue/learned_0"} <= set(
        metrics
    )


def test_acting_draws_a_member_per_episode_and_keeps_it(small):
    _, data, population, (first, _, _) = small
    members = take(first.params, (0, 1))  # red's
    mixture = Mixture(members, jnp.array([0.25, 0.75, 0.0, 0.0]))
    start, act = mix(population.policy)
    _, time_step = envs_jax.make("poolflip-r3", horizon=8)[0].reset(jax.random.key(0), data.env_params)
    red = jax.tree.map(lambda leaf: leaf if leaf.ndim == 0 else leaf[1], time_step)

    @jax.jit
    @jax.vmap
    def play(key):
        carry = start(mixture, key)
        _, after, _ = act(mixture, carry, red, key, False)
        return carry[0], after[0]

    drawn, kept = play(jax.random.split(jax.random.key(1), 2000))
    np.testing.assert_array_equal(drawn, kept)
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 2000, mixture.weights, atol=0.04)
    assert np.all(drawn < 2)


def test_a_view_of_one_role_trains_the_same_and_acts_for_it(small):
    agent, data, _, (_, states, _) = small
    config = PSROConfig(meta_solver="last", oracle=ORACLE, **POOLFLIP)
    view, params = envs_jax.make("poolflip-r3", horizon=8, role="red", opponents=["guard(2)"])
    seen = make_psro(config, view)
    state = take(states, (0, -1))
    both, red = agent.policy(state, data), seen.policy(state, Data(params))
    assert bits(take(both, 1)) == bits(red)
    learned = make_psro(dataclasses.replace(config, output="learned"), view).policy(state, Data(params))
    np.testing.assert_array_equal(learned.weights, [0, 0, 1, 1])
    last = make_psro(dataclasses.replace(config, output="last"), view).policy(state, Data(params))
    assert bits(last) == bits(take(state.params.network, (1, 3)))


@pytest.mark.slow
def test_exploitability_and_held_out_play(small):
    _, data, population, (first, _, _) = small
    bank, strategies = take(first.params, 0), jnp.tile(jnp.array([1.0, 0, 0, 0]), (2, 1))  # all sleep

    @compiled
    def measure(key):
        attacks = population.heuristic_members(["guard(2)", "sleep"], HPARAMS)
        played = population.play_mixture(1, attacks, take(bank, 0), strategies[0], data.env_params, key)
        options = {"num_restarts": 2, "num_updates": 2, "num_episodes": 16}
        return played, population.exploit(key, HPARAMS, data.env_params, 1, take(bank, 0), strategies[0], **options)

    played, result = measure(jax.random.key(0))
    assert played["own"].shape == (2, 8, 2)
    np.testing.assert_array_equal(played["own"][1, :, 0], 1.0)  # both sleep
    assert result.shape == (16,)
    assert np.mean(result) > -1.0  # a random attacker takes something from a sleeping defender


@pytest.mark.slow
def test_payoffs_of_heuristics_are_the_reference_table():
    """Cross-play of the specification (4,096 episodes per cell, s.e. <= 0.0044), within 4 standard errors."""
    names = ("sleep", "periodic(4)", "exponential(0.25)", "uniform(4,2)", "guard(2)", "burst(6,18)")
    own_blue = [
        [1.000, 0.022, 0.049, 0.027, 0.004, 0.035],
        [1.000, 0.543, 0.682, 0.560, 0.284, 0.671],
        [1.000, 0.382, 0.530, 0.393, 0.213, 0.485],
        [1.000, 0.535, 0.674, 0.546, 0.292, 0.661],
        [1.000, 0.709, 0.794, 0.712, 0.418, 0.792],
        [1.000, 0.397, 0.575, 0.410, 0.221, 0.533],
    ]
    env, params = envs_jax.make("poolflip-r3", horizon=256)
    config = PSROConfig(**POOLFLIP | {"heuristics": names, "num_episodes": 512}, oracle=ORACLE)
    state = jax.jit(make_psro(config, env).init)(jax.random.key(0), HPARAMS, Data(params))
    error = 4 * 0.0044 * np.sqrt(4096 / 512 + 1)
    np.testing.assert_allclose(state.info["own"][0, :6, :6], own_blue, atol=error)
    np.testing.assert_allclose(state.info["own"][0, 0, :6], own_blue[0], atol=error / 3)  # much steadier rows
    game = state.payoffs[0, :6, :6]
    assert np.asarray(game).min(1).argmax() == np.asarray(game).max(0).argmin() == 4  # guard against guard


@pytest.mark.slow
@pytest.mark.parametrize(("opponent", "bound"), [("periodic(4)", 2 / 3), ("exponential(0.25)", 0.4)])
def test_the_oracle_comes_near_the_exact_bounds(opponent, bound):
    """Of the utility flipit, R = 3: 75 % after 1.6M steps, 85 % after 3.3M, 90 % after 8M; each schedule ends there."""
    game = ['env.utility="flipit"', "env.horizon=256", f'env.opponents=["{opponent}"]', "evaluation.every=0"]
    shape = ["config.num_envs=256", "config.unroll_length=32", "config.num_minibatches=8", "checkpoint.every=0"]
    floats = ["hparams.learning_rate=2e-3", "hparams.discount=0.97", "hparams.gae_lambda=0.9"]
    for num_updates, share in ((195, 0.75), (400, 0.85), (976, 0.9)):
        run = load_config("ppo_poolflip", [*game, *shape, *floats, f"num_updates={num_updates}"])
        state, rows = fit(run, progress=False)
        del state
        assert rows[-1]["evaluation/return"] / 256 >= share * bound


@pytest.mark.slow
def test_it_runs_like_every_other_algorithm(tmp_path):
    """Folder, checkpoints, resume, sweep, evaluation and export, through the same calls."""
    overrides = ["env.role=red", 'env.opponents=["guard(2)"]', "env.horizon=8", "config.num_groups=4", "log.chunk=1"]
    run = make_config(TABLE, [*overrides, "checkpoint.every=1", "config.output=last", "config.num_episodes=4"])
    state, rows = fit(run, tmp_path / "whole", progress=False)
    assert len(rows) == 3
    assert np.isfinite(rows[-1]["evaluation/return"])
    for folder in ("000000002", "000000003"):
        assert (tmp_path / "whole" / "checkpoints" / folder).is_dir()
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "000000003")
    resumed, _ = fit(run, tmp_path / "whole", resume=True, progress=False)
    assert bits(resumed) == bits(state)
    members = sweep(run, {"hparams.learning_rate": [1e-4, 1e-3]}, seeds=2, progress=False).members
    assert {member.group for member in members} == {0}  # one program
    agent, data = make_algorithm(run), load_data(run)
    for name in ("policy.stablehlo", "policy.npz"):
        exported = export_policy(agent, state, tmp_path / name, data, spec=make_env(run)[0])
        assert load_policy(exported).metadata["action"]["num_values"] == 7


# --- parts


def test_systematic_draws_come_as_often_as_their_weights_say():
    weights = jnp.array([0.0, 0.5, 0.05, 0.0, 0.45, 0.0])
    counts = jax.vmap(lambda key: jnp.bincount(systematic_draw(key, weights, 16), length=6))(
        jax.random.split(jax.random.key(0), 2000)
    )
    expected = 16 * np.asarray(weights)
    counts = np.asarray(counts)
    assert np.all(counts >= np.floor(expected - 1e-4))
    assert np.all(counts <= np.ceil(expected + 1e-4))
    np.testing.assert_allclose(counts.mean(0), expected, atol=0.05)
    extreme = systematic_draw(jax.random.key(0), jnp.array([0.0, 1e-30, 0.0]), 7)
    np.testing.assert_array_equal(extreme, 1)


def test_groups_play_what_single_environments_would():
    """Four groups of two, each with its opponent, against environments that hold theirs: the same transitions."""
    game, params = envs_jax.make("matrix-game", num_rounds=3)
    start, act, opponents = game.heuristics(["pure(0)", "pure(1)", "pure(2)", "mixed(1,1,0)"])
    repeated = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (4, *leaf.shape)), versus_params(params, opponents))
    grouped = GroupedVersus(game, start, act, versus_params(params, opponents), 4)
    policy = (lambda params, key: (), lambda params, carry, step, key, _: (jnp.int32(1), carry, {}))

    @jax.jit
    def play(key):
        settings = dataclasses.replace(repeated, opponents=opponents)
        rollout = start_rollout(grouped, policy, None, settings, key, 8)
        return unroll(grouped, policy, None, settings, rollout, key, 6)[1].transitions

    steps = play(jax.random.key(0))
    rewards = np.asarray(steps.reward).reshape(6, 4, 2)
    for group, reward in enumerate([1.0, 0.0, -1.0]):  # paper against rock, paper, scissors
        np.testing.assert_array_equal(rewards[:, group], reward)
    assert set(rewards[:, 3].ravel().tolist()) == {0.0, 1.0}
    np.testing.assert_array_equal(np.asarray(steps.ended).any(1), [False, False, True] * 2)


# --- configuration and refusals

TABLE = {
    "algorithm": "psro",
    "num_updates": 3,
    "env": {"name": "poolflip-r3", "horizon": 64},
    "config": {"heuristics": ["sleep"], "oracle": {"num_updates": 7, "config": {"num_envs": 16}}},
}


def test_one_file_configures_the_oracle_too():
    run = make_config(TABLE, ["config.oracle.config.network.hidden_sizes=[8]", "hparams.learning_rate=5e-4"])
    oracle = run.config.oracle
    assert isinstance(oracle.config, PPOConfig)
    assert (oracle.config.num_envs, oracle.config.network.hidden_sizes, oracle.num_updates) == (16, (8,), 7)
    assert run.config.capacity == 3  # one member per update
    assert (float(run.hparams.anneal_updates), float(run.hparams.learning_rate)) == pytest.approx((7.0, 5e-4))
    shipped = load_config("psro_poolflip")
    assert shipped.config.capacity == shipped.num_updates == 6
    assert float(shipped.hparams.anneal_updates) == shipped.config.oracle.num_updates


@pytest.mark.parametrize(
    "overrides",
    [
        ["num_updates=1", 'config.heuristics=["periodic(4)"]', "config.meta_solver=heuristics", "config.output=last"],
        ["num_updates=1", "config.meta_solver=heuristics", "config.output=last", "config.oracle.num_updates=900"],
        ["config.meta_solver=last"],
        ["config.meta_solver=uniform", "config.output=learned"],
        ["config.meta_solver=prd", "config.meta_solver_options.num_iterations=100", "env.utility=flipit"],
        ["config.initial=random", "config.num_groups=0"],
    ],
)
def test_baselines_are_overrides(overrides):
    run = load_config("psro_poolflip", overrides)
    agent, data = make_algorithm(run), load_data(run)
    state = jax.eval_shape(agent.init, jax.random.key(0), run.hparams, data)
    num_slots = run.config.num_initial + run.num_updates
    assert state.payoffs.shape == (2, num_slots, num_slots)
    after, metrics = jax.eval_shape(agent.update, state, run.hparams, data)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    assert all(value.shape == () for value in metrics.values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("config.capacity=2", "capacity=2 is too small for the 3 members"),
        ("config.oracle.config.num_env=3", r"unknown key 'config.oracle.config.num_env'; did you mean 'num_envs'"),
        ("config.oracle.algorithm=pppo", "unknown algorithm 'pppo'; did you mean 'ppo'"),
        ("config.oracle.algorithm=psro", "config.oracle.algorithm must train one agent"),
        ("config.oracle=3", "config.oracle must be a table, got 3"),
        ("config=3", "config must be a table, got 3"),
        ("config.num_groups=3", "config.num_groups=3 must divide config.oracle.config.num_envs = 16"),
        ("config.meta_solver=rm", r"config.meta_solver must be one of .*; did you mean 'rm\+'"),
        ("config.num_groups=-1", "config.num_groups must be at least 0, got -1"),
        ("config.initial=heuristic", "did you mean 'heuristics'"),
        ("hparams.learning_rat=1", "did you mean 'learning_rate'"),
        ("config.oracle.num_updates=0", "config.oracle.num_updates must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        make_config(TABLE, [override])


def test_games_that_do_not_fit_are_refused():
    config = PSROConfig(oracle=EXACT_ORACLE, heuristics=("sleep",), num_groups=4)
    with pytest.raises(ValueError, match="needs a game of two roles, CartPole has 1"):
        make_psro(config, CartPole())
    with pytest.raises(ValueError, match="environment that runs inside JAX"):
        make_psro(config, CartPole().spec(CartPole().default_params))
    general, _ = envs_jax.make("poolflip-r3", utility="flipit")
    with pytest.raises(ValueError, match=r"'rm\+' needs a zero-sum utility.*'prd' or 'alpharank'"):
        make_psro(dataclasses.replace(config, oracle=ORACLE), general)
    game, _ = envs_jax.make("poolflip-r3")
    with pytest.raises(ValueError, match="heuristics must name at least one"):
        make_psro(PSROConfig(oracle=ORACLE, num_groups=4), game)
    with pytest.raises(ValueError, match="unknown heuristic 'slep'"):
        make_psro(PSROConfig(oracle=ORACLE, heuristics=("slep",), num_groups=4), game)


@pytest.mark.slow
def test_the_same_loop_trains_both_sides_of_cyborg():
    """Another game, with masks of legal actions and leaves without entries; nothing of PSRO knows which game it is."""
    oracle = {"num_updates": 2, "config": {"num_envs": 8, "unroll_length": 10, "num_minibatches": 2}}
    run = make_config(
        {
            "algorithm": "psro",
            "num_updates": 1,
            "env": {"name": "cyborg-duel", "max_steps": 10},
            "config": {"heuristics": ["sleep", "random"], "num_episodes": 4, "num_groups": 4, "oracle": oracle},
        }
    )
    state, log = fit(run, progress=False)
    assert log[-1]["meta/value/blue"] == pytest.approx(-log[-1]["meta/value/red"], abs=1e-6)
    np.testing.assert_allclose(state.payoffs[0], -state.payoffs[1], atol=1e-6)
    assert float(state.payoffs[0, 0, 0]) == 0.0  # nobody does anything: nothing is lost
    np.testing.assert_allclose(np.sum(state.strategies, axis=1), 1.0, atol=1e-5)
