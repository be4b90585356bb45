"""A hopper's policy played in C MuJoCo, with controller, motors and observation written once more, in NumPy.

What a policy learned in one simulator is worth in another: double precision, a finer time step, a converged solver, and
nothing of the compiled environment but its constants and tolerances.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from envs_jax.robotics import hopper_flip
from envs_jax.robotics.hopper_constants import Clock, Hopper
from envs_jax.robotics.hopper_mjcf import make_model
from envs_jax.robotics.hopper_params import CHOICES, Params, evaluation_params
from envs_jax.robotics.model_names import indices
from envs_jax.robotics.transmission_load import FIRST_CONTACT_ROW_TYPE

ASTRAY = 1.0  # rad; yaw or roll of the base in the air that ends an episode


@dataclasses.dataclass(frozen=True)
class Replay:
    """An episode of T control steps with S substeps; it ends early where it fails. Loads are not signed."""

    observation: np.ndarray  # f32 [T + 1, 22]; one frame before each action, and after the last
    action: np.ndarray  # f32 [T, 3]
    qpos: np.ndarray  # f64 [T + 1, 10]
    qvel: np.ndarray  # f64 [T + 1, 9]
    turns: np.ndarray  # f64 [T + 1, 2]; of the base and of the whole
    torque: np.ndarray  # f64 [T, S, 3]; at the joints, N m
    contact_load: np.ndarray  # f64 [T, M]; the largest of each control step, definition A, N m
    gear_load: np.ndarray  # f64 [T, M]; likewise, definition B
    success: bool  # as the environment defines it
    failure: str  # "", "body", "astray", "overload" or "not finite"


def replay(
    env: hopper_flip.HopperFlip,
    policy: Callable[[np.ndarray], np.ndarray],
    *,
    params: Params | None = None,
    seed: int = 0,
    start: tuple[np.ndarray, np.ndarray] | None = None,
    num_frames: int = 3,
    time_step: float = 0.0005,
    solver_iterations: int = 100,
) -> Replay:
    """Plays one episode from the stance, under the motors' region, without noise or a push.

    Args:
        env: whose constants and clock hold; its physics is not used.
        policy: from the stacked observation f32 `[num_frames * 22]`, oldest frame first, to the action `[3]`.
        params: robot, motors, gains, delay and loads; those of an evaluation if None.
        seed: draws the start, and whether an overloaded gear breaks.
        start: `(qpos [10], qvel [9])` instead of a drawn one.
        num_frames: of the observation that the policy was trained with.
        time_step: of the physics, s; divides the control step.
        solver_iterations: of Newton's method, and half as many of its line search.

    Raises:
        ImportError: MuJoCo is not installed.
        ValueError: the time step does not divide the control step.

    Example:
        >>> env, _ = envs_jax.make("hopper-flip")
        >>> replay(env, lambda observation: np.zeros(3)).success
        False
    """
    clock = env.clock
    substeps = round(clock.control_step / time_step)
    if substeps < 1 or abs(substeps * time_step - clock.control_step) > 1e-9:
        raise ValueError(f"time_step must divide the control step of {clock.control_step} s, got {time_step}")
    drawn: Any = jax.device_get(evaluation_params(env.default_params) if params is None else params)
    generator = np.random.default_rng(seed)
    world = _World(env.hopper, drawn, time_step, solver_iterations)
    world.start(*(draw_start(generator, drawn.nominal) if start is None else start), on_floor=start is None)

    actions, calm, failure = np.zeros((2, 3), np.float32), 0, ""
    frames = [frame(*world.state, drawn.nominal, actions, 0, clock)] * num_frames
    seen, states, turns, taken = frames[-1:], [world.state], [world.turns], []
    for step in range(clock.num_steps):
        action = np.clip(np.asarray(policy(np.concatenate(frames)), np.float32).reshape(3), -1.0, 1.0)
        used = actions[0] if drawn.delay else action
        torque, contact, gear = world.advance(drawn.nominal + drawn.action_scale * used, substeps)
        taken.append((action, torque, contact, gear))
        actions = np.stack([action, actions[0]])
        frames = [*frames[1:], frame(*world.state, drawn.nominal, actions, step + 1, clock)]
        seen.append(frames[-1])
        states.append(world.state)
        turns.append(world.turns)
        speed, on_foot, on_body, tilt = world.condition()
        calm = calm + 1 if on_foot and speed < hopper_flip.CALM_SPEED else 0
        load = gear if drawn.load_definition == CHOICES["load_definition"].index("gear") else contact
        endangered = drawn.load != CHOICES["load"].index("off") and (load > drawn.destructive_load).any()
        if world.data.time < (step + 0.5) * clock.control_step:  # MuJoCo starts anew where numbers explode
            failure = "not finite"
        elif on_body:
            failure = "body"
        elif tilt > ASTRAY and not on_foot:
            failure = "astray"
        elif endangered and generator.random() < 0.5:
            failure = "overload"
        if failure:
            break
    errors = np.abs(turns[-1] - 1.0) * 2 * math.pi
    right = errors[0] < hopper_flip.PITCH_TOLERANCE and errors[1] < hopper_flip.ROTATION_TOLERANCE
    action, torque, contact, gear = map(np.stack, zip(*taken))
    qpos, qvel = map(np.stack, zip(*states))
    return Replay(
        np.stack(seen), action, qpos, qvel, np.stack(turns), torque, contact, gear,
        success=bool(right and calm * clock.control_step >= hopper_flip.CALM_TIME - 1e-9 and not failure),
        failure=failure,
    )  # fmt: skip


def frame(
    qpos: np.ndarray, qvel: np.ndarray, nominal: np.ndarray, actions: np.ndarray, step: int, clock: Clock
) -> np.ndarray:
    """The observation f32 [22] of one control step; `actions` `[2, 3]` are the last one and the one before."""
    time = step * clock.control_step + 1e-9
    phase = [time < clock.take_off_end, clock.take_off_end <= time < clock.aerial_end, time >= clock.aerial_end]
    parts = (
        -rotation(qpos[3:7])[2], 0.2 * qvel[3:6], qpos[7:] - nominal, 0.1 * qvel[6:], np.ravel(actions),
        [step / clock.num_steps], phase,
    )  # fmt: skip
    return np.concatenate(parts).astype(np.float32)


def draw_start(generator: np.random.Generator, nominal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A start in the stance, as the environment draws it: `(qpos [10], qvel [9])`, the base at the origin."""
    pitch = generator.uniform(-0.03, 0.03) - nominal[0] - nominal[1]
    yaw = generator.uniform(-math.pi, math.pi)
    (cos_yaw, sin_yaw), (cos, sin) = ((math.cos(angle / 2), math.sin(angle / 2)) for angle in (yaw, pitch))
    turned = [cos_yaw * cos, -sin_yaw * sin, cos_yaw * sin, sin_yaw * cos]
    joints, rates = nominal + generator.uniform(-0.05, 0.05, 3), generator.uniform(-0.1, 0.1, 3)
    return np.concatenate([np.zeros(3), turned, joints]), np.concatenate([np.zeros(6), rates])


