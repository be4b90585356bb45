"""Hugging Face checkpoint folders: config.json and safetensors files, in one piece or sharded, to parameters and back.

Every tensor has one row in `tensor_map`: its name in the folder, the leaves it becomes, and whether it is stored
transposed, (out, in). The tree is stacked by layer; the folder is not.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrl.llm.config import LMConfig
from jaxrl.llm.hf_config import from_hf, to_hf
from jaxrl.llm.parameters import Params, flatten, nest, parameter_table, stacked_shape
from jaxrl.llm.sharding import RULES, Rules, model_sharding
from jaxrl.llm.tensor_files import read_tensors, write_tensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"
# Buffers that older files hold beside the weights; nothing of the model is in them.
_BUFFERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")
_LLAMA = {
    "embed": "model.embed_tokens.weight",
    "norm_final": "model.norm.weight",
    "lm_head": "lm_head.weight",
    "norm_attn": "input_layernorm.weight",
    "norm_mlp": "post_attention_layernorm.weight",
    "attn.q_norm": "self_attn.q_norm.weight",
    "attn.k_norm": "self_attn.k_norm.weight",
}
_GPT2 = {
    "embed": "transformer.wte.weight",
    "positions": "transformer.wpe.weight",
    "norm_final": "transformer.ln_f.weight",
    "norm_final_bias": "transformer.ln_f.bias",
    "lm_head": "lm_head.weight",
    "norm_attn": "ln_1.weight",
    "norm_attn_bias": "ln_1.bias",
    "norm_mlp": "ln_2.weight",
    "norm_mlp_bias": "ln_2.bias",
}
_GPT2_MODULES = {"attn.o": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}


class Tensor(NamedTuple):
    """A tensor of a checkpoint: its leaves lie side by side along its output axis."""

    name: str
    paths: tuple[str, ...]  # leaves of the tree; more than one where a file fuses matrices
    layer: int | None  # its place on the leaves' first axis
    transposed: bool  # stored (out, in)


def tensor_map(config: LMConfig) -> list[Tensor]:
    """One row per tensor of a checkpoint of this model, in the order of a file."""
    table = parameter_table(config)
    rows = [_tensor(config, (path,), None) for path in table if not path.startswith("layers.")]
    paths = [path.removeprefix("layers.") for path in table if path.startswith("layers.")]
    groups = [(path,) for path in paths]
    if config.family == "gpt2":  # queries, keys and values are one tensor
        fused = [tuple(f"attn.{name}{suffix}" for name in "qkv") for suffix in ("", "_bias")]
        groups = fused + [group for group in groups if not any(group[0] in names for names in fused)]
    return rows + [_tensor(config, group, layer) for layer in range(config.num_layers) for group in groups]


def _tensor(config: LMConfig, paths: tuple[str, ...], layer: int | None) -> Tensor:
    gpt2, path = config.family == "gpt2", paths[0]
    name = (_GPT2 if gpt2 else _LLAMA).get(path)
    transposed = path == "lm_head"
    if name is None:  # a linear layer: a module and which of its tensors
        module, kind = path.removesuffix("_bias"), "bias" if path.endswith("_bias") else "weight"
        if gpt2:
            module = "attn.c_attn" if len(paths) > 1 else _GPT2_MODULES[module]
        else:
            module = f"{module.replace('attn', 'self_attn')}_proj"
            transposed = kind == "weight"
        name = f"{module}.{kind}"
    if layer is None:
        return Tensor(name, paths, None, transposed)
    prefix = "transformer.h" if gpt2 else "model.layers"
    return Tensor(f"{prefix}.{layer}.{name}", tuple(f"layers.{p}" for p in paths), layer, transposed)


def load_hf(
    folder: str | Path,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    strict: bool = True,
) -> tuple[LMConfig, Params]:
    """Reads a checkpoint folder.

    Args:
        folder: holds config.json and model.safetensors, or the files named by model.safetensors.index.json.
        dtype: of the parameters; None: as stored.
        mesh: from `jaxrl.llm.sharding.make_mesh`, None for all on the default device; each device's part is read by
            itself.
        rules: how parameters lie on the mesh, see `jaxrl.llm.sharding`.
        strict: False lets the buffers of old files (inverse frequencies, causal masks) pass.

    Returns:
        The configuration and the parameters.

    Raises:
        FileNotFoundError: config.json, the weights or a shard is missing.
        ValueError: the configuration is not supported, or tensors are missing, unknown or of the wrong shape: all
            of them are named. Or the rules do not fit.
    """
    folder = Path(folder)
    config = _read_config(folder)
    tensors = _full_names(_read_folder(folder), config)
    rows = tensor_map(config)
    table = parameter_table(config)
    _check_names(folder, {row.name for row in rows}, tensors, strict, config)
    wrong = [
        f"{row.name} {tensors[row.name].shape} instead of {_stored_shape(table, row)}"
        for row in rows
        if tensors[row.name].shape != _stored_shape(table, row)
    ]
    if wrong:
        raise ValueError(f"{folder} holds tensors of the wrong shape: {', '.join(wrong)}")
    sources: dict[str, list[Tensor]] = {}
    for row in rows:
        for path in row.paths:
            sources.setdefault(path, []).append(row)
    shardings = None if mesh is None else model_sharding(config, mesh, rules)
    flat = {}
    for path, parameter in table.items():
        read = _reader(tensors, sources[path], path, parameter.shape, dtype)
        shape = stacked_shape(config, path, parameter)
        if shardings is None:
            flat[path] = jnp.asarray(read((slice(None),) * len(shape)))
        else:
            flat[path] = jax.make_array_from_callback(shape, shardings[path], read)
    return config, nest(flat)


def save_hf(folder: str | Path, config: LMConfig, params: Params, max_shard_bytes: int = 5_000_000_000) -> list[Path]:
    """Writes a checkpoint folder that transformers and `load_hf` read; tensors keep the parameters' type.

    Args:
        folder: made if it does not exist.
        config: of the parameters.
        params: the tree, layers stacked.
        max_shard_bytes: above this the weights are split into files of at most this size, with an index.

    Returns:
        The files written.

    Raises:
        ValueError: the tree is not one of this configuration, or no config.json can express it.
    """
    folder = Path(folder)
    flat = {path: np.asarray(jax.device_get(leaf)) for path, leaf in flatten(params).items()}
    table = parameter_table(config)
    expected = {path: stacked_shape(config, path, parameter) for path, parameter in table.items()}
    given = {path: leaf.shape for path, leaf in flat.items()}
    if given != expected:
        different = sorted(path for path in expected | given if expected.get(path) != given.get(path))
        what = ", ".join(f"{path} {given.get(path)} instead of {expected.get(path)}" for path in different)
        raise ValueError(f"the parameters are not those of the configuration: {what}")
    source = to_hf(config) | {"dtype": str(flat["embed"].dtype)}
    tensors = {row.name: _join(table, row, flat) for row in tensor_map(config)}
    folder.mkdir(parents=True, exist_ok=True)
    written = _write_shards(folder, tensors, max_shard_bytes)
    ids = {key: source[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if source[key] is not None}
    for name, content in (("config.json", source), (GENERATION, ids)):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        written.append(folder / name)
    return written


def _read_config(folder: Path) -> LMConfig:
    """config.json, with the ends of a text that generation_config.json adds: chat models often name more there."""
    config = from_hf(json.loads(_existing(folder / "config.json").read_text()))
    if not (folder / GENERATION).is_file():
        return config
    more = json.loads((folder / GENERATION).read_text()).get("eos_token_id")
    more = [] if more is None else [more] if isinstance(more, int) else more
    return dataclasses.replace(config, eos_ids=tuple(dict.fromkeys([*config.eos_ids, *more])))


def _reader(
    tensors: Mapping[str, np.ndarray], rows: Sequence[Tensor], path: str, shape: tuple[int, ...], dtype: str | None
) -> Callable[[Any], np.ndarray]:
    """`read(index)`: that part of a leaf; the parts of the tensors behind it are read and nothing else."""

    def one(row: Tensor) -> np.ndarray:
        tensor = tensors[row.name].T if row.transposed else tensors[row.name]
        if len(row.paths) > 1:
            tensor = np.split(tensor, len(row.paths), axis=-1)[row.paths.index(path)]
        return tensor.reshape(shape)

    def convert(part: np.ndarray) -> np.ndarray:
        return np.array(part, dtype=None if dtype is None else jnp.dtype(dtype), order="C")

    def read(index: Any) -> np.ndarray:
        if rows[0].layer is None:
            return convert(one(rows[0])[index])
        return np.stack([convert(one(row)[tuple(index[1:])]) for row in rows[index[0]]])

    return read


def _join(table: Mapping[str, Any], row: Tensor, flat: Mapping[str, np.ndarray]) -> np.ndarray:
    """The tensor of a row, as it is stored."""
    leaves = [flat[path] if row.layer is None else flat[path][row.layer] for path in row.paths]
    matrices = [leaf.reshape(_matrix_shape(table[path])) for leaf, path in zip(leaves, row.paths, strict=True)]
    joined = matrices[0] if len(matrices) == 1 else np.concatenate(matrices, axis=-1)
    return np.ascontiguousarray(joined.T if row.transposed else joined)


def _stored_shape(table: Mapping[str, Any], row: Tensor) -> tuple[int, ...]:
    shapes = [_matrix_shape(table[path]) for path in row.paths]
    shape = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
    return shape[::-1] if row.transposed else shape


def _matrix_shape(parameter: Any) -> tuple[int, ...]:
    """(in, out) of a matrix, (n,) of a vector."""
    inputs, outputs = parameter.shape[: parameter.num_inputs], parameter.shape[parameter.num_inputs :]
    return (math.prod(inputs), math.prod(outputs)) if inputs else (math.prod(outputs),)


def _read_folder(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder by name."""
    if not (folder / INDEX).is_file():
        return read_tensors(_existing(folder / WEIGHTS))
    where: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    files = sorted(set(where.values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {len(missing)} of {len(files)} shards: {', '.join(missing)}")
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        content = read_tensors(folder / file)
        listed = {name for name, place in where.items() if place == file}
        if content.keys() != listed:
            names = ", ".join(sorted(content.keys() ^ listed))
            raise ValueError(f"{folder / file} and {INDEX} disagree about {names}")
        tensors |= content
    return tensors


def _full_names(tensors: dict[str, np.ndarray], config: LMConfig) -> dict[str, np.ndarray]:
    """Names as a causal language model has them, from a folder that was written from the model without its head."""
    base = "transformer." if config.family == "gpt2" else "model."
    if any(name.startswith(base) for name in tensors):
        return tensors
    return {name if name.startswith("lm_head.") else base + name: tensor for name, tensor in tensors.items()}


def _check_names(folder: Path, expected: set[str], given: Iterable[str], strict: bool, config: LMConfig) -> None:
    given = set(given)
    unknown = given - expected
    if config.tie_embeddings:
        unknown -= {"lm_head.weight"}  # some files repeat the embeddings under this name, which nobody reads
    if not strict:
        unknown = {name for name in unknown if not name.endswith(_BUFFERS)}
    problems = [("lacks", expected - given), ("holds unknown", unknown)]
    texts = [f"{verb} {', '.join(sorted(names))}" for verb, names in problems if names]
    if texts:
        raise ValueError(f"{folder} does not fit its config.json of a {config.family} model: it {' and '.join(texts)}")


def _write_shards(folder: Path, tensors: Mapping[str, np.ndarray], max_shard_bytes: int) -> list[Path]:
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    (folder / INDEX).unlink(missing_ok=True)  # of an earlier, larger checkpoint
    if len(shards) == 1:
        write_tensors(folder / WEIGHTS, tensors)
        return [folder / WEIGHTS]
    (folder / WEIGHTS).unlink(missing_ok=True)
    stem, suffix = WEIGHTS.split(".")
    files = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.{suffix}" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        write_tensors(folder / file, shard)
    total = sum(tensor.nbytes for tensor in tensors.values())
    where = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return [folder / file for file in (*files, INDEX)]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}")
    return path
