"""Studies: the experiments that put the claims of papers to the test, one module each.

`jaxrl study NAME --scale smoke|cpu|full --out DIR` trains the arms of the comparison with their seeds side by side,
measures them all under one protocol and writes `report.md`, `results.json`, tables and figures. What is finished is
kept: the same command continues a study that was stopped.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from envs_jax.registry import nearest
from jaxrl.run.config import ConfigError
from jaxrl.studies.laboratory import Laboratory
from jaxrl.studies.report import Report

STUDIES = {
    # name: where it is, one line
    "poolflip": ("jaxrl.studies.poolflip:STUDY", "Flip-PSRO against other ways to train a cyber defender"),
    "hopper_flip": ("jaxrl.studies.hopper_flip:STUDY", "A hopper's front flip: reward, actuator model and load term"),
    "cyborg": ("jaxrl.studies.cyborg:STUDY", "CAGE 2 defenders with and without Patch, Isolate and Unisolate"),
    "reframe": ("jaxrl.studies.reframe:STUDY", "A Decision Transformer with and without an expert's memory"),
    "llm_core": ("jaxrl.studies.llm_core:STUDY", "What a language model must learn: imitation, reward, preference"),
    "rltr": ("jaxrl.studies.rltr:STUDY", "Planners of tool calls rewarded by completeness or by right answers"),
}


class Study(NamedTuple):
    """One experiment. Its scales share one type, a frozen dataclass; `run` measures and fills the report."""

    title: str
    paper: str
    scales: Mapping[str, Any]
    run: Callable[[Laboratory, Any, Report], None]


def find(name: str) -> Study:
    """The study of this name."""
    if name not in STUDIES:
        raise ConfigError(f"unknown study {name!r}{nearest(name, STUDIES)} Known: {', '.join(STUDIES)}")
    module, _, attribute = STUDIES[name][0].partition(":")
    return getattr(importlib.import_module(module), attribute)


def run_study(name: str, scale: str, out: str | Path, **changes: Any) -> Report:
    """Runs a study, or continues it, and writes everything to the folder `out`.

    Args:
        name: of the study.
        scale: "smoke" (about two minutes), "cpu" (two cores, under two hours) or "full" (the paper's sizes).
        out: the folder; a stopped study goes on from what it holds.
        **changes: fields of the scale to change, such as `num_seeds=3`.

    Raises:
        ConfigError: there is no such study, scale or field, or `out` holds another study or scale.

    Example:
        >>> report = run_study("poolflip", "smoke", "runs/poolflip")
        >>> report.tables["control"]
    """
    study = find(name)
    if scale not in study.scales:
        raise ConfigError(f"--scale must be one of {', '.join(study.scales)}, got {scale!r}")
    sizes = study.scales[scale]
    fields = {field.name for field in dataclasses.fields(sizes)}
    for change in changes:
        if change not in fields:
            raise ConfigError(f"scale has no field {change!r}{nearest(change, fields)} Known: {', '.join(fields)}")
    sizes = dataclasses.replace(sizes, **changes)
    laboratory = Laboratory(out, {"study": name, "scale": scale, "sizes": dataclasses.asdict(sizes)})
    report = Report(study.title, study.paper, scale, dataclasses.asdict(sizes))
    study.run(laboratory, sizes, report)
    report.timing = laboratory.timing()
    report.write(laboratory.out)
    return report
