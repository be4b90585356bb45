"""Draws a timeline, as pixels and as SVG, by the same strokes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from envs_jax.render import Canvas, Frame, Point
from envs_jax.svg import SvgCanvas
from envs_jax.timeline import Curve, Kind, Timeline, Track

Surface = Canvas | SvgCanvas

MARGIN, LABELS, HEADER, AXIS, LEGEND_ROW = 14.0, 128.0, 38.0, 24.0, 20.0  # pixels
BARS_WIDTH, MAX_CELL = 960.0, 12.0
INK, FAINT, GRID = "#202124", "#5f6368", "#dadce0"
FONT = 11.0
GLYPH = 0.47  # mean width of a character, in font sizes


def draw_svg(timeline: Timeline) -> str:
    """A self-contained SVG; `data-left` and `data-cell` say where the bars begin and how wide a step is."""
    layout = _Layout(timeline)
    canvas = SvgCanvas(layout.width, layout.height, data={"left": layout.left, "cell": layout.cell})
    layout.draw(canvas)
    return canvas.text_of()


def draw_pixels(timeline: Timeline) -> Frame:
    """u8 `[height, width, 3]`, at twice the size of the SVG for sharp letters."""
    layout = _Layout(timeline)
    canvas = Canvas(layout.width, layout.height, density=2)
    layout.draw(canvas)
    return canvas.pixels()


class _Layout:
    def __init__(self, timeline: Timeline):
        self.timeline = timeline
        self.left = MARGIN + LABELS
        self.cell = min(BARS_WIDTH / timeline.length, MAX_CELL)
        self.right = self.left + max(self.cell * timeline.length, 420.0)  # room for title and legend
        self.width = round(self.right + MARGIN)
        self.bottom = HEADER + sum(track.gap + track.height for track in timeline.tracks)
        self.legend = self._legend_rows()
        self.height = round(self.bottom + AXIS + LEGEND_ROW * len(self.legend) + MARGIN)

    def draw(self, canvas: Surface) -> None:
        canvas.text((MARGIN, 12), self.timeline.title, INK, 14)
        self._draw_axis(canvas)
        top = HEADER
        for track in self.timeline.tracks:
            top += track.gap
            middle = top + track.height / 2
            size = min(FONT, track.height + 1)
            color = INK if size == FONT else FAINT
            right = self.left - (44 if isinstance(track, Curve) else 8)  # a curve has numbers beside it
            canvas.text((right, middle - size * 0.6), track.label, color, size, "right")
            if isinstance(track, Curve):
                self._draw_curve(canvas, track, top)
            else:
                self._draw_bar(canvas, track, top)
            top += track.height
        for index, row in enumerate(self.legend):
            upper = self.bottom + AXIS + index * LEGEND_ROW
            for x, kind in row:
                self._draw_key(canvas, kind, x, upper)

    def _x(self, step: float) -> float:
        return self.left + step * self.cell

    def _draw_axis(self, canvas: Surface) -> None:
        length = self.timeline.length
        every = next(n for base in itertools.count() for n in (10**base, 2 * 10**base, 5 * 10**base)
                     if n * self.cell >= 40)  # fmt: skip
        for step in range(0, length + 1, every):
            x = self._x(step)
            canvas.line([(x, HEADER), (x, self.bottom + 4)], GRID, 1)
            canvas.text((x, self.bottom + 6), str(step), FAINT, FONT - 1, "middle")

    def _draw_bar(self, canvas: Surface, track: Track, top: float) -> None:
        start = 0
        for name, run in itertools.groupby(track.cells):
            stop = start + len(list(run))
            kind = self.timeline.kinds[name]
            box = (self._x(start), top, self._x(stop), top + track.height)
            with canvas.group(f"{track.label} {start} to {stop}: {kind.label}" if kind.label else ""):
                canvas.rectangle(box, kind.color)
            start = stop
        for step, name in track.marks:
            kind = self.timeline.kinds[name]
            with canvas.group(f"step {step}: {kind.label}"):
                draw_mark(canvas, kind, (self._x(step + 0.5), top + track.height / 2), track.height * 0.42)

    def _draw_curve(self, canvas: Surface, curve: Curve, top: float) -> None:
        values = np.asarray(curve.values, float)
        low, high = float(values.min()), float(values.max())
        scale = (curve.height - 6) / (high - low) if high > low else 0.0
        points = [(self._x(step + 0.5), top + 3 + (high - value) * scale) for step, value in enumerate(values)]
        canvas.line(points if len(points) > 1 else points * 2, curve.color, 1.6)
        for value, y in {high: top - 1, low: top + curve.height - 12}.items():
            canvas.text((self._x(0) - 8, y), f"{value + 0.0:.4g}", FAINT, FONT - 1, "right")

    def _legend_rows(self) -> list[list[tuple[float, Kind]]]:
        rows: list[list[tuple[float, Kind]]] = [[]]
        x = self.left
        for kind in self.timeline.used_kinds():
            width = 38 + GLYPH * FONT * len(kind.label)
            if x + width > self.right and rows[-1]:
                rows.append([])
                x = self.left
            rows[-1].append((x, kind))
            x += width
        return rows

    def _draw_key(self, canvas: Surface, kind: Kind, x: float, top: float) -> None:
        if kind.mark:
            draw_mark(canvas, kind, (x + 7, top + 8), 5.0)
        else:
            canvas.rectangle((x, top + 2, x + 14, top + 13), kind.color, 2)
        canvas.text((x + 19, top + 1), kind.label, INK, FONT)


# Marks that are drawn; any other symbol is written.
MARKS: dict[str, Sequence[Point]] = {
    "▲": ((0.0, -1.0), (0.9, 0.8), (-0.9, 0.8)),
    "▼": ((0.0, 1.0), (-0.9, -0.8), (0.9, -0.8)),
    "△": ((0.0, -1.0), (0.9, 0.8), (-0.9, 0.8)),
    "●": (),
}


def draw_mark(canvas: Surface, kind: Kind, centre: Point, radius: float) -> None:
    """The mark of a kind, about `2 * radius` pixels wide and high."""
    x, y = centre
    if kind.symbol == "●":
        canvas.circle(centre, radius * 0.62, kind.color)
    elif kind.symbol in MARKS:
        corners = [(x + radius * a, y + radius * b) for a, b in MARKS[kind.symbol]]
        if kind.symbol == "△":
            canvas.line([*corners, corners[0]], kind.color, max(1.0, radius / 4))
        else:
            canvas.polygon(corners, kind.color)
    else:
        size = 2.2 * radius
        canvas.text((x, y - size * 0.6), kind.symbol, kind.color, size, "middle", bold=True)
