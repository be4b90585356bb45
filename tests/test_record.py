"""Data production: what a policy did, where it came from, and the commands that make and show data sets."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import envs_jax
import jaxrl
from jaxrl.cli import app
from jaxrl.data.files import open_recording
from jaxrl.run import record as recorder
from jaxrl.run.config import ConfigError
from jaxrl.types import no_carry

pytest.importorskip("h5py")


def balance(env, env_params):
    """A teacher for cartpole: push where the pole falls to."""
    del env, env_params

    def act(policy_params, carry, time_step, key, deterministic):
        del key, deterministic
        return (time_step.observation @ policy_params > 0).astype(jnp.int32), carry, {}

    return no_carry, act, jnp.array([0.05, 0.2, 1.0, 0.6])


def test_episodes_are_what_the_environment_does(monkeypatch):
    """Each step again: the same successors and rewards. More episodes begin with the same ones."""
    monkeypatch.setattr(recorder, "BATCH", 4)
    player = recorder.scripted_player("cartpole", {"max_steps": 60}, "test_record:balance")
    recording = recorder.record(player, 6, seed=3)
    env, params = envs_jax.make("cartpole", max_steps=60)
    step = jax.jit(env.step)
    episodes = list(recording.episodes())
    assert len(episodes) == 6
    for episode in episodes:
        assert episode.reward.sum() == len(episode.reward) == 60
        assert episode.truncated[-1]
    state, _ = env.reset(jax.random.key(0), params)
    fields = ("position", "velocity", "angle", "angular_velocity")
    for t in (0, 10, 58):
        state = state.replace(**dict(zip(fields, episodes[2].observation[t])))
        shown = step(jax.random.key(0), state, episodes[2].action[t], params)[1]
        np.testing.assert_allclose(shown.observation, episodes[2].observation[t + 1], atol=1e-6)
    fewer = list(recorder.record(player, 5, seed=3).episodes())
    for a, b in zip(fewer, episodes):
        np.testing.assert_array_equal(a.observation, b.observation)
    other = next(recorder.record(player, 1, seed=4).episodes())
    assert not np.array_equal(other.observation[0], episodes[0].observation[0])
    starts = {tuple(episode.observation[0]) for episode in episodes}
    assert len(starts) == 6


def test_random_play_and_cut_episodes():
    player = recorder.scripted_player("pendulum", {}, "random")
    recording = recorder.record(player, 3, max_steps=7)
    assert recording.lengths.tolist() == [7, 7, 7]
    actions = np.concatenate([episode.action for episode in recording.episodes()])
    assert len(np.unique(actions)) == 21
    assert np.all(np.abs(actions) <= 2)
    assert recording.header.facts["policy"] == "random"
    assert recording.header.facts["versions"]["jax"] == jax.__version__


def test_what_is_refused():
    player = recorder.scripted_player("pendulum", {}, "random")
    with pytest.raises(ConfigError, match="number of episodes must be at least 1, got 0"):
        recorder.record(player, 0)
    with pytest.raises(ConfigError, match="has no option 'speed'"):
        recorder.scripted_player("pendulum", {"speed": 1}, "random")
    with pytest.raises(ConfigError, match="there is no module 'nowhere'"):
        recorder.scripted_player("pendulum", {}, "nowhere:policy")


def invoke(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def succeed(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.output


def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "RANDOM_EPISODES", 10)
    run = jaxrl.load_config(
        "ppo_cartpole", ["num_updates=2", "config.num_envs=4", "config.unroll_length=16", "config.num_minibatches=2",
                         "evaluation.every=2", "evaluation.num_episodes=4", "checkpoint.every=2", "env.max_steps=30",
                         "log.every=1"],
    )  # fmt: skip
    jaxrl.fit(run, tmp_path / "teacher", progress=False)
    flat, folder = tmp_path / "a.hdf5", tmp_path / "a-v0"
    assert "mean return" in succeed("record", tmp_path / "teacher", "--out", flat, "--episodes", 3, "--seed", 5,
                                    "--expert", tmp_path / "teacher")  # fmt: skip
    succeed("convert", flat, "--out", folder)
    for a, b in zip(open_recording(flat).episodes(), open_recording(folder).episodes(), strict=True):
        np.testing.assert_array_equal(a.observation, b.observation)
        np.testing.assert_array_equal(a.action, b.action)
    output = succeed("info", folder)
    for text in ("local-normalised score", "policy_hash", "teacher/000000002", "Discrete(num_values=2)"):
        assert text in output
    facts = open_recording(flat).header.facts
    assert (facts["seed"], facts["environment"], facts["algorithm_name"]) == (5, "cartpole", "ppo")
    stored = json.loads((folder / "data" / "metadata.json").read_text())
    assert stored["ref_max_score"] == facts["ref_max_score"] > 0
    again = open_recording(flat).header.facts["policy_hash"]
    state, _ = jaxrl.load_state(tmp_path / "teacher")
    policy = jaxrl.make_algorithm(run).policy(state, jaxrl.load_data(run))
    assert recorder.policy_hash(policy) == again
    assert recorder.policy_hash(jax.tree.map(lambda leaf: leaf + 1, policy)) != again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nothing"], "there is no data set 'nothing'"),
        (["record", "pendulum", "--policy", "random", "--out", "a-v0", "--format", "d4r"], "did you mean 'd4rl'"),
        (["record", "pendulum", "--policy", "random", "--out", "a-v0", "masss=1"], "did you mean 'mass'"),
        (["record", "nowhere", "--out", "a-v0", "mass=1"], "options go with --policy"),
        (["record", "nowhere", "--out", "a-v0"], "holds no run"),
    ],
)
def test_bad_input_is_answered(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not list(tmp_path.iterdir())
