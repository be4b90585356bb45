"""The models that `[data]` names, as `data.frozen`: from runs of jaxrl and from Hugging Face checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jaxrl import algorithms
from jaxrl.run.checkpoint import CheckpointError, named_leaves
from jaxrl.run.config import ConfigError, RunConfig, named_models
from jaxrl.types import FrozenModel, PyTree

# Fields of a model's configuration that say nothing about what it computes.
_INCIDENTAL = ("dtype", "initial_std", "bos_id", "eos_ids", "pad_id", "max_positions", "family")


def load_frozen(run: RunConfig, *, acting: bool = False) -> dict[str, PyTree] | None:
    """The models of a configuration by name, or None where it names none.

    Args:
        run: names them as `data.base`, `data.reference` and `data.reward`.
        acting: a trained policy is only to act: of all of them it needs the base of its adapters.

    Raises:
        ConfigError: a model is missing where training needs it, is none, or does not fit the configuration.
    """
    recipe, named = algorithms.find(run.algorithm), named_models(run)
    known = {} if recipe.frozen is None else recipe.frozen(run.config)
    for model in known.values():
        if not acting and model.one_of and not any(other in named for other in model.one_of):
            raise ConfigError(f"{run.algorithm!r} with these settings needs data.{' or data.'.join(model.one_of)}")
    if acting:
        named = {name: path for name, path in named.items() if name == "base" and known[name].one_of}
    return {name: _load(f"data.{name}", Path(path), known[name]) for name, path in named.items()} or None


def _load(where: str, path: Path, expected: FrozenModel) -> PyTree:
    if not path.is_dir():
        raise ConfigError(f"{where}: there is no folder {str(path)!r}")
    if (path / "checkpoints").is_dir() or path.parent.name == "checkpoints":
        from jaxrl.run.models import trained_params

        try:
            config, params = trained_params(path)
        except (CheckpointError, ConfigError) as error:
            raise ConfigError(f"{where}: {error}") from error
    elif (path / "config.json").is_file():
        from jaxrl.llm.checkpoints import load_hf

        try:
            config, params = load_hf(path)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{where}: {error}") from error
    else:
        raise ConfigError(f"{where}: {str(path)!r} is neither a run with checkpoints nor a Hugging Face checkpoint")
    _check_config(where, path, config, expected.model)
    wanted, given = named_leaves(expected.shape), named_leaves(params)
    for name in sorted(wanted | given):
        here, there = (str(list(tree[name].shape)) if name in tree else "absent" for tree in (wanted, given))
        if here != there:
            raise ConfigError(f"{where}: {path} does not fit: {name} is {there} there and {here} in this run")
    return params


def _check_config(where: str, path: Path, given: Any, expected: Any) -> None:
    for field in dataclasses.fields(expected):
        there, here = getattr(given, field.name), getattr(expected, field.name)
        if field.name not in _INCIDENTAL and there != here:
            raise ConfigError(f"{where}: {path} does not fit: {field.name} is {there} there and {here} in this run")
