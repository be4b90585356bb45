"""What a person sees while a training runs: a bar on a terminal, a plain line per chunk elsewhere."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """Shows nothing; the base of the two that do."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, num_updates: int, done: int) -> None:
        pass

    def update(self, done: int, speed: float, unit: str, rows: list[list[dict[str, Any]]]) -> None:
        pass

    def warn(self, message: str) -> None:
        print(f"warning: {message}", file=sys.stderr)


class LineProgress(Progress):
    """One line per chunk."""

    def start(self, num_updates: int, done: int) -> None:
        self.num_updates = num_updates

    def update(self, done: int, speed: float, unit: str, rows: list[list[dict[str, Any]]]) -> None:
        text = _returns(rows)
        print(f"update {done}/{self.num_updates}  {_speed(speed, unit)}  {text}", flush=True)


class BarProgress(Progress):
    """A bar with updates, environment steps per second, return and the time left."""

    def __init__(self) -> None:
        from rich import progress

        columns = (
            progress.TextColumn("update"),
            progress.MofNCompleteColumn(),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[speed]}"),
            progress.TextColumn("{task.fields[returns]}"),
            progress.TimeRemainingColumn(),
        )
        self._bar = progress.Progress(*columns)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, num_updates: int, done: int) -> None:
        self._task = self._bar.add_task("", total=num_updates, completed=done, speed="compiling", returns="")

    def update(self, done: int, speed: float, unit: str, rows: list[list[dict[str, Any]]]) -> None:
        self._bar.update(self._task, completed=done, speed=_speed(speed, unit), returns=_returns(rows))

    def warn(self, message: str) -> None:
        self._bar.console.print(f"warning: {message}", style="yellow", markup=False)


def make_progress(show: bool) -> Progress:
    """A bar on a terminal, lines elsewhere, nothing where `show` is false."""
    if not show:
        return Progress()
    return BarProgress() if sys.stdout.isatty() else LineProgress()


def _speed(per_second: float, unit: str) -> str:
    for size, name in ((1e6, "M"), (1e3, "k")):
        if per_second >= size:
            return f"{per_second / size:.1f}{name} {unit}/s"
    return f"{per_second:.0f} {unit}/s"


def _returns(rows: list[list[dict[str, Any]]]) -> str:
    parts = []
    for name, label in (("episode/return", "return"), ("evaluation/return", "evaluation")):
        values = [member[-1][name] for member in rows if member[-1].get(name) is not None]
        if values:
            parts.append(f"{label} {sum(values) / len(values):.3g}")
    return "  ".join(parts)
