"""Tables (Markdown) and bars (PNG) from the JSON lines of the benchmarks: medians over the rounds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

COLUMNS = {
    "steps per second": "env_steps_per_second",
    "steps per CPU second": "env_steps_per_cpu_second",
    "updates per second": "updates_per_second",
    "updates per CPU second": "updates_per_cpu_second",
    "tokens per second": "tokens_per_second",
    "tokens per CPU second": "tokens_per_cpu_second",
    "compile s": "compile_seconds",
    "compile CPU s": "compile_cpu_seconds",
    "s to return": "seconds_to_return",
    "final return": "final_return",
    "peak MiB": "peak_memory_bytes",
}


def summarize(path: Path) -> dict[str, dict[str, float]]:
    """Medians by contender and column, in the order of the file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    table: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        table[name] = {"rounds": len(mine)}
        for label, key in COLUMNS.items():
            values = [row[key] / (2**20 if label == "peak MiB" else 1) for row in mine if row.get(key) is not None]
            if values:
                table[name][label] = median(values)
    return table


def markdown(table: dict[str, dict[str, float]]) -> str:
    labels = ["rounds", *(label for label in COLUMNS if any(label in row for row in table.values()))]
    lines = ["| | " + " | ".join(labels) + " |", "|---" * (len(labels) + 1) + "|"]
    for name, row in table.items():
        cells = [
            f"{row[label]:,.0f}" if row.get(label, 0) >= 100 else f"{row[label]:.3g}" if label in row else ""
            for label in labels
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(table: dict[str, dict[str, float]], path: Path) -> None:
    figure = Figure(figsize=(6, 0.5 + 0.45 * len(table)), layout="constrained")
    axes = figure.subplots()
    names = list(table)[::-1]
    unit = next(unit for unit in ("steps", "updates", "tokens") if f"{unit} per CPU second" in table[names[0]])
    bars = axes.barh(names, [table[name][f"{unit} per CPU second"] for name in names], color="#3b6ea5")
    axes.bar_label(bars, fmt="{:.3g}" if unit == "updates" else "{:,.0f}", padding=3)
    axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.set_xlabel(f"{'environment ' * (unit == 'steps')}{unit} per CPU second (log scale)")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    for file in parser.parse_args().files:
        table = summarize(file)
        print(f"\n{file.stem}\n\n{markdown(table)}")
        draw(table, file.with_suffix(".png"))
