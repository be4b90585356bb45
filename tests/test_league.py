"""Leagues: payoffs of known games, mixtures, policies of several sorts in the same episodes, files, refusals."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from jaxrl.algorithms.population import Population
from jaxrl.algorithms.psro import make_population, make_psro
from jaxrl.cli import app
from jaxrl.loop import scan_updates
from jaxrl.run.checkpoint import CheckpointWriter
from jaxrl.run.config import ConfigError, make_config
from jaxrl.run.entrants import load_entrants
from jaxrl.run.folder import RunFolder
from jaxrl.run.league import league, play_league, split_names
from jaxrl.run.program import load_data, make_algorithm, make_env
from programs import compiled

MATRIX = {
    "algorithm": "psro",
    "num_updates": 3,
    "env": {"name": "matrix-game"},
    "config": {
        "heuristics": ["pure(0)"],
        "num_episodes": 2,
        "num_groups": 4,
        "oracle": {"algorithm": "exact_oracle:EXACT", "num_updates": 1},
    },
}
ROCK_PAPER_SCISSORS = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
NETWORK = {"num_envs": 8, "unroll_length": 4, "num_minibatches": 1, "network": {"hidden_sizes": [8]}}
POOLFLIP = {"name": "poolflip-r3", "horizon": 8, "role": "blue", "opponents": ["sleep"]}
RUNS = {
    "psro": {
        "algorithm": "psro",
        "num_updates": 2,
        "env": POOLFLIP,
        "config": {
            "heuristics": ["sleep", "periodic(4)"],
            "num_groups": 4,
            "oracle": {"num_updates": 4, "config": NETWORK},
        },
    },
    "ppo": {"algorithm": "ppo", "num_updates": 1, "env": POOLFLIP, "config": NETWORK},
    "ippo": {"algorithm": "ippo", "num_updates": 1, "env": POOLFLIP, "config": NETWORK},
}


def store(run, state, folder):
    """A run folder as `fit` leaves it."""
    stored = RunFolder(folder)
    stored.create(run)
    writer = CheckpointWriter(stored.checkpoints, keep=1)
    writer.save(state, run.num_updates, {})
    writer.wait()
    return folder


def imagined_state(run):
    """A training state of random numbers, without the cost of training one."""
    generator = np.random.default_rng(0)

    def fill(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jnp.zeros((*leaf.shape, 2), jnp.uint32))
        values = generator.normal(size=leaf.shape) if jnp.issubdtype(leaf.dtype, jnp.floating) else np.zeros(leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    agent, data = make_algorithm(run), load_data(run)
    return jax.tree.map(fill, jax.eval_shape(agent.init, jax.random.key(0), run.hparams, data))


@pytest.fixture(scope="module")
def matrix_run(tmp_path_factory):
    run = make_config(MATRIX)
    (env, _), data = make_env(run), load_data(run)
    agent = make_psro(run.config, env)
    train = compiled(lambda key: scan_updates(agent, agent.init(key, run.hparams, data), run.hparams, 3, data)[0])
    return store(run, train(jax.random.key(0)), tmp_path_factory.mktemp("matrix") / "rps")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Run folders of three algorithms on one game; the population: sleep, periodic, two learned."""
    root, paths = tmp_path_factory.mktemp("runs"), {}
    for name, table in RUNS.items():
        run = make_config(table)
        state = imagined_state(run)
        if name == "psro":
            heuristics = make_population(run.config, make_env(run)[0]).heuristic_members(
                run.config.heuristics, run.hparams
            )
            bank = jax.tree.map(lambda leaf, first: leaf.at[:, :2].set(first), state.params, heuristics)
            bank = bank.replace(learned=jnp.tile(jnp.array([False, False, True, True]), (2, 1)))
            strategies = jnp.array([[0.2, 0.0, 0.5, 0.3], [0.0, 0.6, 0.0, 0.4]])
            state = state.replace(params=bank, num_updates=jnp.int32(2), strategies=strategies)
        paths[name] = store(run, state, root / name)
    return paths


