"""Metrics on disk: `metrics.jsonl`, one JSON object per line, and TensorBoard events behind the same interface.

`metrics.jsonl` holds deterministic quantities only, so that two runs of one configuration write the same bytes.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Row = Mapping[str, Any]  # flat names -> numbers, None, or one of these per member of a sweep


class Writer(Protocol):
    """What takes rows of metrics."""

    def write(self, row: Row) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class MetricsWriter:
    """Appends rows to a `metrics.jsonl`.

    Each row is one write to the operating system, so a killed process loses none that it wrote. `offset` goes into a
    checkpoint; a resumed run hands it back and what was written after the checkpoint is cut off.

    Args:
        path: the file; made if it does not exist.
        offset: bytes to keep of an existing file; all if None.

    Raises:
        ValueError: `offset` lies outside the file.
    """

    def __init__(self, path: str | Path, offset: int | None = None):
        if offset is not None:
            truncate(path, offset)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    @property
    def offset(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def write(self, row: Row) -> None:
        """Writes one line; see `plain_row` for what becomes of the values."""
        self._file.write(json.dumps(plain_row(row), allow_nan=False).encode() + b"\n")

    def flush(self) -> None:
        """Forces all lines to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def plain_row(row: Row) -> dict[str, Any]:
    """The row as JSON values.

    Floats are kept to f32 precision, with as few digits as that takes. Means over episodes are null where
    `episode/count` is 0. Values `[S]`, one per member of a sweep, become lists, in which "nan", "inf" and "-inf"
    stand for what JSON has no number for: one member that diverges does not end the others.

    Raises:
        ValueError: a single value is not finite, or no number.
    """
    plain = {name: _plain(name, value) for name, value in row.items()}
    count = plain.get("episode/count")
    if count is not None:
        for name in plain:
            if name.startswith("episode/") and name != "episode/count":
                plain[name] = _null_without_episodes(plain[name], count)
    for name, value in plain.items():
        if isinstance(value, str):
            raise ValueError(f"{name} is {value} at update {plain.get('update', '?')}")
    return plain


def truncate(path: str | Path, offset: int) -> None:
    """Cuts the file to its first `offset` bytes.

    Raises:
        ValueError: the file is shorter, or `offset` does not end a line.
    """
    size = Path(path).stat().st_size if Path(path).exists() else 0
    if not 0 <= offset <= size:
        raise ValueError(f"{path} has {size} bytes, the checkpoint was written after {offset}")
    if not size:
        return
    with open(path, "rb+") as file:
        file.seek(max(offset - 1, 0))
        if offset and file.read(1) != b"\n":
            raise ValueError(f"{path} was changed: byte {offset}, after which the checkpoint came, ends no line")
        file.truncate(offset)


def read_metrics(path: str | Path) -> dict[str, np.ndarray]:
    """All columns of a `metrics.jsonl`.

    Args:
        path: the file. A last line that is still being written is left out.

    Returns:
        Arrays `[rows]`, or `[rows, S]` where rows hold one value per member: i64 where every row has an integer, else
        f64 with NaN for null and for rows without the name.

    Raises:
        ValueError: a line is no JSON object, or members come and go.
    """
    lines = Path(path).read_bytes().split(b"\n")[:-1]
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(dict(json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: not a JSON object") from error
    return {name: _column(path, name, rows) for name in dict.fromkeys(name for row in rows for name in row)}


class TensorBoardWriter:
    """Writes rows as TensorBoard events over `env_steps` (over `update` where there are none).

    Args:
        folder: where the events go.
        purge_step: on a resume, TensorBoard hides earlier events from this step on.

    Raises:
        ImportError: tensorboardX is not installed.
    """

    def __init__(self, folder: str | Path, purge_step: int | None = None):
        if not tensorboard_installed():
            raise ImportError("TensorBoard events need tensorboardX: install jaxrl with the extra 'log'")
        from tensorboardX import SummaryWriter

        self._events = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, row: Row) -> None:
        plain = plain_row(row)
        step = plain.get("env_steps", plain.get("update"))
        for name, value in plain.items():
            if name in ("env_steps", "update") or value is None:
                continue
            members = {f"{name}/{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {name: value}
            for tag, number in members.items():
                if number is not None:
                    self._events.add_scalar(tag, float(number), step)

    def flush(self) -> None:
        self._events.flush()

    def close(self) -> None:
        self._events.close()


def tensorboard_installed() -> bool:
    """Whether `TensorBoardWriter` can be used."""
    return importlib.util.find_spec("tensorboardX") is not None


def _plain(name: str, value: Any) -> Any:
    """A number, None, a list of these, or the string "nan", "inf" or "-inf"."""
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return [_plain(name, item) for item in value]
    array = np.asarray(value)
    if array.ndim:
        return [_plain(name, item) for item in array]
    if array.dtype.kind in "biu":
        return array.item()
    if array.dtype.kind in "OSUM":
        raise ValueError(f"metric {name} must be a number, got {value!r}")
    with np.errstate(over="ignore"):
        text = str(array.astype(np.float32))  # the shortest decimal that stands for this f32
    return float(text) if math.isfinite(float(text)) else text


def _null_without_episodes(value: Any, count: Any) -> Any:
    if isinstance(value, list):
        return [_null_without_episodes(v, c) for v, c in zip(value, count, strict=True)]
    return value if count else None


def _column(path: str | Path, name: str, rows: list[dict[str, Any]]) -> np.ndarray:
    values = [row.get(name) for row in rows]
    if all(type(value) is int for value in values):
        return np.array(values, np.int64)
    sizes = {len(value) for value in values if isinstance(value, list)}
    if not sizes:
        return np.array([np.nan if value is None else float(value) for value in values])
    if len(sizes) > 1 or any(not isinstance(value, list) for value in values if value is not None):
        raise ValueError(f"{path}: the rows hold different numbers of members of {name}")
    missing = [None] * sizes.pop()
    table = [missing if value is None else value for value in values]
    return np.array([[np.nan if item is None else float(item) for item in row] for row in table])
