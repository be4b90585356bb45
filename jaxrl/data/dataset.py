"""One data set on the device: transitions in rows, sampled inside compiled code."""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_jax.core import EnvSpec
from envs_jax.spaces import Box
from jaxrl.data.recording import DataError, Episode, Recording, first_episodes
from jaxrl.parts.normalize import RunningStatistics
from jaxrl.types import Array, PyTree, Transition


@struct.dataclass
class Dataset:
    """Episodes one after the other in N rows, a transition each."""

    transitions: Transition  # [N]
    episode_start: Array  # i32 [N]; the row in which the episode of each row begins
    return_to_go: Array  # f32 [N]; undiscounted sum of rewards from this row to the end of its episode
    statistics: RunningStatistics  # of the observations of all rows
    size: Array  # i32 []; rows that count: the first ones

    @property
    def time(self) -> Array:
        """i32 [N]: steps since the start of the episode."""
        return jnp.arange(len(self.episode_start), dtype=jnp.int32) - self.episode_start


def load_dataset(
    recording: Recording, num_episodes: int = 0, *, progress: bool = False, on_host: bool = False
) -> Dataset:
    """Reads episodes, one after the other, into arrays of f32 (and i32 for integers), and puts them on the device.

    On the host no more than the result and one block of the file is in memory.

    Args:
        recording: from `jaxrl.data.files.open_recording`.
        num_episodes: only the first so many; 0: all.
        progress: show a bar, where the error output is a terminal.
        on_host: leave it in NumPy arrays; see `block`.

    Raises:
        DataError: an episode is damaged, or there are fewer than `num_episodes`.
    """
    recording = first_episodes(recording, num_episodes)
    lengths = recording.lengths
    starts = np.concatenate([[0], np.cumsum(lengths)])
    num_rows, space = int(starts[-1]), recording.header.observation_space
    if num_rows >= 2**31:
        raise DataError(f"a data set has at most 2**31 - 1 rows, got {num_rows}: read fewer with num_episodes")
    action_space = recording.header.action_space

    def empty(shape: tuple[int, ...], dtype: Any) -> Any:
        return np.empty((num_rows, *shape), dtype)

    rows = Transition(
        observation=empty(space.shape, space.dtype),
        action=empty(action_space.shape, action_space.dtype),
        reward=empty((), np.float32),
        terminated=empty((), bool),
        truncated=empty((), bool),
        next_observation=empty(space.shape, space.dtype),
    )
    return_to_go = empty((), np.float32)
    moments = Moments(space.shape)
    for start, length, episode in zip(starts, lengths, _with_bar(recording, len(lengths), progress)):
        here = slice(int(start), int(start + length))
        for name in ("action", "reward", "terminated", "truncated"):
            getattr(rows, name)[here] = getattr(episode, name)
        rows.observation[here], rows.next_observation[here] = episode.observation[:-1], episode.observation[1:]
        return_to_go[here] = returns_to_go(episode.reward)
        moments.add(episode.observation[:-1])
    dataset = Dataset(
        transitions=rows,
        episode_start=np.repeat(starts[:-1], lengths).astype(np.int32),  # type: ignore[arg-type]
        return_to_go=return_to_go,
        statistics=moments.statistics(),
        size=np.int32(num_rows),  # type: ignore[arg-type]
    )
    return dataset if on_host else jax.tree.map(jnp.asarray, dataset)


