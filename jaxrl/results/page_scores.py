"""Final scores in a report: how groups compare, and what settings explain."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl.results.page_tables import HTML, NOTHING, PALETTE, number, rounded, swatch, table, text
from jaxrl.results.runs import Group, Run, Settings, as_text, differing, short_names
from jaxrl.results.stats import (
    Interval,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
    variance_explained,
)

LAST_SHARE = 0.1  # of the values of a metric that is noisy, whose mean is the final score
MAX_COMPARED = 8  # groups of probabilities and profiles: more cannot be read
NUM_RESAMPLES, NUM_THRESHOLDS = 1000, 101


class Compared(NamedTuple):
    """The groups of one environment, best first, with the final scores of their runs that did not diverge."""

    environment: str
    groups: list[tuple[int, Group]]  # with their places, which are their colours
    scores: list[np.ndarray]  # [runs] each, at least one
    sign: float  # 1 where higher is better
    unscored: list[tuple[int, Group]]


def final_score(run: Run, metric: str) -> float:
    """The last evaluation; of anything else, which is noisier, the mean of the last tenth. NaN: none, or diverged."""
    values = run.table.get(metric, np.empty(0))
    # Null, where no episode ended, is left out, but nothing is learned after a loss that is not finite.
    losses = [column for name, column in run.table.items() if name.startswith("loss/")]
    if any(len(column) and not np.isfinite(column[-1]) for column in losses):
        return float("nan")
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan")
    count = 1 if metric.startswith("evaluation/") else max(1, round(LAST_SHARE * len(finite)))
    return float(finite[-count:].mean())


def compare(groups: Sequence[Group], metric: str) -> list[Compared]:
    """Final scores by environment: those of different environments are no one scale."""
    sign = -1.0 if metric.startswith("loss/") else 1.0
    parts = []
    for environment in dict.fromkeys(group.runs[0].environment for group in groups):
        places = [(i, group) for i, group in enumerate(groups) if group.runs[0].environment == environment]
        finals = [np.array([final_score(run, metric) for run in group.runs]) for _, group in places]
        finite = [scores[np.isfinite(scores)] for scores in finals]
        scored = [(place, scores) for place, scores in zip(places, finite) if len(scores)]
        scored.sort(key=lambda pair: -sign * interquartile_mean(pair[1]))
        unscored = [place for place, scores in zip(places, finite) if not len(scores)]
        parts.append(Compared(environment, [p for p, _ in scored], [s for _, s in scored], sign, unscored))
    return parts


def score_section(parts: Sequence[Compared], metric: str) -> HTML:
    better = "lower is better" if parts[0].sign < 0 else "higher is better"
    what = "its last value" if metric.startswith("evaluation/") else f"the mean of its last {LAST_SHARE:.0%}"
    lines = [
        '<section id="scores">\n<h2>Final scores</h2>',
        f'<p class="note"><code>{html.escape(metric)}</code>, {what} in each run; {better}. IQM: interquartile mean, '
        "with a 95&nbsp;% bootstrap interval over seeds (Agarwal et al. 2021). Groups of one seed have no interval: "
        "their differences may be chance.</p>",
    ]
    for index, part in enumerate(parts):
        if len(parts) > 1:
            lines.append(f"<h3>{html.escape(part.environment or 'environment not known')}</h3>")
        lines.append(_score_table(part))
        if len(part.groups) > 1:
            lines.append(_improvement_table(part))
            lines.append(
                f'<h3>Performance profile</h3>\n<div class="legend"></div>\n<div class="chart profile" '
                f'data-profile="{sum(len(other.groups) > 1 for other in parts[:index])}"></div>\n'
                '<p class="note">Share of runs that score above each threshold, with 95&nbsp;% bootstrap bands; '
                f"a curve {'left' if part.sign < 0 else 'right'} of another is better.{_left_out(part)}</p>"
            )
    return "\n".join([*lines, "</section>"])


def profile(part: Compared) -> dict[str, Any]:
    """What a performance profile is drawn from."""
    best = part.scores[:MAX_COMPARED]
    every = np.concatenate(best)
    margin = 0.02 * (np.ptp(every) or 1.0)
    thresholds = np.linspace(every.min() - margin, every.max() + margin, NUM_THRESHOLDS)
    lines = []
    for (place, _), scores in zip(part.groups, best):
        band = _bootstrap(lambda scores: performance_profile(scores, thresholds), scores)
        known = len(scores) > 1
        lines.append({"group": place} | {k: rounded(v) for k, v in band._asdict().items() if known or k == "estimate"})
    return {"thresholds": rounded(thresholds), "lines": lines}


def importance_section(groups: Sequence[Group], metric: str) -> HTML:
    """How much of the variance of final scores each setting explains, by environment."""
    lines = []
    for part in compare(groups, metric):
        rows = [(group, score) for (_, group), scores in zip(part.groups, part.scores) for score in scores]
        settings = [group.runs[0].settings for _, group in part.groups]
        changed = _aliased(settings, differing(settings))
        if not changed or len(rows) < 3:
            continue
        scores = [score for _, score in rows]
        measured = []
        for names in changed:
            values = [as_text(group.runs[0].settings.get(names[0], "absent")) for group, _ in rows]
            means = {
                value: float(np.mean([s for v, s in zip(values, scores) if v == value]))
                for value in dict.fromkeys(values)
            }
            shown = sorted(means.items(), key=lambda pair: -part.sign * pair[1])
            label = " = ".join(short_names(names).values())
            measured.append((label, values, ", ".join(f"{value}: {number(mean)}" for value, mean in shown[:8])))
        if len(changed) > 1:
            measured.append(("all of them together", [group.label for group, _ in rows], ""))
        explained = [(variance_explained(scores, values), *row) for row in measured for values in [row[1]]]
        explained.sort(key=lambda row: -np.nan_to_num(row[0]))
        body = [
            [text(label), _share(share), f"{(len(set(values)) - 1) / (len(rows) - 1):.0%}", text(means)]
            for share, label, values, means in explained
        ]
        title = f" {html.escape(part.environment)}" if len({g.runs[0].environment for g in groups}) > 1 else ""
        lines.append(f"<h2>Importance of settings{title}</h2>")
        lines.append(table(["setting", "explains", "chance alone", "mean score by value, best first"], body, "wrap"))
    if not lines:
        return ""
    note = (
        '<p class="note">Share of the variance of the final score that lies between the means of runs with equal '
        "values (eta squared). It sees each setting alone, not how settings act together, and counts only the values "
        "that were tried. Trust it where it is well above the share that chance alone gives on average; what all "
        "settings together leave is the seed.</p>"
    )
    return "\n".join(['<section id="importance">', *lines, note, "</section>"])


def _score_table(part: Compared) -> HTML:
    bands = [_bootstrap(interquartile_mean, scores) for scores in part.scores]
    every = np.concatenate([[], *part.scores, *([band.low, band.high] for band in bands)])
    low, high = (np.nanmin(every), np.nanmax(every)) if len(every) else (0.0, 0.0)

    def percent(value: float) -> str:
        return f"{100 * (value - low) / ((high - low) or 1.0):.1f}%"

    rows = []
    for (place, group), scores, band in zip(part.groups, part.scores, bands):
        marks = "".join(f'<i style="left:{percent(score)}"></i>' for score in scores)
        line = f'<b style="left:{percent(band.estimate)}"></b>'
        if len(scores) > 1:
            line += f'<u style="left:{percent(band.low)};right:calc(100% - {percent(band.high)})"></u>'
        interval = f"{number(band.low)} to {number(band.high)}" if len(scores) > 1 else "one seed"
        rows.append(
            [
                swatch(place) + text(group.label), str(len(scores)), str(len(group.runs) - len(scores)),
                number(float(scores.mean())), f"<strong>{number(band.estimate)}</strong>", interval,
                f'<div class="dots" style="--colour:var(--c{place % PALETTE})">{marks}{line}</div>',
            ]
        )  # fmt: skip
    for place, group in part.unscored:
        rows.append([swatch(place) + text(group.label), "0", str(len(group.runs)), NOTHING, NOTHING, NOTHING, ""])
    scale = f'<span class="scale"><span>{number(low)}</span><span>{number(high)}</span></span>' if rows else ""
    return table(["", "runs", "diverged or unscored", "mean", "IQM", "95&nbsp;% interval", scale], rows)


def _improvement_table(part: Compared) -> HTML:
    count = min(len(part.groups), MAX_COMPARED)
    names = [swatch(place) + text(group.label) for place, group in part.groups[:count]]
    cells: list[list[HTML]] = [[NOTHING] * count for _ in range(count)]
    for row in range(count):
        for column in range(row + 1, count):
            pair = (part.sign * part.scores[row], part.sign * part.scores[column])
            band = _bootstrap(probability_of_improvement, *pair)
            cells[row][column] = _chance(*band)
            cells[column][row] = _chance(1 - band.estimate, 1 - band.high, 1 - band.low)
    return (
        "<h3>Probability of improvement</h3>\n"
        + table(["", *names], [[name, *row] for name, row in zip(names, cells)], "heat")
        + '\n<p class="note">The chance that a run of the row beats a run of the column, ties counting half, with its '
        f"95&nbsp;% bootstrap interval.{_left_out(part)}</p>"
    )


def _left_out(part: Compared) -> str:
    return f" The {MAX_COMPARED} best of {len(part.groups)} groups." if len(part.groups) > MAX_COMPARED else ""


def _aliased(settings: Sequence[Settings], names: Sequence[str]) -> list[list[str]]:
    """Names that always change together stand in one list: their effects cannot be told apart."""
    columns: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        texts = [json.dumps(each.get(name, "absent")) for each in settings]
        columns.setdefault(tuple(texts.index(text) for text in texts), []).append(name)
    return list(columns.values())


def _bootstrap(statistic: Callable[..., Any], *scores: np.ndarray) -> Interval:
    return stratified_bootstrap(statistic, *scores, num_resamples=NUM_RESAMPLES)


def _chance(estimate: float, low: float, high: float) -> HTML:
    interval = "" if np.isnan(low) else f"<small>{low:.2f} to {high:.2f}</small>"
    return f'<div style="--share:{100 * estimate:.0f}%">{estimate:.2f}{interval}</div>'


def _share(share: float) -> HTML:
    if np.isnan(share):
        return "all scores equal"
    return f'<div class="share" style="--share:{100 * share:.1f}%">{share:.0%}</div>'
