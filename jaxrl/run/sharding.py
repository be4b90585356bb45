"""Several devices: environments or sweep members are split over a mesh, everything else is replicated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any


def make_mesh(num_devices: int) -> Mesh:
    """A mesh with one axis over so many local devices; 0 takes all.

    Raises:
        ValueError: there are fewer devices.
    """
    available = jax.local_device_count()
    wanted = num_devices or available
    if wanted > available:
        raise ValueError(f"num_devices must be at most {available} (the devices of this machine), got {num_devices}")
    # Auto: the default type refuses vmap over arguments of which only some are sharded.
    return jax.make_mesh((wanted,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:wanted])


def state_sharding(state: PyTree, mesh: Mesh, *, members: bool = False) -> PyTree:
    """The sharding of every leaf of a training state.

    Args:
        state: arrays or shapes; the leaves of its field `rollout` lead with B.
        mesh: from `make_mesh`.
        members: every leaf leads with a member axis, which is split instead of the environments.

    Raises:
        ValueError: the axis to split is not a multiple of the number of devices.
    """
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("batch",), ()))
    if members:
        _check_divides(state, mesh.size, "members of a group of the sweep")
        return jax.tree.map(lambda _: split, state)
    shardings = jax.tree.map(lambda _: whole, state)
    rollout = getattr(state, "rollout", None)
    if rollout is None:
        return shardings
    _check_divides(rollout, mesh.size, "config.num_envs")
    return dataclasses.replace(shardings, rollout=jax.tree.map(lambda _: split, rollout))


def split_members(function: Callable[..., PyTree], mesh: Mesh, axes: Sequence[PyTree]) -> Callable[..., PyTree]:
    """`function` on each device's share of the members, without communication.

    Args:
        function: its results lead with the member axis.
        mesh: from `make_mesh`.
        axes: for each argument, as in `jax.vmap`: 0 where it leads with the member axis too, or None.
    """
    members, whole = PartitionSpec("batch"), PartitionSpec()
    specs = jax.tree.map(
        lambda axis: whole if axis is None else members, tuple(axes), is_leaf=lambda axis: axis is None
    )
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=members, check_vma=False)


def replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """The sharding of leaves that every device holds whole."""
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)


def _check_divides(tree: PyTree, num_devices: int, what: str) -> None:
    size = jax.tree.leaves(tree)[0].shape[0]
    if size % num_devices:
        raise ValueError(f"{what} must be a multiple of the {num_devices} devices, got {size}")
