"""A report of runs: one page with charts and tables that opens from a file, without a network or a library."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs_jax.registry import nearest
from jaxrl.results import page_scores as scores
from jaxrl.results import page_tables as tables
from jaxrl.results.files import replacing
from jaxrl.results.plot import METRICS
from jaxrl.results.runs import Group, Run, group_runs, read_run, run_folders

HERE = Path(__file__).parent
# Longer curves are thinned to buckets of points. A bucket costs 16 bytes; all of them together stay near 3 MB.
MAX_BUCKETS, ALL_BUCKETS, MIN_BUCKETS = 600, 200_000, 40
MAX_TIMES = 500  # points of a run's clock
AXES = {"env_steps": "environment steps", "update": "updates", "seconds": "wall time"}


def write_report(
    run_dirs: Sequence[str | Path],
    path: str | Path,
    *,
    metric: str | None = None,
    num_episodes: int = 0,
    title: str = "",
) -> Path:
    """Writes a report of runs and sweeps.

    Args:
        run_dirs: run folders, sweeps, studies, or folders of them. Runs that differ only in the seed form a group.
        path: the page. Written whole or not at all.
        metric: what final scores are taken from; by default the first of `METRICS`, then of the losses, that every run
            has.
        num_episodes: how many evaluation episodes of each group's best run are played again and shown.
        title: of the page; by default the names of the folders.

    Returns:
        `path`.

    Raises:
        ValueError: a folder does not exist or holds no run, or no run has this metric (with the nearest name).

    Example:
        >>> write_report(["runs/ppo_cartpole-sweep"], "report.html")
    """
    if not run_dirs:
        raise ValueError("there must be at least one run folder to report")
    folders = {run.resolve(): run for given in run_dirs for run in run_folders(given)}
    runs = [run for run in map(read_run, folders.values()) if run.table]
    if not runs:
        raise ValueError(f"no run has written a row of metrics yet: {', '.join(map(str, folders.values()))}")
    groups = group_runs(runs)
    score = choose_metric(runs, 1) if metric is None else _known(runs, metric)
    curves = choose_metric(runs, 2) if metric is None else metric
    title = title or ", ".join(Path(given).resolve().name for given in run_dirs)

    compared = scores.compare(groups, score)
    films = ""
    if num_episodes:
        from jaxrl.results.films import film_section

        films = film_section(groups, score, num_episodes)
    body = [
        tables.overview(groups, len(folders) - len(runs)),
        _CHARTS,
        scores.score_section(compared, score),
        scores.importance_section(groups, score),
        films,
        tables.settings_section(groups),
        tables.throughput_section(groups),
    ]
    data = _data(groups, curves) | {"profiles": [scores.profile(part) for part in compared if len(part.groups) > 1]}
    with replacing(path) as temporary:
        temporary.write_text(_fill(title, "\n".join(body), data), encoding="utf-8")
    return Path(path)


def choose_metric(runs: Sequence[Run], num_points: int) -> str:
    """The first of `METRICS`, then of the losses, then of all columns, with as many finite points in every run."""
    names = dict.fromkeys(name for run in runs for name in run.table if name not in AXES)
    candidates = [*METRICS, *(name for name in names if name.startswith("loss/")), *names]
    for enough in (num_points, 1, 0):
        for name in candidates:
            if all(np.isfinite(run.table.get(name, np.empty(0))).sum() >= enough for run in runs if run.table):
                return name
    return candidates[0]


def thin(values: np.ndarray, num_buckets: int) -> dict[str, np.ndarray]:
    """A curve as it is, or thinned so that no extreme is lost.

    Args:
        values: `[n]`, finite.
        num_buckets: curves of more than three times as many points are cut into so many runs of equal length.

    Returns:
        f32 `mean`, and for a thinned curve `low` and `high`, the extremes of each bucket.
    """
    if len(values) <= 3 * num_buckets:
        return {"mean": values.astype(np.float32)}
    starts = bucket_starts(len(values), num_buckets)
    sizes = np.diff(starts, append=len(values))
    return {
        "mean": (np.add.reduceat(values, starts) / sizes).astype(np.float32),
        "low": np.minimum.reduceat(values, starts).astype(np.float32),
        "high": np.maximum.reduceat(values, starts).astype(np.float32),
    }


def bucket_starts(num_points: int, num_buckets: int) -> np.ndarray:
    """Index of each bucket's first point; the page computes the same."""
    return np.arange(num_buckets) * num_points // num_buckets


