"""Flat HDF5 files as D4RL has them: all steps of all episodes in one array for each field.

An episode ends where `terminals` or `timeouts` is true; only `terminals` ends the bootstrapping. A trailing piece
without an end is dropped. The flat layout has no observation after the last step unless `next_observations` is there,
which newer files and those written here have. Without it the last step of an episode that timed out is left out, since
what it led to is unknown (after a termination it does not matter).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from envs_jax.spaces import Box, Discrete, MultiDiscrete, Space
from jaxrl.data.recording import (
    DataError,
    Episode,
    Header,
    Recording,
    blocks,
    import_h5py,
    new_path,
    open_hdf5,
    space_from_json,
    space_to_json,
)

BLOCK_ROWS = 65_536  # read at once
HEADER = "jaxrl"  # the attribute of the file that holds spaces and facts, where it was written here


def is_d4rl(path: Path) -> bool:
    """Whether a path is an HDF5 file, by its name."""
    return path.is_file() and path.suffix in (".hdf5", ".h5")


def open_d4rl(path: str | Path) -> Recording:
    """The episodes of a flat file.

    Without a header the observation space is unbounded, and the actions' [-1, 1] or as many values as occur.

    Raises:
        DataError: an array is missing, damaged or of another length, or no episode ends.
        ImportError: h5py is not installed.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        num_rows = _stored(file, "rewards", path).shape[0]
        fields = {"observations": num_rows, "actions": num_rows, "terminals": num_rows, "timeouts": num_rows}
        has_successors = "next_observations" in file
        for field in [*fields, *(["next_observations"] if has_successors else [])]:
            shape = _stored(file, field, path).shape
            if not shape or shape[0] != num_rows:
                raise DataError(f"{path}: {field} has shape {shape}, expected {num_rows} rows as in rewards")
        terminals, timeouts = (
            _rows(file, field, 0, num_rows, path).astype(bool) for field in ("terminals", "timeouts")
        )
        header = _header(file, path, num_rows)
    ends = np.flatnonzero(terminals | timeouts) + 1
    if not len(ends):
        raise DataError(f"{path}: no episode ends, of {num_rows} rows none has terminals or timeouts set")
    rows = np.diff(ends, prepend=0)
    # Without successors an episode that timed out loses its last step; one of a single step is then nothing.
    lost = np.zeros_like(rows) if has_successors else (~terminals[ends - 1]).astype(rows.dtype)
    kept = rows > lost
    lengths = (rows - lost)[kept]
    names = [f"{path}: episode {i}" for i in np.flatnonzero(kept)]

    def read() -> Iterator[Episode]:
        with open_hdf5(path) as file:
            for first, last in blocks(rows, BLOCK_ROWS):
                start, stop = int(ends[first] - rows[first]), int(ends[last - 1])
                names = ["observations", "actions", "rewards", *(["next_observations"] if has_successors else [])]
                where = f"{path}: episode {first}" + (f" to {last - 1}" if last > first + 1 else "")
                block = {name: _rows(file, name, start, stop, where) for name in names}
                for episode in np.flatnonzero(kept[first:last]) + first:
                    begin, end = int(ends[episode] - rows[episode]), int(ends[episode])
                    here = {name: values[begin - start : end - start] for name, values in block.items()}
                    yield _episode(here, terminals[begin:end], timeouts[begin:end])

    return Recording(header, lengths, names, read)


def write_d4rl(recording: Recording, path: str | Path) -> Path:
    """Writes a flat file, with `next_observations` and a header; whole or not at all.

    Raises:
        DataError: the file exists, or an episode is refused.
        ImportError: h5py is not installed.
    """
    h5py, path = import_h5py(), Path(path)
    total, arrays, row = int(np.sum(recording.lengths)), {}, 0
    with new_path(path) as temporary, h5py.File(temporary, "w") as file:
        for episode in recording.episodes():
            fields = {
                "observations": episode.observation[:-1],
                "actions": episode.action,
                "rewards": episode.reward,
                "terminals": episode.terminated,
                "timeouts": episode.truncated,
                "next_observations": episode.observation[1:],
            }
            for name, values in fields.items():
                if name not in arrays:
                    shape = (total, *values.shape[1:])
                    arrays[name] = file.create_dataset(name, shape, values.dtype, compression="gzip", shuffle=True)
                arrays[name][row : row + len(values)] = values
            row += len(episode.reward)
        header = recording.header
        spaces = {name: space_to_json(getattr(header, name)) for name in ("observation_space", "action_space")}
        file.attrs[HEADER] = json.dumps(spaces | {"facts": header.facts})
    return path


def _episode(rows: dict[str, np.ndarray], terminals: np.ndarray, timeouts: np.ndarray) -> Episode:
    observations = rows["observations"]
    if "next_observations" in rows:
        observations, length = np.concatenate([observations, rows["next_observations"][-1:]]), len(terminals)
    elif terminals[-1]:
        observations, length = np.concatenate([observations, observations[-1:]]), len(terminals)
    else:
        length = len(terminals) - 1
        timeouts = np.arange(1, length + 1) == length
    return Episode(
        observation=observations[: length + 1],
        action=rows["actions"][:length],
        reward=rows["rewards"][:length],
        terminated=terminals[:length],
        truncated=timeouts[:length],
    )


def _header(file: Any, path: Path, num_rows: int) -> Header:
    if HEADER in file.attrs:
        try:
            stored = json.loads(file.attrs[HEADER])
            spaces = [space_from_json(stored[name], str(path)) for name in ("observation_space", "action_space")]
            return Header(*spaces, facts=stored["facts"])
        except (ValueError, KeyError) as error:
            raise DataError(f"{path}: its header cannot be read ({error})") from error
    observations, actions = file["observations"], file["actions"]
    space: Space = Box(-1.0, 1.0, actions.shape[1:])
    if np.issubdtype(actions.dtype, np.integer):
        largest = np.max(_rows(file, "actions", 0, num_rows, path), axis=0)
        space = Discrete(int(largest) + 1) if largest.ndim == 0 else MultiDiscrete(tuple(largest + 1))
    return Header(Box(-np.inf, np.inf, observations.shape[1:]), space, {})


def _stored(file: Any, name: str, path: Path) -> Any:
    if name not in file or not hasattr(file[name], "shape"):
        raise DataError(f"{path} has no array {name!r}: it is no flat D4RL file")
    return file[name]


def _rows(file: Any, name: str, start: int, stop: int, where: Any) -> np.ndarray:
    try:
        return file[name][start:stop]
    except (OSError, RuntimeError) as error:
        raise DataError(f"{where}: {name!r} is damaged ({error})") from error
