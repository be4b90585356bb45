"""The hopper as MJCF, for MuJoCo and MJX, from its constants."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.robotics.hopper_constants import Hopper
from envs_jax.robotics.hopper_planar import Robot

Array = jax.Array


def mjcf(hopper: Hopper, *, solver_iterations: int = 4, line_search_iterations: int = 8) -> str:
    """The model: a free thigh, calf and foot, three unit-gear motors, spheres against a floor.

    Robot geoms meet the floor only. Fewer solver iterations than 4 corrupt contact loads: the peak of a landing comes
    out 36 % too high with 2, 77 % with 1.
    """
    contact, links = hopper.contact, hopper.links

    def sphere(name: str, position: Iterable[float], radius: float) -> str:
        return f'<geom name="{name}" class="touching" type="sphere" size="{radius}" pos="{_text(position)}"/>'

    def inertial(link: str) -> str:
        item = links[link]
        return f'<inertial mass="{item.mass}" pos="{_text(item.com)}" diaginertia="{_text(item.inertia)}"/>'

    def joints(link: str) -> str:
        return "".join(
            f'<joint name="{name}" axis="{_text(joint.axis)}" range="{_text(joint.range)}" damping="{joint.damping}"'
            f' armature="{armature:.8g}"/>'
            for (name, joint), armature in zip(hopper.joints.items(), hopper.armature)
            if joint.link == link
        )

    def capsule(end: Iterable[float], radius: float) -> str:
        return f'<geom class="seen" type="capsule" size="{radius}" fromto="0 0 0 {_text(end)}"/>'

    sole = "".join(sphere(f"sole_{i}", point, contact.sole_radius) for i, point in enumerate(contact.sole))
    heel_and_toe = (max(p[0] for p in contact.sole), min(p[0] for p in contact.sole), contact.sole[0][2])
    toe, heel, height = heel_and_toe
    motors = "".join(f'<motor name="{name}" joint="{name}" gear="1"/>' for name in hopper.joints)
    return f"""<mujoco model="hopper">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{hopper.clock.time_step}" gravity="0 0 {-hopper.gravity}" solver="Newton" cone="pyramidal"
    iterations="{solver_iterations}" ls_iterations="{line_search_iterations}"><flag eulerdamp="disable"/></option>
  <default>
    <geom friction="{_text(contact.friction)}" solref="{contact.time_constant} 1" condim="3"/>
    <default class="touching"><geom contype="0" conaffinity="1"/></default>
    <default class="seen"><geom contype="0" conaffinity="0" mass="0" rgba="0.3 0.45 0.55 1"/></default>
  </default>
  <worldbody>
    <light pos="0 -2 3" dir="0 0.5 -1"/>
    <geom name="floor" type="plane" size="10 10 0.1" contype="1" conaffinity="1" rgba="0.9 0.9 0.88 1"/>
    <body name="thigh" pos="0 0 1">
      <freejoint name="free"/>{inertial("thigh")}
      {sphere("kneecap", contact.kneecap, contact.kneecap_radius)}{sphere("top", contact.top, contact.top_radius)}
      {capsule(links["calf"].offset, 0.04)}
      <body name="calf" pos="{_text(links["calf"].offset)}">
        {joints("calf")}{inertial("calf")}{capsule(links["foot"].offset, 0.025)}
        <body name="foot" pos="{_text(links["foot"].offset)}">
          {joints("foot")}{inertial("foot")}{sole}
          <geom class="seen" type="box" size="{(toe - heel) / 2} 0.04 0.01" pos="{(toe + heel) / 2} 0 {height}"/>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>{motors}</actuator>
</mujoco>
"""


def model_fields(model: Any, hopper: Hopper, robot: Robot) -> dict[str, Array]:
    """The fields in which `robot`, drawn for an episode, differs from the compiled MJCF of `hopper`.

    What the planar robot does not have goes along with what it has: inertias about x and z with the one about y,
    armature and damping of the roll joint with those of the ankle's pitch. Nominal stay the inverse inertias by which
    MuJoCo scales the softness of constraints (`invweight0`), as they do in the plane.

    Args:
        model: MuJoCo's or MJX's model of `mjcf(hopper)`.
        hopper: its constants.
        robot: leaves may be traced.

    Returns:
        Arrays by the name of the model's field, "opt.gravity" among them.
    """
    armature, damping = (
        jnp.concatenate([drawn, nominal[2:] * drawn[1] / (nominal[1] or 1.0)])
        for drawn, nominal in ((robot.armature, hopper.armature), (robot.damping, hopper.table("joints", "damping")))
    )
    inertia, com = hopper.table("links", "inertia"), hopper.table("links", "com")
    nothing, free = jnp.zeros((1, 3)), jnp.zeros(6)
    beyond = jnp.cumsum(robot.mass[::-1])[::-1]
    return {
        "body_mass": jnp.concatenate([nothing[0, :1], robot.mass]),
        "body_subtreemass": jnp.concatenate([beyond[:1], beyond]),
        "body_inertia": jnp.concatenate([nothing, inertia * (robot.inertia / inertia[:, 1])[:, None]]),
        "body_ipos": jnp.concatenate([nothing, jnp.stack([robot.com[:, 0], com[:, 1], robot.com[:, 1]], axis=1)]),
        "dof_armature": jnp.concatenate([free, armature]),
        "dof_damping": jnp.concatenate([free, damping]),
        "geom_friction": jnp.asarray(model.geom_friction, jnp.float32).at[:, 0].set(robot.friction),
        "geom_solref": jnp.asarray(model.geom_solref, jnp.float32).at[:, 0].set(robot.time_constant),
        "jnt_solref": jnp.asarray(model.jnt_solref, jnp.float32).at[:, 0].set(robot.time_constant),
        "geom_pos": jnp.asarray(model.geom_pos, jnp.float32).at[0, 2].set(robot.ground),  # the floor comes first
        "opt.gravity": jnp.stack([jnp.zeros(()), jnp.zeros(()), -robot.gravity]),
    }


def make_model(hopper: Hopper, robot: Robot | None = None, **options: Any) -> Any:
    """MuJoCo's model of `mjcf(hopper, **options)`, changed to `robot` where one is given.

    Raises:
        ImportError: MuJoCo is not installed.
    """
    try:
        import mujoco
    except ImportError as error:
        raise ImportError("the spatial hopper needs MuJoCo: pip install mujoco") from error
    model = mujoco.MjModel.from_xml_string(mjcf(hopper, **options))  # pyright: ignore[reportAttributeAccessIssue]
    if robot is not None:
        for name, value in model_fields(model, hopper, robot).items():
            owner = model.opt if name.startswith("opt.") else model
            getattr(owner, name.removeprefix("opt."))[:] = np.asarray(value)
    return model


def _text(numbers: Iterable[float]) -> str:
    return " ".join(f"{number:.8g}" for number in numbers)
