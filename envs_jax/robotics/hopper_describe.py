"""What the hopper's observations and actions mean, for whoever runs an exported policy on a robot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from envs_jax.robotics.hopper_constants import JOINTS

if TYPE_CHECKING:
    from envs_jax.robotics.hopper_flip import HopperFlip

SIGNS = {
    "knee": "positive: flexion, the foot swings back",
    "ankle_pitch": "positive: the toes go down",
    "ankle_roll": "positive: the left edge of the foot goes up",
}
AXES = ("x", "y", "z")
# Tilt of the base about the flip's axis off the plan beyond which a run is broken off, rad; our choice.
TILT = {"take-off": 1.0, "flight": None, "landing": 1.0}


def describe(env: HopperFlip) -> dict[str, Any]:
    """Layout of one frame of the observation, action, control, motors, clock and limits, as JSON values."""
    hopper, clock = env.hopper, env.clock
    joints = {
        name: {
            "sign": SIGNS[name],
            "range_rad": list(joint.range),
            "nominal_rad": joint.nominal,
            "action_scale_rad": joint.action_scale if name in JOINTS[: env.physics.num_joints] else 0.0,
            "proportional_gain_Nm_per_rad": joint.proportional_gain,
            "derivative_gain_Nms_per_rad": joint.derivative_gain,
        }
        for name, joint in hopper.joints.items()
    }
    motors = {
        name: {
            "drives": dict(motor.drives),
            "gear_ratio": motor.gear_ratio,
            "torque_constant_Nm_per_A": motor.torque_constant,
            "resistance_ohm": motor.resistance,
            "current_limit_A": motor.current_limit,
            "gear_rated_load_Nm": motor.rated_load,
        }
        for name, motor in hopper.motors.items()
    }
    return {
        "name": "hopper-flip",
        "axes": "x forward, y left, z up; a positive rotation about y is a pitch forward",
        "observation_frame": observation_layout(env),
        "action": {
            "order": list(JOINTS),
            "meaning": "joint position target = nominal + action_scale * clip(action, -1, 1), held for a control step",
            "low": -1.0,
            "high": 1.0,
        },
        "joint_order": list(JOINTS),
        "joints": joints,
        "control_rate_Hz": 1.0 / clock.control_step,
        "torque_rate_Hz": 1.0 / clock.time_step,
        "torque": "proportional_gain * (target - angle) - derivative_gain * rate at the torque rate, then clipped to "
        "the operating region of each motor",
        "motors": motors,
        "motor_order": list(hopper.motors),
        "bus_voltage_V": hopper.voltage,
        "clock": {
            "meaning": "an integer step counter since the start, one per control step; time share = steps / num_steps",
            "num_steps": clock.num_steps,
            "control_step_s": clock.control_step,
            "phases_end_s": {"take-off": clock.take_off_end, "flight": clock.aerial_end, "landing": clock.end},
        },
        "tilt_limits_rad": dict(TILT),
        "contact_time_constant_s": hopper.contact.time_constant,
        "simulated_only": "trained and measured in simulation; no claim about hardware",
    }


def observation_layout(env: HopperFlip) -> list[dict[str, Any]]:
    """The 22 numbers of one frame in order: value shown = scale * (value - offset)."""
    nominal = [joint.nominal for joint in env.hopper.joints.values()]

    def part(name: str, entries: Any, unit: str, scale: float = 1.0, offset: Any = 0.0) -> dict[str, Any]:
        return {"name": name, "entries": list(entries), "unit": unit, "scale": scale, "offset": offset}

    return [
        part("gravity direction in the base's axes", AXES, "1"),
        part("angular velocity of the base in its axes (gyroscope)", AXES, "rad/s", 0.2),
        part("joint angle", JOINTS, "rad", 1.0, nominal),
        part("joint rate", JOINTS, "rad/s", 0.1),
        part("last action", JOINTS, "1"),
        part("action before the last", JOINTS, "1"),
        part("time as a share of the episode", ["time"], "1"),
        part("phase", ["take-off", "flight", "landing"], "1"),
    ]
