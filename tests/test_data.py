"""Data sets: files in two formats and back, damage that is named, and what the device gets."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs_jax.core import EnvSpec
from envs_jax.spaces import Box, Discrete, MultiDiscrete
from jaxrl.data import dataset as datasets
from jaxrl.data.d4rl import open_d4rl, write_d4rl
from jaxrl.data.files import local_ids, open_recording, writer
from jaxrl.data.minari import open_minari, write_minari
from jaxrl.data.recording import (
    DataError,
    Episode,
    Header,
    from_episodes,
    space_from_json,
    space_to_json,
)

h5py = pytest.importorskip("h5py")

LENGTHS = (3, 1, 5, 2, 4, 6, 2, 1, 3, 2, 7, 2)  # more than ten: episode_10 must not come before episode_2
FIELDS = ("observation", "action", "reward", "terminated", "truncated")
CONTINUOUS = Header(Box(-np.inf, np.inf, (3,)), Box(-2.0, 2.0, (2,)), {"ref_min_score": -10.0, "ref_max_score": 10.0})
DISCRETE = Header(Box(0, 255, (2, 2, 1), np.uint8), Discrete(4))


def make_episode(rng, length, header, dtype=np.float64):
    def draw(space, n):
        if isinstance(space, Discrete):
            return rng.integers(0, space.num_values, n)
        if np.issubdtype(space.dtype, np.integer):
            return rng.integers(0, 255, (n, *space.shape)).astype(space.dtype)
        return rng.normal(size=(n, *space.shape)).astype(dtype)

    last, terminal = np.arange(length) == length - 1, rng.random() < 0.5
    action = draw(header.action_space, length)
    return Episode(
        observation=draw(header.observation_space, length + 1),
        action=action.astype(np.float32) if action.dtype == np.float64 else action,
        reward=rng.normal(size=length),
        terminated=last & terminal,
        truncated=last & (not terminal),
    )


def make_recording(header=CONTINUOUS):
    rng = np.random.default_rng(0)
    return from_episodes([make_episode(rng, length, header) for length in LENGTHS], header)


def assert_equal(found, expected):
    assert found.header.observation_space == expected.header.observation_space
    assert found.header.action_space == expected.header.action_space
    assert found.lengths.tolist() == expected.lengths.tolist()
    pairs = list(zip(found.episodes(), expected.episodes(), strict=True))
    for here, there in pairs:
        for field in FIELDS:
            a, b = getattr(here, field), getattr(there, field)
            assert a.dtype == b.dtype, field
            np.testing.assert_array_equal(a, b, err_msg=field)
    assert len(pairs) == len(LENGTHS)


@pytest.mark.parametrize("header", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
@pytest.mark.parametrize("format", ["minari", "d4rl"])
def test_what_is_written_is_read(tmp_path, format, header):
    path = tmp_path / ("a-v0" if format == "minari" else "a.hdf5")
    recording = make_recording(header)
    assert writer(format)(recording, path) == path
    found = open_recording(path)
    assert_equal(found, recording)
    assert found.header.facts.items() >= header.facts.items()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]  # nothing temporary is left
    with pytest.raises(DataError, match="exists already"):
        writer(format)(recording, path)
    # And into the other format.
    other, other_path = ("d4rl", "b.hdf5") if format == "minari" else ("minari", "b-v0")
    assert_equal(open_recording(writer(other)(found, tmp_path / other_path)), recording)


def test_blocks_do_not_matter(tmp_path, monkeypatch):
    write_d4rl(make_recording(), tmp_path / "a.hdf5")
    monkeypatch.setattr("jaxrl.data.d4rl.BLOCK_ROWS", 4)
    assert_equal(open_d4rl(tmp_path / "a.hdf5"), make_recording())


def test_public_minari_layout(tmp_path, monkeypatch):
    """As Minari's own writer leaves it: groups in any order, ids with a namespace, a leftover beside them."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    write_minari(make_recording(), tmp_path / "mujoco" / "hopper" / "medium-v0")
    (tmp_path / "tmp1234").mkdir()
    h5py.File(tmp_path / "tmp1234" / "main_data.hdf5", "w").close()
    assert local_ids() == ["mujoco/hopper/medium-v0"]
    assert_equal(open_recording("mujoco/hopper/medium-v0"), make_recording())
    metadata = json.loads((tmp_path / "mujoco/hopper/medium-v0/data/metadata.json").read_text())
    assert metadata["dataset_id"] == "mujoco/hopper/medium-v0"
    assert metadata["total_steps"] == sum(LENGTHS)
    with pytest.raises(DataError, match="did you mean 'mujoco/hopper/medium-v0'"):
        open_recording("mujoco/hopper/medium-v1")
    with pytest.raises(DataError, match="is no data set"):
        open_recording(tmp_path / "tmp1234")


