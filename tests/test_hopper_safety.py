"""The safety limiter: the simulation's own actuators where all is well, limits and reasons where not."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import envs_jax
from envs_jax.robotics import hopper_backends, motor_region, safety

ENV, PARAMS = envs_jax.make("hopper-flip")
ABOUT = json.loads(json.dumps(ENV.describe()))
NOMINAL = np.array([0.9, -0.3483, 0.0])


@pytest.fixture
def limiter():
    return safety.SafetyLimiter(ABOUT, torque_rate=1e9)


def test_within_the_limits_it_is_the_simulated_actuator(limiter):
    generator = np.random.default_rng(0)
    for _ in range(50):
        angles = NOMINAL + generator.uniform(-0.3, 0.3, 3) * (1, 1, 0)
        rates = generator.uniform(-25, 25, 3) * (1, 1, 0)
        targets = limiter.targets(generator.uniform(-1, 1, 3) * (0.6, 0.6, 0))
        torque = limiter.torque(targets, angles, rates, 48.0)
        numbers = (np.asarray(value, np.float32) for value in (angles, rates, targets))
        _, _, applied, _ = hopper_backends.motor_torques(PARAMS, PARAMS.motors, *numbers)
        np.testing.assert_allclose(torque[:2], motor_region.joint_torque(PARAMS.motors, applied), rtol=1e-4, atol=1e-3)
        assert abs(torque[2]) < 1e-6


def test_targets_stay_in_the_joints_ranges(limiter):
    for action in ([9.0, 9.0, 9.0], [-9.0, -9.0, -9.0], [np.nan] * 3):
        targets = limiter.targets(action)
        assert (targets >= limiter.range[:, 0]).all()
        assert (targets <= limiter.range[:, 1]).all()
    np.testing.assert_allclose(limiter.targets([np.nan] * 3), NOMINAL)


def test_torque_changes_no_faster_than_its_rate():
    limiter = safety.SafetyLimiter(ABOUT, torque_rate=50.0)  # 0.1 caps per substep of 2 ms
    knee = [limiter.torque(NOMINAL + [1.2, 0, 0], NOMINAL, np.zeros(3), 48.0)[0] for _ in range(12)]
    np.testing.assert_allclose(np.diff(knee)[:8], 14.04, rtol=1e-6)
    assert knee[-1] == pytest.approx(140.4)
    limiter.reset()
    assert limiter.torque(NOMINAL + [1.2, 0, 0], NOMINAL, np.zeros(3), 48.0)[0] == pytest.approx(14.04)


def test_a_low_battery_shrinks_the_region(limiter):
    fast = np.array([20.0, 0.0, 0.0])
    full, low = (limiter.motor_limits(fast, voltage)[1][0] for voltage in (48.0, 41.0))
    assert full - low == pytest.approx(0.15 / 0.30 * 7.0)
    assert limiter.motor_limits(np.array([30.0, 0, 0]), 48.0)[1][0] < 0  # beyond the no-load speed it can only brake


def test_reasons_to_stop(limiter):
    fine = {"step": 10, "pitch_error": 0.1, "angles": NOMINAL, "bus_voltage": 47.0}
    assert limiter.reason_to_stop(**fine) is None
    assert limiter.reason_to_stop(**fine | {"step": 60, "pitch_error": 3.0}) is None  # in flight it turns over
    cases = {
        "tilts by 1.20 rad, above 1.0 rad in the phase take-off": {"pitch_error": 1.2},
        "in the phase landing": {"step": 105, "pitch_error": -1.2},
        "the clock has run out": {"step": 200},
        "knee is at 2.60 rad": {"angles": NOMINAL + [1.7, 0, 0]},
        "the bus is down to 30.0 V": {"bus_voltage": 30.0},
        "a measurement is no number": {"pitch_error": np.nan},
    }
    for message, change in cases.items():
        assert message in limiter.reason_to_stop(**fine | change)
    assert limiter.reason_to_stop(**fine | {"step": 104, "pitch_error": -1.2}) is None


def test_it_needs_only_numpy(tmp_path):
    shutil.copy(safety.__file__, tmp_path / "safety.py")
    (tmp_path / "about.json").write_text(json.dumps(ABOUT))
    code = """
import json, pathlib, sys, safety
safety.SafetyLimiter(json.loads(pathlib.Path("about.json").read_text()))
assert "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
