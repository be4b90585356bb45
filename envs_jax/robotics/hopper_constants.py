"""The hopper's constants, read from TOML and checked."""

from __future__ import annotations

import dataclasses
import math
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs_jax.registry import nearest
from envs_jax.robotics import motor_region

DEFAULT_FILE = Path(__file__).with_name("hopper.toml")
LINKS = ("thigh", "calf", "foot")
JOINTS = ("knee", "ankle_pitch", "ankle_roll")
Vector = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Clock:
    """Times of an episode, s."""

    time_step: float
    substeps: int
    stance_end: float
    take_off_end: float
    aerial_end: float
    end: float

    def __post_init__(self) -> None:
        if not 0 < self.time_step <= 0.01 or self.substeps < 1:
            raise ValueError("clock: time_step must lie in (0, 0.01] s and substeps be at least 1")
        if not 0 < self.stance_end <= self.take_off_end < self.aerial_end < self.end:
            raise ValueError("clock: stance_end <= take_off_end < aerial_end < end must hold, all above 0")
        if abs(self.end / self.control_step - self.num_steps) > 1e-6:
            raise ValueError(f"clock: end = {self.end} must be a whole number of control steps of {self.control_step}")

    @property
    def control_step(self) -> float:
        return self.time_step * self.substeps

    @property
    def num_steps(self) -> int:
        return round(self.end / self.control_step)


@dataclasses.dataclass(frozen=True)
class Link:
    offset: Vector
    mass: float
    com: Vector
    inertia: Vector  # principal moments about the centre of mass

    def __post_init__(self) -> None:
        if not self.mass > 0:
            raise ValueError(f"mass must be positive, got {self.mass}")
        small, middle, large = sorted(self.inertia)
        if not small > 0 or small + middle < large:
            raise ValueError(f"inertia must be positive, no moment above the sum of the others, got {self.inertia}")


@dataclasses.dataclass(frozen=True)
class Joint:
    link: str
    axis: Vector
    range: tuple[float, float]
    damping: float
    nominal: float
    action_scale: float
    proportional_gain: float
    derivative_gain: float

    def __post_init__(self) -> None:
        if not self.range[0] <= self.nominal <= self.range[1] or self.range[0] == self.range[1]:
            raise ValueError(f"range must contain nominal = {self.nominal}, got {self.range}")
        if min(self.damping, self.action_scale, self.proportional_gain, self.derivative_gain) < 0:
            raise ValueError("damping, action_scale and gains must not be negative")


@dataclasses.dataclass(frozen=True)
class Motor:
    drives: dict[str, float]
    gear_ratio: float
    torque_constant: float
    resistance: float
    current_limit: float
    rotor_inertia: float
    rated_load: float
    destructive_load: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self)[1:]:
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be positive, got {getattr(self, field.name)}")
        if self.gear_ratio < 1:
            raise ValueError(f"gear_ratio is rotor turns per output turn, at least 1, got {self.gear_ratio}")
        if self.destructive_load <= self.rated_load:
            raise ValueError("destructive_load must exceed rated_load")


@dataclasses.dataclass(frozen=True)
class Contact:
    friction: Vector
    time_constant: float
    sole_radius: float
    sole: tuple[Vector, ...]
    kneecap: Vector
    kneecap_radius: float
    top: Vector
    top_radius: float

    def __post_init__(self) -> None:
        if min(self.sole_radius, self.kneecap_radius, self.top_radius, self.friction[0]) <= 0:
            raise ValueError("radii and sliding friction must be positive")


