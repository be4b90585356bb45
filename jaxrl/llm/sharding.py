"""Language models over many devices: which axis of which array lies on which axis of a mesh.

The mesh has the axes `data` (copies of the model, each with its own sequences), `fsdp` (the same, but weights and what
the optimiser knows of them are split and gathered when they are used) and `tensor` (heads, inner units and words are
split). Rules are a plain dictionary of regular expression -> `PartitionSpec`; the compiler does the rest:

    mesh = make_mesh(fsdp=4, tensor=2)
    model = TransformerLM(config, sharding=hidden_sharding(mesh))
    state = jax.device_put(state, state_sharding(state, param_sharding(state.params, mesh)))
    batch = shard_batch(batch, mesh)
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from envs_jax.registry import nearest
from jaxrl.llm.attention import Cache
from jaxrl.llm.config import LMConfig
from jaxrl.llm.parameters import Params, parameter_table, stacked_shape

PyTree = Any
Rules = Mapping[str, P]  # the whole dotted path of a parameter -> the mesh axes of its axes; the last that fits decides
AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

RULES: Rules = {
    r"embed": P("tensor", "fsdp"),
    r"positions": P(None, "fsdp"),
    r"lm_head": P("fsdp", "tensor"),
    r"layers\.attn\.[qkv]": P(None, "fsdp", "tensor", None),
    r"layers\.attn\.[qkv]_bias": P(None, "tensor", None),
    r"layers\.attn\.o": P(None, "tensor", None, "fsdp"),
    r"layers\.mlp\.(gate|up)": P(None, "fsdp", "tensor"),
    r"layers\.mlp\.(gate|up)_bias": P(None, "tensor"),
    r"layers\.mlp\.down": P(None, "tensor", "fsdp"),
    # Small: every device has them whole.
    r"(layers\.)?norm_\w+": P(),
    r"layers\.attn\.([qk]_norm|o_bias)": P(),
    r"layers\.mlp\.down_bias": P(),
    r"(.+\.)?(attn|mlp)\.\w+\.[ab]": P(),  # adapters
}
# There may be fewer heads of keys and values than devices along `tensor`: then each of those has all of them.
_FEW_HEADS = re.compile(r"layers\.attn\.[kv](_bias)?")


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of `data * fsdp * tensor` devices, those of all processes by default.

    Raises:
        ValueError: a size is below 1, or there are fewer or (without `devices`) more devices.
    """
    sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    devices = jax.devices() if devices is None else list(devices)
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(f"{' * '.join(f'{n}={s}' for n, s in sizes.items())} must be the {len(devices)} devices")
    # Auto: the compiler spreads what is not told, and `vmap` takes arguments of which only some are split.
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def param_sharding(params: Params, mesh: Mesh, rules: Rules = RULES) -> PyTree:
    """A `NamedSharding` for every parameter.

    Args:
        params: arrays or shapes; layers stacked. Adapters too.
        mesh: any mesh whose axes the rules name.
        rules: by default `RULES`; change some with `RULES | {pattern: spec}`.

    Raises:
        ValueError: a parameter that no rule fits, a rule of one's own that fits no parameter, or a rule whose axes do
            not exist, are too many for the parameter, or do not divide it.
    """
    paths = {name for name, _ in _named(params)}
    for pattern in set(rules) - set(RULES):
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise ValueError(f"the rule {pattern!r} fits no parameter{nearest(pattern, paths)}")
    shardings = [NamedSharding(mesh, _spec(name, leaf.shape, mesh, rules)) for name, leaf in _named(params)]
    return jax.tree.structure(params).unflatten(shardings)


def shard_params(params: Params, mesh: Mesh, rules: Rules = RULES) -> Params:
    """The parameters on the devices of a mesh; see `param_sharding`."""
    return jax.device_put(params, param_sharding(params, mesh, rules))