def rotation(quaternion: np.ndarray) -> np.ndarray:
    """[3, 3]: from the axes of the body to the world's, of a quaternion (w, x, y, z)."""
    w, vector = quaternion[0], quaternion[1:]
    crossed = np.cross(np.eye(3), vector)
    return np.eye(3) + 2 * w * crossed + 2 * crossed @ crossed


class _Motors:
    """Motors that drive all three joints: PD controller, operating region, and loads at the gears."""

    def __init__(self, hopper: Hopper, params: Params):
        values: Any = params  # on the host
        self.params, self.motors, self.transmission = values, values.motors, hopper.transmission
        self.sharing = np.linalg.pinv(self.transmission.T)

    def torque(self, targets: np.ndarray, joints: np.ndarray, rates: np.ndarray) -> np.ndarray:
        """At the joints [3], N m, of position targets [3]."""
        motors, ratio = self.motors, self.motors.gear_ratio
        wanted = self.params.proportional_gain * (targets - joints) - self.params.derivative_gain * rates
        speed = ratio * (self.transmission @ rates)
        bounds = [
            np.clip(
                motors.torque_constant / motors.resistance * (sign * motors.voltage - motors.torque_constant * speed),
                -motors.max_torque,
                motors.max_torque,
            )
            for sign in (-1, 1)
        ]
        return self.transmission.T @ (ratio * np.clip(self.sharing @ wanted / ratio, *bounds))