def _data(groups: Sequence[Group], metric: str) -> dict[str, Any]:
    """What the charts are drawn from."""
    runs = [run for group in groups for run in group.runs]
    # Constant columns and counters draw no curve.
    names = [name for name in dict.fromkeys(name for run in runs for name in run.table) if name not in AXES]
    names = [name for name in names if any(np.isfinite(run.table.get(name, np.empty(0))).any() for run in runs)]
    num_curves = max(1, sum(name in run.table for run in runs for name in names))
    num_buckets = min(MAX_BUCKETS, max(MIN_BUCKETS, ALL_BUCKETS // num_curves))
    described = [_run_data(run, names, num_buckets) for run in runs]
    axes = [axis for axis in AXES if all(axis in run["axes"] for run in described)]
    place = {run.path: number for number, run in enumerate(runs)}
    return {
        "metrics": sorted(names),
        "metric": metric,
        "axes": {axis: AXES[axis] for axis in axes} or {"update": AXES["update"]},
        "groups": [{"label": group.label, "runs": [place[run.path] for run in group.runs]} for group in groups],
        "runs": described,
    }


def _run_data(run: Run, names: Sequence[str], num_buckets: int) -> dict[str, Any]:
    num_rows = len(next(iter(run.table.values())))
    updates = run.table.get("update", np.arange(1, num_rows + 1)).astype(np.float64)
    axes = {"update": _knots(updates)}
    if "env_steps" in run.table:
        axes["env_steps"] = _knots(run.table["env_steps"].astype(np.float64))
    if run.timing is not None:
        rows = np.unique(np.linspace(0, num_rows - 1, MAX_TIMES).astype(int))
        axes["seconds"] = [rows.tolist(), np.round(run.timing.seconds_at(updates[rows]), 2).tolist()]
    curves = {}
    for name in names:
        values = run.table.get(name, np.empty(0))
        rows = np.flatnonzero(np.isfinite(values))
        if len(rows):
            curves[name] = {key: _encoded(part) for key, part in thin(values[rows], num_buckets).items()}
            curves[name]["n"] = len(rows)
            if len(rows) < num_rows:
                curves[name]["rows"] = _encoded(thin(rows.astype(np.float64), num_buckets)["mean"])
    return {"name": run.name, "seed": run.seed, "axes": axes, "curves": curves}


def _knots(values: np.ndarray) -> list[list[float]]:
    """Rows and values between which a column is a straight line; a counter that grows evenly has two."""
    bends = np.flatnonzero(np.diff(values, 2)) + 1
    rows = np.unique(np.concatenate([[0], bends, [len(values) - 1]]))
    return [rows.tolist(), values[rows].tolist()]


def _encoded(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def _known(runs: Sequence[Run], metric: str) -> str:
    names = dict.fromkeys(name for run in runs for name in run.table)
    if metric not in names:
        raise ValueError(f"no run has {metric!r}{nearest(metric, names)} Known: {', '.join(names)}")
    return metric


def _fill(title: str, body: str, data: dict[str, Any]) -> str:
    # A name such as "</script>" must not end the script.
    encoded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    style, script = (HERE.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    values = {"TITLE": html.escape(title), "STYLE": style, "BODY": body, "SCRIPT": script, "DATA": encoded}
    first, *rest = _PAGE.split("@")  # one pass: what is filled in may hold any text
    return first + "".join(values.get(part, part) for part in rest)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<title>@TITLE@</title>
<style>
@STYLE@</style>
</head>
<body>
<h1>@TITLE@</h1>
@BODY@
<script type="application/json" id="data">@DATA@</script>
<script>
@SCRIPT@</script>
</body>
</html>
"""

_CHARTS = """<section id="curves">
<h2>Learning curves</h2>
<div class="controls">
<label>Metric <select id="metric"></select></label>
<label>Over <select id="axis"></select></label>
<label>Smoothing <input id="smoothing" type="range" min="0" max="0.99" step="0.01" value="0">
<output id="weight" for="smoothing">0</output></label>
<label><input id="single" type="checkbox"> each run</label>
</div>
<div class="legend"></div>
<div class="chart"></div>
<p class="note">Mean over seeds with its 95&nbsp;% bootstrap band (500 resamples of whole runs; none for one seed).
Point at the chart for values, drag to zoom, double click to see all. Smoothing is an exponential moving average over
points, of each run before the mean. <span id="thinned"></span></p>
</section>"""
