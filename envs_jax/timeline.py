"""One episode as bars over its steps, and as a table: what an environment shows of a whole game at once.

An environment that has something to show defines `timeline(played) -> Timeline`; how it is drawn and written is decided
here, once for all. Runs on the host alone.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from envs_jax.core import PyTree, TimeStep


@dataclasses.dataclass(frozen=True)
class Played:
    """An episode of T steps on the host."""

    params: PyTree  # those of the episode, after `sample_params`
    states: PyTree  # leaves [T + 1, ...]: before each step, and the last one
    actions: np.ndarray  # [T, ...]; -1 where an agent's action is not known
    time_steps: TimeStep  # leaves [T, ...]: what each step returned

    @property
    def length(self) -> int:
        return len(self.actions)

    @property
    def episode_return(self) -> np.ndarray:
        """f64 [] or [A], undiscounted."""
        return np.asarray(self.time_steps.reward, np.float64).sum(axis=0)


def unstack(tree: PyTree) -> list[PyTree]:
    """The entries along the first axis of all leaves one by one, on the host."""
    leaves, structure = jax.tree.flatten(jax.device_get(tree))
    return [structure.unflatten(rows) for rows in zip(*leaves, strict=True)]


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a stretch of a bar, or a mark, stands for."""

    label: str  # in the legend; none where empty
    color: str  # "#rrggbb"
    symbol: str = " "  # one character: the mark itself, or a bar's cell where text has no colours
    mark: bool = False


@dataclasses.dataclass(frozen=True)
class Track:
    """A bar with one cell per step, and marks on it. Cells and marks name kinds of the timeline."""

    label: str
    cells: Sequence[str]  # [T]
    marks: Sequence[tuple[int, str]] = ()  # (step, kind)
    height: float = 18.0  # pixels
    gap: float = 2.0  # pixels above it


@dataclasses.dataclass(frozen=True)
class Curve:
    """A number over time."""

    label: str
    values: Sequence[float]  # [T]
    color: str
    height: float = 40.0  # pixels
    gap: float = 8.0  # pixels above it


@dataclasses.dataclass(frozen=True)
class Timeline:
    title: str
    kinds: Mapping[str, Kind]
    tracks: Sequence[Track | Curve]
    columns: Mapping[str, Any]  # the episode as a table: a sequence of T entries by name, arrays [T, ...] allowed

    @property
    def length(self) -> int:
        return len(self.tracks[0].cells if isinstance(self.tracks[0], Track) else self.tracks[0].values)

    def used_kinds(self) -> list[Kind]:
        """The kinds that occur and have a label, in the order of `kinds`."""
        tracks = [track for track in self.tracks if isinstance(track, Track)]
        used = {name for track in tracks for name in (*track.cells, *(kind for _, kind in track.marks))}
        return [kind for name, kind in self.kinds.items() if name in used and kind.label]


def save(timeline: Timeline, path: str | os.PathLike[str]) -> Path:
    """Writes a timeline in the format that the ending of `path` names, one of `FORMATS`, and returns the path.

    `.svg`, `.png` and `.html` (self-contained) are pictures, `.txt` is for a terminal (ANSI colours), `.json` and
    `.csv` hold the table of the episode.

    Raises:
        ValueError: the format is unknown.
    """
    from envs_jax.render import replacing

    suffix = Path(path).suffix
    if suffix not in FORMATS:
        raise ValueError(f"a timeline is written as one of {', '.join(FORMATS)}, got {str(path)!r}")
    content = FORMATS[suffix](timeline)
    with replacing(path) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Path(path)


def to_svg(timeline: Timeline) -> str:
    from envs_jax.timeline_render import draw_svg

    return draw_svg(timeline)


def to_png(timeline: Timeline) -> bytes:
    from envs_jax.render import png
    from envs_jax.timeline_render import draw_pixels

    return png(draw_pixels(timeline))


def to_html(timeline: Timeline) -> str:
    from envs_jax.render import page

    return page(timeline.title, timeline=to_svg(timeline))


def to_json(timeline: Timeline) -> str:
    columns = {name: np.asarray(column).tolist() for name, column in timeline.columns.items()}
    return json.dumps({"title": timeline.title, "length": timeline.length, "columns": columns})


def to_csv(timeline: Timeline) -> str:
    """One row per step; a column of arrays becomes one per entry, `name_0`, `name_1`, ..."""
    flat: dict[str, Sequence[Any]] = {}
    for name, column in timeline.columns.items():
        rows = np.asarray(column).reshape(timeline.length, -1)
        single = np.ndim(column) == 1
        flat |= {name if single else f"{name}_{index}": entry.tolist() for index, entry in enumerate(rows.T)}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(flat)
    writer.writerows(zip(*flat.values(), strict=True))
    return file.getvalue()


def to_text(timeline: Timeline, width: int = 100, colors: bool = True) -> str:
    """A character per step, in blocks of at most `width` steps; with `colors` for a terminal that knows ANSI codes.

    Of several marks in one cell the last is shown.
    """
    margin = max(len(track.label) for track in timeline.tracks) + 2
    lines = [timeline.title]
    for first in range(0, timeline.length, width):
        block = slice(first, min(first + width, timeline.length))
        numbers = "".join(f"{step:<10d}" for step in range(first, block.stop, 10))
        lines += ["", " " * margin + numbers.rstrip()]
        for track in timeline.tracks:
            cells = _spark(track, block) if isinstance(track, Curve) else _cells(track, timeline.kinds, block, colors)
            lines.append(track.label.ljust(margin) + cells)
    legend = [
        f"{kind.symbol if kind.mark else _paint(kind.symbol, kind.color, None, colors)} {kind.label}"
        for kind in timeline.used_kinds()
    ]
    return "\n".join([*lines, "", "   ".join(legend), ""])


def _cells(track: Track, kinds: Mapping[str, Kind], block: slice, colors: bool) -> str:
    marks = {step: kinds[name] for step, name in track.marks}
    text = []
    for step in range(block.start, block.stop):
        cell = kinds[track.cells[step]]
        mark = marks.get(step)
        symbol = mark.symbol if mark else " " if colors else cell.symbol
        text.append(_paint(symbol, cell.color, mark.color if mark else None, colors))
    return "".join(text)


def _paint(symbol: str, background: str, ink: str | None, colors: bool) -> str:
    if not colors:
        return symbol
    ink = ink or ("#000000" if sum(_rgb(background)) > 380 else "#ffffff")
    return f"\x1b[1;38;2;{_codes(ink)};48;2;{_codes(background)}m{symbol}\x1b[0m"


def _rgb(color: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(color.removeprefix("#")))


def _codes(color: str) -> str:
    return ";".join(map(str, _rgb(color)))


def _spark(curve: Curve, block: slice) -> str:
    values = np.asarray(curve.values, float)
    low, high = values.min(), values.max()
    levels = (values - low) / (high - low) * 7 if high > low else np.zeros_like(values)
    return "".join("▁▂▃▄▅▆▇█"[round(level)] for level in levels[block])


FORMATS: dict[str, Callable[[Timeline], str | bytes]] = {
    ".svg": to_svg,
    ".png": to_png,
    ".html": to_html,
    ".txt": to_text,
    ".json": to_json,
    ".csv": to_csv,
}
