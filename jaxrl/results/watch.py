"""A training in the terminal while it runs: curves, speed and the time left, read from its folder alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich import console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from envs_jax.registry import nearest
from jaxrl.results.plot import METRICS
from jaxrl.results.runs import Group, Run, group_runs, read_run, run_folders, timing_file

BLOCKS, PLAIN = " ▁▂▃▄▅▆▇█", " .:-=+*#@"  # in a column, nothing to full
WIDTH, HEIGHT = 32, 10  # columns of a small curve, lines of the large one
COLOURS = ("cyan", "red", "yellow", "green", "magenta", "blue", "white")


class Tail:
    """The rows of a file of JSON lines that grows; each look reads what is new."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """All rows up to now; none where there is no file yet."""
        if not self.path.is_file():
            return self.rows
        if self.path.stat().st_size < self._offset:  # a resumed run cuts its files back to a checkpoint
            self.rows, self._offset = [], 0
        with self.path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]  # a last line may still be being written
        self.rows += [json.loads(line) for line in new.splitlines()]
        self._offset += len(new)
        return self.rows


class Watcher:
    """Looks into the folder of a run or a sweep.

    Args:
        folder: where it is written.
        metric: what is shown; by default the first of `METRICS`, then of the losses, that has a value.

    Raises:
        ValueError: there is no such folder, or no run in it.
    """

    def __init__(self, folder: str | Path, metric: str | None = None):
        self.folder, self.metric = Path(folder), metric
        self.groups = group_runs(read_run(path, metrics=False) for path in _members(self.folder))
        self.runs = [run for group in self.groups for run in group.runs]
        self._tails = {run.path: Tail(run.path / "metrics.jsonl") for run in self.runs}
        self._timing: dict[Path, Tail] = {}

    @property
    def finished(self) -> bool:
        """Whether every run had made its last update at the last look."""
        return all(0 < run.settings.get("num_updates", 0) <= self._update(run) for run in self.runs)

    def look(self, width: int = 120, height: int = 40, blocks: str = BLOCKS) -> console.Group:
        """What is shown now, at most so many columns and lines; `blocks` are nine characters, from empty to full.

        Raises:
            ValueError: runs have rows but none has the metric (with the nearest name).
        """
        for tail in self._tails.values():
            tail.read()
        metric, large = self._choose(), len(self.groups) == 1
        columns = max(20, min(width - 14, 100)) if large else WIDTH
        curves = [self._curve(group, metric, columns) for group in self.groups]
        known = [curve[np.isfinite(curve)] for curve in curves]
        every = np.concatenate(known) if known else np.empty(0)
        low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 0.0)

        parts: list[Any] = [Text(f"{self.folder}   {metric}", style="bold")]
        if large:
            parts += _large(curves[0], low, high, blocks)
        table = Table(box=None, pad_edge=False)
        for name in ("", "update", "latest", "best", "speed", "compile", "left", "" if large else "curve"):
            table.add_column(name, no_wrap=True)
        room = max(1, height - 6 - (HEIGHT if large else 0))
        for number, (group, curve) in enumerate(zip(self.groups[:room], curves)):
            small = "" if large else curve_text(curve, low, high, blocks)[0]
            table.add_row(*self._row(group, metric), Text(small, style=COLOURS[number % len(COLOURS)]))
        parts.append(table)
        if len(self.groups) > room:
            parts.append(Text(f"and {len(self.groups) - room} more groups", style="dim"))
        parts.append(Text(self._state(), style="dim"))
        return console.Group(*parts)

    def _row(self, group: Group, metric: str) -> list[str]:
        values = [_values(self._tails[run.path].rows, metric)[1] for run in group.runs]
        latest, best = ([pick(v) for v in values if len(v)] for pick in (lambda v: v[-1], np.max))
        seeds = f" ({len(group.runs)} seeds)" if len(group.runs) > 1 else ""
        updates, total = [self._update(run) for run in group.runs], group.runs[0].settings.get("num_updates", "?")
        update = f"{min(updates)}/{total}"
        figures = [f"{np.mean(numbers):.4g}" if numbers else "-" for numbers in (latest, best)]
        return [group.label + seeds, update, *figures, *self._speed(group.runs[0])]

    def _speed(self, run: Run) -> list[str]:
        """Speed, seconds of compilation and time left of the program that trains a run."""
        file = timing_file(run.path)
        if file is None:
            return ["waiting", "-", "-"]
        rows = self._timing.setdefault(file, Tail(file)).read()
        if not rows:
            return ["compiling", "-", "-"]
        last, before = rows[-1], rows[-2]["update"] if len(rows) > 1 else 0
        steps, updates = last["env_steps_per_second"], last.get("updates_per_second", 0.0)
        speed = f"{_short(steps)} steps/s" if steps else f"{_short(updates)} updates/s"
        per_update = last["chunk_seconds"] / max(1, last["update"] - before)
        left = max(0, run.settings.get("num_updates", 0) - last["update"]) * per_update
        return [speed, f"{sum(last['compile_seconds'].values()):.0f} s", _clock(left)]

    def _curve(self, group: Group, metric: str, columns: int) -> np.ndarray:
        """Mean over seeds at `columns` equal steps of updates; NaN before the first value of all seeds."""
        members = [_values(self._tails[run.path].rows, metric) for run in group.runs]
        members = [(x, y) for x, y in members if len(x)]
        if not members:
            return np.full(columns, np.nan)
        end = max(x[-1] for x, _ in members)
        grid = np.linspace(min(x[0] for x, _ in members), end, columns)
        return np.mean([np.interp(grid, x, y, left=np.nan) for x, y in members], axis=0)

    def _choose(self) -> str:
        names = dict.fromkeys(name for tail in self._tails.values() for row in tail.rows[-1:] for name in row)
        if self.metric is not None:
            known = dict.fromkeys(name for tail in self._tails.values() for row in tail.rows for name in row)
            if known and self.metric not in known:
                raise ValueError(f"no run has {self.metric!r}{nearest(self.metric, known)} Known: {', '.join(known)}")
            return self.metric
        for name in (*METRICS, *(name for name in names if name.startswith("loss/"))):
            if any(len(_values(tail.rows, name)[0]) > 1 for tail in self._tails.values()):
                return name
        return METRICS[1]

    def _update(self, run: Run) -> int:
        rows = self._tails[run.path].rows
        return rows[-1].get("update", len(rows)) if rows else 0

    def _state(self) -> str:
        if self.finished:
            return "finished"
        files = [tail.path for tail in self._tails.values() if tail.path.is_file()]
        if not any(tail.rows for tail in self._tails.values()):
            return "no rows yet: compiling, or not started"
        idle = time.time() - max(file.stat().st_mtime for file in files)
        return f"last row {_clock(idle)} ago"


def watch(folder: str | Path, *, metric: str | None = None, every: float = 2.0, once: bool = False) -> None:
    """Shows a run or sweep until it has made its last update, or what there is `once`.

    Args:
        folder: where it is written.
        metric: what is shown, as in `Watcher`.
        every: seconds between two looks.
        once: print and return.
    """
    watcher, screen = Watcher(folder, metric), console.Console()
    if not screen.is_terminal:
        screen = console.Console(width=160)  # a file has no width to fit into
    blocks = BLOCKS if screen.encoding.startswith("utf") else PLAIN

    def look() -> console.Group:
        return watcher.look(screen.width, screen.height, blocks)

    if once:
        screen.print(look())
        return
    with Live(look(), console=screen, auto_refresh=False) as live:
        while not watcher.finished:
            time.sleep(every)
            live.update(look(), refresh=True)


def curve_text(values: np.ndarray, low: float, high: float, blocks: str = BLOCKS, lines: int = 1) -> list[str]:
    """A curve `[columns]` in blocks between `low` and `high`, so many lines from top to bottom; NaN is empty."""
    share = (values - low) / (high - low) if high > low else np.where(np.isfinite(values), 0.5, np.nan)
    levels = np.nan_to_num(np.rint(share * (8 * lines - 1)) + 1, nan=0.0).astype(int)  # the lowest value shows too
    return ["".join(blocks[level] for level in np.clip(levels - 8 * line, 0, 8)) for line in range(lines - 1, -1, -1)]


def _large(values: np.ndarray, low: float, high: float, blocks: str) -> list[Text]:
    labels = {0: f"{high:.4g}", HEIGHT - 1: f"{low:.4g}"}
    rows = curve_text(values, low, high, blocks, HEIGHT)
    return [Text(f"{labels.get(i, ''):>11} ").append(row, style=COLOURS[0]) for i, row in enumerate(rows)]


def _members(folder: Path) -> list[Path]:
    """The runs of a folder, those that have not begun included."""
    if (folder / "sweep.json").is_file():
        return [folder / member["name"] for member in json.loads((folder / "sweep.json").read_text(encoding="utf-8"))]
    return [folder] if (folder / "config.json").is_file() else run_folders(folder)


def _values(rows: list[dict[str, Any]], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Updates and values of the rows that have a finite one."""
    pairs = [(row.get("update", i), float(row[metric])) for i, row in enumerate(rows) if row.get(metric) is not None]
    array = np.array(pairs, np.float64).reshape(-1, 2)
    array = array[np.isfinite(array[:, 1])]
    return array[:, 0], array[:, 1]


def _short(value: float) -> str:
    for size, name in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{name}"
    return f"{value:.3g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
