"""A page that plays a hopper's episode in three dimensions: one file with its own WebGL, no network, no library."""

from __future__ import annotations

import html
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from envs_jax.robotics.hopper_mjcf import mjcf
from envs_jax.robotics.hopper_replay import PHASES, trace
from envs_jax.robotics.offscreen import ARROW_SCALE, BODIES

if TYPE_CHECKING:
    from envs_jax.robotics.hopper_flip import HopperFlip
    from envs_jax.timeline import Played

TEMPLATE = Path(__file__).with_name("hopper_viewer.html")


def page(env: HopperFlip, played: Played, title: str) -> str:
    """The page. `#t=0.8` after its address shows that second, paused."""
    episode = trace(env, played)
    shapes, poses = shapes_and_poses(mjcf(env.hopper), episode.qpos)
    data = {
        "shapes": shapes,
        "poses": _rounded(poses, 4),
        "time": _rounded(episode.time, 3),
        "phase": episode.phase.tolist(),
        "phases": PHASES,
        "com": _rounded(episode.com, 4),
        "rate": _rounded(episode.centroidal_rate, 3),
        "arrowScale": ARROW_SCALE,
        "turns": _rounded(episode.turns, 3),
        "load": _rounded(episode.load, 3),
        "substeps": episode.speed.shape[1],
        "success": bool(played.time_steps.info["success"][-1] > 0.5),
        "motors": [
            {
                "name": name.replace("_", " "),
                "rated": motor.rated_load,
                "edge": _rounded(episode.edges[number], 2),
                # one row per substep
                **{
                    key: _rounded(getattr(episode, key)[..., number].ravel(), 2)
                    for key in ("speed", "command", "applied")
                },
            }
            for number, (name, motor) in enumerate(env.hopper.motors.items())
        ],
    }
    # "</script>" in a name must not end the script.
    encoded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    text = TEMPLATE.read_text(encoding="utf-8")
    return text.replace("@TITLE@", html.escape(title)).replace('"@DATA@"', encoded)


def shapes_and_poses(model_text: str, qpos: np.ndarray) -> tuple[list[dict[str, Any]], np.ndarray]:
    """What an MJCF model looks like and where its bodies are: any model of spheres, capsules and boxes.

    Args:
        model_text: the MJCF.
        qpos: [F, nq].

    Returns:
        Geoms (kind, size in m, body, pos and quat in the body's frame, color) without the floor; and f32
        [F, nbody, 7]: position (m) and quaternion (w, x, y, z) of every body.
    """
    mujoco: Any = importlib.import_module("mujoco")  # whose names type checkers do not see

    model = mujoco.MjModel.from_xml_string(model_text)
    data = mujoco.MjData(model)
    kinds = {
        int(mujoco.mjtGeom.mjGEOM_SPHERE): "sphere",
        int(mujoco.mjtGeom.mjGEOM_CAPSULE): "capsule",
        int(mujoco.mjtGeom.mjGEOM_BOX): "box",
    }
    shapes = [
        {
            "kind": kinds[int(kind)],
            "size": _rounded(model.geom_size[geom], 5),
            "body": int(model.geom_bodyid[geom]),
            "pos": _rounded(model.geom_pos[geom], 5),
            "quat": _rounded(model.geom_quat[geom], 6),
            "color": BODIES[(model.geom_bodyid[geom] - 1) % len(BODIES)][:3],
        }
        for geom, kind in enumerate(model.geom_type)
        if int(kind) in kinds
    ]
    poses = np.zeros((len(qpos), model.nbody, 7), np.float32)
    for frame, position in enumerate(qpos):
        data.qpos[:] = position
        mujoco.mj_kinematics(model, data)
        poses[frame] = np.concatenate([data.xpos, data.xquat], axis=1)
    return shapes, poses


def _rounded(values: Any, digits: int) -> list[Any]:
    return np.round(np.asarray(values, np.float64), digits).tolist()