def block(dataset: Dataset, num_rows: int, turn: int) -> Dataset:
    """A part of a data set on the host, for one that does not fit on the device.

    The data set is cut into blocks, the last of which reaches back to be as long as the others; each epoch of turns
    goes through them in an order of its own. Windows end where their block does.

    Args:
        dataset: on the host, N rows.
        num_rows: of a block; of all of them where there are no more.
        turn: how many blocks were used before.
    """
    total = len(dataset.episode_start)
    num_rows = min(num_rows, total)
    number = -(-total // num_rows)
    epoch, place = divmod(turn, number)
    first = min(int(np.random.default_rng(epoch).permutation(number)[place]) * num_rows, total - num_rows)
    here = slice(first, first + num_rows)
    return Dataset(
        transitions=jax.tree.map(lambda leaf: leaf[here], dataset.transitions),
        episode_start=dataset.episode_start[here] - np.int32(first),  # negative: the time of a row stays what it is
        return_to_go=dataset.return_to_go[here],
        statistics=dataset.statistics,
        size=np.int32(num_rows),  # type: ignore[arg-type]
    )


def returns_to_go(reward: np.ndarray) -> np.ndarray:
    """f64 [T]: the sum of the rewards [T] from each step on."""
    return np.cumsum(reward[::-1], dtype=np.float64)[::-1]


class Moments:
    """Mean and squared deviations in f64, gathered block by block (Chan et al. 1979)."""

    def __init__(self, shape: tuple[int, ...]):
        self.count, self.mean, self.squares = 0, np.zeros(shape), np.zeros(shape)

    def add(self, samples: np.ndarray) -> None:
        """Adds `samples` [n, ...]."""
        values = samples.astype(np.float64)
        mean, total = values.mean(axis=0), self.count + len(values)
        delta = mean - self.mean
        self.squares += np.square(values - mean).sum(axis=0) + np.square(delta) * self.count * len(values) / total
        self.mean += delta * len(values) / total
        self.count = total

    def statistics(self) -> RunningStatistics:
        values = (np.float32(self.count), self.mean.astype(np.float32), self.squares.astype(np.float32))
        return RunningStatistics(*values)  # type: ignore[arg-type]


def check_spaces(recording: Recording, spec: EnvSpec, name: str) -> None:
    """Refuses a data set of another environment: its observations or actions have another form.

    Raises:
        DataError: with what is in the file and what the environment has.
    """
    for kind in ("observation_space", "action_space"):
        there, here = getattr(recording.header, kind), getattr(spec, kind)
        # Bounds may differ: not every file knows them.
        same = isinstance(there, Box) and there.shape == here.shape if isinstance(here, Box) else there == here
        if not same:
            raise DataError(f"{name} is of another environment: its {kind} is {there}, here it is {here}")


def sample_rows(dataset: Dataset, key: Array, num_rows: int) -> Array:
    """i32 [num_rows]: rows drawn uniformly, with replacement; consumes `key`."""
    return jax.random.randint(key, (num_rows,), 0, dataset.size, jnp.int32)


def take_rows(tree: PyTree, rows: Array) -> PyTree:
    """The rows `[...]` of leaves `[N, ...]`."""
    return jax.tree.map(lambda leaf: leaf.at[rows].get(mode="clip"), tree)


def window_rows(dataset: Dataset, first: Array, length: int) -> tuple[Array, Array]:
    """Windows of K = `length` rows that begin in the rows `first` `[n]`.

    Returns:
        Rows i32 `[n, K]`, all of them readable, and a mask bool `[n, K]`: whether they are of the first row's episode.
    """
    rows = first[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
    inside = rows < dataset.size
    rows = jnp.minimum(rows, dataset.size - 1)
    starts = take_rows(dataset.episode_start, rows)
    return rows, inside & (starts == starts[:, :1])


def _with_bar(recording: Recording, total: int, progress: bool) -> Any:
    """The first `total` episodes, with a bar on a terminal."""
    episodes = (episode for _, episode in zip(range(total), recording.episodes()))
    if not (progress and sys.stderr.isatty()):
        return episodes
    from rich.console import Console
    from rich.progress import track

    return track(episodes, "reading episodes", total, console=Console(stderr=True), transient=True)


def summary(recording: Recording, *, progress: bool = False) -> dict[str, Any]:
    """Numbers about a recording, all of whose episodes are read and checked."""
    returns, terminated = [], 0
    episode: Episode
    for episode in _with_bar(recording, len(recording.names), progress):
        returns.append(episode.episode_return)
        terminated += bool(episode.terminated[-1])
    lengths, facts = recording.lengths, recording.header.facts
    result = {
        "episodes": len(returns),
        "steps": int(lengths.sum()),
        "shortest episode": int(lengths.min()),
        "longest episode": int(lengths.max()),
        "terminated episodes": terminated,
        "mean return": float(np.mean(returns)),
        "median return": float(np.median(returns)),
        "lowest return": float(np.min(returns)),
        "highest return": float(np.max(returns)),
    }
    low, high = facts.get("ref_min_score"), facts.get("ref_max_score")
    if low is not None and high is not None and high != low:
        result["local-normalised score"] = 100.0 * (result["mean return"] - low) / (high - low)
    return result
