"""Figures of comparisons: bars with intervals, heat maps, scatters, shares over time. The style is that of `plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.results.plot import COLOURS, new_axes, save_figure
from jaxrl.results.stats import Interval


def draw_bars(
    groups: Mapping[str, Mapping[str, Interval]],
    path: str | Path,
    *,
    ylabel: str,
    title: str = "",
    line: float | None = None,
) -> Path:
    """Grouped bars with their intervals.

    Args:
        groups: place on the horizontal axis -> colour -> value; every group has the same colours.
        path: the picture; its suffix gives the format.
        ylabel: of the vertical axis.
        title: above the picture.
        line: height of a dashed line, such as a bar to be reached.
    """
    colours = list(next(iter(groups.values())))
    axes = new_axes(title, "", ylabel, (max(6.4, 1.1 * len(groups) + 2.5), 4.0))
    width = 0.8 / len(colours)
    for number, colour in enumerate(colours):
        values = [group[colour] for group in groups.values()]
        estimates = np.array([float(value.estimate) for value in values])
        errors = np.nan_to_num(
            [[e - float(v.low), float(v.high) - e] for e, v in zip(estimates, values)], nan=0.0
        ).clip(0.0)
        places = np.arange(len(groups)) + (number - (len(colours) - 1) / 2) * width
        axes.bar(
            places, estimates, width * 0.92, yerr=errors.T, label=colour, color=_colour(number),
            error_kw={"elinewidth": 1.0, "ecolor": "#2e4057"},
        )  # fmt: skip
    if line is not None:
        axes.axhline(line, color="#2e4057", linewidth=1.0, linestyle="--")
    axes.axhline(0.0, color="#8d96a3", linewidth=0.8)
    axes.set_xticks(range(len(groups)), list(groups), rotation=20 if len(groups) > 5 else 0)
    axes.grid(visible=False, axis="x")
    if len(colours) > 1:
        axes.legend(frameon=False, fontsize="small", ncols=2)
    return save_figure(axes.figure, path)


def draw_heat_map(
    values: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    path: str | Path,
    *,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
) -> Path:
    """A table of numbers in colour, blue above 0 and red below, each number written in its cell.

    Args:
        values: `[rows, columns]`.
        rows: labels from top to bottom.
        columns: labels from left to right.
        path: the picture; its suffix gives the format.
        title: above the picture.
        xlabel: what the columns are.
        ylabel: what the rows are.
    """
    values = np.asarray(values, np.float64)
    if values.shape != (len(rows), len(columns)):
        raise ValueError(f"values must have shape {(len(rows), len(columns))}, one per label, got {values.shape}")
    axes = new_axes(title, xlabel, ylabel, (2.4 + 0.62 * len(columns), 1.8 + 0.42 * len(rows)))
    limit = float(np.abs(values).max()) or 1.0
    axes.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if abs(value) > 0.6 * limit else "#2e4057"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(columns)), list(columns), rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return save_figure(axes.figure, path)


def draw_scatter(
    points: Mapping[str, tuple[Any, Any]], path: str | Path, *, xlabel: str, ylabel: str, title: str = ""
) -> Path:
    """One colour per label: a small mark for each `(x [n], y [n])` and a large one at their means."""
    axes = new_axes(title, xlabel, ylabel)
    for number, (label, (x, y)) in enumerate(points.items()):
        style: dict[str, Any] = {"color": _colour(number), "marker": "os^Dv"[number // len(COLOURS) % 5]}
        if np.size(x) > 1:
            axes.scatter(x, y, s=12, alpha=0.35, linewidths=0, **style)
        axes.scatter(np.mean(x), np.mean(y), s=60, label=label, zorder=3, **style)
    axes.legend(frameon=False, fontsize="small")
    return save_figure(axes.figure, path)


def draw_shares(
    shares: Mapping[str, Any], path: str | Path, *, xlabel: str, title: str = "", ylabel: str = "probability"
) -> Path:
    """Probabilities `[steps]` by label, stacked over the steps 1, 2, ...; labels that never matter are left out."""
    kept = {label: np.asarray(values) for label, values in shares.items() if np.max(values) > 0.005}
    axes = new_axes(title, xlabel, ylabel)
    steps = np.arange(1, len(next(iter(kept.values()))) + 1)
    bottom = np.zeros(len(steps))
    for number, (label, values) in enumerate(kept.items()):
        hatch = "" if number < len(COLOURS) else "///"
        axes.bar(steps, values, 0.85, bottom=bottom, label=label, color=_colour(number), hatch=hatch)
        bottom += values
    axes.set(ylim=(0.0, 1.0), xticks=steps)
    axes.grid(visible=False)
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save_figure(axes.figure, path)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
