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

Row = Mapping[str, Any]  # flat names -> numbers or None


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
    `episode/count` is 0. JSON has no number for what is not finite: it becomes the text "nan", "inf" or "-inf", which
    `read_metrics` understands.

    Raises:
        ValueError: a value is no number.
    """
    plain = {name: _plain(name, value) for name, value in row.items()}
    if plain.get("episode/count") == 0:
        plain |= {name: None for name in plain if name.startswith("episode/") and name != "episode/count"}
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
        Arrays `[rows]`: i64 where every row has an integer, else f64 with NaN for null and for rows without the name.

    Raises:
        ValueError: a line is not what `MetricsWriter` writes.
    """
    lines = Path(path).read_bytes().split(b"\n")[:-1]
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = dict(json.loads(line))
            rows.append({name: float(value) if isinstance(value, str) else value for name, value in row.items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: not a JSON object of numbers") from error
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    return {
        name: np.array(values, np.int64 if all(type(value) is int for value in values) else np.float64)
        for name, values in columns.items()
    }


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
            if name not in ("env_steps", "update") and value is not None:
                self._events.add_scalar(name, float(value), step)

    def flush(self) -> None:
        self._events.flush()

    def close(self) -> None:
        self._events.close()


def tensorboard_installed() -> bool:
    """Whether `TensorBoardWriter` can be used."""
    return importlib.util.find_spec("tensorboardX") is not None


def _plain(name: str, value: Any) -> int | float | str | None:
    if value is None:
        return None
    array = np.asarray(value)
    if array.ndim or array.dtype.kind in "OSUM":
        raise ValueError(f"metric {name} must be a number, got {value!r}")
    if array.dtype.kind in "biu":
        return array.item()
    with np.errstate(over="ignore"):
        text = str(array.astype(np.float32))  # the shortest decimal that stands for this f32
    return float(text) if math.isfinite(float(text)) else text
