"""Low-rank adapters (Hu et al. 2022) beside frozen weights, exchanged with PEFT.

An adapter adds `scale * x A B` to a linear layer; A `[L, in, r]` is random, B `[L, r, out]` zero at first. The model
reads adapters from its parameters: `model.apply(attach(params, adapters, scale), ...)`. With scale 0 that is the base,
so a reference policy needs no second copy of the weights.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.llm.checkpoints import tensor_map
from jaxrl.llm.config import LMConfig
from jaxrl.llm.parameters import Params, parameter_table
from jaxrl.llm.tensor_files import read_tensors, write_tensors

Array = jax.Array
Adapters = dict[str, dict[str, Array]]  # path in a layer, such as "attn.q" -> {"a": [L, in, r], "b": [L, r, out]}
_CONFIG, _WEIGHTS, _PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
# Settings of PEFT that change what an adapter computes, and the values under which it is what is implemented here.
_PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which matrices get an adapter, and how large: static."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attn.[qkvo]",)  # patterns of paths in a layer, as in file names: "mlp.*"
    rank_stabilised: bool = False  # scale alpha / sqrt(rank) (Kalajdzievski 2023) instead of alpha / rank

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


def adapted_paths(config: LMConfig, lora: LoraConfig) -> dict[str, tuple[int, int]]:
    """Path in a layer -> (in, out) of every matrix with an adapter; ValueError where a pattern fits none."""
    matrices = {
        path.removeprefix("layers."): _sizes(parameter)
        for path, parameter in parameter_table(config).items()
        if path.startswith("layers.") and parameter.num_inputs
    }
    for pattern in lora.targets:
        if not fnmatch.filter(matrices, pattern):
            raise ValueError(f"targets: {pattern!r} fits none of {', '.join(matrices)}")
    return {path: s for path, s in matrices.items() if any(fnmatch.fnmatch(path, t) for t in lora.targets)}


def init_adapters(config: LMConfig, lora: LoraConfig, key: Array, dtype: str = "float32") -> Adapters:
    """A uniform in +-1/sqrt(in), B zero; consumes `key`."""
    paths = adapted_paths(config, lora)
    adapters = {}
    for subkey, (path, (num_in, num_out)) in zip(jax.random.split(key, len(paths)), paths.items(), strict=True):
        bound = num_in**-0.5
        a = jax.random.uniform(subkey, (config.num_layers, num_in, lora.rank), jnp.float32, -bound, bound)
        adapters[path] = {"a": a.astype(dtype), "b": jnp.zeros((config.num_layers, lora.rank, num_out), dtype)}
    return adapters


def attach(params: Params, adapters: Adapters, scale: Array | float) -> Params:
    """Parameters whose layers carry the adapters; the weights are the same arrays. `scale` may be traced."""
    scaled = {path: {"a": pair["a"], "b": pair["b"] * scale} for path, pair in adapters.items()}
    return {**params, "layers": {**params["layers"], "lora": scaled}}


def merge(params: Params, adapters: Adapters, scale: Array | float) -> Params:
    """Parameters with `scale * A B` added to the weights: no adapters, the same model. `-scale` undoes it."""
    layers = {name: dict(group) if isinstance(group, dict) else group for name, group in params["layers"].items()}
    for path, pair in adapters.items():
        group, name = path.split(".")
        weight = layers[group][name]
        change = jnp.matmul(pair["a"], pair["b"], precision="highest") * scale
        layers[group][name] = (weight + change.reshape(weight.shape)).astype(weight.dtype)
    return {**params, "layers": layers}


def merge_attached(params: Params) -> Params:
    """The same model without adapters: those that `attach` added are merged."""
    adapters = params["layers"].get("lora", {})
    layers = {name: group for name, group in params["layers"].items() if name != "lora"}
    return merge({**params, "layers": layers}, adapters, 1.0)


def save_peft(folder: str | Path, config: LMConfig, lora: LoraConfig, adapters: Adapters, base: str = "") -> None:
    """Writes adapter_config.json and adapter_model.safetensors as PEFT reads them; `base` names the base model."""
    folder = Path(folder)
    modules = _modules(config, adapted_paths(config, lora))
    tensors = {}
    for (path, layer), module in modules.items():
        for name, leaf in (("lora_A", "a"), ("lora_B", "b")):
            matrix = np.asarray(jax.device_get(adapters[path][leaf]))[layer]
            tensors[f"{_PREFIX}{module}.{name}.weight"] = np.ascontiguousarray(matrix.T)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "use_rslora": lora.rank_stabilised,
        "bias": "none",
        "fan_in_fan_out": config.family == "gpt2",
        "target_modules": sorted({module.rpartition(".")[2] for module in modules.values()}),
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
    write_tensors(folder / _WEIGHTS, tensors)


def load_peft(folder: str | Path, config: LMConfig) -> tuple[LoraConfig, Adapters]:
    """Reads an adapter that PEFT or `save_peft` wrote.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a kind of adapter that is not implemented, or tensors that do not fit the model: named.
    """
    folder = Path(folder)
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}")
    settings = json.loads((folder / _CONFIG).read_text())
    for key, allowed in _PLAIN.items():
        if settings.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{key} = {settings[key]!r} is not supported; allowed: {allowed[0]!r}")
    tensors = read_tensors(folder / _WEIGHTS)
    table = adapted_paths(config, LoraConfig(targets=("*",)))
    of_module = {module: place for place, module in _modules(config, table, partly=True).items()}
    found: dict[str, dict[int, dict[str, Any]]] = {}
    unknown = []
    for name, tensor in tensors.items():
        match = re.fullmatch(f"{re.escape(_PREFIX)}(.+)\\.lora_(A|B)\\.weight", name)
        if match is None or match[1] not in of_module:
            unknown.append(name)
            continue
        path, layer = of_module[match[1]]
        found.setdefault(path, {}).setdefault(layer, {})[match[2].lower()] = tensor.T
    if unknown:
        raise ValueError(f"{folder} holds tensors that are no adapter of this model: {', '.join(sorted(unknown))}")
    rank, adapters = settings["r"], {}
    for path, layers in found.items():
        shapes = {"a": (table[path][0], rank), "b": (rank, table[path][1])}
        for layer in range(config.num_layers):
            for leaf, shape in shapes.items():
                given = layers.get(layer, {}).get(leaf)
                if given is None or given.shape != shape:
                    what = "is missing" if given is None else f"is {given.shape} instead of {shape}"
                    raise ValueError(f"{folder}: {leaf.upper()} of {path} in layer {layer} {what}")
        adapters[path] = {
            leaf: jnp.asarray(np.stack([layers[i][leaf] for i in range(config.num_layers)])) for leaf in shapes
        }
    lora = LoraConfig(rank, settings["lora_alpha"], tuple(adapters), bool(settings.get("use_rslora", False)))
    return lora, adapters


def _sizes(parameter: Any) -> tuple[int, int]:
    inputs = math.prod(parameter.shape[: parameter.num_inputs])
    return inputs, math.prod(parameter.shape) // inputs


def _modules(config: LMConfig, paths: Any, partly: bool = False) -> dict[tuple[str, int], str]:
    """(path, layer) -> the module's name in a checkpoint; fused modules are left out (`partly`) or refused."""
    modules = {}
    for row in tensor_map(config):
        mine = [path.removeprefix("layers.") for path in row.paths if path.removeprefix("layers.") in paths]
        if row.layer is None or not mine:
            continue
        if len(row.paths) == 1:
            modules[mine[0], row.layer] = row.name.removesuffix(".weight")
        elif not partly:
            raise ValueError(
                f"{mine[0]} is part of a fused module in {config.family} checkpoints: choose other targets"
            )
    return modules
