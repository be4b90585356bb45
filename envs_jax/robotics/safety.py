"""What stands between an exported policy and motors: limits of joints, torque and its rate, and a reason to stop.

Needs NumPy alone, and takes its numbers from the `meta.json` of an export: copy this file to the robot beside it.

    limiter = SafetyLimiter(json.load(open("meta.json"))["environment"])
    targets = limiter.targets(action)                                            # once per control step
    torque = limiter.torque(targets, angles, rates, bus_voltage)                 # at the torque rate
    reason = limiter.reason_to_stop(step, pitch_error, angles, bus_voltage)      # None, or why to cut the power

Margins are our choice, made in simulation; what a real robot needs must be found on that robot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Numbers = Any  # array-like [J]


class SafetyLimiter:
    """Limits for J joints driven by M motors; keeps the last torque and nothing else.

    Args:
        environment: the entry "environment" of `meta.json`.
        joint_margin: share of each joint's range that targets keep off its ends.
        torque_rate: largest change of a motor's torque per second, in its caps.
        lowest_voltage: of the bus, as a share of the nominal one, below which to stop.
    """

    def __init__(
        self,
        environment: Mapping[str, Any],
        joint_margin: float = 0.03,
        torque_rate: float = 100.0,
        lowest_voltage: float = 0.8,
    ):
        joints = [environment["joints"][name] for name in environment["joint_order"]]
        motors = [environment["motors"][name] for name in environment["motor_order"]]

        def table(items: list[Any], name: str) -> np.ndarray:
            return np.array([item[name] for item in items], np.float64)

        self.names = tuple(environment["joint_order"])
        self.range = table(joints, "range_rad")
        self.nominal, self.action_scale = table(joints, "nominal_rad"), table(joints, "action_scale_rad")
        self.stiffness = table(joints, "proportional_gain_Nm_per_rad")
        self.damping = table(joints, "derivative_gain_Nms_per_rad")
        self.gear_ratio, self.constant = table(motors, "gear_ratio"), table(motors, "torque_constant_Nm_per_A")
        self.resistance = table(motors, "resistance_ohm")
        self.cap = self.constant * table(motors, "current_limit_A")
        drives = [[motor["drives"].get(name, 0.0) for name in self.names] for motor in motors]
        self.transmission = np.array(drives)  # [M, J]
        self.sharing = np.linalg.pinv(self.transmission.T)  # [M, J]
        self.voltage, self.lowest_voltage = environment["bus_voltage_V"], lowest_voltage
        self.margin = joint_margin * (self.range[:, 1] - self.range[:, 0])
        self.step_torque = torque_rate * self.cap / environment["torque_rate_Hz"]
        self.clock, self.tilt_limits = environment["clock"], environment["tilt_limits_rad"]
        self._last = np.zeros(len(motors))

    def reset(self) -> None:
        """To be called before each episode."""
        self._last[:] = 0.0

    def targets(self, action: Numbers) -> np.ndarray:
        """Joint position targets [J] of an action, within the joints' ranges; an action that is no number is 0."""
        action = np.clip(np.nan_to_num(np.asarray(action, np.float64), nan=0.0), -1.0, 1.0)
        wanted = self.nominal + self.action_scale * action
        return np.clip(wanted, self.range[:, 0] + self.margin, self.range[:, 1] - self.margin)

    def torque(self, targets: Numbers, angles: Numbers, rates: Numbers, bus_voltage: float) -> np.ndarray:
        """Joint torques [J], N m: PD control, each motor within what the present voltage allows and not jumping.

        Args:
            targets: of the method of that name, rad.
            angles, rates: measured, rad and rad/s.
            bus_voltage: measured, V.
        """
        rates = np.asarray(rates, np.float64)
        wanted = self.stiffness * (np.asarray(targets) - np.asarray(angles)) - self.damping * rates
        motor = self.sharing @ wanted / self.gear_ratio
        motor = np.clip(motor, self._last - self.step_torque, self._last + self.step_torque)
        low, high = self.motor_limits(rates, bus_voltage)
        # The region comes last: what it refuses cannot be given at all.
        self._last = np.clip(motor, low, high)
        return self.transmission.T @ (self.gear_ratio * self._last)

    def motor_limits(self, rates: Numbers, bus_voltage: float) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and the highest rotor torque [M] at joint rates [J] and a bus voltage; see `motor_region`."""
        back = self.constant * self.gear_ratio * (self.transmission @ np.asarray(rates, np.float64))
        slope = self.constant / self.resistance
        low, high = slope * (-bus_voltage - back), slope * (bus_voltage - back)
        return np.clip(low, -self.cap, self.cap), np.clip(high, -self.cap, self.cap)

    def reason_to_stop(self, step: int, pitch_error: float, angles: Numbers, bus_voltage: float) -> str | None:
        """Why to stop now; None while all is well.

        Args:
            step: control steps since the start of the clock.
            pitch_error: of the base from upright, rad, in [-pi, pi); flight has no limit, a flip turns through all.
            angles: measured joint angles, rad.
            bus_voltage: measured, V.
        """
        measured = np.asarray([pitch_error, bus_voltage, *np.asarray(angles, np.float64)])
        if not np.isfinite(measured).all():
            return "a measurement is no number"
        time = step * self.clock["control_step_s"]
        # Half a step: the end of a phase is a sum of steps that rounding may miss.
        ends = self.clock["phases_end_s"].items()
        phase = next((name for name, end in ends if time < end - self.clock["control_step_s"] / 2), None)
        if phase is None:
            return "the clock has run out"
        limit = self.tilt_limits[phase]
        if limit is not None and abs(pitch_error) > limit:
            return f"the base tilts by {pitch_error:.2f} rad, above {limit} rad in the phase {phase}"
        for name, angle, (low, high) in zip(self.names, np.asarray(angles), self.range):
            if not low - 0.1 <= angle <= high + 0.1:
                return f"{name} is at {angle:.2f} rad, outside [{low}, {high}]"
        if bus_voltage < self.lowest_voltage * self.voltage:
            return f"the bus is down to {bus_voltage:.1f} V"
        return None