@dataclasses.dataclass(frozen=True)
class Hopper:
    gravity: float
    voltage: float
    clock: Clock
    links: dict[str, Link]
    joints: dict[str, Joint]
    motors: dict[str, Motor]
    contact: Contact
    variants: dict[str, dict[str, dict[str, Any]]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, found, needed in (("links", self.links, LINKS), ("joints", self.joints, JOINTS)):
            if tuple(found) != needed:
                raise ValueError(f"{name} must be {', '.join(needed)} in this order, got {', '.join(found)}")
        if not self.gravity > 0 or not self.voltage > 0:
            raise ValueError(f"gravity and voltage must be positive, got {self.gravity} and {self.voltage}")
        if self.contact.time_constant < 2 * self.clock.time_step:
            raise ValueError("contact.time_constant must be at least 2 clock.time_step, or contacts are unstable")
        for name, motor in self.motors.items():
            for joint in motor.drives:
                if joint not in self.joints:
                    raise ValueError(f"motors.{name}.drives: no joint {joint!r}{nearest(joint, self.joints)}")
            if motor.current_limit > self.voltage / motor.resistance:
                raise ValueError(
                    f"motors.{name}: {self.voltage} V through {motor.resistance} ohm drives at most "
                    f"{self.voltage / motor.resistance:.1f} A, below current_limit = {motor.current_limit}"
                )
        self.motor_region()

    def table(self, kind: str, name: str) -> np.ndarray:
        """One number (or vector) of all `links`, `joints` or `motors`, in order: `table("links", "mass")` [3]."""
        return np.array([getattr(item, name) for item in getattr(self, kind).values()], np.float64)

    @property
    def transmission(self) -> np.ndarray:
        """[M, J]: turns of each gear's output per turn of each joint."""
        return np.array([[motor.drives.get(joint, 0.0) for joint in self.joints] for motor in self.motors.values()])

    @property
    def armature(self) -> np.ndarray:
        """[J]: the rotors' inertia seen at the joints, kg m^2."""
        return motor_region.reflected_inertia(
            self.table("motors", "gear_ratio"), self.table("motors", "rotor_inertia"), self.transmission
        )

    def motor_region(self, joints: tuple[str, ...] = JOINTS) -> motor_region.Motors:
        """The motors as they drive `joints`."""
        columns = [JOINTS.index(joint) for joint in joints]
        names = ("gear_ratio", "torque_constant", "resistance", "current_limit")
        values = {name: self.table("motors", name) for name in names}
        return motor_region.make_motors(**values, voltage=self.voltage, transmission=self.transmission[:, columns])

    def variant(self, name: str) -> Hopper:
        """This robot with the changes of one of its `variants`; "" is itself."""
        if not name:
            return self
        if name not in self.variants:
            known = ", ".join(self.variants) or "none"
            raise ValueError(f"no variant {name!r} of the hopper{nearest(name, self.variants)} Known: {known}")
        links = dict(self.links)
        for link, changes in self.variants[name].items():
            old = {field.name: getattr(links[link], field.name) for field in dataclasses.fields(Link)}
            links[link] = _build(Link, {**old, **changes}, f"variants.{name}.{link}")
        return dataclasses.replace(self, links=links)


def load_constants(path: str | os.PathLike[str] | None = None) -> Hopper:
    """Reads and checks a constants file; the default robot's if None.

    Raises:
        ValueError: names the file, the entry and what is wrong with it.
    """
    file = DEFAULT_FILE if path is None else Path(path)
    try:
        values = tomllib.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"cannot read constants from {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a TOML file: {error}") from error
    try:
        for key, kind in (("clock", Clock), ("contact", Contact)):
            if key in values:
                values[key] = _build(kind, values[key], key)
        for key, kind in (("links", Link), ("joints", Joint), ("motors", Motor)):
            if key in values:
                values[key] = {name: _build(kind, item, f"{key}.{name}") for name, item in values[key].items()}
        hopper = _build(Hopper, values, "")
        for name in hopper.variants:
            hopper.variant(name)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return hopper


def _build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """`kind(**values)` with lists as tuples; ValueError names the place and the key."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    prefix = f"{where}: " if where else ""
    for key in values:
        if key not in fields:
            raise ValueError(f"{prefix}unknown key {key!r}{nearest(key, fields)} Allowed: {', '.join(fields)}")
    missing = [n for n, f in fields.items() if n not in values and f.default_factory is dataclasses.MISSING]
    if missing:
        raise ValueError(f"{prefix}lacks {', '.join(missing)}")
    checked = {}
    for key, value in values.items():
        wanted = str(fields[key].type)
        checked[key] = value = _frozen(value)
        numbers = {"float": 0, "int": 0, "Vector": 3, "tuple[float, float]": 2}.get(wanted)
        if numbers is not None:
            parts = value if numbers and isinstance(value, tuple) else (value,)
            good = len(parts) == max(numbers, 1) and all(_is_number(part, wanted == "int") for part in parts)
            if not good:
                words = f"{numbers} numbers" if numbers else ("an integer" if wanted == "int" else "a number")
                raise ValueError(f"{prefix}{key} must be {words}, got {value!r}")
    try:
        return kind(**checked)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from error


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _is_number(value: Any, whole: bool) -> bool:
    return not isinstance(value, bool) and isinstance(value, int if whole else (int, float)) and math.isfinite(value)
