"""Tables of a report: what was run, its settings, its speed."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrl.results.runs import Group, Run, as_text, differing, short_names

HTML = str
NOTHING = "&ndash;"
PALETTE = 8  # colours of page.css


def overview(groups: Sequence[Group], num_empty: int) -> HTML:
    runs = [run for group in groups for run in group.runs]
    parts = [
        f"{_count(len(runs), 'run')} in {_count(len(groups), 'group')}; runs that differ only in the seed are one group"
    ]
    parts += [f"{_count(num_empty, 'run')} without a row of metrics left out"] if num_empty else []
    lines = [f'<p class="note">{"; ".join(parts)}.</p>']
    for group in groups:
        seeds = [run.seed for run in group.runs if run.seed is not None]
        if len(set(seeds)) < len(seeds):
            lines.append(_warning(f"{group.label}: a seed appears more than once; its runs are not independent."))
    for name in differing([run.facts for run in runs]):
        values = [as_text(run.facts.get(name)) for run in runs]
        counted = ", ".join(f"{value} ({_count(values.count(value), 'run')})" for value in dict.fromkeys(values))
        lines.append(_warning(f"Runs differ in {name}: {counted}."))
    return "\n".join(lines)


def settings_section(groups: Sequence[Group]) -> HTML:
    """What differs between groups, and the rest of the configuration."""
    settings = [group.runs[0].settings for group in groups]
    changed = differing(settings, ignore=("seed",))
    short = short_names(changed)
    cells = [[text(as_text(each[name])) if name in each else NOTHING for name in changed] for each in settings]
    labels = [swatch(i) + text(group.label) for i, group in enumerate(groups)]
    lines = ['<section id="settings">\n<h2>Configuration</h2>']
    if changed and len(changed) <= max(8, len(groups)):
        lines.append(table(["", *(text(short[name]) for name in changed)], [[a, *b] for a, b in zip(labels, cells)]))
    elif changed:
        lines.append(table(["", *labels], [[text(name), *column] for name, column in zip(changed, zip(*cells))]))
    elif len(groups) > 1:
        lines.append('<p class="note">No setting differs between the groups.</p>')
    same = [[text(name), text(as_text(value))] for name, value in settings[0].items() if name not in (*changed, "seed")]
    facts = [[text(name), text(as_text(value))] for name, value in groups[0].runs[0].facts.items()]
    for title, rows in (("Settings that all runs share", same), ("Versions and device of the first run", facts)):
        if rows:
            lines.append(
                f"<details><summary>{title} ({len(rows)})</summary>\n{table(['name', 'value'], rows)}</details>"
            )
    return "\n".join([*lines, "</section>"])


def throughput_section(groups: Sequence[Group]) -> HTML:
    """Speed and time to compile: a row for each program that was run."""
    programs: dict[Any, list[tuple[int, Group, Run]]] = {}
    for place, group in enumerate(groups):
        for run in group.runs:
            if run.timing is not None:
                programs.setdefault(run.timing.path.resolve(), []).append((place, group, run))
    rows = []
    for members in programs.values():
        place, group, run = members[0]
        timing = run.timing
        assert timing is not None
        chunks = timing.rows[1:] or timing.rows  # the first may hold the compilation
        compiled = timing.rows[-1].get("compile_seconds", {})
        others = len({place for place, _, _ in members}) - 1
        label = swatch(place) + text(group.label) + (f" and {_count(others, 'other group')}" if others else "")
        total = float(timing.seconds_at(np.array([timing.rows[-1]["update"]]))[0])
        rows.append(
            [
                label, str(len(members)), text(str(run.facts.get("device.kind", NOTHING))),
                number(_median(chunks, "env_steps_per_second")), number(_median(chunks, "updates_per_second")),
                f"{sum(compiled.values()):.1f}",
                ", ".join(f"{text(name)} {value:.1f}" for name, value in compiled.items()),
                f"{total:.1f}", f"{max(row.get('peak_memory_bytes', 0) for row in timing.rows) / 2**20:.0f}",
            ]
        )  # fmt: skip
    if not rows:
        return ""
    header = [
        "program",
        "runs",
        "device",
        "env steps / s",
        "updates / s",
        "compile, s",
        "of it",
        "total, s",
        "peak, MiB",
    ]
    note = (
        '<p class="note">A sweep trains its runs side by side in one program: steps and updates are those of all of '
        "them, and wall time is the program's. Medians over chunks after the first.</p>"
    )
    return f'<section id="throughput">\n<h2>Throughput and compile time</h2>\n{table(header, rows)}\n{note}\n</section>'


def _median(rows: Sequence[dict[str, Any]], name: str) -> float:
    values = [row[name] for row in rows if name in row]
    return float(np.median(values)) if values else float("nan")


def rounded(values: Any) -> list[float]:
    return [float(f"{value:.6g}") for value in np.asarray(values)]


def number(value: float) -> str:
    if not np.isfinite(value):
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def swatch(place: int) -> HTML:
    return f'<i class="swatch" style="background:var(--c{place % PALETTE})"></i>'


def text(value: str) -> HTML:
    return html.escape(value)


def _warning(message: str) -> HTML:
    return f'<p class="warning">{text(message)}</p>'


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def table(header: Sequence[HTML], rows: Sequence[Sequence[HTML]], kind: str = "") -> HTML:
    head = "".join(f"<th>{cell}</th>" for cell in header)
    lines = [f"<tr><th>{row[0]}</th>" + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows]
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )
