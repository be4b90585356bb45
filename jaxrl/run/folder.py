"""The run folder: configuration, metrics, timing, checkpoints and a picture of one run."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envs_jax import registry
from jaxrl.run.checkpoint import CheckpointError, write_json
from jaxrl.run.config import ConfigError, RunConfig, make_config, resolved

FORMAT_VERSION = 1


class RunFolder:
    """Paths in a run folder, and its `config.json`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.timing = self.path / "timing.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.picture = self.path / "curve.png"
        self.tensorboard = self.path / "tensorboard"

    def create(self, run: RunConfig) -> None:
        """Makes the folder and writes the configuration.

        Raises:
            ConfigError: the folder already holds a run.
        """
        if self.config.exists():
            raise ConfigError(
                f"{self.path} already holds a run. Continue it with `jaxrl train --resume {self.path}`, "
                "or choose another folder with --run-dir"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_config(run)

    def write_config(self, run: RunConfig) -> None:
        write_json(
            self.config,
            {
                "format_version": FORMAT_VERSION,
                "source": dict(run.source),
                "resolved": resolved(run),
                "versions": versions(),
                "device": device(),
                "environment_version": _environment_version(run),
            },
        )

    def evaluation(self, update: int) -> dict[str, float]:
        """What the evaluation after `update` updates measured; empty where there was none."""
        lines = self.metrics.read_text().splitlines() if self.metrics.is_file() else []
        rows = [row for row in map(json.loads, lines) if row.get("update") == update]
        return {name: value for row in rows for name, value in row.items() if name.startswith("evaluation/")}

    def load_run(self, overrides: Sequence[str] = ()) -> RunConfig:
        """The run of this folder, with overrides.

        Raises:
            ConfigError: there is no run here, or it was written by another format version.
        """
        if not self.config.is_file():
            raise ConfigError(f"{self.path} holds no run: there is no {self.config.name}")
        try:
            stored = json.loads(self.config.read_text())
            version, source = stored["format_version"], stored["source"]
        except (ValueError, KeyError) as error:
            raise ConfigError(f"{self.config} cannot be read: {error}") from error
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{self.path} has format version {version}; this version of jaxrl reads {FORMAT_VERSION}"
            )
        run = make_config(source, overrides)
        known = stored.get("environment_version")
        if known is not None and known != _environment_version(run):
            warnings.warn(
                f"{self.path} was trained in version {known} of {run.env.name!r}, which is version "
                f"{_environment_version(run)} here: the same seed gives other episodes",
                stacklevel=2,
            )
        return run


def _environment_version(run: RunConfig) -> int | None:
    """Of the environment; None where it is not one of `envs_jax`."""
    return registry.version(run.env.name) if run.env.backend == "jax" else None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    names = ("jaxrl", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "brax", "mujoco")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def device() -> dict[str, Any]:
    """Kind, number and platform of the devices in use."""
    import jax

    devices = jax.devices()
    return {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices), "os": sys.platform}
