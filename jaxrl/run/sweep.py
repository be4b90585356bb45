"""Sweeps: seeds and hyper-parameters train side by side in one program; static settings make groups of their own."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.results.stats import mean_interval
from jaxrl.run.checkpoint import CheckpointWriter, write_json
from jaxrl.run.config import ConfigError, RunConfig, make_config
from jaxrl.run.folder import RunFolder
from jaxrl.run.program import make_program, same_program
from jaxrl.run.progress import make_progress
from jaxrl.run.runner import find_checkpoint, start_from
from jaxrl.run.training import Row, Training
from jaxrl.types import Algorithm, PyTree


@dataclasses.dataclass
class Member:
    """One run of a sweep."""

    name: str  # its folder in the sweep's
    settings: dict[str, Any]  # its point of the grid
    run: RunConfig
    group: int = 0
    rows: list[Row] = dataclasses.field(default_factory=list)
    state: PyTree = None


@dataclasses.dataclass
class SweepResult:
    """Members in grid order, seeds innermost."""

    members: list[Member]

    def table(self, metric: str = "evaluation/return") -> list[dict[str, Any]]:
        """One row per grid point, best first: its settings, mean over seeds, 95 % bootstrap interval."""
        rows = []
        for settings, members in itertools.groupby(self.members, key=lambda member: member.settings):
            finals = np.array([_last(member.rows, metric) for member in members])
            finite = finals[np.isfinite(finals)]
            mean, low, high = map(float, mean_interval(finite) if len(finite) else (np.nan,) * 3)
            rows.append(settings | {"mean": mean, "low": low, "high": high, "seeds": len(finite)})
            rows[-1]["diverged"] = len(finals) - len(finite)
        return sorted(rows, key=lambda row: -np.nan_to_num(row["mean"], nan=-np.inf))


Grid = Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]


def plan(run: RunConfig, grid: Grid, seeds: int | Sequence[int]) -> list[Member]:
    """The members of a sweep and the groups that share a program.

    Args:
        run: the common configuration.
        grid: values by setting, such as `{"hparams.learning_rate": [1e-4, 3e-4]}`, every combination of which is
            trained; or the combinations themselves, such as `[{"env.reward": "base"}, {"env.load": "off"}]`.
        seeds: the seeds, or how many from `run.seed` on.

    Raises:
        ConfigError: a setting or value is refused, or there is nothing to run.
    """
    seeds = list(range(run.seed, run.seed + seeds)) if isinstance(seeds, int) else list(seeds)
    if isinstance(grid, Mapping):
        points = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    else:
        points = [dict(point) for point in grid]
    if not seeds or not points:
        raise ConfigError("a sweep needs at least one seed and one value of every setting in its grid")
    members: list[Member] = []
    for settings in points:
        for seed in seeds:
            overrides = [f"{key}={_toml(value)}" for key, value in settings.items()] + [f"seed={seed}"]
            member_run = make_config(run.source, overrides)
            members.append(Member(f"{len(members):03d}", settings, member_run))
    leaders: list[Member] = []
    for member in members:
        for number, leader in enumerate(leaders):
            if same_program([leader.run, member.run]):
                member.group = number
                break
        else:
            member.group = len(leaders)
            leaders.append(member)
    return members


def sweep(
    run: RunConfig,
    grid: Grid | None = None,
    seeds: int | Sequence[int] = 1,
    sweep_dir: str | Path | None = None,
    *,
    resume: bool = False,
    init_from: Sequence[str | Path] = (),
    progress: bool = True,
) -> SweepResult:
    """Trains every point of a grid with every seed; members that differ in traced values share a program.

    Args:
        run: the common configuration.
        grid: as in `plan`; `hparams` and the environment's parameters are vmapped, each value of a static setting makes
            a group.
        seeds: the seeds, or how many.
        sweep_dir: every member gets a run folder there, named `000`, `001`, ...; None writes nothing.
        resume: continue the sweep in `sweep_dir`.
        init_from: a run folder for each seed, whose trained parameters every member of that seed starts from.
        progress: show progress.

    Example:
        >>> result = sweep(run, {"hparams.learning_rate": [1e-4, 3e-4]}, seeds=8)
        >>> result.table()[0]
    """
    members = plan(run, {} if grid is None else grid, seeds)
    all_seeds = list(dict.fromkeys(member.run.seed for member in members))
    if init_from and len(init_from) != len(all_seeds):
        raise ConfigError(f"init_from must name a run for each of {len(all_seeds)} seeds, got {len(init_from)}")
    sources = dict(zip(all_seeds, init_from))
    root = None if sweep_dir is None else Path(sweep_dir)
    if root is not None:
        _prepare(root, members, resume)
    for number in range(members[-1].group + 1 if members else 0):
        group = [member for member in members if member.group == number]
        _train_group(group, number, root, resume, sources, progress)
    result = SweepResult(members)
    if root is not None:
        write_json(root / "results.json", result.table())
    return result


def _prepare(root: Path, members: list[Member], resume: bool) -> None:
    described = [{"name": m.name, "group": m.group, "seed": m.run.seed, "settings": m.settings} for m in members]
    file = root / "sweep.json"
    if file.exists() and not resume:
        raise ConfigError(f"{root} already holds a sweep. Continue it with --resume, or choose another --run-dir")
    root.mkdir(parents=True, exist_ok=True)
    for member in members:
        folder = RunFolder(root / member.name)
        if not folder.config.exists():
            folder.create(member.run)
        elif dict(folder.load_run().source) != dict(member.run.source):
            raise ConfigError(f"{folder.path} is of another sweep: its configuration differs")
    write_json(file, described)


def _train_group(
    members: list[Member],
    number: int,
    root: Path | None,
    resume: bool,
    sources: Mapping[int, str | Path],
    progress: bool,
) -> None:
    runs = [member.run for member in members]
    program = make_program(runs, batched=True)
    group = None if root is None else RunFolder(root / f"group-{number}")
    folders = [] if root is None else [RunFolder(root / member.name) for member in members]
    if group is not None:
        group.checkpoints.mkdir(parents=True, exist_ok=True)
    training = Training(program, group, folders, make_progress(progress))
    state = training.restore() if resume and group is not None else None
    take = jax.jit(lambda state, i: jax.tree.map(lambda leaf: leaf[i], state))
    if state is None:
        state = program.init()
        if sources:
            first = [_begin(take(state, i), run, program.agent, sources[run.seed]) for i, run in enumerate(runs)]
            state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *first)
    state = training.run(state)
    for i, member in enumerate(members):
        member.rows, member.state = training.rows[i], take(state, i)
        if root is not None:
            saver = CheckpointWriter(folders[i].checkpoints, keep=1)
            facts = dataclasses.asdict(training.position) | {"offsets": [training.position.offsets[i]], "best": None}
            saver.save(member.state, training.position.update, facts)
            saver.wait()


def _begin(state: PyTree, run: RunConfig, agent: Algorithm, source: str | Path) -> PyTree:
    """`start_from`; what has heads beside its model takes the model alone from a run of another algorithm."""
    if not isinstance(state.params, Mapping) or "model" not in state.params:
        return start_from(state, agent, source)
    if find_checkpoint(source)[0].load_run().algorithm == run.algorithm:
        return start_from(state, agent, source)
    bare = start_from(dataclasses.replace(state, params=state.params["model"]), agent, source)
    return dataclasses.replace(state, params={**state.params, "model": bare.params})


def _last(rows: list[Row], metric: str) -> float:
    for row in reversed(rows):
        value = row.get(metric)
        if value is not None:
            return float(value)
    raise ValueError(f"no member logged {metric!r}")


def _toml(value: Any) -> str:
    """A value as it would stand in a TOML file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)
