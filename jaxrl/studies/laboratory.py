"""Where a study works: it trains arms, keeps what was measured, and knows where it had got to."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.results.files import replacing
from jaxrl.results.metrics import read_metrics
from jaxrl.run.checkpoint import list_checkpoints, restore
from jaxrl.run.config import ConfigError, RunConfig, make_config
from jaxrl.run.program import load_data, make_algorithm
from jaxrl.run.runner import load_state
from jaxrl.run.sharding import make_mesh, split_members
from jaxrl.run.sweep import Member, plan, sweep
from jaxrl.types import PyTree

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass
class Arm:
    """One trained contender of a comparison: S seeds of one configuration."""

    name: str
    run: RunConfig
    states: PyTree  # final training states, leaves [S, ...]
    metrics: list[Arrays]  # of each seed, columns of metrics.jsonl
    folders: list[Path]  # the run of each seed
    group: Path  # holds the checkpoints of all members that were trained together
    first: int  # the place of the arm's first seed among them
    together: int  # how many they are


class Laboratory:
    """The folder of a study.

    Args:
        out: the folder; made where it is missing.
        identity: what must be the same for the folder to be continued; ready for JSON.

    Raises:
        ConfigError: the folder belongs to another study or to other sizes.
    """

    def __init__(self, out: str | Path, identity: Mapping[str, Any]):
        self.out = Path(out)
        file = self.out / "study.json"
        identity = json.loads(json.dumps(identity))
        if file.exists():
            if json.loads(file.read_text()) != identity:
                raise ConfigError(f"{self.out} holds another study or other sizes: choose another --out")
        elif self.out.exists() and any(self.out.iterdir()):
            raise ConfigError(f"{self.out} is not empty and holds no study: choose another --out")
        else:
            with replacing(file) as temporary:
                temporary.write_text(json.dumps(identity, indent=1))

    def train(self, name: str, run: RunConfig, num_seeds: int, start: Arm | None = None) -> Arm:
        """Trains an arm with its seeds side by side, split over the devices where they divide; finished arms load.

        Each seed leaves an ordinary run folder, `arms/NAME/000` and so on. With `start`, seed i starts from the
        parameters that its seed i has learned.
        """
        folder = self.out / "arms" / name
        devices = _fitting_devices(num_seeds)
        if devices > 1:
            run = make_config(run.source, [f"num_devices={devices}"])
        if not (folder / "results.json").exists():
            with self.timed(f"train {name}"):
                sweep(
                    run, seeds=num_seeds, sweep_dir=folder, resume=True, init_from=_folders(start), progress=False
                )  # fmt: skip
        return _load(name, folder, plan(run, {}, num_seeds), 0, num_seeds)

    def train_together(
        self,
        run: RunConfig,
        arms: Mapping[str, Mapping[str, Any]],
        num_seeds: int,
        name: str = "",
        start: Arm | None = None,
    ) -> dict[str, Arm]:
        """Trains arms that differ from `run` in traced settings only, all of them and all seeds in one program.

        Args:
            run: the common configuration.
            arms: by name, the settings in which each differs, such as `{"env.reward": "base"}`.
            num_seeds: of each arm.
            name: of the folder in `arms`, where the study trains several such sets.
            start: as in `train`.
        """
        folder = self.out / "arms" / name
        devices = _fitting_devices(num_seeds * len(arms))
        if devices > 1:
            run = make_config(run.source, [f"num_devices={devices}"])
        points = list(arms.values())
        members = plan(run, points, num_seeds)
        if members[-1].group:
            raise ValueError("these arms need several programs: train them one by one")
        if not (folder / "results.json").exists():
            with self.timed(f"train {len(arms)} arms{name and f' of {name}'}"):
                sweep(run, points, num_seeds, folder, resume=True, init_from=_folders(start), progress=False)
        return {arm: _load(arm, folder, members, i * num_seeds, num_seeds) for i, arm in enumerate(arms)}

    def checkpoints(self, arm: Arm) -> dict[int, PyTree]:
        """What is kept of the arm's way: update -> training states, leaves `[S, ...]`; see `checkpoint.keep`."""
        shape = jax.eval_shape(make_algorithm(arm.run).init, jax.random.key(0), arm.run.hparams, load_data(arm.run))
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((arm.together, *leaf.shape), leaf.dtype), shape)
        kept = slice(arm.first, arm.first + len(arm.folders))
        return {
            int(path.name): jax.tree.map(lambda leaf: leaf[kept], restore(path, like)[0])
            for path in list_checkpoints(arm.group / "checkpoints")
        }

    def measure(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> Arrays:
        """The arrays that `compute` returns, by name; computed once and kept in `measurements/NAME.npz`."""
        file = self.out / "measurements" / f"{name}.npz"
        if not file.exists():
            with self.timed(f"measure {name}"):
                values = {key: np.asarray(value) for key, value in jax.device_get(dict(compute())).items()}
            with replacing(file) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **values)  # type: ignore[arg-type]
        with np.load(file) as stored:
            return dict(stored)

    def timing(self) -> list[dict[str, Any]]:
        """What each step took when it was last done: rows of `step`, `wall_seconds`, `cpu_seconds`."""
        file = self.out / "timing.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return list({row["step"]: row for row in rows}.values())

    def timed(self, step: str) -> _Timer:
        """A context that says what is being done, and writes down what it took once it is done."""
        return _Timer(step, self.out / "timing.jsonl")


def _load(name: str, folder: Path, members: Sequence[Member], first: int, num_seeds: int) -> Arm:
    """An arm, the seeds from `first` on of `members`, from its run folders."""
    folders = [folder / member.name for member in members[first : first + num_seeds]]
    states = [load_state(member)[0] for member in folders]
    metrics = [read_metrics(member / "metrics.jsonl") for member in folders]
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return Arm(name, members[first].run, states, metrics, folders, folder / "group-0", first, len(members))


def _folders(start: Arm | None) -> list[Path]:
    return [] if start is None else start.folders


class _Timer:
    """Says what is being done, and writes down what it took once it is done."""

    def __init__(self, step: str, file: Path):
        self.step, self.file = step, file

    def __enter__(self) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {self.step} ...", flush=True)
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __exit__(self, kind: object, *_: object) -> None:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        if kind is None:
            row = {"step": self.step, "wall_seconds": round(wall, 1), "cpu_seconds": round(cpu, 1)}
            with self.file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")


def over_seeds(function: Callable[..., PyTree], axes: tuple[int | None, ...], *arguments: PyTree) -> PyTree:
    """`vmap(function, axes)(*arguments)`, the mapped axis split over the devices where it divides; on the host.

    Compiled once for each `function` (a function defined once, or a method) and shapes of the arguments.
    """
    mapped = next(argument for argument, axis in zip(arguments, axes) if axis == 0)
    devices = _fitting_devices(jax.tree.leaves(mapped)[0].shape[0])
    return jax.device_get(_batched(function, axes, devices)(*arguments))


@functools.cache
def _batched(function: Callable[..., PyTree], axes: tuple[int | None, ...], devices: int) -> Callable[..., PyTree]:
    batched = jax.vmap(function, axes)
    return jax.jit(batched if devices == 1 else split_members(batched, make_mesh(devices), axes))


def use_all_cores() -> None:
    """Gives a CPU one device per core, so that seeds train in parallel. To be called before JAX is used."""
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)


def _fitting_devices(num_seeds: int) -> int:
    """The largest number of local devices that divides the seeds."""
    return max(n for n in range(1, jax.local_device_count() + 1) if num_seeds % n == 0)
