"""Pictures of any MJCF model drawn by MuJoCo without a window, in a process of its own.

A graphics back end is chosen by the environment when mujoco is imported, and a broken driver takes its process with it:
so each one is tried in a child, which runs this file as a script and needs numpy and mujoco alone.
"""

from __future__ import annotations

import importlib
import itertools
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np

BACKENDS = ("egl", "osmesa")  # of Mesa or a GPU; the second needs a system library
TIMEOUT = 600.0  # s
# RGBA of the bodies in turn, of the path and of the arrow.
BODIES = ((0.18, 0.28, 0.35, 1), (0.2, 0.4, 0.54, 1), (0.53, 0.73, 0.85, 1))
PATH, ARROW = (0.93, 0.68, 0.29, 1), (0.82, 0.29, 0.36, 1)
ARROW_SCALE = 0.06  # m per unit


def render_offscreen(
    mjcf: str, qpos: np.ndarray, path: np.ndarray, arrows: np.ndarray, width: int, height: int
) -> np.ndarray | None:
    """Draws states of a model, the camera moving along.

    Args:
        mjcf: the model.
        qpos: f64 [F, nq]; one state per picture.
        path: f64 [F, 3]; a point (m) per picture, joined to a line as the film goes on.
        arrows: f64 [F, 3]; a vector per picture, drawn at the point.
        width, height: pixels.

    Returns:
        u8 [F, height, width, 3]; None where no back end can draw. MUJOCO_GL names the only one to try, if it is set.
    """
    given = os.environ.get("MUJOCO_GL")
    with tempfile.TemporaryDirectory() as folder:
        order, result = Path(folder) / "order.npz", Path(folder) / "pictures.npy"
        np.savez(order, mjcf=mjcf, qpos=qpos, path=path, arrows=arrows, size=(height, width))
        for backend in [given] if given else BACKENDS:
            command = [sys.executable, "-P", __file__, str(order), str(result)]
            try:
                subprocess.run(
                    command, env={**os.environ, "MUJOCO_GL": backend}, timeout=TIMEOUT, check=True, capture_output=True
                )
                return np.load(result)
            except (subprocess.SubprocessError, OSError, ValueError):
                continue  # the back end is not there, or not in order
    return None


def decorated(mjcf: str, width: int, height: int) -> str:
    """The model with a sky, a chequered floor, and a buffer large enough for the pictures."""
    root = ElementTree.fromstring(mjcf)
    assets = ElementTree.SubElement(root, "asset")
    sky = {"type": "skybox", "builtin": "gradient", "rgb1": "0.97 0.97 0.96", "rgb2": "0.80 0.85 0.90"}
    ElementTree.SubElement(assets, "texture", {**sky, "width": "64", "height": "64"})
    tiles = {"name": "tiles", "type": "2d", "builtin": "checker", "rgb1": "0.87 0.88 0.90", "rgb2": "0.80 0.82 0.85"}
    ElementTree.SubElement(assets, "texture", {**tiles, "width": "128", "height": "128"})
    ElementTree.SubElement(assets, "material", name="tiles", texture="tiles", texrepeat="2 2", texuniform="true")
    for geom in root.iter("geom"):
        if geom.get("type") == "plane":
            geom.set("material", "tiles")
            geom.attrib.pop("rgba", None)
    for light in root.iter("light"):
        light.set("directional", "true")  # a spot would leave most of the floor dark
        light.set("diffuse", "0.5 0.5 0.5")
    visual = ElementTree.SubElement(root, "visual")
    ElementTree.SubElement(visual, "global", offwidth=str(width), offheight=str(height))
    ElementTree.SubElement(visual, "headlight", ambient="0.5 0.5 0.5", diffuse="0.4 0.4 0.4", specular="0 0 0")
    return ElementTree.tostring(root, encoding="unicode")


def draw(mjcf: str, qpos: np.ndarray, path: np.ndarray, arrows: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pictures of `render_offscreen`, by the back end that MUJOCO_GL names."""
    mujoco: Any = importlib.import_module("mujoco")  # whose names type checkers do not see

    model = mujoco.MjModel.from_xml_string(decorated(mjcf, width, height))
    data = mujoco.MjData(model)
    for geom in range(model.ngeom):
        if model.geom_type[geom] != mujoco.mjtGeom.mjGEOM_PLANE:
            model.geom_rgba[geom] = BODIES[(model.geom_bodyid[geom] - 1) % len(BODIES)]
    camera = mujoco.MjvCamera()
    camera.distance, camera.azimuth, camera.elevation = 2.9, 128.0, -14.0
    pictures = []
    with mujoco.Renderer(model, height, width) as renderer:
        for number, state in enumerate(qpos):
            data.qpos[:] = state
            mujoco.mj_forward(model, data)
            camera.lookat[:] = path[number][0], path[number][1], 0.7
            renderer.update_scene(data, camera)
            scene = renderer.scene
            for begin, end in itertools.pairwise(path[: number + 1]):
                _connect(mujoco, scene, mujoco.mjtGeom.mjGEOM_CAPSULE, 0.007, begin, end, PATH)
            tip = path[number] + ARROW_SCALE * arrows[number]
            if np.linalg.norm(arrows[number]) > 0.5:
                _connect(mujoco, scene, mujoco.mjtGeom.mjGEOM_ARROW, 0.02, path[number], tip, ARROW)
            pictures.append(renderer.render())
    return np.stack(pictures)


def _connect(mujoco: Any, scene: Any, kind: Any, width: float, begin: Any, end: Any, color: Any) -> None:
    if scene.ngeom == scene.maxgeom:
        return
    geom = scene.geoms[scene.ngeom]
    mujoco.mjv_initGeom(geom, kind, np.zeros(3), np.zeros(3), np.zeros(9), np.asarray(color, np.float32))
    mujoco.mjv_connector(geom, kind, width, np.asarray(begin, np.float64), np.asarray(end, np.float64))
    scene.ngeom += 1


def main(order: str, result: str) -> None:
    with np.load(order) as content:
        height, width = (int(number) for number in content["size"])
        pictures = draw(str(content["mjcf"]), content["qpos"], content["path"], content["arrows"], height, width)
    np.save(result, pictures)


if __name__ == "__main__":
    main(*sys.argv[1:])