def test_a_file_that_minari_wrote():
    """Minari 0.5.4 on Gymnasium's pendulum: 11 episodes of 3 steps under the constant torque i / 10."""
    recording = open_minari(Path(__file__).parent / "golden" / "minari" / "pendulum" / "steady-v0")
    assert recording.header.action_space == Box(-2.0, 2.0, (1,))
    assert recording.header.observation_space == Box(-np.array([1, 1, 8]), np.array([1, 1, 8]), (3,))
    episodes = list(recording.episodes())
    np.testing.assert_allclose([episode.action[:, 0] for episode in episodes], np.tile(np.arange(11)[:, None] / 10, 3))
    assert {episode.reward.dtype for episode in episodes} == {np.dtype(np.float64)}
    for episode in episodes:
        assert episode.truncated.tolist() == [False, False, True]
        cosine, sine, speed = episode.observation[:-1].T.astype(np.float64)
        cost = np.arctan2(sine, cosine) ** 2 + 0.1 * speed**2 + 0.001 * episode.action[:, 0].astype(np.float64) ** 2
        np.testing.assert_allclose(episode.reward, -cost, atol=1e-5)


def flat(path, **changes):
    """A flat file without header or successors: 4 steps to a termination, 3 to a time-out, 2 of an unfinished one."""
    arrays = {
        "observations": np.arange(18, dtype=np.float32).reshape(9, 2),
        "actions": np.linspace(-1, 1, 9, dtype=np.float32)[:, None],
        "rewards": np.arange(9, dtype=np.float32),
        "terminals": np.arange(9) == 3,
        "timeouts": np.arange(9) == 6,
    }
    with h5py.File(path, "w") as file:
        for name, values in (arrays | changes).items():
            if values is not None:
                file[name] = values
    return path