class _World:
    """MuJoCo's model and data of one episode, seen from the heading of its start."""

    def __init__(self, hopper: Hopper, params: Params, time_step: float, solver_iterations: int):
        self.model = make_model(
            hopper,
            params.robot,
            solver_iterations=solver_iterations,
            line_search_iterations=max(1, solver_iterations // 2),
        )
        import mujoco  # installed: `make_model` needed it

        self.mujoco: Any = mujoco
        self.model.opt.timestep = time_step
        self.data: Any = self.mujoco.MjData(self.model)
        self.motors, self.nominal = _Motors(hopper, params), np.asarray(params.nominal)
        self.soles = indices(self.model, "geom", [f"sole_{i}" for i in range(len(hopper.contact.sole))])
        self.guards = indices(self.model, "geom", ["kneecap", "top"])
        self.pitch = self.turned = 0.0

    def start(self, qpos: np.ndarray, qvel: np.ndarray, on_floor: bool) -> None:
        data = self.data
        data.qpos[:], data.qvel[:] = qpos, qvel
        self._settle()
        if on_floor:  # the sole touches it, and the centre of mass is at rest above the origin
            data.qpos[:3] -= [*data.subtree_com[1, :2], self._gap(self.soles)]
            data.qvel[:3] -= data.subtree_linvel[1]
            self._settle()
        side = data.xmat[1].reshape(3, 3)[:, 1]
        heading = math.atan2(-side[0], side[1])
        self.axes = np.array([
            [math.cos(heading), math.sin(heading), 0],
            [-math.sin(heading), math.cos(heading), 0],
            [0, 0, 1],
        ])  # fmt: skip
        self.pitch = self._pitch()

    @property
    def state(self) -> tuple[np.ndarray, np.ndarray]:
        return self.data.qpos.copy(), self.data.qvel.copy()

    @property
    def turns(self) -> np.ndarray:
        """[2]: of the base, from the nominal stance on, and of the whole."""
        return np.array([self.pitch + self.nominal[0] + self.nominal[1], self.turned]) / (2 * math.pi)

    def advance(self, targets: np.ndarray, substeps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Torques [S, 3] and the largest loads [M] of both definitions."""
        model, data, torques, loads = self.model, self.data, [], []
        for _ in range(substeps):
            torque = self.motors.torque(targets, data.qpos[7:], data.qvel[6:])
            data.ctrl[:] = torque
            self.mujoco.mj_step(model, data)
            self.turned += self._rate() * model.opt.timestep
            touching = data.efc_type >= FIRST_CONTACT_ROW_TYPE
            contact = data.efc_force[touching] @ data.efc_J.reshape(-1, model.nv)[touching][:, 6:]
            carried = torque - model.dof_armature[6:] * data.qacc[6:]
            torques.append(torque)
            loads.append([np.abs(self.motors.sharing @ load) for load in (contact, carried)])
        self._settle()
        measured = self._pitch()
        self.pitch += (measured - self.pitch + math.pi) % (2 * math.pi) - math.pi
        contact, carried = np.max(loads, axis=0)
        return np.stack(torques), contact, carried

    def condition(self) -> tuple[float, bool, bool, float]:
        """Speed of the centre of mass; whether the foot, the body touch; how far the base left the flip's plane."""
        side = self.axes @ self.data.xmat[1].reshape(3, 3)[:, 1]
        tilt = max(abs(math.atan2(-side[0], side[1])), abs(math.asin(np.clip(side[2], -1, 1))))
        speed = float(np.linalg.norm(self.data.subtree_linvel[1]))
        return speed, self._gap(self.soles) < 0, self._gap(self.guards) < 0, tilt

    def _settle(self) -> None:
        self.mujoco.mj_forward(self.model, self.data)
        self.mujoco.mj_subtreeVel(self.model, self.data)

    def _gap(self, geoms: np.ndarray) -> float:
        floor = self.data.geom_xpos[0, 2]
        return float(np.min(self.data.geom_xpos[geoms, 2] - self.model.geom_size[geoms, 0]) - floor)

    def _pitch(self) -> float:
        up = self.data.xmat[1].reshape(3, 3)[2]
        return math.atan2(-up[0], up[2])

    def _rate(self) -> float:
        """Centroidal angular velocity about the flip's axis, of the state before the last substep's integration."""
        self.mujoco.mj_subtreeVel(self.model, self.data)
        xx, yy, zz, xy, xz, yz = self.data.cinert[1:, :6].sum(axis=0)
        locked = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        return float(self.axes[1] @ np.linalg.solve(locked, self.data.subtree_angmom[1]))
