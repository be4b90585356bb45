"""Learning curves from run folders. matplotlib is imported on first use; no pyplot, hence no global state."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs_jax.registry import nearest
from jaxrl.results.files import replacing
from jaxrl.results.metrics import read_metrics
from jaxrl.results.stats import mean_interval

# What is drawn if nothing is asked for, best first; a loss where there are no returns.
METRICS = ("evaluation/return", "episode/return")
COLOURS = ("#00798c", "#d1495b", "#edae49", "#66a182", "#5c4d7d", "#2e4057", "#8d96a3")
LINES = ("-", "--", ":", "-.")  # the next one when the colours are used up
AXES = {"env_steps": "environment steps", "update": "updates"}

Curve = tuple[np.ndarray, np.ndarray]  # x and y, f64 [points]


def plot_runs(
    run_dirs: Sequence[str | Path] | Mapping[str, Sequence[str | Path]],
    path: str | Path,
    metric: str | None = None,
    x: str | None = None,
    *,
    title: str = "",
) -> Path:
    """Draws learning curves: one line per run, with the mean and a 95 % bootstrap band where there are several seeds.

    Args:
        run_dirs: run folders; folders of sweeps, which give a line for each point of the grid; folders of run folders,
            taken as seeds of one line; or labels with the run folders of their seeds.
        path: the picture; its suffix gives the format (png, svg, pdf). Written whole or not at all.
        metric: a name in `metrics.jsonl`; by default the first of `METRICS`, then of the losses, with two points
            in every run.
        x: the name of the horizontal axis; by default environment steps, or updates where a run has played none.
        title: above the picture.

    Returns:
        `path`.

    Raises:
        ValueError: a folder holds no metrics, or not this one (with the nearest name).
    """
    if isinstance(run_dirs, Mapping):
        groups = {label: list(map(Path, folders)) for label, folders in run_dirs.items()}
    else:
        groups = {}
        for folder in run_dirs:
            groups |= run_groups(folder, _label(run_dirs, folder))
    if not groups or not all(groups.values()):
        raise ValueError("there must be at least one run folder to plot")
    tables = {label: [_read(folder / "metrics.jsonl") for folder in folders] for label, folders in groups.items()}
    metric = _default_metric(tables) if metric is None else metric
    if x is None:
        played = all("env_steps" in table for runs in tables.values() for _, table in runs)
        x = "env_steps" if played else "update"
    return draw_curves(
        {label: [curve(*source, metric, x) for source in members] for label, members in tables.items()},
        path,
        xlabel=AXES.get(x, x),
        ylabel=metric.replace("/", " "),
        title=title,
    )


def run_groups(folder: str | Path, label: str) -> dict[str, list[Path]]:
    """The lines that a folder gives: labels and the run folders of their seeds.

    A sweep describes its members in `sweep.json`: a list of `{"name": folder, "settings": {...}, ...}`.
    """
    folder = Path(folder)
    if (folder / "sweep.json").is_file():
        groups: dict[str, list[Path]] = {}
        for member in json.loads((folder / "sweep.json").read_text()):
            settings = [f"{name.rpartition('.')[2]}={value}" for name, value in member["settings"].items()]
            groups.setdefault(" ".join([label, *settings]), []).append(folder / member["name"])
        return groups
    members = sorted(file.parent for file in folder.glob("*/metrics.jsonl"))
    return {label: members if members and not (folder / "metrics.jsonl").exists() else [folder]}


def draw_curves(
    groups: Mapping[str, Sequence[Curve]], path: str | Path, *, xlabel: str, ylabel: str, title: str = ""
) -> Path:
    """Draws each group of curves as its mean and bootstrap band; `plot_runs` without the files."""
    from matplotlib.ticker import EngFormatter

    axes = new_axes(title, xlabel, ylabel)
    for number, (label, members) in enumerate(groups.items()):
        grid, values = common_grid(members)
        band = mean_interval(values)
        style: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)],
            "linestyle": LINES[number // len(COLOURS) % len(LINES)],
            "marker": "o" if len(grid) == 1 else None,
        }
        seeds = f" ({len(members)} seeds)" if len(members) > 1 else ""
        axes.plot(grid, band.estimate, linewidth=1.8, label=f"{label}{seeds}", zorder=3, **style)
        if len(members) > 1:
            axes.fill_between(grid, band.low, band.high, color=style["color"], alpha=0.2, linewidth=0, zorder=2)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0.01)
    if len(groups) > 1 or any(len(members) > 1 for members in groups.values()):
        axes.legend(frameon=False, fontsize="small")

    return save_figure(axes.figure, path)


def new_axes(title: str = "", xlabel: str = "", ylabel: str = "", size: tuple[float, float] = (6.4, 4.0)) -> Any:
    """The axes of a new figure (`axes.figure`) in the house style; `size` in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid(color="#e3e5e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#8d96a3")
    axes.tick_params(color="#8d96a3", labelcolor="#2e4057")
    return axes


def save_figure(figure: Any, path: str | Path) -> Path:
    """Writes a figure whole or not at all; the suffix of `path` gives the format (png, svg, pdf)."""
    path = Path(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png")
    return path


def curve(source: Path, table: Mapping[str, np.ndarray], metric: str, x: str) -> Curve:
    """The curve in a table of metrics, rows without a value left out.

    Raises:
        ValueError: the table lacks `metric` or `x`, or has no value.
    """
    for name in (metric, x):
        if name not in table:
            raise ValueError(
                f"{source} has no {name!r}{nearest(name, table)} Known: {', '.join(table) or 'nothing yet'}"
            )
    kept = np.isfinite(table[metric])
    if not kept.any():
        raise ValueError(f"{source} has no value of {metric!r} yet")
    return table[x][kept].astype(np.float64), table[metric][kept].astype(np.float64)


def common_grid(members: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """The curves on one axis: all their points in the range that every curve covers, values between points linear.

    Returns:
        The axis `[points]` and values `[members, points]`.
    """
    low, high = max(x[0] for x, _ in members), min(x[-1] for x, _ in members)
    grid = np.unique(np.concatenate([x for x, _ in members]))
    grid = grid[(grid >= low) & (grid <= high)]
    if not len(grid):
        raise ValueError("the curves of one group have no part of the horizontal axis in common")
    return grid, np.stack([np.interp(grid, x, y) for x, y in members])


def _read(file: Path) -> tuple[Path, dict[str, np.ndarray]]:
    if not file.is_file():
        raise ValueError(f"{file.parent} is no run folder: there is no {file.name} in it")
    return file, read_metrics(file)


def _default_metric(tables: Mapping[str, list[tuple[Path, dict[str, np.ndarray]]]]) -> str:
    runs = [table for members in tables.values() for _, table in members]
    candidates = [*METRICS, *(name for name in runs[0] if name.startswith("loss/"))]
    for num_points in (2, 1):
        for metric in candidates:
            if all(np.isfinite(table.get(metric, np.empty(0))).sum() >= num_points for table in runs):
                return metric
    return candidates[0]


def _label(run_dirs: Iterable[str | Path], run_dir: str | Path) -> str:
    """The folder's name, or its whole path where two folders share it."""
    name = Path(run_dir).resolve().name
    return name if sum(Path(other).resolve().name == name for other in run_dirs) == 1 else str(run_dir)
