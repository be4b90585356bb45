"""A canvas that writes SVG by the same calls as `render.Canvas` draws pixels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from xml.sax.saxutils import escape, quoteattr

Point = tuple[float, float]

ANCHORS = {"left": "start", "middle": "middle", "right": "end"}
ASCENT = 0.92  # from the top of a line of text to its base line, in font sizes, as in `render.Canvas`


class SvgCanvas:
    """Coordinates and widths are pixels at the picture's own size; x to the right, y downwards.

    Args:
        width, height: pixels.
        background: its colour.
        data: attributes `data-NAME` of the picture, for scripts of the page that shows it.
    """

    def __init__(self, width: int, height: int, background: str = "white", data: Mapping[str, float] | None = None):
        self.size = (width, height)
        attributes = "".join(f' data-{name}="{value:g}"' for name, value in (data or {}).items())
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
            f' font-family="system-ui, sans-serif"{attributes}>',
            f'<rect width="{width}" height="{height}" fill="{background}"/>',
        ]

    @contextlib.contextmanager
    def group(self, title: str = "") -> Iterator[None]:
        """What is drawn inside belongs together; a viewer shows `title` when pointed at."""
        self._parts.append(f"<g>{f'<title>{escape(title)}</title>' if title else ''}")
        yield
        self._parts.append("</g>")

    def line(self, points: Sequence[Point], color: str, width: float) -> None:
        style = f'fill="none" stroke="{color}" stroke-width="{width:g}" stroke-linecap="round" stroke-linejoin="round"'
        self._parts.append(f'<polyline points="{_numbers(points)}" {style}/>')

    def polygon(self, points: Sequence[Point], color: str) -> None:
        self._parts.append(f'<polygon points="{_numbers(points)}" fill="{color}"/>')

    def circle(self, centre: Point, radius: float, color: str) -> None:
        x, y = centre
        self._parts.append(f'<circle cx="{_short(x)}" cy="{_short(y)}" r="{_short(radius)}" fill="{color}"/>')

    def rectangle(self, box: tuple[float, float, float, float], color: str, radius: float = 0.0) -> None:
        left, top, right, bottom = box
        corners = f' rx="{_short(radius)}"' if radius else ""
        self._parts.append(
            f'<rect x="{_short(left)}" y="{_short(top)}" width="{_short(right - left)}"'
            f' height="{_short(bottom - top)}"{corners} fill="{color}"/>'
        )

    def text(
        self, position: Point, text: str, color: str, size: float = 12.0, anchor: str = "left", bold: bool = False
    ) -> None:
        x, y = position
        style = f'font-size="{_short(size)}" text-anchor="{ANCHORS[anchor]}" fill={quoteattr(color)}'
        weight = ' font-weight="bold"' if bold else ""
        self._parts.append(
            f'<text x="{_short(x)}" y="{_short(y + ASCENT * size)}" {style}{weight}>{escape(text)}</text>'
        )

    def text_of(self) -> str:
        """The finished picture."""
        return "\n".join([*self._parts, "</svg>\n"])


def _numbers(points: Sequence[Point]) -> str:
    return " ".join(f"{_short(x)},{_short(y)}" for x, y in points)


def _short(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")