def test_flat_files_without_successors(tmp_path):
    recording = open_d4rl(flat(tmp_path / "a.hdf5"))
    first, second = recording.episodes()
    assert recording.lengths.tolist() == [4, 2]
    np.testing.assert_array_equal(first.observation[:, 0], [0, 2, 4, 6, 6])
    assert (first.terminated[-1], first.truncated[-1]) == (True, False)
    # What the time-out led to is unknown: its step goes, and the one before it is the last.
    np.testing.assert_array_equal(second.observation[:, 0], [8, 10, 12])
    np.testing.assert_array_equal(second.reward, [4, 5])
    assert (second.terminated.any(), second.truncated.tolist()) == (False, [False, True])
    assert recording.header.action_space == Box(-1.0, 1.0, (1,))
    integers = open_d4rl(flat(tmp_path / "b.hdf5", actions=np.array([0, 2, 1, 0, 1, 2, 0, 0, 1])))
    assert integers.header.action_space == Discrete(3)
    successors = np.arange(2, 20, dtype=np.float32).reshape(9, 2)
    whole = open_d4rl(flat(tmp_path / "c.hdf5", next_observations=successors))
    assert whole.lengths.tolist() == [4, 3]
    np.testing.assert_array_equal(list(whole.episodes())[1].observation[:, 0], [8, 10, 12, 14])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": None}, "no array 'rewards'"),
        ({"timeouts": np.zeros(8, bool)}, r"timeouts has shape \(8,\), expected 9 rows"),
        ({"terminals": np.zeros(9, bool), "timeouts": np.zeros(9, bool)}, "no episode ends"),
        ({"rewards": np.where(np.arange(9) == 5, np.nan, 0.0)}, "episode 1: reward of step 1 is not finite"),
    ],
)
def test_damaged_flat_files(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        list(open_d4rl(flat(tmp_path / "a.hdf5", **changes)).episodes())


def replace(file, name, values):
    del file[name]
    file[name] = values


def nest(file, name):
    """As Minari stores observations that are dictionaries."""
    values = file[name][...]
    del file[name]
    file.create_group(name)["position"] = values


def cut_off(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: replace(f, "episode_2/observations", np.zeros((5, 3))), r"episode_2: observation has shape"),
        (lambda f: replace(f, "episode_10/actions", np.zeros((7, 3))), r"episode_10: action has shape \(7, 3\)"),
        (lambda f: f.__delitem__("episode_4/rewards"), "episode_4 has no readable 'rewards'"),
        (lambda f: replace(f, "episode_5/rewards", np.full(6, np.inf)), "episode_5: reward of step 0 is not finite"),
        (lambda f: replace(f, "episode_3/truncations", np.ones(2, bool)), "episode_3 goes on after its end at step 0"),
        (lambda f: (replace(f, "episode_6/truncations", np.zeros(2, bool)),
                    replace(f, "episode_6/terminations", np.zeros(2, bool))), "episode_6 has no end"),
        (lambda f: f.__delitem__("episode_11"), "holds 11 episodes, its metadata says 12"),
        (lambda f: nest(f, "episode_7/observations"), "episode_7: 'observations' must be one array"),
    ],
)  # fmt: skip
def test_damaged_minari_files_name_the_episode(tmp_path, damage, message):
    path = write_minari(make_recording(), tmp_path / "a-v0")
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
        damage(file)
    with pytest.raises(DataError, match=message):
        list(open_minari(path).episodes())


def test_files_that_are_cut_off(tmp_path):
    path = write_minari(make_recording(), tmp_path / "a-v0")
    cut_off(path / "data" / "main_data.hdf5")
    with pytest.raises(DataError, match=r"main_data.hdf5 cannot be read: .*truncated"):
        open_minari(path)
    cut_off(path / "data" / "metadata.json")
    with pytest.raises(DataError, match=r"metadata.json cannot be read"):
        open_minari(path)
    cut_off(write_d4rl(make_recording(), tmp_path / "a.hdf5"))
    with pytest.raises(DataError, match=r"a.hdf5 cannot be read"):
        open_d4rl(tmp_path / "a.hdf5")


def test_bytes_that_changed_name_the_episode(tmp_path):
    """A checksum that no longer fits its block."""
    path = write_minari(make_recording(), tmp_path / "a-v0")
    name = path / "data" / "main_data.hdf5"
    with h5py.File(name, "r+") as file:
        del file["episode_8/rewards"]
        stored = file["episode_8"].create_dataset("rewards", data=np.ones(3), chunks=(3,), fletcher32=True)
        offset = stored.id.get_chunk_info(0).byte_offset
    data = bytearray(name.read_bytes())
    data[offset] ^= 255
    name.write_bytes(data)
    with pytest.raises(DataError, match="episode_8: 'rewards' is damaged"):
        list(open_minari(path).episodes())


SPACES = [Discrete(3), MultiDiscrete((2, 5)), Box(-1.0, np.inf, (2, 2)), DISCRETE.observation_space]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces_survive_json(space):
    assert space_from_json(json.loads(json.dumps(space_to_json(space))), "a") == space


def test_spaces_that_are_refused():
    with pytest.raises(DataError, match="a: spaces must be Box, Discrete or MultiDiscrete, got 'Dict'"):
        space_from_json({"type": "Dict"}, "a")
    with pytest.raises(DataError, match="must start at 0, got 1"):
        space_from_json({"type": "Discrete", "start": 1, "n": 3}, "a")


# --- on the device