@pytest.fixture(scope="module")
def mixed(folders):
    """A league of three runs and two heuristics."""
    entrants = load_entrants(list(folders.values()), ["guard(2)", "sleep"])
    return entrants, play_league(entrants, num_episodes=4)


def test_matrix_games_have_their_payoffs_and_an_equilibrium(matrix_run):
    result = league([matrix_run], heuristics=["pure(0)", "pure(1)", "pure(2)"], num_episodes=2)
    names = result.names[0]
    assert names == ("rps/learned_0", "rps/learned_1", "rps/learned_2", "rps", "pure(0)", "pure(1)", "pure(2)")
    pure = [names.index(f"pure({k})") for k in range(3)]
    np.testing.assert_allclose(result.payoffs()[0][np.ix_(pure, pure)], ROCK_PAPER_SCISSORS, atol=1e-6)
    np.testing.assert_allclose(result.payoffs()[1], -result.payoffs()[0], atol=1e-6)
    np.testing.assert_allclose(result.payoffs()[0][names.index("rps")], 0.0, atol=1e-2)  # plays each with 1/3
    board = {row["name"]: row for row in result.board(0)}
    assert board["rps"]["worst_case"] == pytest.approx(0.0, abs=1e-2)
    assert board["pure(0)"]["worst_case"] == board["pure(0)"]["worst_case_low"] == -1.0
    assert board["pure(0)"]["against"] in ("pure(1)", "rps/learned_0")
    assert all(abs(row["rating"]) < 1e-2 for row in board.values())  # against the equilibrium all earn its value
    assert sum(row["weight"] for row in board.values()) == pytest.approx(1.0, abs=1e-5)


def test_games_that_are_not_zero_sum(tmp_path):
    run = make_config(MATRIX, ["env.payoffs=prisoners-dilemma", "config.meta_solver=alpharank"])
    state = imagined_state(run)
    folder = store(run, state.replace(strategies=jnp.ones_like(state.strategies)), tmp_path / "runs" / "dilemma")
    result = league([folder], tmp_path, heuristics=["pure(1)"], num_episodes=2)
    assert result.solver == "alpharank"
    assert result.names[0] == ("dilemma", "pure(1)")  # nothing learned: it cooperates
    np.testing.assert_allclose(result.payoffs(), [[[3, 0], [5, 1]], [[3, 5], [0, 1]]], atol=1e-6)
    assert result.board(0)[0]["name"] == "pure(1)"
    assert result.board(0)[0]["weight"] > 0.9
    assert {file.name for file in tmp_path.glob("*.png")} == {"payoffs_row.png", "payoffs_column.png"}


def test_who_enters(mixed):
    _, result = mixed
    assert result.roles == ("blue", "red")
    assert result.names[0] == ("psro/learned_0", "psro/learned_1", "psro", "ppo", "ippo", "guard(2)", "sleep")
    assert result.names[1] == (
        "psro/learned_0",
        "psro/learned_1",
        "psro",
        "ippo",
        "guard(2)",
        "sleep",
    )  # PPO trained blue
    assert result.values["utility"].shape == result.values["own"].shape == (7, 6, 4, 2)
    np.testing.assert_allclose(result.values["own"].sum(-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(result.payoffs().sum(0), 0.0, atol=1e-6)


def test_policies_play_as_they_do_in_training(folders, mixed):
    """The same episodes as `Population.play` gives for the same key; self-play's policies are those it acts with."""
    entrants, result = mixed
    run = make_config(RUNS["psro"])
    population = make_population(run.config, entrants.game)
    networks = entrants.rosters[0].policies["ppo", run.config.oracle.config]
    assert list(networks) == ["psro/learned_0", "psro/learned_1", "ppo", "ippo"]  # one program
    networks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *list(networks.values())[:2])
    guard = population.heuristic_members(["guard(2)"], run.hparams)
    blue = population.learned_members(networks)
    red = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), guard)
    play = compiled(lambda key: Population.play(population, blue, red, entrants.game_params, key, 4))
    played = play(jax.random.key(0))
    np.testing.assert_allclose(result.values["utility"][:2, 4], population.utility(played), atol=1e-6)

    ippo = make_config(RUNS["ippo"])
    learner = entrants.rosters[1].policies["ppo", ippo.config]["ippo"]
    kernels = jax.tree.leaves(imagined_state(ippo).params.params)
    np.testing.assert_array_equal(jax.tree.leaves(learner.params)[0], kernels[0][1])


