"""Data sets by name: whichever of the two formats a path or a Minari id holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from envs_jax.registry import nearest
from jaxrl.data.d4rl import is_d4rl, open_d4rl, write_d4rl
from jaxrl.data.minari import is_minari, open_minari, root_folder, write_minari
from jaxrl.data.recording import DataError, Recording

WRITERS: dict[str, Callable[[Recording, str | Path], Path]] = {"minari": write_minari, "d4rl": write_d4rl}


def open_recording(name: str | Path, folders: Sequence[Path] = ()) -> Recording:
    """The data set that `name` names.

    Args:
        name: a flat HDF5 file, a folder in Minari's form, or the id of a local Minari data set such as
            `mujoco/hopper/medium-v0`.
        folders: where relative names are looked for too, after the working directory.

    Raises:
        DataError: there is no such data set, or it cannot be used.
        ImportError: h5py is not installed.
    """
    for folder in (Path(), *folders, root_folder()):
        path = folder / name
        if is_minari(path):
            return open_minari(path)
        if is_d4rl(path):
            return open_d4rl(path)
    path = Path(name)
    if path.exists():
        raise DataError(f"{path} is no data set: neither an .hdf5 file nor a folder with data/metadata.json")
    hint = nearest(str(name), local_ids())
    raise DataError(
        f"there is no data set {str(name)!r}{hint} Local Minari data sets are looked for in {root_folder()}"
    )


def local_ids() -> list[str]:
    """Ids of the Minari data sets on this machine."""
    root = root_folder()
    found = (path.parent.parent.relative_to(root).as_posix() for path in root.rglob("data/metadata.json"))
    return sorted(name for name in found if not name.startswith("."))


def writer(format: str) -> Callable[[Recording, str | Path], Path]:
    """`write_minari` or `write_d4rl`; DataError for another name."""
    if format not in WRITERS:
        raise DataError(f"the format must be one of {', '.join(WRITERS)}, got {format!r}{nearest(format, WRITERS)}")
    return WRITERS[format]