def model_sharding(config: LMConfig, mesh: Mesh, rules: Rules = RULES) -> dict[str, NamedSharding]:
    """Dotted path -> sharding of every parameter of a model that does not exist yet."""
    table = parameter_table(config)
    shapes = {path: jax.ShapeDtypeStruct(stacked_shape(config, path, row), jnp.float32) for path, row in table.items()}
    return param_sharding(shapes, mesh, rules)


def state_sharding(state: PyTree, params: PyTree) -> PyTree:
    """The sharding of a training state: what is named and shaped like a parameter lies where the parameter does.

    Args:
        state: arrays or shapes: an optimiser's state, or a whole `TrainState`.
        params: from `param_sharding`.

    Returns:
        A sharding per leaf. Moments, target and average parameters follow; all else every device has whole.
    """
    known = dict(_named(params))
    mesh = next(iter(known.values())).mesh
    names = [name.split(".") for name, _ in _named(state)]
    leaves, structure = jax.tree.flatten(state)
    shardings = []
    for parts, leaf in zip(names, leaves, strict=True):
        # "1.mu.layers.attn.q" is a moment of "layers.attn.q".
        tails = (".".join(parts[i:]) for i in range(len(parts)))
        found = next((known[tail] for tail in tails if tail in known), None)
        fits = found is not None and leaf.ndim >= len(found.spec)
        shardings.append(found if fits else NamedSharding(mesh, P()))
    return structure.unflatten(shardings)


def hidden_sharding(mesh: Mesh) -> NamedSharding:
    """Of hidden states `[B, T, D]`, for `TransformerLM(sharding=...)`: sequences split, each of them whole."""
    return NamedSharding(mesh, P(BATCH))


def cache_sharding(cache: Cache, mesh: Mesh) -> Cache:
    """The sharding of a cache: sequences split, and heads where they divide."""
    divides = cache.keys[0].shape[1] % mesh.shape["tensor"] == 0
    heads = NamedSharding(mesh, P(BATCH, "tensor" if divides else None))
    rows, whole = NamedSharding(mesh, P(BATCH)), NamedSharding(mesh, P())
    tree = jax.tree.map(lambda _: heads, cache)
    return dataclasses.replace(tree, valid=rows, index=rows if cache.index.ndim else whole)


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Arrays that lead with B, split by sequences over `data` and `fsdp`.

    With several processes each gives its own sequences, as many as the others, and B is their sum.

    Raises:
        ValueError: the devices do not divide B.
    """
    sharding = NamedSharding(mesh, P(BATCH))
    parts = mesh.shape["data"] * mesh.shape["fsdp"]

    def place(path: Any, leaf: Any) -> jax.Array:
        size = leaf.shape[0] * jax.process_count()
        if size % parts:
            name = jax.tree_util.keystr(path, simple=True, separator=".") or "the batch"
            raise ValueError(f"{name} must have a multiple of data * fsdp = {parts} rows, got {size}")
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree_util.tree_map_with_path(place, batch)


def _spec(path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> P:
    """The rule of a parameter, checked."""
    fitting = [pattern for pattern in rules if re.fullmatch(pattern, path)]
    if not fitting:
        raise ValueError(f"no rule fits the parameter {path!r}: add one to RULES, such as {{{path!r}: P()}}")
    spec = rules[fitting[-1]]
    rule = f"the rule {fitting[-1]!r}: {spec}"
    if len(spec) > len(shape):
        raise ValueError(f"{rule} has more axes than {path} {shape}")
    checked = []
    for size, entry in zip(shape, spec):
        names = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        for name in names:
            if name not in mesh.shape:
                raise ValueError(f"{rule} names {name!r}; the mesh has {', '.join(mesh.shape)}")
        parts = math.prod(mesh.shape[name] for name in names)
        if size % parts and not (_FEW_HEADS.fullmatch(path) and names == ("tensor",)):
            raise ValueError(f"{rule} splits {path} {shape} into {parts}, which does not divide {size}")
        checked.append(entry if size % parts == 0 else None)
    return P(*checked)


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    """Every leaf with its dotted path."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in paths]
