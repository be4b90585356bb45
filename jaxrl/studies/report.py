"""What a study leaves: `report.md` to read, `results.json` to compute with, tables as CSV, figures."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrl.results.files import replacing
from jaxrl.results.stats import Interval
from jaxrl.run.folder import device, versions

Row = Mapping[str, Any]  # cells: text, numbers, or `Interval`


@dataclasses.dataclass(frozen=True)
class Claim:
    """One statement of the paper beside what was measured here."""

    statement: str
    paper: str  # the paper's figure, or that it gives none
    ours: str
    bar: str  # what would count as reproduced
    holds: bool | None  # None: not decided at this scale


@dataclasses.dataclass
class Report:
    """Filled by a study from top to bottom; see `write`."""

    title: str
    paper: str
    scale: str
    sizes: Mapping[str, Any]
    claims: list[Claim] = dataclasses.field(default_factory=list)
    tables: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
    captions: dict[str, str] = dataclasses.field(default_factory=dict)  # of tables and figures, by name
    figures: list[str] = dataclasses.field(default_factory=list)  # files in `figures/`
    notes: list[str] = dataclasses.field(default_factory=list)
    timing: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def table(self, name: str, rows: Sequence[Row], caption: str) -> None:
        """Adds a table; every row has the same keys."""
        self.tables[name], self.captions[name] = list(rows), caption

    def figure(self, file: str, caption: str) -> None:
        """Adds a figure that was drawn to `figures/FILE`."""
        self.figures.append(file)
        self.captions[file] = caption

    def write(self, out: Path) -> None:
        """Writes `report.md`, `results.json` and `tables/*.csv` to the folder `out`."""
        facts = {
            "title": self.title,
            "paper": self.paper,
            "scale": self.scale,
            "sizes": self.sizes,
            "claims": [dataclasses.asdict(claim) for claim in self.claims],
            "tables": self.tables,
            "notes": self.notes,
            "timing": self.timing,
            "versions": versions(),
            "device": device(),
        }
        _write(out / "results.json", json.dumps(plain(facts), indent=1))
        for name, rows in self.tables.items():
            _write(out / "tables" / f"{name}.csv", _csv(rows))
        _write(out / "report.md", self.markdown())

    def claim_rows(self) -> list[dict[str, Any]]:
        """The claims as rows of text."""
        verdicts = {True: "yes", False: "no", None: "not decided"}
        return [
            {"claim": c.statement, "paper": c.paper, "here": c.ours, "bar": c.bar, "holds": verdicts[c.holds]}
            for c in self.claims
        ]

    def markdown(self) -> str:
        """The report as text."""
        wall = sum(row["wall_seconds"] for row in self.timing)
        cpu = sum(row["cpu_seconds"] for row in self.timing)
        machine = device()
        parts = [f"# {self.title}", f"{self.paper}\n"]
        parts.append(
            f"Scale `{self.scale}` on {machine['count']} x {machine['kind']}, jax {versions()['jax']}: "
            f"{wall / 60:.1f} minutes, {cpu / 60:.1f} CPU minutes. Intervals are 95 % bootstraps over seeds.\n"
        )
        parts += ["## Claims", markdown_table(self.claim_rows())]
        for name, rows in self.tables.items():
            parts += [f"## {name.replace('_', ' ').capitalize()}", self.captions[name] + "\n", markdown_table(rows)]
        if self.figures:
            parts.append("## Figures")
        for file in self.figures:
            parts.append(f"![{self.captions[file]}](figures/{file})\n\n{self.captions[file]}\n")
        if self.notes:
            parts += ["## Notes", "\n".join(f"- {note}" for note in self.notes) + "\n"]
        parts += ["## Time", markdown_table(self.timing)]
        return "\n".join(parts)


def markdown_table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table; an `Interval` as `0.480 [0.416, 0.524]`."""
    if not rows:
        return "(empty)\n"
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(cell(value) for value in row.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def cell(value: Any) -> str:
    """A cell as text: three decimals, the bounds of an interval in brackets, what was not measured as a dash."""
    if isinstance(value, Interval):
        estimate, low, high = map(float, value)
        if math.isnan(estimate):
            return "-"
        bounds = "" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]"
        return f"{estimate:.3f}{bounds}"
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3f}"
    return str(value)


def plain(value: Any) -> Any:
    """A value ready for JSON: an `Interval` becomes its three numbers, what is not finite becomes None."""
    if isinstance(value, Interval):
        return {name: plain(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(rows: Sequence[Row]) -> str:
    """Rows as CSV; an `Interval` takes three columns."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for number, row in enumerate(rows):
        header, values = [], []
        for name, value in row.items():
            if isinstance(value, Interval):
                header += [name, f"{name} low", f"{name} high"]
                values += map(float, value)
            else:
                header.append(name)
                values.append(value)
        if number == 0:
            writer.writerow(header)
        writer.writerow(values)
    return stream.getvalue()


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)
