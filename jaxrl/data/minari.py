"""Minari's local data sets, read and written with h5py alone.

A data set is a folder `<root>/<namespace>/<name>-v<N>` with `data/main_data.hdf5` (a group `episode_<i>` for each
episode, T + 1 observations to T actions) and `data/metadata.json`. The layout is that of Minari 0.5.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.data.recording import (
    DataError,
    Episode,
    Header,
    Recording,
    import_h5py,
    new_path,
    open_hdf5,
    space_from_json,
    space_to_json,
)

FIELDS = {
    # of an `Episode`: in the file
    "observation": "observations",
    "action": "actions",
    "reward": "rewards",
    "terminated": "terminations",
    "truncated": "truncations",
}


def root_folder() -> Path:
    """Where Minari keeps its data sets: MINARI_DATASETS_PATH, else a folder in the user's home."""
    given = os.environ.get("MINARI_DATASETS_PATH")
    return Path(given) if given else Path.home() / ".minari" / "datasets"


def is_minari(path: Path) -> bool:
    """Whether a folder holds a data set; what an interrupted writer leaves behind does not."""
    return (path / "data" / "metadata.json").is_file()


def open_minari(path: str | Path) -> Recording:
    """The episodes of a data set, in the order of their numbers.

    Args:
        path: the folder that contains `data`.

    Raises:
        DataError: a file is missing, damaged, or of observations that are no single array.
        ImportError: h5py is not installed.
    """
    folder = Path(path) / "data"
    file_name = folder / "main_data.hdf5"
    try:
        metadata = json.loads((folder / "metadata.json").read_text())
        spaces = [_parsed(metadata[name]) for name in ("observation_space", "action_space")]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: metadata.json cannot be read ({error})") from error
    header = Header(*(space_from_json(space, str(path)) for space in spaces), facts=metadata)
    with open_hdf5(file_name) as file:
        groups = sorted((name for name in file if name.startswith("episode_")), key=_number)
        names = [f"{file_name}: {group}" for group in groups]
        lengths = [_length(file, group, name) for group, name in zip(groups, names)]
    total = metadata.get("total_episodes", len(groups))
    if not groups or total != len(groups):
        raise DataError(f"{file_name} holds {len(groups)} episodes, its metadata says {total}")

    def read() -> Iterator[Episode]:
        with open_hdf5(file_name) as file:
            for group, name in zip(groups, names):
                yield Episode(**{field: _array(file, group, stored, name) for field, stored in FIELDS.items()})

    return Recording(header, np.array(lengths, np.int64), names, read)


def write_minari(recording: Recording, path: str | Path) -> Path:
    """Writes a data set that Minari's `load_dataset` reads; whole or not at all.

    Args:
        recording: its facts become metadata.
        path: the folder to make; its name should end in `-v<N>`. Inside `root_folder()` its place there is the id.

    Raises:
        DataError: the folder exists, or an episode is refused.
        ImportError: h5py is not installed.
    """
    h5py, path = import_h5py(), Path(path)
    total_steps = 0
    with new_path(path) as temporary:
        file_name = temporary / "data" / "main_data.hdf5"
        file_name.parent.mkdir(parents=True)
        with h5py.File(file_name, "w") as file:
            for number, episode in enumerate(recording.episodes()):
                group = file.create_group(f"episode_{number}")
                for field, stored in FIELDS.items():
                    group.create_dataset(stored, data=getattr(episode, field))
                group.create_group("infos")
                group.attrs.update(_episode_facts(number, episode.reward))
                total_steps += len(episode.reward)
        header = recording.header
        metadata = {"env_spec": None, "algorithm_name": "", "author": [], "author_email": [], "code_permalink": ""}
        metadata |= {"minari_version": "0.5.4"}  # whose layout this is
        metadata |= header.facts
        metadata |= {
            "dataset_id": _dataset_id(path),
            "total_episodes": len(recording.names),
            "total_steps": total_steps,
            "data_format": "hdf5",
            "dataset_size": round(file_name.stat().st_size / 1e6, 3),  # MB
            # Minari keeps a space as text within the JSON.
            "observation_space": json.dumps(space_to_json(header.observation_space)),
            "action_space": json.dumps(space_to_json(header.action_space)),
        }
        (temporary / "data" / "metadata.json").write_text(json.dumps(metadata, indent=1))
    return path


def _episode_facts(number: int, reward: np.ndarray) -> dict[str, Any]:
    names = {"min": np.min, "max": np.max, "mean": np.mean, "std": np.std, "sum": np.sum}
    return {"id": number, "total_steps": len(reward)} | {f"rewards_{k}": f(reward) for k, f in names.items()}


def _dataset_id(path: Path) -> str:
    try:
        return path.absolute().relative_to(root_folder().absolute()).as_posix()
    except ValueError:
        return path.name


def _parsed(space: Any) -> dict[str, Any]:
    return json.loads(space) if isinstance(space, str) else space


def _number(group: str) -> int:
    digits = group.removeprefix("episode_")
    if not digits.isdigit():
        raise DataError(f"{group!r} is no name of an episode")
    return int(digits)


def _length(file: Any, group: str, name: str) -> int:
    """T of an episode, without reading it."""
    rewards = _stored(file, group, "rewards", name)
    return int(rewards.shape[0]) if rewards.ndim else 0


def _stored(file: Any, group: str, stored: str, name: str) -> Any:
    try:
        found = file[group][stored]
    except (KeyError, OSError, RuntimeError) as error:
        raise DataError(f"{name} has no readable {stored!r}") from error
    if not hasattr(found, "shape"):
        raise DataError(f"{name}: {stored!r} must be one array, not a group of them")
    return found


def _array(file: Any, group: str, stored: str, name: str) -> np.ndarray:
    try:
        return _stored(file, group, stored, name)[...]
    except (OSError, RuntimeError) as error:
        raise DataError(f"{name}: {stored!r} is damaged ({error})") from error
