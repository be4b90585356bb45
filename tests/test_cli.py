"""The command line as a person uses it: the whole way once, and what bad input is answered with."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from jaxrl.cli import app

TINY = [
    "ppo_cartpole", "num_updates=4", "config.num_envs=4", "config.unroll_length=16", "config.num_minibatches=2",
    "evaluation.every=2", "evaluation.num_episodes=4", "checkpoint.every=2", "env.max_steps=30", "log.every=1",
]  # fmt: skip


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.output


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    output = succeed("train", *TINY, "--run-dir", folder)
    assert "update 4/4" in output
    assert f"run folder: {folder}" in output
    return folder


def test_resume_goes_on(run_dir):
    output = succeed("train", "--resume", run_dir, "num_updates=8")
    assert "update 8/8" in output
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 8
    assert json.loads((run_dir / "config.json").read_text())["resolved"]["num_updates"] == 8


def test_evaluate_render_plot_export(run_dir, tmp_path):
    assert "over 6 episodes" in succeed("evaluate", run_dir, "evaluation.num_episodes=6")
    assert "return" in succeed("render", run_dir, "--out", tmp_path / "episode.gif")
    assert (tmp_path / "episode.gif").read_bytes()[:3] == b"GIF"
    succeed("plot", run_dir, "--out", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
    for format in ("stablehlo", "npz"):
        succeed("export", run_dir, "--format", format)
        assert (run_dir / f"policy.{format}").exists()


@pytest.mark.slow
def test_sweep(tmp_path):
    output = succeed("sweep", *TINY, "--seeds", "2", "--grid", "hparams.learning_rate=1e-4,1e-3", "--run-dir", tmp_path)
    assert "hparams.learning_rate" in output
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == 2
    assert results[0]["seeds"] == 2


def test_list_and_info():
    assert "poolflip-r3" in succeed("list", "envs")
    assert "dqn" in succeed("list", "algorithms")
    assert "ppo_poolflip" in succeed("list", "configs")
    assert "jaxlib" in succeed("info")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "name a configuration to train"),
        (["train", "ppo_cartpol"], "there is no configuration file 'ppo_cartpol'; did you mean 'ppo_cartpole'"),
        (["train", "ppo_cartpole", "hparams.learning_rte=1"], "did you mean 'learning_rate'"),
        (["train", "ppo_cartpole", "env.name=cartpol"], "unknown environment 'cartpol'; did you mean 'cartpole'"),
        (["train", "--resume", "nowhere"], "nowhere holds no run"),
        (["evaluate", "nowhere"], "nowhere holds no run"),
        (["sweep", "ppo_cartpole", "--grid", "hparams.learning_rate"], "--grid has the form"),
        (["parity", "chess", "."], "can check cyborg, not 'chess'"),
        (["parity", "cyborg", "nowhere"], "nowhere"),
        (["list", "things"], "can list envs, algorithms, configs or studies, not 'things'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_folder_that_holds_a_run_is_refused(run_dir):
    result = invoke("train", *TINY, "--run-dir", run_dir)
    assert result.exit_code == 2
    assert f"{run_dir} already holds a run" in result.output
    assert "--resume" in result.output
