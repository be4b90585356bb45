"""What was recorded, on the host: episodes one after the other, whatever file they come from."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs_jax.spaces import Box, Discrete, MultiDiscrete, Space


class DataError(ValueError):
    """A data set that cannot be used: which file, which episode, and why."""

    exit_status = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Episode:
    """T steps of one episode, in the dtypes of the file."""

    observation: np.ndarray  # [T + 1, ...]; the last one is what the last step led to
    action: np.ndarray  # [T, ...]
    reward: np.ndarray  # [T]
    terminated: np.ndarray  # bool [T]; only the last may be true
    truncated: np.ndarray  # bool [T]; likewise

    @property
    def episode_return(self) -> float:
        return float(np.sum(self.reward, dtype=np.float64))


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says about its episodes."""

    observation_space: Space
    action_space: Space
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # where they come from; JSON


@dataclasses.dataclass(frozen=True)
class Recording:
    """Episodes that are read when they are asked for: a file larger than memory can be gone through."""

    header: Header
    lengths: np.ndarray  # i64 [number of episodes]; T of each
    names: Sequence[str]  # of the episodes, for messages
    read: Callable[[], Iterator[Episode]]  # all episodes in order, each time it is called

    def episodes(self) -> Iterator[Episode]:
        """All episodes in order, checked; DataError names the one that is damaged."""
        found = 0
        for name, length, episode in zip(self.names, self.lengths, self.read()):
            check_episode(episode, int(length), self.header, name)
            found += 1
            yield episode
        if found != len(self.names):
            raise DataError(f"{self.names[found]} is missing: {found} of {len(self.names)} episodes can be read")


def from_episodes(episodes: Sequence[Episode], header: Header, name: str = "recording") -> Recording:
    """A recording of episodes in memory."""
    names = [f"{name}: episode {i}" for i in range(len(episodes))]
    return Recording(header, np.array([len(e.reward) for e in episodes], np.int64), names, lambda: iter(episodes))


def first_episodes(recording: Recording, num_episodes: int) -> Recording:
    """The first so many episodes; 0: all. DataError where there are fewer."""
    total = len(recording.names)
    if not 0 <= num_episodes <= total:
        raise DataError(f"num_episodes must be in [0, {total}], the episodes of the data set, got {num_episodes}")
    if num_episodes in (0, total):
        return recording
    return dataclasses.replace(
        recording,
        lengths=recording.lengths[:num_episodes],
        names=recording.names[:num_episodes],
        read=lambda: itertools.islice(recording.read(), num_episodes),
    )


def joined(first: Recording, second: Recording) -> Recording:
    """The episodes of `first`, then those of `second`, under the header of the first."""
    return Recording(
        first.header,
        np.concatenate([first.lengths, second.lengths]),
        [*first.names, *second.names],
        lambda: itertools.chain(first.read(), second.read()),
    )


def check_episode(episode: Episode, length: int, header: Header, name: str) -> None:
    """Refuses an episode whose arrays do not fit each other, the spaces, or an episode's form.

    Raises:
        DataError: with `name`, what is wrong and what is expected.
    """
    observation_shape, action_shape = header.observation_space.shape, header.action_space.shape
    expected = {
        "observation": (length + 1, *observation_shape),
        "action": (length, *action_shape),
        "reward": (length,),
        "terminated": (length,),
        "truncated": (length,),
    }
    if length < 1:
        raise DataError(f"{name} has no steps")
    for field, shape in expected.items():
        values = getattr(episode, field)
        if values.shape != shape:
            raise DataError(f"{name}: {field} has shape {values.shape}, expected {shape}")
        if np.issubdtype(values.dtype, np.floating) and not np.all(np.isfinite(values)):
            step = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise DataError(f"{name}: {field} of step {step} is not finite")
    if not isinstance(header.action_space, Box) and not np.issubdtype(episode.action.dtype, np.integer):
        raise DataError(f"{name}: the actions of {header.action_space} must be integers, got {episode.action.dtype}")
    ended = episode.terminated | episode.truncated
    if np.any(ended[:-1]):
        raise DataError(f"{name} goes on after its end at step {int(np.argmax(ended))} of {length}")
    if not ended[-1]:
        raise DataError(f"{name} has no end: its last step neither terminates nor truncates it")


def blocks(lengths: np.ndarray, num_rows: int) -> Iterable[tuple[int, int]]:
    """Ranges of whole episodes of about `num_rows` rows together: few large reads instead of many small ones."""
    first, rows = 0, 0
    for i, length in enumerate(lengths):
        rows += int(length)
        if rows >= num_rows or i == len(lengths) - 1:
            yield first, i + 1
            first, rows = i + 1, 0


def space_to_json(space: Space) -> dict[str, Any]:
    """A space in the form that Minari's metadata has."""
    if isinstance(space, Discrete):
        return {"type": "Discrete", "dtype": "int64", "start": 0, "n": space.num_values}
    if isinstance(space, MultiDiscrete):
        return {"type": "MultiDiscrete", "dtype": "int64", "start": [0] * len(space.num_values),
                "nvec": list(space.num_values)}  # fmt: skip
    bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
    return {"type": "Box", "dtype": str(np.dtype(space.dtype)), "shape": list(space.shape), **bounds}


def space_from_json(values: dict[str, Any], name: str) -> Space:
    """The space of Minari's metadata; DataError, beginning with `name`, where there is no such space here."""
    kind = values.get("type")
    if kind == "Box":
        dtype = values["dtype"] if not values["dtype"].startswith("float") else "float32"
        low, high = (np.asarray(values[bound], np.float64) for bound in ("low", "high"))
        return Box(low.astype(dtype), high.astype(dtype), tuple(values["shape"]), np.dtype(dtype))
    if kind in ("Discrete", "MultiDiscrete") and np.any(np.asarray(values.get("start", 0))):
        raise DataError(f"{name}: a {kind} space must start at 0, got {values['start']}")
    if kind == "Discrete":
        return Discrete(int(values["n"]))
    if kind == "MultiDiscrete":
        return MultiDiscrete(tuple(values["nvec"]))
    raise DataError(f"{name}: spaces must be Box, Discrete or MultiDiscrete, got {kind!r}")


def import_h5py() -> Any:
    """The HDF5 library.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise ImportError("data sets are HDF5 files, which need h5py: install jaxrl with the extra 'data'") from error


def open_hdf5(path: Path) -> Any:
    """An HDF5 file to read; DataError where it is missing, cut off or something else."""
    try:
        return import_h5py().File(path, "r")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


@contextlib.contextmanager
def new_path(path: Path) -> Iterator[Path]:
    """Gives a temporary path, a file's or folder's, that takes the name `path` when the block ends well."""
    if path.exists():
        raise DataError(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.rename(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)
