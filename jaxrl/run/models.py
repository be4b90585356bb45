"""Language models between runs and Hugging Face folders: a run's trained model, and a run that begins with a model."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import jax

from jaxrl.llm.checkpoints import load_hf
from jaxrl.llm.config import LMConfig
from jaxrl.llm.lora import merge_attached
from jaxrl.llm.parameters import Params, num_parameters, stack_layers
from jaxrl.run.checkpoint import CheckpointWriter
from jaxrl.run.config import ConfigError, RunConfig, make_config
from jaxrl.run.folder import RunFolder
from jaxrl.run.program import load_data, make_algorithm
from jaxrl.run.runner import load_state
from jaxrl.run.training import Position
from jaxrl.types import PyTree


def load_model(path: str | Path) -> tuple[LMConfig, Params]:
    """The model of a run folder, of one of its checkpoints, or of a Hugging Face folder.

    Raises:
        ConfigError: there is no run or none of a language model.
        FileNotFoundError, ValueError: as `jaxrl.llm.load_hf`.
    """
    path = Path(path)
    is_run = (path / "checkpoints").is_dir() or path.parent.name == "checkpoints"
    return trained_model(path) if is_run else load_hf(path)


def trained_model(path: str | Path) -> tuple[LMConfig, Params]:
    """The configuration and the parameters of the language model that a run trained, adapters merged."""
    config, params = trained_params(path)
    return config, params.get("model", params)


def trained_params(path: str | Path) -> tuple[LMConfig, PyTree]:
    """The same with what else the policy acts with: beside heads the model is the entry "model"."""
    state, run = load_state(path)
    config, agent = _model_config(run), make_algorithm(run)
    if agent.policy is None:
        raise ConfigError(f"{path} is a run of {run.algorithm!r}, which has no policy")
    params = agent.policy(state, load_data(run, dataset=False))

    def whole(params: Params) -> Params:
        return merge_attached(stack_layers(params))

    return config, params | {"model": whole(params["model"])} if "model" in params else whole(params)


def import_model(folder: str | Path, run: RunConfig, run_dir: str | Path) -> int:
    """Writes a run that has not begun, whose model is that of a Hugging Face folder.

    Args:
        folder: config.json and weights.
        run: what to train it by; its `config.model` is replaced by the folder's.
        run_dir: the new run folder.

    Returns:
        How many parameters the model has.

    Raises:
        ConfigError: `run_dir` holds a run, the algorithm trains no language model of this shape, or the environment
            speaks in other tokens.
    """
    _model_config(run)
    config, params = load_hf(folder, "float32")
    source = copy.deepcopy(dict(run.source))
    source.setdefault("config", {})["model"] = _table(config)
    run = make_config(source)
    try:
        agent = make_algorithm(run)
    except ValueError as error:
        raise ConfigError(f"{folder} does not fit {run.name!r}: {error}") from error
    state = jax.jit(agent.init)(jax.random.key(run.seed), run.hparams, load_data(run))
    if "model" in state.params:  # heads begin as the algorithm says
        params = state.params | {"model": params}
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (state.params, params)]
    if shapes[0] != shapes[1]:
        raise ConfigError(f"{run.algorithm!r} with these settings trains more or less than a whole model")
    run_folder = RunFolder(run_dir)
    run_folder.create(run)
    writer = CheckpointWriter(run_folder.checkpoints, run.checkpoint.keep)
    writer.save(dataclasses.replace(state, params=params), 0, dataclasses.asdict(Position(offsets=[0])))
    writer.wait()
    return num_parameters(config)


def _model_config(run: RunConfig) -> LMConfig:
    config = getattr(run.config, "model", None)
    if not isinstance(config, LMConfig):
        raise ConfigError(f"a run of {run.algorithm!r} trains no language model")
    return config


def _table(config: Any) -> PyTree:
    """The fields of a configuration that have a value, as a TOML file would hold them."""
    values = dataclasses.asdict(config)
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {name: value for name, value in values.items() if value is not None}
