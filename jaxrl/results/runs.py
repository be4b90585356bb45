"""Run folders as what is compared: their settings, groups of seeds, time. Needs no jax."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs_jax.registry import nearest
from jaxrl.results.metrics import read_metrics

DEPTH = 4  # of the folders below a named one in which runs are looked for
Settings = dict[str, Any]  # "hparams.learning_rate" -> value


@dataclasses.dataclass(frozen=True)
class Timing:
    """The rows of a `timing.jsonl`; the members of a sweep's group share one."""

    path: Path
    rows: list[dict[str, Any]]

    def seconds_at(self, updates: np.ndarray) -> np.ndarray:
        """Seconds of training, compiling and earlier sittings included, at each of `updates`; linear within a chunk."""
        first = self.rows[0]
        knots = [(0.0, min(sum(first.get("compile_seconds", {}).values()), first["elapsed_seconds"]))]
        before, last = 0.0, 0.0
        for row in self.rows:
            if row["elapsed_seconds"] < last:  # resumed: the clock began again, perhaps at an earlier checkpoint
                before += last
                knots = [knot for knot in knots if knot[0] < row["update"]]
            last = row["elapsed_seconds"]
            knots.append((row["update"], before + last))
        at, elapsed = np.array(knots).T
        return np.interp(updates, at, elapsed)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run folder."""

    path: Path
    table: dict[str, np.ndarray]  # columns of metrics.jsonl [rows]
    settings: Settings  # the whole resolved configuration; empty where there is no config.json
    facts: Settings  # versions, device
    timing: Timing | None

    @property
    def seed(self) -> int | None:
        return self.settings.get("seed")

    @property
    def environment(self) -> str:
        return self.settings.get("env.name", "")

    @property
    def name(self) -> str:
        """The folder, with its parent's name where it is a member of a sweep."""
        path = self.path.resolve()
        return f"{path.parent.name}/{path.name}" if (path.parent / "sweep.json").is_file() else path.name


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed."""

    label: str
    runs: list[Run]


def run_folders(folder: str | Path) -> list[Path]:
    """The folder of a run itself, or those of all runs in a sweep, a study or any folder of runs.

    Raises:
        ValueError: there is no such folder, or no run in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        siblings = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise ValueError(f"there is no folder {folder}{nearest(folder.name, siblings)}")
    found = list(dict.fromkeys(_walk(folder, DEPTH)))
    if not found:
        raise ValueError(f"{folder} holds no run: there is no metrics.jsonl in it or in the folders below")
    return found


def read_run(folder: Path, *, metrics: bool = True) -> Run:
    """Everything about a run but its checkpoints; without `metrics`, an empty table and no timing."""
    stored = _json(folder / "config.json") or {}
    facts = _flat({name: stored.get(name) for name in ("versions", "device", "environment_version") if name in stored})
    table, timing = {}, None
    if metrics:
        table, file = read_metrics(folder / "metrics.jsonl"), timing_file(folder)
        rows = [] if file is None else _lines(file)
        timing = Timing(file, rows) if file is not None and rows else None
    return Run(folder, table, _flat(stored.get("resolved", {})), facts, timing)


def timing_file(folder: Path) -> Path | None:
    """A run's own `timing.jsonl`, or that of its group in a sweep; None where there is none yet."""
    candidates = [folder / "timing.jsonl"]
    for member in _json(folder.parent / "sweep.json") or []:
        if member["name"] == folder.name:
            candidates.append(folder.parent / f"group-{member.get('group', 0)}" / "timing.jsonl")
    return next((path for path in candidates if path.is_file()), None)


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Groups of runs with equal configurations but for the seed, in order of appearance, labelled by what differs."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        kept = {name: value for name, value in run.settings.items() if name != "seed"}
        version = run.facts.get("environment_version")  # another version is another environment
        key = json.dumps([kept, version], sort_keys=True) if kept else str(run.path.resolve())
        groups.setdefault(key, []).append(run)
    members = list(groups.values())
    return [Group(label, runs) for label, runs in zip(_labels(members), members)]


def differing(settings: Sequence[Settings], ignore: Sequence[str] = ("seed", "name")) -> list[str]:
    """Names whose values are not all equal, in order of appearance."""
    names = dict.fromkeys(name for each in settings for name in each)
    texts = {name: {json.dumps(each.get(name, "absent")) for each in settings} for name in names if name not in ignore}
    return [name for name, values in texts.items() if len(values) > 1]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """`hparams.learning_rate` as `learning_rate`, where that is no other's last part."""
    last = [name.rpartition(".")[2] for name in names]
    return {name: end if last.count(end) == 1 else name for name, end in zip(names, last)}


def as_text(value: Any) -> str:
    """A setting as it is shown."""
    return f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _labels(groups: list[list[Run]]) -> list[str]:
    """The name of the configuration where names differ, then the few settings that differ among groups of one name."""
    firsts = [members[0] for members in groups]
    names = [run.settings.get("name", run.name) for run in firsts]
    labels = []
    for run, name in zip(firsts, names):
        alike = [other.settings for other, other_name in zip(firsts, names) if other_name == name]
        # The loader derives one setting from another.
        keys = [key for key in differing(alike) if key != "hparams.anneal_updates"] or differing(alike)
        short = short_names(keys)
        changed = [f"{short[key]}={as_text(run.settings[key])}" for key in keys if key in run.settings]
        parts = [name] if len(set(names)) > 1 or not changed else []
        labels.append(" ".join(parts + changed) if len(changed) <= 4 else f"{name} ({run.name})")
    return [f"{label} ({run.name})" if labels.count(label) > 1 else label for label, run in zip(labels, firsts)]


def _walk(folder: Path, depth: int) -> list[Path]:
    if (folder / "metrics.jsonl").is_file():
        return [folder]
    if (folder / "sweep.json").is_file():
        members = [folder / member["name"] for member in _json(folder / "sweep.json") or []]
        return [member for member in members if (member / "metrics.jsonl").is_file()]
    inside = sorted(path for path in folder.iterdir() if path.is_dir()) if depth else []
    return [run for path in inside for run in _walk(path, depth - 1)]


def _json(file: Path) -> Any:
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error


def _lines(file: Path) -> list[dict[str, Any]]:
    """Rows of a file that may just be written to: a last line without its end is left out."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def _flat(tree: dict[str, Any], prefix: str = "") -> Settings:
    flat: Settings = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
