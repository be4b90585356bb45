"""The parameters of a language model as one table: shapes, initial values, checkpoints and adapters come from it.

A parameter goes by its dotted path, such as "layers.attn.q"; the tree of a model nests dictionaries along the dots.
What is below "layers" is stacked: its arrays lead with the axis of layers L.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxrl.llm.config import LMConfig

Array = jax.Array
Params = Any  # nested dictionaries of arrays


class Parameter(NamedTuple):
    """One entry of the table; `shape` is that of one layer, without L."""

    shape: tuple[int, ...]
    num_inputs: int  # how many leading axes a product sums over; 0: a vector (norm, bias)


def parameter_table(config: LMConfig) -> dict[str, Parameter]:
    """Dotted path -> shape and number of input axes, for every parameter of the model."""
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    table = {"embed": Parameter((config.vocab_size, hidden), 1), "norm_final": Parameter((hidden,), 0)}
    if config.position == "learned":
        table["positions"] = Parameter((config.max_positions, hidden), 1)
    if not config.tie_embeddings:
        table["lm_head"] = Parameter((hidden, config.vocab_size), 1)
    layer = {"norm_attn": Parameter((hidden,), 0), "norm_mlp": Parameter((hidden,), 0)}
    for name, num_heads in (("q", config.num_heads), ("k", config.num_kv_heads), ("v", config.num_kv_heads)):
        layer[f"attn.{name}"] = Parameter((hidden, num_heads, head_dim), 1)
        if config.qkv_bias:
            layer[f"attn.{name}_bias"] = Parameter((num_heads, head_dim), 0)
    layer["attn.o"] = Parameter((config.num_heads, head_dim, hidden), 2)
    if config.output_bias:
        layer["attn.o_bias"] = Parameter((hidden,), 0)
    if config.qk_norm:
        layer |= {"attn.q_norm": Parameter((head_dim,), 0), "attn.k_norm": Parameter((head_dim,), 0)}
    expanding = ("up",) if config.mlp == "plain" else ("gate", "up")
    for name in expanding:
        layer[f"mlp.{name}"] = Parameter((hidden, inner), 1)
    layer["mlp.down"] = Parameter((inner, hidden), 1)
    if config.mlp_bias:
        layer |= {f"mlp.{name}_bias": Parameter((inner,), 0) for name in expanding}
        layer["mlp.down_bias"] = Parameter((hidden,), 0)
    if config.norm == "layer":
        table["norm_final_bias"] = Parameter((hidden,), 0)
        layer |= {"norm_attn_bias": Parameter((hidden,), 0), "norm_mlp_bias": Parameter((hidden,), 0)}
    return table | {f"layers.{path}": parameter for path, parameter in layer.items()}


def stacked_shape(config: LMConfig, path: str, parameter: Parameter) -> tuple[int, ...]:
    """The shape in the tree: with the axis of layers where the parameter belongs to one."""
    return (config.num_layers, *parameter.shape) if path.startswith("layers.") else parameter.shape


def init_params(config: LMConfig, key: Array, dtype: str = "float32") -> Params:
    """Normal weights of std `config.initial_std`, norms 1, biases 0; consumes `key`."""
    table = parameter_table(config)
    flat = {}
    for (path, parameter), subkey in zip(table.items(), jax.random.split(key, len(table)), strict=True):
        shape = stacked_shape(config, path, parameter)
        if parameter.num_inputs:
            flat[path] = (config.initial_std * jax.random.normal(subkey, shape)).astype(dtype)
        else:
            flat[path] = jnp.zeros(shape, dtype) if path.endswith("_bias") else jnp.ones(shape, dtype)
    return nest(flat)


def num_parameters(config: LMConfig) -> int:
    """How many numbers the model has, tied embeddings counted once."""
    total = 0
    for path, parameter in parameter_table(config).items():
        size = 1
        for length in stacked_shape(config, path, parameter):
            size *= length
        total += size
    return total


def flatten(params: Params) -> dict[str, Any]:
    """Dotted path -> leaf."""
    return flatten_dict(params, sep=".")


def nest(flat: Mapping[str, Any]) -> Params:
    """The tree of dotted paths."""
    return unflatten_dict(dict(flat), sep=".")


def unstack_layers(params: Params) -> Params:
    """The same parameters with "layers" a tuple of one tree per layer.

    A loop of decoding steps then reads each layer's arrays as they lie, instead of slices of the stacked ones.
    """
    if isinstance(params["layers"], tuple):
        return params
    num_layers = jax.tree.leaves(params["layers"])[0].shape[0]
    layers = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]) for i in range(num_layers))
    return {**params, "layers": layers}


def stack_layers(params: Params) -> Params:
    """What `unstack_layers` was given."""
    if not isinstance(params["layers"], tuple):
        return params
    return {**params, "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *params["layers"])}
