"""Checkpoints: orbax for the arrays, JSON for the rest, written to a temporary name and renamed.

A checkpoint is a folder `checkpoints/000000400` that never changes once it has its name. `best.json` names the best
one. Nothing is unpickled; every array is checked by its checksum when it is read.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FORMAT_VERSION = 1
PyTree = Any


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and why."""

    exit_status = 2


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class CheckpointWriter:
    """Saves states in the background; training goes on as soon as they are copied to the host."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, state: PyTree, update: int, facts: dict[str, Any], then: Callable[[], None] | None = None) -> None:
        """Copies `state` and writes it as the checkpoint of `update`; `then` runs when it has its name."""
        self.wait()
        leaves = named_leaves(state)
        arrays = {name: np.array(leaf) for name, leaf in leaves.items()}

        def work() -> None:
            try:
                _write(self.folder / f"{update:09d}", arrays, facts | {"update": update})
                if then is not None:
                    then()
                prune(self.folder, self.keep)
            except BaseException as error:  # handed to the main thread by `wait`
                self._error = error

        self._thread = threading.Thread(target=work, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Waits for the last save; raises what went wrong in it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves by their path, such as `params.params.actor.dense_0.kernel`; random keys as their numbers."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    return {name: _raw(leaf) for name, (_, leaf) in zip(names, paths)}


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if path.name.isdigit()) if folder.is_dir() else []


def restore(path: Path, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """Reads one checkpoint.

    Args:
        path: its folder.
        like: a state of the run's configuration; `jax.ShapeDtypeStruct` leaves will do. Leaves with a sharding come
            back with it.

    Returns:
        The state and the facts stored with it.

    Raises:
        CheckpointError: the checkpoint is torn, of another format version, or of another configuration.
    """
    import orbax.checkpoint as ocp

    facts = read_facts(path)
    wanted = named_leaves(like)
    stored = facts["arrays"]
    for name in sorted(set(wanted) | set(stored)):
        here, there = wanted.get(name), stored.get(name)
        mine = "absent" if here is None else f"{np.dtype(here.dtype)}{list(here.shape)}"
        theirs = "absent" if there is None else f"{there['dtype']}{list(there['shape'])}"
        if mine != theirs:
            raise CheckpointError(
                f"{path} is of another configuration: {name} is {theirs} there and {mine} in this run"
            )
    try:
        arrays = ocp.PyTreeCheckpointer().restore((path / "arrays").absolute())
    except Exception as error:  # whatever the reader says of damaged files
        raise CheckpointError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    arrays |= {name: np.zeros(entry["shape"], entry["dtype"]) for name, entry in stored.items() if 0 in entry["shape"]}
    for name, entry in stored.items():
        if name not in arrays or _checksum(np.asarray(arrays[name])) != entry["crc32"]:
            raise CheckpointError(f"{path} is damaged: the checksum of {name} does not match")
    leaves, structure = jax.tree.flatten(like)
    return structure.unflatten([_restored(arrays[n], leaf) for n, leaf in zip(wanted, leaves)]), facts["facts"]


def restore_newest(folder: Path, like: PyTree, warn: Callable[[str], None]) -> tuple[PyTree, dict[str, Any]] | None:
    """The newest readable checkpoint, or None where there is none; each unreadable one is reported and set aside."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return restore(path, like)
        except CheckpointError as error:
            if "is damaged" not in str(error):
                raise
            warn(f"{error}; the one before it is used")
            path.rename(path.with_name(f"damaged-{path.name}"))
    return None


def read_facts(path: Path) -> dict[str, Any]:
    """The JSON beside a checkpoint's arrays, its format version checked."""
    try:
        facts = json.loads((path / "checkpoint.json").read_text())
        version = facts["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: checkpoint.json cannot be read") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path} has format version {version}; this version of jaxrl reads {FORMAT_VERSION}")
    return facts


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints and the best one."""
    best = best_checkpoint(folder)
    for path in list_checkpoints(folder)[:-keep]:
        if path != best:
            shutil.rmtree(path, ignore_errors=True)


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that `best.json` names, if it is still there."""
    file = folder / "best.json"
    if not file.is_file():
        return None
    path = folder / f"{json.loads(file.read_text())['update']:09d}"
    return path if path.is_dir() else None


def _write(path: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    import orbax.checkpoint as ocp

    temporary = path.with_name(f".tmp-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    # Orbax refuses arrays without entries; their shape, kept below, says all about them.
    filled = {name: array for name, array in arrays.items() if array.size}
    ocp.PyTreeCheckpointer().save((temporary / "arrays").absolute(), filled)
    entries = {
        name: {"shape": array.shape, "dtype": str(array.dtype), "crc32": _checksum(array)}
        for name, array in arrays.items()
    }
    write_json(temporary / "checkpoint.json", {"format_version": FORMAT_VERSION, "facts": facts, "arrays": entries})
    if path.exists():  # a run that was resumed from an older checkpoint writes the same one again
        shutil.rmtree(path)
    temporary.rename(path)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> Any:
    if not _is_key(leaf):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.random.key_data(leaf)


def _restored(array: Any, like: Any) -> jax.Array:
    value = jax.random.wrap_key_data(jnp.asarray(array)) if _is_key(like) else jnp.asarray(array, like.dtype)
    sharding = getattr(like, "sharding", None)
    return value if sharding is None else jax.device_put(value, sharding)


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())