def test_a_mixture_earns_the_weighted_sum_of_its_members(mixed):
    entrants, result = mixed
    weights = entrants.rosters[0].weights()
    # Of sleep, periodic(4) (which only red's mixture plays) and guard(2), then of the four networks.
    np.testing.assert_allclose(weights[2], [0.2, 0.0, 0.0, 0.5, 0.3, 0.0, 0.0], atol=1e-6)
    assert np.all(weights.sum(1) == 1.0)
    utility = result.values["utility"]
    np.testing.assert_allclose(utility[2], 0.5 * utility[0] + 0.3 * utility[1] + 0.2 * utility[6], atol=1e-6)


def test_files_and_command_line(matrix_run, tmp_path):
    arguments = ["league", str(matrix_run), "--heuristics", "pure(0),mixed(1,1,0)", "--episodes", "4", "--seed", "3"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path), "--no-members"])
    assert result.exit_code == 0, result.output
    assert "mixed(1,1,0)" in result.output
    assert "rating" in result.output
    content = json.loads((tmp_path / "league.json").read_text())
    assert content["entrants"] == {"row": ["rps", "pure(0)", "mixed(1,1,0)"]} | {
        "column": ["rps", "pure(0)", "mixed(1,1,0)"]
    }
    assert content["num_episodes"] == 4
    board, pairs = (
        list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines())) for name in ("leaderboard", "payoffs")
    )
    assert [row["role"] for row in board] == ["row"] * 3 + ["column"] * 3
    assert len(pairs) == 9
    assert float(pairs[0]["utility/row"]) == pytest.approx(content["payoffs"]["row"][0][0])
    assert (tmp_path / "payoffs.png").read_bytes()[:4] == b"\x89PNG"


def test_names_with_commas():
    assert split_names(" guard(2), burst(6,18),sleep") == ["guard(2)", "burst(6,18)", "sleep"]
    assert split_names("") == []


def test_refusals(folders, matrix_run, tmp_path):
    with pytest.raises(ConfigError, match="at least one run folder"):
        load_entrants([])
    with pytest.raises(ConfigError, match="nobody plays red: name heuristics"):
        load_entrants([folders["ppo"]])
    with pytest.raises(ConfigError, match="unknown heuristic 'gard"):
        load_entrants([folders["ppo"]], ["gard(2)"])
    with pytest.raises(ConfigError, match="is a run of 'matrix-game'"):
        load_entrants([folders["ppo"], matrix_run])
    longer = make_config(RUNS["ppo"], ["env.horizon=16"])
    other = store(longer, imagined_state(longer), tmp_path / "longer")
    with pytest.raises(ConfigError, match=r"horizon is 16 in .* --game horizon=VALUE"):
        load_entrants([folders["ppo"], other])
    agreed = load_entrants([folders["ppo"], other], ["sleep"], game=["horizon=16"])
    assert agreed.game.max_steps == 16
    assert list(agreed.rosters[0].entrants) == ["ppo", "longer", "sleep"]
    with pytest.raises(ConfigError, match="at least 2 episodes, got 1"):
        play_league(agreed, num_episodes=1)
    with pytest.raises(ConfigError, match="did you mean 'prd'"):
        play_league(agreed, solver="prdd")
