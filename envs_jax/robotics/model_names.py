"""Names of an MJCF turned into the indices that functions over a model and its data take."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from envs_jax.registry import nearest

COUNTS = {"body": "nbody", "joint": "njnt", "geom": "ngeom", "site": "nsite", "actuator": "nu"}


@dataclasses.dataclass(frozen=True)
class JointAddresses:
    """Where J hinges or slides stand in a model's arrays."""

    ids: np.ndarray  # i32 [J]
    positions: np.ndarray  # i32 [J]; in qpos
    dofs: np.ndarray  # i32 [J]; in qvel, and among the columns of Jacobians


def indices(model: Any, kind: str, names: Sequence[str]) -> np.ndarray:
    """The indices i32 `[len(names)]` of what is so called in a MuJoCo model.

    Args:
        model: a `mujoco.MjModel`.
        kind: "body", "joint", "geom", "site" or "actuator".
        names: in the order wanted.

    Raises:
        ValueError: a name is missing, with the nearest one and all that there are; or the kind is unknown.

    Example:
        >>> indices(model, "site", ["toe", "heel"])  # doctest: +SKIP
    """
    if kind not in COUNTS:
        raise ValueError(f"kind must be one of {', '.join(COUNTS)}, got {kind!r}{nearest(kind, COUNTS)}")
    known = [getattr(model, kind)(index).name for index in range(getattr(model, COUNTS[kind]))]
    for name in names:
        if not name or name not in known:
            named = [other for other in known if other]
            raise ValueError(
                f"the model has no {kind} {name!r}{nearest(name, named)} Known: {', '.join(named) or 'none'}"
            )
    return np.array([known.index(name) for name in names], np.int32)


def joint_addresses(model: Any, names: Sequence[str]) -> JointAddresses:
    """Where the named joints stand, for `transmission_load`, `motor_region` and controllers of any MJCF.

    Raises:
        ValueError: a joint is missing (see `indices`), or is no hinge or slide: it has more than one coordinate.
    """
    ids = indices(model, "joint", names)
    for name, index in zip(names, ids):
        if model.jnt_type[index] < 2:  # mjtJoint: free, ball, slide, hinge
            raise ValueError(f"joint {name!r} must be a hinge or a slide, but has more than one degree of freedom")
    return JointAddresses(ids, np.asarray(model.jnt_qposadr)[ids], np.asarray(model.jnt_dofadr)[ids])
