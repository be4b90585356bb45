"""From recorded states to pictures and films. Runs on the host alone: nothing here may be called in compiled code."""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import io
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from envs_jax.core import Environment, PyTree
from envs_jax.timeline import unstack

Point = tuple[float, float]  # x to the right, y downwards, pixels
Frame = np.ndarray  # u8 [height, width, 3]
ANCHORS = {"left": "la", "middle": "ma", "right": "ra"}  # Pillow's names


class Canvas:
    """A picture drawn at four times its size and shrunk at the end, which smooths all edges.

    Coordinates and widths are in units of the picture and may be fractions; a unit is `density` pixels.
    """

    SCALE = 4

    def __init__(self, width: int, height: int, background: str = "white", density: int = 1):
        self.size = (width * density, height * density)
        self._image = Image.new("RGB", (width * self.SCALE, height * self.SCALE), background)
        self._draw = ImageDraw.Draw(self._image)

    def group(self, title: str = "") -> contextlib.AbstractContextManager[None]:
        """What is drawn inside belongs together; pixels do not show it."""
        del title
        return contextlib.nullcontext()

    def line(self, points: Sequence[Point], color: str, width: float) -> None:
        """A line through `points` with round ends and joints."""
        scaled = [(x * self.SCALE, y * self.SCALE) for x, y in points]
        self._draw.line(scaled, fill=color, width=round(width * self.SCALE), joint="curve")
        for point in (points[0], points[-1]):
            self.circle(point, width / 2, color)

    def circle(self, centre: Point, radius: float, color: str) -> None:
        (x, y), r = centre, radius
        self._draw.ellipse(self._scaled((x - r, y - r, x + r, y + r)), fill=color)

    def polygon(self, points: Sequence[Point], color: str) -> None:
        self._draw.polygon([(x * self.SCALE, y * self.SCALE) for x, y in points], fill=color)

    def rectangle(self, box: tuple[float, float, float, float], color: str, radius: float = 0.0) -> None:
        """A filled box (left, top, right, bottom) with corners rounded by `radius`."""
        left, top, right, bottom = self._scaled(box)
        # Pillow counts the last pixel in: without this, boxes that touch would overlap.
        corners = (left, top, max(right - 1, left), max(bottom - 1, top))
        self._draw.rounded_rectangle(corners, radius * self.SCALE, fill=color)

    def text(
        self, position: Point, text: str, color: str, size: float = 12.0, anchor: str = "left", bold: bool = False
    ) -> None:
        """`text` of `size` with its top at `position`, which is its "left", "middle" or "right"."""
        x, y, height = (number * self.SCALE for number in (*position, size))
        stroke = 0.022 * height if bold else 0
        self._draw.text((x, y), text, color, _font(height), ANCHORS[anchor], stroke_width=stroke)

    def picture(self, pixels: Frame, corner: tuple[int, int] = (0, 0)) -> None:
        """Pixels, each a unit of this picture, with their left upper corner at `corner`."""
        height, width = pixels.shape[:2]
        enlarged = Image.fromarray(pixels).resize((width * self.SCALE, height * self.SCALE), Image.Resampling.NEAREST)
        self._image.paste(enlarged, (corner[0] * self.SCALE, corner[1] * self.SCALE))

    def pixels(self) -> Frame:
        """The finished picture, u8 `[height, width, 3]`."""
        return np.asarray(self._image.reduce(self._image.width // self.size[0]))

    def _scaled(self, numbers: Sequence[float]) -> list[float]:
        return [number * self.SCALE for number in numbers]


@functools.lru_cache(maxsize=64)
def _font(size: float) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def frames(env: Environment, states: PyTree) -> list[Frame]:
    """Draws each of the T `states` (every leaf leads with T), as `jaxrl.rollout.episodes` records them.

    Raises:
        ValueError: the environment has no renderer.
    """
    if not env.can_render:
        raise ValueError(f"{type(env).__name__} has no renderer")
    return [np.asarray(env.render(state)) for state in unstack(states)]


def save_gif(frames: Sequence[Frame], path: str | os.PathLike[str], fps: float = 30.0) -> Path:
    """Writes an endless GIF and returns its path.

    GIF times are whole hundredths of a second: uneven ones keep the film's mean speed, and browsers play nothing
    faster than 50 frames per second.

    Raises:
        ValueError: no frames, frames that are no equal u8 pictures, or `fps` outside (0, 50].
    """
    _check(frames, fps, 50.0)
    ticks = np.round(np.arange(len(frames) + 1) * (100.0 / fps)).astype(int)
    durations = [int(duration) for duration in np.diff(ticks) * 10]  # ms
    first, *rest = [Image.fromarray(frame) for frame in frames]
    with replacing(path) as temporary:
        first.save(temporary, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    return Path(path)


def save_html(
    frames: Sequence[Frame],
    path: str | os.PathLike[str],
    fps: float = 30.0,
    title: str = "Episode",
    timeline: str = "",
) -> Path:
    """Writes one self-contained page (no network) that plays the frames, with a slider, and returns its path.

    Args:
        frames: u8 `[height, width, 3]` each.
        path: of the page.
        fps: frames per second.
        title: of the page.
        timeline: SVG of `envs_jax.timeline.to_svg`, shown below; a line in it follows the slider, and a click in it
            moves the slider.

    Raises:
        ValueError: no frames, frames that are no equal u8 pictures, or `fps` outside (0, 240].
    """
    _check(frames, fps, 240.0)
    height, width = frames[0].shape[:2]
    pictures = ",\n".join(f'"data:image/png;base64,{base64.b64encode(png(frame)).decode()}"' for frame in frames)
    values = {"WIDTH": width, "HEIGHT": height, "LAST": len(frames) - 1, "FPS": f"{fps:g}", "PICTURES": pictures}
    player = _fill(_PLAYER, TITLE=html.escape(title), **values)
    with replacing(path) as temporary:
        temporary.write_text(page(title, player, timeline), encoding="utf-8")
    return Path(path)


def page(title: str, player: str = "", timeline: str = "") -> str:
    """A self-contained page around an SVG timeline, a player of frames, or both."""
    figure = f'<figure id="timeline">\n{timeline}</figure>' if timeline else ""
    return _fill(_PAGE, TITLE=html.escape(title), TIMELINE=figure, PLAYER=player)


def _fill(template: str, **values: object) -> str:
    for name, value in values.items():
        template = template.replace(f"@{name}@", str(value))
    return template


def save_mp4(frames: Sequence[Frame], path: str | os.PathLike[str], fps: float = 30.0) -> Path:
    """Writes an H.264 film and returns its path.

    Raises:
        ImportError: the optional package imageio-ffmpeg is not installed.
        RuntimeError: ffmpeg failed; says why.
        ValueError: no frames, frames that are no equal u8 pictures, or `fps` outside (0, 240].
    """
    _check(frames, fps, 240.0)
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ImportError(
            "save_mp4 needs the package imageio-ffmpeg (pip install imageio-ffmpeg); "
            "save_gif and save_html need nothing more"
        ) from error
    # The pixel format that every player knows halves the resolution of colours: both sides must be even.
    height, width = frames[0].shape[:2]
    padding = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    pixels = np.pad(np.stack(frames), padding, mode="edge")
    size = f"{pixels.shape[2]}x{pixels.shape[1]}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", f"{fps:g}", "-i", "-"]
    target = ["-c:v", "libx264", "-crf", "20", "-pix_fmt", "yuv420p"]
    with replacing(path) as temporary:
        # The library's own writer forks this process, which must not be done once jax runs.
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *source, *target, str(temporary)]
        result = subprocess.run(command, input=pixels.tobytes(), capture_output=True, check=False)
        if result.returncode:
            raise RuntimeError(f"ffmpeg could not write {path}: {result.stderr.decode(errors='replace').strip()}")
    return Path(path)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside `path`, renamed to it on success and removed on failure: no half file is ever seen."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check(frames: Sequence[Frame], fps: float, max_fps: float) -> None:
    if not frames:
        raise ValueError("there are no frames to save")
    if not 0 < fps <= max_fps:
        raise ValueError(f"fps must be above 0 and at most {max_fps:g}, got {fps!r}")
    for index, frame in enumerate(frames):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != frames[0].shape:
            raise ValueError(
                "frames must be u8 [height, width, 3] of one size, "
                f"got {frame.dtype} {list(frame.shape)} at index {index} and {list(frames[0].shape)} at index 0"
            )


def png(frame: Frame) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@</title>
<style>
:root { color-scheme: light dark; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; align-content: center;
  font: 15px/1.4 system-ui, sans-serif; }
figure { margin: 12px 16px; }
img { width: 100%; height: auto; border-radius: 8px; display: block; }
#timeline { width: min(96vw, 1400px); }
#timeline svg { width: 100%; height: auto; border-radius: 8px; display: block; }
button { width: 4.5em; padding: 6px; font: inherit; cursor: pointer; }
input { flex: 1; min-width: 0; }
output { min-width: 5.5em; text-align: right; font-variant-numeric: tabular-nums; }
</style>
</head>
<body>
@PLAYER@
@TIMELINE@
</body>
</html>
"""

_PLAYER = """<figure style="width: min(92vw, max(@WIDTH@px, min(2 * @WIDTH@px, 1000px)))">
<img id="picture" alt="@TITLE@" width="@WIDTH@" height="@HEIGHT@">
<div style="display: flex; gap: 12px; align-items: center; margin-top: 10px">
<button id="play" type="button">Play</button>
<input id="slider" type="range" min="0" max="@LAST@" value="0" aria-label="Frame">
<output id="count" for="slider"></output>
</div>
</figure>
<script type="module">
const pictures = [
@PICTURES@
];
const [picture, play, slider, count] = ["picture", "play", "slider", "count"].map(id => document.getElementById(id));
const chart = document.querySelector("#timeline svg");
const [left, cell] = chart ? [Number(chart.dataset.left), Number(chart.dataset.cell)] : [0, 0];
const cursor = chart && document.createElementNS(chart.namespaceURI, "line");
if (chart) {
  const lines = {y1: 30, y2: chart.viewBox.baseVal.height, stroke: "#202124", "stroke-width": 1.5, opacity: 0.7};
  for (const [name, value] of Object.entries(lines)) cursor.setAttribute(name, value);
  chart.append(cursor);
  chart.onclick = event => {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
    setPlaying(false);
    show(Math.max(0, Math.min(@LAST@, Math.round((place.x - left) / cell))));
  };
}
let playing = false, shown = 0, since = 0;
function show(index) {
  shown = index;
  picture.src = pictures[index];
  slider.value = index;
  count.value = `${index} / @LAST@`;
  if (cursor) for (const end of ["x1", "x2"]) cursor.setAttribute(end, left + index * cell);
}
function tick(now) {
  if (!playing) return;
  const due = Math.floor((now - since) * @FPS@ / 1000);
  if (due > 0) {
    since += due * 1000 / @FPS@;
    show((shown + due) % pictures.length);
  }
  requestAnimationFrame(tick);
}
function setPlaying(value) {
  playing = value;
  play.textContent = playing ? "Pause" : "Play";
  if (playing) { since = performance.now(); requestAnimationFrame(tick); }
}
play.onclick = () => setPlaying(!playing);
slider.oninput = () => { setPlaying(false); show(Number(slider.value)); };
show(0);
setPlaying(!matchMedia("(prefers-reduced-motion: reduce)").matches);
</script>"""
