"""Configuration: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import json

import jax.numpy as jnp
import pytest

import jaxrl
from jaxrl.run.config import ConfigError, load_config, make_config, parse_grid, resolved, shipped_configs

BASE = {
    "algorithm": "ppo",
    "num_updates": 400,
    "env": {"name": "cartpole", "max_steps": 200},
    "config": {"num_envs": 4, "network": {"hidden_sizes": [32, 32]}},
    "hparams": {"learning_rate": 1e-3},
}


def test_values_reach_their_place():
    run = make_config(BASE, ["seed=3", "config.network.activation=relu", "hparams.discount=0.9"])
    assert run.seed == 3
    assert run.env.name == "cartpole"
    assert run.env.options == {"max_steps": 200}
    assert run.config.network.hidden_sizes == (32, 32)
    assert run.config.network.activation == "relu"
    assert run.hparams.discount.dtype == jnp.float32
    assert run.hparams.discount == jnp.float32(0.9)


def test_scientific_notation_is_a_number():
    assert make_config(BASE, ["hparams.learning_rate=3e-4"]).hparams.learning_rate == jnp.float32(3e-4)


def test_schedules_end_with_the_run_unless_given():
    assert make_config(BASE).hparams.anneal_updates == 400
    assert make_config(BASE, ["num_updates=800"]).hparams.anneal_updates == 800
    assert make_config(BASE, ["hparams.anneal_updates=0"]).hparams.anneal_updates == 0


def test_resolved_settings_are_json_and_complete():
    values = json.loads(json.dumps(resolved(make_config(BASE))))
    assert values["hparams"]["learning_rate"] == 1e-3
    assert values["hparams"]["clip_epsilon"] == 0.2
    assert values["env"] == {"name": "cartpole", "backend": "jax", "max_steps": 200}
    assert values["config"]["network"]["torso"] == "mlp"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_updats=3", "unknown key 'num_updats'; did you mean 'num_updates'"),
        ("config.num_env=3", "unknown key 'config.num_env'; did you mean 'num_envs'"),
        ("hparams.learning_rte=1", "unknown key 'hparams.learning_rte'; did you mean 'learning_rate'"),
        ("evaluation.num_episode=3", "did you mean 'num_episodes'"),
        ("config.num_envs=4.0", "config.num_envs must be an integer, got 4.0"),
        ("config.num_envs=true", "config.num_envs must be an integer, got True"),
        ("config.network.torso=mlpp", "network.torso must be one of mlp, cnn, gru, got 'mlpp'; did you mean 'mlp'"),
        ("config.network.hidden_sizes=3", "config.network.hidden_sizes must be a list"),
        ("hparams.discount=1.5", r"hparams.discount must be a finite number in \[0, 1\], got 1.5"),
        ("hparams.discount=nan", "hparams.discount must be a finite number"),
        ("hparams.learning_rate=fast", "hparams.learning_rate must be a number, got 'fast'"),
        ("config.num_minibatches=7", "config.num_minibatches=7 must divide num_envs . unroll_length = 512"),
        ("evaluation.every=7", r"evaluation.every must divide num_updates = 400, got 7 \(nearest: 8\)"),
        ("log.every=3", "log.every must divide"),
        ("log.chunk=3", "log.chunk must divide"),
        ("algorithm=pppo", "unknown algorithm 'pppo'; did you mean 'ppo'"),
        ("seed=-1", "seed must be at least 0, got -1"),
        ("matmul_precision=best", "matmul_precision must be one of"),
        ("env=3", "env must be a table"),
        ("source=3", "unknown key 'source'"),
        ("env.backend=gym", "env.backend must be one of jax, gymnasium, got 'gym'"),
        ("novalue", "key=value"),
    ],
)
def test_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        make_config(BASE, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env.name=cartpol", "unknown environment 'cartpol'; did you mean 'cartpole'"),
        ("env.max_step=7", "no option 'max_step'; did you mean 'max_steps'"),
        ("env.name=no_such_package:Env", "no module 'no_such_package'"),
    ],
)
def test_environment_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        jaxrl.make_algorithm(make_config(BASE, [override]))


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ConfigError, match="there is no configuration file 'ppo_cartpol'"):
        load_config("ppo_cartpol")
    broken = tmp_path / "broken.toml"
    broken.write_text("num_updates = = 3")
    with pytest.raises(ConfigError, match="is not a TOML file"):
        load_config(broken)
    with pytest.raises(ConfigError, match="lacks 'env'"):
        make_config({"algorithm": "ppo", "num_updates": 3})


def test_grid():
    grid = parse_grid(["hparams.learning_rate=1e-4,3e-4", "config.network.activation=tanh,relu"])
    assert grid == {"hparams.learning_rate": [1e-4, 3e-4], "config.network.activation": ["tanh", "relu"]}
    with pytest.raises(ConfigError, match="--grid has the form"):
        parse_grid(["hparams.learning_rate"])


def test_chunk_divides_everything():
    run = make_config(BASE, ["evaluation.every=50", "checkpoint.every=40", "log.every=2"])
    assert run.chunk == 10
    assert make_config(BASE, ["log.chunk=200"]).chunk == 200


def test_a_shorter_run_needs_no_other_intervals():
    """An interval longer than the run leaves the evaluation and the checkpoint at its end."""
    run = make_config(BASE, ["evaluation.every=200", "checkpoint.every=100", "num_updates=150", "checkpoint.every=300"])
    assert (run.evaluation.every, run.chunk) == (200, 6)
    assert load_config("ppo_poolflip", ["num_updates=20"]).chunk == 1


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_config_builds(name):
    run = load_config(name)
    agent = jaxrl.make_algorithm(run)
    assert agent.init is not None
    assert run.name == name
