"""The hopper's constants: the file is checked, the model it makes is the robot, the motors' table is right."""

import numpy as np
import pytest

from envs_jax.robotics import hopper_constants, hopper_torque_speed
from envs_jax.robotics.hopper_constants import load_constants
from envs_jax.robotics.hopper_mjcf import mjcf

HOPPER = load_constants()


def test_the_default_robot():
    assert HOPPER.table("links", "mass").sum() == pytest.approx(12.45, abs=1e-6)
    contact, links = HOPPER.contact, HOPPER.links
    height = contact.top[2] + contact.top_radius - links["calf"].offset[2] - links["foot"].offset[2]
    assert height - contact.sole[0][2] + contact.sole_radius == pytest.approx(0.840, abs=1e-6)
    np.testing.assert_allclose(HOPPER.armature, [0.1183, 0.0300, 0.0108], rtol=1e-6)
    assert (HOPPER.clock.num_steps, HOPPER.clock.control_step) == (200, pytest.approx(0.01))


def test_the_light_thigh_weighs_the_same():
    light = HOPPER.variant("light_thigh")
    np.testing.assert_allclose(light.table("links", "mass"), [3.0, 8.6, 0.85])
    assert light.links["calf"].inertia[:2] == (0.090, 0.090)
    assert light.joints == HOPPER.joints
    assert HOPPER.variant("") is HOPPER
    with pytest.raises(ValueError, match="did you mean 'light_thigh'"):
        HOPPER.variant("light-thigh")


def test_the_torque_speed_table():
    points = hopper_torque_speed.torque_speed_points(HOPPER)
    expected = {"knee": (140.4, 312.0, 13.5, 24.6), "ankle_left": (50.0, 137.1, 30.5, 48.0)}
    for name, values in expected.items():
        np.testing.assert_allclose(list(points[name].values()), values, atol=0.06)
    table = hopper_torque_speed.torque_speed_table(HOPPER)
    assert "140.4" in table
    assert "180 / 260" in table
    assert len({len(line) for line in table.splitlines()}) == 1
    picture = hopper_torque_speed.draw_torque_speed(HOPPER).text_of()
    assert picture.count("<polygon") == 3
    assert "140 N m to 13.5" in picture


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mass = 7.40", "mass = 0.0", "links.thigh: mass must be positive, got 0.0"),
        ("[0.045, 0.045, 0.008]", "[0.045, 0.010, 0.008]", "links.calf: inertia .* no moment above the sum"),
        ("[0.0012, 0.0032, 0.0032]", "[-0.0012, 0.0032, 0.0032]", "links.foot: inertia must be positive"),
        ("gear_ratio = 13.0", "gear_ratio = 0.5", "motors.knee: gear_ratio .* at least 1"),
        ("voltage = 48.0", "voltage = -48.0", "gravity and voltage must be positive"),
        ("voltage = 48.0", "voltage = 12.0", "motors.knee: 12.0 V through 0.3 ohm drives at most 40.0 A"),
        ("knee = 1.0", "kne = 1.0", "motors.knee.drives: no joint 'kne'; did you mean 'knee'"),
        ("knee = 1.0 }", "ankle_pitch = 1.0 }", "drive every joint"),
        ("resistance = 0.30", "resistence = 0.30", "unknown key 'resistence'; did you mean 'resistance'"),
        ("gravity = 9.81", "", "lacks gravity"),
        ("mass = 4.20", 'mass = "heavy"', "links.calf: mass must be a number, got 'heavy'"),
        ("range = [0.05, 2.40]", "range = [1.0, 2.40]", "joints.knee: range must contain nominal"),
        ("destructive_load = 260.0", "destructive_load = 170.0", "destructive_load must exceed rated_load"),
        ("time_constant = 0.02", "time_constant = 0.003", "at least 2 clock.time_step"),
        ("end = 2.0", "end = 1.0", "aerial_end < end"),
        ("thigh = { mass = 3.00", "thigh = { mass = -3.00", "variants.light_thigh.thigh: mass"),
        ("gravity = 9.81", "gravity = ", "is not a TOML file"),
    ],
)
def test_a_robot_that_cannot_be_is_refused(tmp_path, old, new, message):
    text = hopper_constants.DEFAULT_FILE.read_text()
    assert old in text
    file = tmp_path / "robot.toml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as error:
        load_constants(file)
    assert str(file) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read constants from .*none\.toml"):
        load_constants(tmp_path / "none.toml")


STANCES = {
    # knee: base pitch, ankle, base z, com z, locked inertia about y
    0.05: (0.0066, -0.0566, 0.7394, 0.5341, 0.8052),
    0.60: (-0.3523, -0.2477, 0.7100, 0.5149, 0.7540),
    0.90: (-0.5517, -0.3483, 0.6727, 0.4913, 0.6939),
    1.80: (-1.2044, -0.5956, 0.4820, 0.3744, 0.4424),
}


def test_the_mujoco_model_stands_as_tabulated():
    mujoco = pytest.importorskip("mujoco")
    from envs_jax.robotics import centroidal

    model = mujoco.MjModel.from_xml_string(mjcf(HOPPER))
    data = mujoco.MjData(model)
    assert (model.nq, model.nv, model.nu) == (10, 9, 3)
    assert model.body_mass.sum() == pytest.approx(12.45, abs=1e-6)
    for knee, (pitch, ankle, base_z, com_z, inertia) in STANCES.items():
        data.qpos[:] = [0, 0, base_z, np.cos(pitch / 2), 0, np.sin(pitch / 2), 0, knee, ankle, 0]
        mujoco.mj_forward(model, data)
        soles = [data.geom(f"sole_{i}").xpos for i in range(4)]
        np.testing.assert_allclose([sole[2] for sole in soles], HOPPER.contact.sole_radius, atol=1e-3)
        assert data.subtree_com[1, 0] == pytest.approx(np.mean([sole[0] for sole in soles]), abs=1e-3)
        assert data.subtree_com[1, 2] == pytest.approx(com_z, abs=1e-3)
        assert float(centroidal.from_data(data).locked_inertia[1, 1]) == pytest.approx(inertia, abs=1e-3)


def test_the_mujoco_model_stands_for_three_seconds():
    mujoco = pytest.importorskip("mujoco")
    model = mujoco.MjModel.from_xml_string(mjcf(HOPPER))
    data = mujoco.MjData(model)
    pitch, _, base_z, *_ = STANCES[0.90]
    nominal, stiffness, damping = (
        HOPPER.table("joints", name) for name in ("nominal", "proportional_gain", "derivative_gain")
    )
    data.qpos[:] = [0, 0, base_z, np.cos(pitch / 2), 0, np.sin(pitch / 2), 0, *nominal]
    for _ in range(1500):
        data.ctrl[:] = stiffness * (nominal - data.qpos[7:]) - damping * data.qvel[6:]
        mujoco.mj_step(model, data)
    assert data.subtree_com[1, 2] > 0.4
    assert np.abs(data.qvel).max() < 0.5
