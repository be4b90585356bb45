"""Figures of the RLTR study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jaxrl.results.figures import draw_heat_map
from jaxrl.results.plot import draw_curves
from jaxrl.studies.laboratory import Arrays, Laboratory
from jaxrl.studies.report import Report


def draw_learning(laboratory: Laboratory, report: Report, curves: Mapping[str, Arrays]) -> None:
    """Completeness over updates; each curve has `update` [C] and `complete` [S, C]."""
    draw_curves(
        {
            name: [(found["update"].astype(float), seed) for seed in found["complete"]]
            for name, found in curves.items()
        },
        _add(laboratory, report, "learning.png", "R2. Complete plans on the development queries over the updates."),
        xlabel="updates",
        ylabel="complete plans",
    )  # fmt: skip


def draw_shares(laboratory: Laboratory, report: Report, curves: Mapping[str, Mapping[float, np.ndarray]]) -> None:
    """Completeness over the share of queries whose answers can be checked; values `[S]` by share."""
    draw_curves(
        {
            name: [(100.0 * np.array(list(points)), row) for row in np.stack(list(points.values()), axis=1)]
            for name, points in curves.items()
        },
        _add(laboratory, report, "shares.png", "R2b. Complete plans by the share of verifiable queries."),
        xlabel="verifiable queries (%)",
        ylabel="complete plans",
    )


def draw_judges(laboratory: Laboratory, report: Report, rates: Sequence[float], complete: np.ndarray) -> None:
    """Completeness by the judge's rates of error, `[false positives, false negatives]`."""
    labels = [f"{rate:g}" for rate in rates]
    draw_heat_map(
        complete, labels, labels, _add(laboratory, report, "judges.png", "R5. Complete plans by the judge's errors."),
        xlabel="false negatives", ylabel="false positives",
    )  # fmt: skip


def _add(laboratory: Laboratory, report: Report, file: str, caption: str) -> str:
    report.figure(file, caption)
    return str(laboratory.out / "figures" / file)