def test_the_dataset_of_a_recording():
    recording = make_recording()
    dataset = datasets.load_dataset(recording)
    episodes, steps = list(recording.episodes()), dataset.transitions
    assert int(dataset.size) == sum(LENGTHS) == len(steps.reward)
    observation = np.concatenate([episode.observation[:-1] for episode in episodes])
    np.testing.assert_array_equal(steps.observation, observation.astype(np.float32))
    successors = np.concatenate([episode.observation[1:] for episode in episodes])
    np.testing.assert_array_equal(steps.next_observation, successors.astype(np.float32))
    assert np.flatnonzero(steps.ended).tolist() == (np.cumsum(LENGTHS) - 1).tolist()
    assert dataset.time.tolist() == [t for length in LENGTHS for t in range(length)]
    returns = [sum(episode.reward[t:]) for episode in episodes for t in range(len(episode.reward))]
    np.testing.assert_allclose(dataset.return_to_go, returns, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(dataset.statistics.mean, observation.mean(0), rtol=1e-6)
    variance = dataset.statistics.squares / dataset.statistics.count
    np.testing.assert_allclose(variance, observation.var(0), rtol=1e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves(dataset)} == {np.dtype(n) for n in ("float32", "int32", "bool")}


def test_parts_of_a_recording():
    dataset = datasets.load_dataset(make_recording(DISCRETE), num_episodes=2)
    assert int(dataset.size) == 4
    assert dataset.transitions.observation.dtype == jnp.uint8
    assert dataset.transitions.action.dtype == jnp.int32
    with pytest.raises(DataError, match=r"num_episodes must be in \[0, 12\]"):
        datasets.load_dataset(make_recording(), num_episodes=13)


def test_blocks_cover_the_data_in_every_epoch():
    whole, orders = datasets.load_dataset(make_recording(), on_host=True), []
    assert isinstance(whole.return_to_go, np.ndarray)
    for epoch in range(3):
        firsts, covered = [], set()
        for turn in range(4 * epoch, 4 * epoch + 4):  # 38 rows by tens
            part = datasets.block(whole, 10, turn)
            first = int(np.flatnonzero(whole.return_to_go == part.return_to_go[0])[0])
            here = slice(first, first + 10)
            assert len(part.return_to_go) == int(part.size) == 10
            np.testing.assert_array_equal(part.transitions.reward, whole.transitions.reward[here])
            np.testing.assert_array_equal(part.time, whole.time[here])
            firsts.append(first)
            covered |= set(range(first, first + 10))
        assert (sorted(firsts), len(covered)) == ([0, 10, 20, 28], 38)
        orders.append(firsts)
    assert orders[0] != orders[1] or orders[1] != orders[2]
    assert int(datasets.block(whole, 1000, 7).size) == 38


def test_windows_stay_in_their_episode():
    dataset = datasets.load_dataset(make_recording())
    rows, mask = datasets.window_rows(dataset, jnp.arange(sum(LENGTHS)), 4)
    ends = np.repeat(np.cumsum(LENGTHS), LENGTHS)
    expected = np.arange(sum(LENGTHS))[:, None] + np.arange(4)
    np.testing.assert_array_equal(mask, expected < ends[:, None])
    np.testing.assert_array_equal(np.where(mask, rows, 0), np.where(mask, expected, 0))
    assert int(rows.max()) == sum(LENGTHS) - 1


def test_rows_are_drawn_uniformly():
    dataset = datasets.load_dataset(make_recording())
    rows = datasets.sample_rows(dataset, jax.random.key(0), 38_000)
    counts = np.bincount(rows, minlength=38)
    assert len(counts) == sum(LENGTHS)
    assert np.all(np.abs(counts - 1000) < 5 * np.sqrt(1000))


def test_data_of_another_environment():
    spec = EnvSpec(CONTINUOUS.observation_space, Box(-1.0, 1.0, (2,)))
    datasets.check_spaces(make_recording(), spec, "a")  # bounds may differ
    other = EnvSpec(CONTINUOUS.observation_space, Discrete(2))
    with pytest.raises(DataError, match="a is of another environment: its action_space is Box"):
        datasets.check_spaces(make_recording(), other, "a")


def test_summary():
    found = datasets.summary(make_recording())
    assert (found["episodes"], found["steps"], found["longest episode"]) == (12, sum(LENGTHS), 7)
    returns = [episode.episode_return for episode in make_recording().episodes()]
    assert found["local-normalised score"] == pytest.approx(100 * (np.mean(returns) + 10) / 20)
