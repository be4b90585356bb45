"""Four data sets from one run: what is in them, where they come from, and what a replay buffer holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import jaxrl
from envs_jax.spaces import Box
from jaxrl.cli import app
from jaxrl.data.files import open_recording
from jaxrl.parts.buffers import ReplayConfig, make_replay
from jaxrl.run import record as recorder
from jaxrl.run.checkpoint import list_checkpoints
from jaxrl.run.config import ConfigError
from jaxrl.run.production import medium_checkpoint, produce, replay_episodes
from jaxrl.run.runner import find_checkpoint
from jaxrl.types import Transition
from small_worlds import OneStep

pytest.importorskip("h5py")


class Treadmill(OneStep):
    """Five steps; the reward is 1 + action: a policy that learns doubles what random play has."""

    max_steps = 5

    def observe(self, state):
        return state.hidden[None]

    def reward(self, state, action):
        return 1.0 + action[0]

    def action_space(self, params):
        return Box(-1.0, 1.0, (1,))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    settings = ["env={name='test_production:Treadmill'}", "num_updates=40", "config.num_envs=4",
                "config.replay.capacity=1024", "config.replay.warmup=16", "config.network.hidden_sizes=[8]",
                "config.batch_size=16", "config.num_gradient_steps=8", "hparams.policy_learning_rate=1e-2",
                "evaluation.every=10", "evaluation.num_episodes=8", "checkpoint.every=10", "checkpoint.keep=4",
                "log.every=10"]  # fmt: skip
    run = jaxrl.load_config("sac_pendulum", settings)
    return folder, jaxrl.fit(run, folder, progress=False)[0]


@pytest.mark.slow
def test_the_four_sets(teacher, tmp_path, monkeypatch):
    folder, state = teacher
    monkeypatch.setattr(recorder, "RANDOM_EPISODES", 50)
    monkeypatch.setattr(recorder, "BATCH", 8)
    arguments = ["data", "produce", folder, "--out", tmp_path, "--steps", 203, "--expert-episodes", 3, "--seed", 7]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output + str(result.exception)
    names = ("expert", "medium", "medium-replay", "random")
    sets = {name: open_recording(tmp_path / f"{name}.hdf5") for name in names}
    for name, recording in sets.items():
        other = open_recording(tmp_path / f"{name}-v0")
        for a, b in zip(recording.episodes(), other.episodes(), strict=True):
            for field in ("observation", "action", "reward", "terminated", "truncated"):
                np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
        facts = recording.header.facts
        assert facts["set"] == name
        assert facts["ref_min_score"] == pytest.approx(5.0, abs=1.0)
        assert facts["ref_max_score"] > facts["ref_min_score"]
        assert {"brax", "jax"} <= set(facts["versions"])
    means = {name: recording.header.facts["mean_return"] for name, recording in sets.items()}
    assert means["random"] < means["expert"]
    assert [len(sets[name].lengths) for name in ("expert", "medium", "random")] == [3, 41, 41]
    # The first checkpoint does it here: 10 updates of 4 x 4 steps, in episodes of 5.
    assert "000000010 (replay buffer)" in sets["medium-replay"].header.facts["policy"]
    assert sets["medium-replay"].lengths.tolist() == [5] * 8 * 4
    assert sets["medium"].header.facts["policy_hash"] == sets["medium-replay"].header.facts["policy_hash"]
    assert sets["medium"].header.facts["policy_hash"] != sets["expert"].header.facts["policy_hash"]
    shown = np.asarray(state.buffer.items.action)[0, :40, 0]
    replayed = np.concatenate([e.action[:, 0] for e in sets["medium-replay"].episodes()])[:40]
    np.testing.assert_array_equal(replayed, shown)


@pytest.mark.slow
def test_a_teacher_without_a_replay_buffer_plays_again(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "RANDOM_EPISODES", 20)
    monkeypatch.setattr(recorder, "BATCH", 8)
    settings = ["env={name='test_production:Treadmill'}", "num_updates=6", "config.num_envs=8",
                "config.unroll_length=10", "config.num_minibatches=2", "config.network.hidden_sizes=[8]",
                "evaluation.every=2", "evaluation.num_episodes=4", "checkpoint.every=2", "checkpoint.keep=3",
                "log.every=2"]  # fmt: skip
    jaxrl.fit(jaxrl.load_config("ppo_pendulum", settings), tmp_path / "run", progress=False)
    written = produce(tmp_path / "run", tmp_path / "sets", num_steps=99, expert_episodes=2)
    replay, medium = (open_recording(written[name]) for name in ("medium-replay", "medium"))
    folder, best = find_checkpoint(tmp_path / "run")
    number = len([path for path in list_checkpoints(folder.checkpoints)
                  if int(path.name) <= int(medium_checkpoint(folder, best).name)])  # fmt: skip
    share = -(-99 // number)
    assert len(replay.lengths) == number * -(-share // 5)
    assert f"(and {number - 1} checkpoints before it)" in replay.header.facts["policy"]
    returns = [episode.episode_return for episode in replay.episodes()]
    assert replay.header.facts["mean_return"] == pytest.approx(np.mean(returns))
    assert replay.header.facts["policy_hash"] == medium.header.facts["policy_hash"]


@pytest.mark.parametrize("num_blocks", [2, 3, 4])
def test_episodes_of_a_replay_buffer(num_blocks):
    """Rings of 9 steps in blocks of 3; environment 0 ends episodes after 4 steps, environment 1 never."""
    replay = make_replay(ReplayConfig(capacity=18, warmup=2), num_envs=2, unroll_length=3)
    time = np.arange(3 * num_blocks)[:, None]
    reward = (time + np.array([0, 100])).astype(np.float32)
    ended, no = (time % 4 == 3) & np.array([True, False]), np.zeros((3 * num_blocks, 2), bool)
    steps = (reward[..., None], reward[..., None], reward, ended, no, reward[..., None] + 0.5)
    buffer = replay.init(Transition(*(jnp.asarray(leaf[0, 0]) for leaf in steps)))
    for first in range(0, 3 * num_blocks, 3):
        buffer = replay.add(buffer, Transition(*(jnp.asarray(leaf[first : first + 3]) for leaf in steps)))
    episodes = replay_episodes(jax.device_get(buffer), 3 * num_blocks)
    expected = {  # rewards of each episode
        2: [[0, 1, 2, 3], [4, 5], [100, 101, 102, 103, 104, 105]],
        3: [[0, 1, 2, 3], [4, 5, 6, 7], [8], [100 + i for i in range(9)]],
        4: [[4, 5, 6, 7], [8, 9, 10, 11]],  # steps 0 to 2 are lost, and with them the beginning of what is left
    }
    assert [episode.reward.tolist() for episode in episodes] == expected[num_blocks]
    for episode in episodes:
        whole = len(episode.reward) == 4
        assert (bool(episode.terminated[-1]), bool(episode.truncated[-1])) == (whole, not whole)
        np.testing.assert_array_equal(episode.observation[-1], episode.observation[-2] + 0.5)


@pytest.mark.slow
def test_what_is_refused(teacher, tmp_path):
    folder, _ = teacher
    for path in sorted((folder / "checkpoints").glob("0*"))[:1]:
        path.rename(tmp_path / path.name)
        with pytest.raises(ConfigError, match="earlier checkpoints are gone"):
            produce(folder, tmp_path / "out")
        (tmp_path / path.name).rename(path)
