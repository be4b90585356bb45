"""The front flip of a one-leg hopper: take off, one whole turn in the air, land and stand still."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_jax.core import Array, Environment, PyTree, TimeStep, time_step
from envs_jax.registry import nearest, resolve
from envs_jax.robotics import transmission_load
from envs_jax.robotics.hopper_backends import Physics, Pose
from envs_jax.robotics.hopper_constants import load_constants
from envs_jax.robotics.hopper_params import CHOICES, Params, make_params, randomise
from envs_jax.robotics.hopper_rewards import Effort, Snapshot, chosen, load, phases, reward_terms
from envs_jax.spaces import Box
from envs_jax.timeline import Played

PHYSICS = {  # imported on first use
    "planar": "envs_jax.robotics.hopper_backends:Planar",
    "mjx": "envs_jax.robotics.hopper_mjx:Mjx",
}
FLIGHT_HEIGHT = 0.53  # m; of the centre of mass at take-off, for starts in flight
FLIGHT_KNEE = 1.8  # rad; likewise
CALM_SPEED, CALM_TIME = 0.5, 0.2  # m/s, s: a flip succeeds that ends with the foot down, slower and for longer
PITCH_TOLERANCE, ROTATION_TOLERANCE = 0.5, 0.7  # rad, of the base and of the whole
NOISE = (0.03, 0.1, 0.01, 0.3)  # uniform, +-: gravity, gyroscope rad/s, joints rad, joint rates rad/s


@struct.dataclass
class State:
    motion: PyTree  # of the physics back end
    step: Array  # i32 []; control steps since the start of the clock
    actions: Array  # f32 [2, 3]; the last one and the one before
    rotation: Array  # f32 []; net rotation: the integral of the centroidal rate, rad
    start: Array  # f32 [2]; x and y of the centre of mass at the start, m
    calm: Array  # i32 []; control steps in a row with the foot down and little speed


class HopperFlip(Environment[State, Params]):
    """One flip forward by a fixed clock: take-off until 0.5 s, flight until 1.05 s, landing until 2 s, at 100 Hz.

    Observation: f32 [22] = gravity's direction in the base's axes (3), gyroscope x 0.2 (3, rad/s), joint angles less
        nominal (3, rad), joint rates x 0.1 (3, rad/s), last action (3), the one before (3), time as a share of the
        episode, one-hot phase (3); with uniform noise. The critic sees it without noise and 17 numbers more: base
        height, velocity of the centre of mass (3), centroidal rate (3), net rotation, foot contact, load over rating of
        each gear (3), masses (3), friction, voltage.
    Action: f32 [3] in [-1, 1], joint position targets around the nominal stance for a PD controller: knee, ankle pitch,
        ankle roll.
    Reward: f32, 0.1 times the sum of the terms of `hopper_rewards.reward_terms`, each in `info` as "reward/NAME".
    Ending: terminated when kneecap or top touches the floor, the base turns by more than 1 rad out of the flip's plane
        in the air, the state is not finite, or (with probability one half, where a load term is on) a gear's load
        passes its destructive limit; truncated after 2 s.
    Success ("success" in `info`, at the last step): one turn of base and whole, foot down and slow for 0.2 s.

    Args:
        physics: "planar", five degrees of freedom in the sagittal plane, or "mjx", nine in space.
        constants: a TOML file of robot and motors; the one of the package if "".
        variant: of the constants, "" or "light_thigh".
        reward, target, actuator, load, load_definition, start: see `hopper_params.CHOICES`.
        weights: changed reward weights by name.
    """

    frames_per_second = 25.0

    def __init__(
        self,
        physics: str = "planar",
        constants: str | os.PathLike[str] = "",
        variant: str = "",
        reward: str = "centroidal",
        target: str = "wrapped",
        actuator: str = "region",
        load: str = "joint",
        load_definition: str = "contact",
        start: str = "mixed",
        weights: Mapping[str, float] | None = None,
    ):
        if physics not in PHYSICS:
            raise ValueError(f"physics must be one of {', '.join(PHYSICS)}, got {physics!r}{nearest(physics, PHYSICS)}")
        self.hopper = load_constants(constants or None).variant(variant)
        self.physics: Physics = resolve(PHYSICS[physics])(self.hopper)
        self.clock = self.hopper.clock
        self.max_steps = self.clock.num_steps
        self.choices = {
            "reward": reward, "target": target, "actuator": actuator, "load": load,
            "load_definition": load_definition, "start": start,
        }  # fmt: skip
        self.weights = dict(weights or {})
        params = make_params(self.hopper, self.weights, **self.choices)
        # What a policy says of a joint that its physics lacks means nothing: wherever else it plays, it is held.
        moved = jnp.arange(3) < self.physics.num_joints
        self.params = dataclasses.replace(params, action_scale=jnp.where(moved, params.action_scale, 0.0))
        self.joint_ranges = np.asarray(self.hopper.table("joints", "range"), np.float32)

    @classmethod
    def traced_options(cls, options: Mapping[str, Any]) -> tuple[str, ...]:
        # The model in space has inertias of its variant that the parameters do not hold.
        planar = options.get("physics", "planar") == "planar"
        return (*CHOICES, "weights", *(["variant"] if planar else []))

    @property
    def default_params(self) -> Params:
        return self.params

    def sample_params(self, key: Array, params: Params) -> Params:
        landing = (self._steps(self.clock.aerial_end), self.clock.num_steps)
        return randomise(key, params, landing)

    def reset(self, key: Array, params: Params) -> tuple[State, TimeStep]:
        key_start, key_joints, key_rates, key_pitch, key_noise, key_heading = jax.random.split(key, 6)
        pose, step, rotation = self._start(key_start, params)
        pose = dataclasses.replace(
            pose,
            joints=pose.joints + _spread(key_joints, (3,), 0.05),
            joint_rates=pose.joint_rates + _spread(key_rates, (3,), 0.1),
            pitch=pose.pitch + _spread(key_pitch, (), 0.03),
            heading=_spread(key_heading, (), math.pi),
        )
        swing = chosen(params, "start", "swing")
        still = self.physics.still_rate(params, pose.joints, pose.joint_rates)
        pose = dataclasses.replace(pose, pitch_rate=jnp.where(swing, still, pose.pitch_rate))
        motion = self.physics.place(params, pose)
        snapshot = self.physics.snapshot(params, motion)
        state = State(motion, step, jnp.zeros((2, 3)), rotation, snapshot.com[:2], jnp.zeros((), jnp.int32))
        zeros = jnp.zeros_like(params.rated_load)
        none = jnp.zeros(())
        effort = Effort(none, none, none, none, none, none, zeros, zeros, zeros, none)
        terms = dict.fromkeys(self._reward_names, none)
        nothing = jnp.zeros((), bool)
        info = self._info(state, snapshot, effort, terms, nothing, nothing, nothing, nothing)
        return state, self._time_step(key_noise, params, state, snapshot, effort, info)

    def step(self, key: Array, state: State, action: Array, params: Params) -> tuple[State, TimeStep]:
        key_noise, key_break = jax.random.split(key)
        action = jnp.clip(action, -1.0, 1.0)
        used = jnp.where(params.delay, state.actions[0], action)
        targets = params.nominal + params.action_scale * used
        pushed = self.physics.push(state.motion, jnp.where(state.step == params.push_step, params.push_speed, 0.0))
        motion, effort = self.physics.advance(params, pushed, targets, self.clock.substeps, self.clock.time_step)

        # A state that is not finite is a failure, and shows the last one that was.
        broken = ~self.physics.finite(motion)
        motion = jax.tree.map(lambda old, new: jnp.where(broken, old, new), pushed, motion)
        effort = jax.tree.map(lambda leaf: jnp.where(broken, 0.0, leaf), effort)
        snapshot = self.physics.snapshot(params, motion)
        overloaded = transmission_load.overloaded(load(params, effort), params.destructive_load)
        overloaded &= ~chosen(params, "load", "off") & jax.random.bernoulli(key_break)
        astray = self.physics.astray(motion) & ~snapshot.foot_contact
        failed = broken | overloaded | snapshot.body_contact | astray

        slow = jnp.sum(jnp.square(snapshot.velocity)) < CALM_SPEED**2
        after = State(
            motion=motion,
            step=state.step + 1,
            actions=jnp.stack([action, state.actions[0]]),
            rotation=state.rotation + effort.rotation,
            start=state.start,
            calm=jnp.where(snapshot.foot_contact & slow, state.calm + 1, 0),
        )
        time = state.step * jnp.float32(self.clock.control_step)  # of the action: the phase that the policy saw
        weight = jnp.sum(params.robot.mass) * params.robot.gravity
        terms = reward_terms(
            params, snapshot, effort, self._phases(state.step), time < self.clock.stance_end - 1e-4, state.start,
            (action, state.actions[0], state.actions[1]), jnp.asarray(self.joint_ranges),
            params.foot_rating * weight * self.clock.control_step, failed,
        )  # fmt: skip
        info = self._info(after, snapshot, effort, terms, failed, overloaded, broken, astray)
        shown = self._time_step(key_noise, params, after, snapshot, effort, info)
        total = params.weights.scale * sum(terms.values())
        time_is_up = jnp.asarray(self.time_is_up(after.step))
        return after, dataclasses.replace(shown, reward=total, terminated=failed, truncated=time_is_up)

    def observation_space(self, params: Params) -> Box:
        return Box(-np.inf, np.inf, (22,))

    def critic_observation_space(self, params: Params) -> Box:
        return Box(-np.inf, np.inf, (39,))

    def action_space(self, params: Params) -> Box:
        return Box(-1.0, 1.0, (3,))

    def render(self, state: State) -> Any:
        """u8 [240, 320, 3]: a stick figure from its left, the camera moving along."""
        from envs_jax.robotics.hopper_render import picture

        return picture(self, state)

    def film(self, played: Played) -> list[Any]:
        """The flight at a quarter of its speed, beside the motors' torques and speeds; see `hopper_film.film`."""
        from envs_jax.robotics.hopper_film import film

        return film(self, played)

    def page(self, played: Played, title: str) -> str:
        """The episode in three dimensions, to look at from all sides in a browser."""
        from envs_jax.robotics.hopper_viewer import page

        return page(self, played, title)

    def describe(self) -> dict[str, Any]:
        from envs_jax.robotics.hopper_describe import describe

        return describe(self)

    def details(self) -> str:
        from envs_jax.robotics.hopper_torque_speed import torque_speed_table

        return torque_speed_table(self.hopper)

    def diagram(self) -> str:
        from envs_jax.robotics.hopper_torque_speed import draw_torque_speed

        return draw_torque_speed(self.hopper).text_of()

    @property
    def _reward_names(self) -> list[str]:
        return [name for name in vars(self.params.weights) if name != "scale"]

    def _steps(self, time: float) -> int:
        return round(time / self.clock.control_step)

    def _phases(self, step: Array) -> tuple[Array, Array, Array]:
        # Integers: a sum of float32 steps would miss the ends by one.
        return phases(step, self._steps(self.clock.take_off_end), self._steps(self.clock.aerial_end))

    def _start(self, key: Array, params: Params) -> tuple[Pose, Array, Array]:
        """Standing, or in flight on the way of a flip that fits the clock; also the clock's step and the rotation."""
        key_flying, key_time = jax.random.split(key)
        swing = chosen(params, "start", "swing")
        mixed = chosen(params, "start", "mixed") & jax.random.bernoulli(key_flying, params.flight_starts)
        flying = swing | mixed
        first, last = self._steps(self.clock.take_off_end), self._steps(self.clock.aerial_end)
        drawn = jax.random.randint(key_time, (), first, last - 4, jnp.int32)
        step = jnp.where(swing, first, jnp.where(mixed, drawn, 0)).astype(jnp.int32)
        duration = self.clock.aerial_end - self.clock.take_off_end
        flown = (step - first) * jnp.float32(self.clock.control_step)
        gravity, rate = params.robot.gravity, 2 * math.pi / duration
        launch = gravity * duration / 2
        turned = jnp.where(flying, rate * flown, 0.0)
        tucked = params.nominal.at[0].set(FLIGHT_KNEE)
        pose = Pose(
            joints=jnp.where(flying, tucked, params.nominal),
            joint_rates=jnp.zeros(3),
            pitch=turned,
            pitch_rate=jnp.where(mixed, rate, 0.0),
            flying=flying,
            height=FLIGHT_HEIGHT + launch * flown - gravity * flown**2 / 2,
            climb=launch - gravity * flown,
            heading=jnp.zeros(()),
        )
        return pose, step, turned

    def _time_step(
        self, key: Array, params: Params, state: State, snapshot: Snapshot, effort: Effort, info: dict[str, Array]
    ) -> TimeStep:
        clock = jnp.stack([state.step / self.clock.num_steps, *self._phases(state.step)]).astype(jnp.float32)
        senses = (snapshot.gravity, snapshot.base_rate, snapshot.joints, snapshot.joint_rates)
        errors = [_spread(k, (3,), 1.0) * size * params.noise for k, size in zip(jax.random.split(key, 4), NOISE)]

        def frame(gravity: Array, gyroscope: Array, joints: Array, rates: Array) -> Array:
            parts = (gravity, 0.2 * gyroscope, joints - params.nominal, 0.1 * rates, state.actions.reshape(6), clock)
            return jnp.concatenate(parts)

        privileged = jnp.concatenate([
            snapshot.base_height[None], snapshot.velocity, snapshot.centroidal_rate, state.rotation[None],
            snapshot.foot_contact[None].astype(jnp.float32), load(params, effort) / params.rated_load,
            params.robot.mass, params.robot.friction[None], params.motors.voltage[None],
        ])  # fmt: skip
        noisy = frame(*(sense + error for sense, error in zip(senses, errors)))
        return time_step(noisy, info=info, critic_observation=jnp.concatenate([frame(*senses), privileged]))

    def _info(
        self, state: State, snapshot: Snapshot, effort: Effort, terms: dict[str, Array],
        failed: Array, overloaded: Array, broken: Array, astray: Array,
    ) -> dict[str, Array]:  # fmt: skip
        turn = 2 * math.pi
        right = jnp.abs(snapshot.base_pitch - turn) < PITCH_TOLERANCE
        right &= jnp.abs(state.rotation - turn) < ROTATION_TOLERANCE
        right &= (state.calm >= self._steps(CALM_TIME)) & ~failed
        info = {
            "success": right & self.time_is_up(state.step),
            "turns/base": snapshot.base_pitch / turn,
            "turns/centroidal": state.rotation / turn,
            "failure/body": snapshot.body_contact & failed,
            "failure/overload": overloaded,
            "failure/not_finite": broken,
            "failure/astray": astray,
            "foot_contact": snapshot.foot_contact,
            "outside_region": effort.outside,
            "clipped": effort.excess,
            "energy/mechanical": effort.mechanical_energy,
            "energy/electrical": effort.electrical_energy,
            "height": snapshot.com[2],
        }
        for index, name in enumerate(self.hopper.motors):
            info[f"load_contact/{name}"] = effort.contact_load[index]
            info[f"load_gear/{name}"] = effort.gear_load[index]
            info[f"impulse/{name}"] = effort.impulse[index]
        info |= {f"reward/{name}": term for name, term in terms.items()}
        return {name: jnp.asarray(value, jnp.float32) for name, value in info.items()}


def _spread(key: Array, shape: tuple[int, ...], size: float) -> Array:
    """Uniform in +- `size`; consumes `key`."""
    return jax.random.uniform(key, shape, jnp.float32, -size, size)
