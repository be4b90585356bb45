"""Configuration: a TOML file and `key=value` overrides become a checked `RunConfig`."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cattrs
import numpy as np
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

from envs_jax.registry import nearest

PRECISIONS = ("default", "high", "highest", "bfloat16", "tensorfloat32", "float32")


class ConfigError(ValueError):
    """A setting that cannot be used: what was given, what is allowed."""

    exit_status = 2


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """`[env]`: every key that is not a field here is an option of the environment."""

    name: str
    backend: str = "jax"  # "jax", or "gymnasium": the environment runs on the host, one process, vectorised
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("env.backend", self.backend, ("jax", "gymnasium"))


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """`[data]`: the data set that an offline algorithm learns from, and models that are read and never change.

    A model is a run folder, one of its checkpoints, or a Hugging Face checkpoint folder.
    """

    name: str = ""  # an .hdf5 file, a folder in Minari's form, or the id of a local Minari data set
    num_episodes: int = 0  # only the first so many; 0: all
    expert: str = ""  # a second data set, of an expert: it fills the memory of `reframe`
    num_expert_episodes: int = 0  # only the first so many; 0: all
    mix_expert: bool = False  # the expert's episodes are added to those that are learned from
    block_steps: int = 0  # so many steps are on the device at a time, other ones in each chunk of updates; 0: all
    base: str = ""  # a model: what adapters stand beside, else what training starts from
    reference: str = ""  # a model: what a policy is kept close to; without it the base
    reward: str = ""  # a model: a reward that was learned

    def __post_init__(self) -> None:
        _at_least("data.num_episodes", self.num_episodes, 0)
        _at_least("data.num_expert_episodes", self.num_expert_episodes, 0)
        _at_least("data.block_steps", self.block_steps, 0)
        if self.mix_expert and not self.expert:
            raise ConfigError("data.mix_expert adds the episodes of data.expert, which is empty")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """`[evaluation]`: the same episodes for every seed, checkpoint and algorithm."""

    every: int = 0  # updates between evaluations, which also come after the last; 0: only then
    num_episodes: int = 256
    max_steps: int = 0  # an episode is cut there; 0: the environment's own bound
    seed: int = 12345
    deterministic: bool = True  # the most probable action, or a sampled one

    def __post_init__(self) -> None:
        _at_least("evaluation.every", self.every, 0)
        _at_least("evaluation.num_episodes", self.num_episodes, 1)
        _at_least("evaluation.max_steps", self.max_steps, 0)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """`[checkpoint]`."""

    every: int = 0  # updates between checkpoints, which also come after the last; 0: only then
    keep: int = 3  # the newest so many are kept, beside the best

    def __post_init__(self) -> None:
        _at_least("checkpoint.every", self.every, 0)
        _at_least("checkpoint.keep", self.keep, 1)


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """`[log]`."""

    every: int = 1  # updates averaged into one line of metrics
    chunk: int = 0  # updates per compiled call; 0: chosen to divide everything else
    tensorboard: bool = True  # write TensorBoard events too, where the extra `log` is installed

    def __post_init__(self) -> None:
        _at_least("log.every", self.every, 1)
        _at_least("log.chunk", self.chunk, 0)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One training run, checked and complete."""

    algorithm: str  # a name, or "package.module:RECIPE"
    env: EnvConfig
    num_updates: int
    config: Any  # the algorithm's static settings
    hparams: Any  # the algorithm's floats, as f32 arrays
    name: str = "run"
    seed: int = 0
    num_devices: int = 1  # the environments are sharded over so many local devices; 0: all
    matmul_precision: str = "default"
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what was given, before defaults

    def __post_init__(self) -> None:
        _at_least("num_updates", self.num_updates, 1)
        _at_least("seed", self.seed, 0)
        _at_least("num_devices", self.num_devices, 0)
        _one_of("matmul_precision", self.matmul_precision, PRECISIONS)
        for name, every in (("evaluation.every", self.evaluation.every), ("checkpoint.every", self.checkpoint.every)):
            if 0 < every < self.num_updates:  # a longer interval is that of a longer run: only the end is due
                _divides(name, every, "num_updates", self.num_updates)
        if self.data.block_steps and self.env.backend != "jax":
            raise ConfigError("data.block_steps must be 0 unless env.backend is 'jax'")
        if self.log.chunk:
            what = "num_updates, evaluation.every and checkpoint.every"
            _divides("log.chunk", self.log.chunk, what, self._shared_interval)
        _divides("log.every", self.log.every, "log.chunk (updates per compiled call)", self.chunk)

    @property
    def chunk(self) -> int:
        """Updates per compiled call: `log.chunk`, or the largest number that divides all intervals, at most 5 %."""
        if self.log.chunk:
            return self.log.chunk
        shared = self._shared_interval
        limit = max(self.num_updates // 20, self.log.every)
        fitting = [d for d in _divisors(shared) if d % self.log.every == 0]
        return max((d for d in fitting if d <= limit), default=min(fitting, default=shared))

    @property
    def _shared_interval(self) -> int:
        """Updates between points at which something is due, if only the end."""
        intervals = (self.evaluation.every, self.checkpoint.every)
        return math.gcd(self.num_updates, *(every for every in intervals if every < self.num_updates))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a TOML file, applies overrides such as `"hparams.learning_rate=1e-3"` and checks everything.

    Args:
        path: a TOML file, or the name of one of the configurations that come with jaxrl.
        overrides: `"key=value"` strings; the value is TOML, or a bare string.

    Raises:
        ConfigError: a file, key or value cannot be used; the message says what is allowed.

    Example:
        >>> run = load_config("ppo_cartpole", ["num_updates=60", "hparams.learning_rate=1e-3"])
    """
    file = find_config(path)
    try:
        values = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not a TOML file: {error}") from error
    values.setdefault("name", file.stem)
    return make_config(values, overrides)


def make_config(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """A `RunConfig` from nested mappings, as they stand in a TOML file; see `load_config`."""
    from jaxrl import algorithms

    source = copy.deepcopy(dict(values))
    for override in overrides:
        _apply_override(source, override)
    settings = copy.deepcopy(source)
    if "source" in settings:
        raise _unknown("source", "source", [field.name for field in dataclasses.fields(RunConfig)])
    for key in ("algorithm", "env", "num_updates"):
        if key not in settings:
            raise ConfigError(f"the configuration lacks {key!r}")
    try:
        recipe = algorithms.find(_typed("algorithm", settings["algorithm"], str))
        if recipe.specialise is not None:
            recipe = recipe.specialise(settings)
    except ValueError as error:
        raise ConfigError(str(error)) from error

    env = dict(_typed("env", settings["env"], dict))
    fields = {field.name for field in dataclasses.fields(EnvConfig)} - {"options"}
    settings["env"] = {k: v for k, v in env.items() if k in fields}
    settings["env"]["options"] = {k: v for k, v in env.items() if k not in fields}
    settings["config"] = structure(_typed("config", settings.get("config", {}), dict), recipe.config, "config")
    settings["hparams"] = make_hparams(_typed("hparams", settings.get("hparams", {}), dict), recipe.hparams, settings)
    run = dataclasses.replace(structure(settings, RunConfig, ""), source=source)
    if recipe.offline and not run.data.name:
        raise ConfigError(f"{run.algorithm!r} learns from a data set: name one as data.name")
    if recipe.expert and not run.data.expert:
        raise ConfigError(f"{run.algorithm!r} fills a memory from an expert's data set: name one as data.expert")
    if run.data.expert and not (recipe.expert or run.data.mix_expert):
        raise ConfigError(f"data.expert is not read by {run.algorithm!r}: leave it empty, or set data.mix_expert")
    if run.data.name and not recipe.offline:
        raise ConfigError(f"data.name must be empty: {run.algorithm!r} learns from what it plays")
    for name in named_models(run):
        if recipe.frozen is None or name not in recipe.frozen(run.config):
            raise ConfigError(f"data.{name} must be empty: {run.algorithm!r} does not read it with these settings")
    return run


def named_models(run: RunConfig) -> dict[str, str]:
    """The models that `[data]` names: their name in `data.frozen` and where they are."""
    return {name: path for name in ("base", "reference", "reward") if (path := getattr(run.data, name))}


def make_hparams(values: Mapping[str, Any], kind: type, settings: Mapping[str, Any] | None = None) -> Any:
    """Hyper-parameters as f32 arrays, each checked against its range.

    `anneal_updates` defaults to `num_updates`, so that a schedule ends with the run.
    """
    import jax.numpy as jnp

    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise _unknown(f"hparams.{key}", key, fields)
    result = {}
    for name, field in fields.items():
        default = field.default
        if name == "anneal_updates" and settings is not None:
            default = settings["num_updates"]
        value = values.get(name, default)
        low, high = field.metadata.get("range", (-math.inf, math.inf))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"hparams.{name} must be a number, got {value!r}")
        if not (math.isfinite(value) and low <= value <= high):
            raise ConfigError(f"hparams.{name} must be a finite number in [{low:g}, {high:g}], got {value!r}")
        result[name] = jnp.asarray(value, jnp.float32)
    return kind(**result)


def structure(values: Any, kind: type, where: str) -> Any:
    """`values` as the dataclass `kind`; unknown keys and wrong types are refused with their place in the file."""
    try:
        return _converter().structure(values, kind)
    except ClassValidationError as error:
        raise _explain(error, where) from error


def find_config(path: str | Path) -> Path:
    """The file that `path` names: itself, or a configuration that comes with jaxrl."""
    path = Path(path)
    if path.is_file():
        return path
    shipped = shipped_configs()
    if path.name == str(path) and path.stem in shipped:
        return shipped[path.stem]
    hint = nearest(path.stem, shipped)
    raise ConfigError(
        f"there is no configuration file {str(path)!r}{hint} (`jaxrl list configs` shows those that come with jaxrl)"
    )


def shipped_configs() -> dict[str, Path]:
    """The configurations beside this checkout, or those installed with the package, by name."""
    for folder in (Path(__file__).parents[2] / "configs", Path(sys.prefix) / "share" / "jaxrl" / "configs"):
        if folder.is_dir():
            return {file.stem: file for file in sorted(folder.glob("*.toml"))}
    return {}


def resolved(run: RunConfig) -> dict[str, Any]:
    """Every setting of a run with its value, ready for JSON."""
    values = {f.name: getattr(run, f.name) for f in dataclasses.fields(run) if f.name not in ("source", "hparams")}
    values = cattrs.Converter().unstructure(values)
    values["env"] = {k: v for k, v in values["env"].items() if k != "options"} | dict(run.env.options)
    values["hparams"] = {
        f.name: float(str(np.float32(getattr(run.hparams, f.name)))) for f in dataclasses.fields(run.hparams)
    }
    return values


def _converter() -> cattrs.Converter:
    """A converter that converts nothing silently: types must match, unknown keys are errors."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (int, float, bool, str):
        converter.register_structure_hook(kind, lambda value, _, kind=kind: _typed("", value, kind))
    return converter


def _typed(name: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind in (int, float) and isinstance(value, bool)):
        words = {int: "an integer", float: "a number", bool: "true or false", str: "a string", dict: "a table"}
        raise ConfigError(f"{name} must be {words[kind]}, got {value!r}".strip())
    return value


def _explain(error: Exception, where: str) -> ConfigError:
    """The first thing wrong, with the full name of its setting."""
    if isinstance(error, ClassValidationError):
        noted, plain = error.group_exceptions()
        for inner, note in noted:
            return _explain(inner, f"{where}.{note.name}".lstrip("."))
        return _explain(plain[0], where)
    if isinstance(error, IterableValidationError):
        return _explain(error.exceptions[0], where)
    if isinstance(error, ForbiddenExtraKeysError):
        key = sorted(error.extra_fields)[0]
        known = [field.name for field in dataclasses.fields(error.cl) if field.name not in ("options", "source")]
        return _unknown(f"{where}.{key}".lstrip("."), key, known)
    if isinstance(error, KeyError):
        return ConfigError(f"the configuration lacks {where}")
    if isinstance(error, TypeError):
        return ConfigError(f"{where} must be a list, got a single value")
    message = str(error)
    return ConfigError(f"{where} {message}" if message.startswith("must be ") else message)


def _unknown(full_name: str, key: str, known: Any) -> ConfigError:
    return ConfigError(f"unknown key {full_name!r}{nearest(key, known)} Allowed: {', '.join(sorted(known))}")


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"an override has the form key=value, got {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *groups, last = key.strip().split(".")
    for group in groups:
        values = values.setdefault(group, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{key!r}: {group!r} is a value, not a table")
    values[last] = value


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _divides(name: str, value: int, what: str, number: int) -> None:
    if number % value:
        nearest_one = min(_divisors(number), key=lambda d: abs(d - value))
        raise ConfigError(f"{name} must divide {what} = {number}, got {value} (nearest: {nearest_one})")


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise ConfigError(f"{name} must be at least {low}, got {value}")


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{nearest(value, allowed)}")


def parse_grid(items: Sequence[str]) -> dict[str, list[Any]]:
    """`["hparams.learning_rate=1e-4,3e-4"]` as values by setting; each item is TOML or a bare string.

    Raises:
        ConfigError: an item has another form.
    """
    grid = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.strip() or not text.strip():
            raise ConfigError(f"--grid has the form key=value,value,..., got {item!r}")
        try:
            values = tomllib.loads(f"values = [{text}]")["values"]
        except tomllib.TOMLDecodeError:
            values = [value.strip() for value in text.split(",")]
        grid[key.strip()] = values
    return grid
