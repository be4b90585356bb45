"""Learning curves from run folders. matplotlib is imported on first use; no pyplot, hence no global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs_jax.registry import nearest
from jaxrl.results.files import replacing
from jaxrl.results.metrics import read_metrics
from jaxrl.results.stats import mean_interval

METRICS = ("evaluation/return", "episode/return")  # what is drawn if nothing is asked for, best first
COLOURS = ("#00798c", "#d1495b", "#edae49", "#66a182", "#5c4d7d", "#2e4057", "#8d96a3")
LINES = ("-", "--", ":", "-.")  # the next one when the colours are used up
AXES = {"env_steps": "environment steps", "update": "updates"}

Curve = tuple[np.ndarray, np.ndarray]  # x and y, f64 [points]


def plot_runs(
    run_dirs: Sequence[str | Path] | Mapping[str, Sequence[str | Path]],
    path: str | Path,
    metric: str | None = None,
    x: str = "env_steps",
    *,
    title: str = "",
) -> Path:
    """Draws learning curves: one line per run, with the mean and a 95 % bootstrap band where there are several seeds.

    Seeds are the members of a sweep (rows with one value per member, or sub-folders with a `metrics.jsonl` each), or
    the folders listed under one label.

    Args:
        run_dirs: run folders, or labels with the folders of their seeds.
        path: the picture; its suffix gives the format (png, svg, pdf). Written whole or not at all.
        metric: a name in `metrics.jsonl`; by default the first of `METRICS` with two points in every run.
        x: the name of the horizontal axis.
        title: above the picture.

    Returns:
        `path`.

    Raises:
        ValueError: a folder holds no metrics, or not this one (with the nearest name).
    """
    groups = run_dirs if isinstance(run_dirs, Mapping) else {_label(run_dirs, d): [d] for d in run_dirs}
    tables = {label: [t for d in folders for t in _read_tables(Path(d))] for label, folders in groups.items()}
    if not tables or not all(tables.values()):
        raise ValueError("there must be at least one run folder to plot")
    metric = _default_metric(tables, x) if metric is None else metric
    return draw_curves(
        {label: [c for t in members for c in curves(*t, metric, x)] for label, members in tables.items()},
        path,
        xlabel=AXES.get(x, x),
        ylabel=metric.replace("/", " "),
        title=title,
    )


def draw_curves(
    groups: Mapping[str, Sequence[Curve]], path: str | Path, *, xlabel: str, ylabel: str, title: str = ""
) -> Path:
    """Draws each group of curves as its mean and bootstrap band; `plot_runs` without the files."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
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
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0.01)
    axes.grid(color="#e3e5e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#8d96a3")
    axes.tick_params(color="#8d96a3", labelcolor="#2e4057")
    if len(groups) > 1 or any(len(members) > 1 for members in groups.values()):
        axes.legend(frameon=False, fontsize="small")

    path = Path(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png")
    return path


def curves(source: Path, table: Mapping[str, np.ndarray], metric: str, x: str) -> list[Curve]:
    """One curve per member of a table of metrics, rows without a value left out.

    Raises:
        ValueError: the table lacks `metric` or `x`, or a member has no value.
    """
    for name in (metric, x):
        if name not in table:
            raise ValueError(f"{source} has no {name!r}{nearest(name, table)} Known: {', '.join(table)}")
    y = table[metric].astype(np.float64)
    found = []
    for values in y.T if y.ndim == 2 else [y]:
        kept = np.isfinite(values)
        if not kept.any():
            raise ValueError(f"{source} has no value of {metric!r} yet")
        found.append((table[x][kept].astype(np.float64), values[kept]))
    return found


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


def _read_tables(folder: Path) -> list[tuple[Path, dict[str, np.ndarray]]]:
    files = [folder / "metrics.jsonl"]
    if not files[0].is_file():
        files = sorted(folder.glob("*/metrics.jsonl"))
    if not files:
        raise ValueError(f"{folder} is no run folder: there is no metrics.jsonl in it")
    return [(file, read_metrics(file)) for file in files]


def _default_metric(tables: Mapping[str, list[tuple[Path, dict[str, np.ndarray]]]], x: str) -> str:
    runs = [table for members in tables.values() for _, table in members]
    for metric in METRICS:
        if all(metric in table and np.isfinite(table[metric]).sum(axis=0).min() > 1 for table in runs):
            return metric
    return METRICS[-1]


def _label(run_dirs: Sequence[str | Path], run_dir: str | Path) -> str:
    """The folder's name, or its whole path where two folders share it."""
    name = Path(run_dir).resolve().name
    return name if sum(Path(other).resolve().name == name for other in run_dirs) == 1 else str(run_dir)
