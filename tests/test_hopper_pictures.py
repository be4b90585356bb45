"""Pictures of the flip: what is recomputed for them, films with and without graphics, and the page in a browser."""

import html
import json
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import envs_jax
from envs_jax.robotics import hopper_backends, hopper_film, hopper_replay, offscreen
from envs_jax.robotics.hopper_mjcf import mjcf
from envs_jax.robotics.hopper_params import CHOICES, evaluation_params
from envs_jax.robotics.hopper_torque_speed import draw_torque_speed
from envs_jax.robotics.hopper_viewer import shapes_and_poses
from jaxrl.cli import app
from jaxrl.run.replay import play

ENV, PARAMS = envs_jax.make("hopper-flip", load="off")


def jump(params, tick, time_step, key, deterministic):
    """Crouch, push off, tuck in flight, stretch."""
    del params, time_step, key, deterministic
    poses = jnp.array([[0.6, -0.4, 0.0], [-0.75, 0.9, 0.0], [1.0, -0.6, 0.0], [-0.2, 0.1, 0.0]])
    return poses[jnp.searchsorted(jnp.array([25, 40, 85]), tick, side="right")], tick + 1, {}


@pytest.fixture(scope="module")
def played():
    policy = (lambda params, key: jnp.int32(0)), jump
    keys = jax.random.split(jax.random.key(0), 1)
    return play(ENV, policy, (), evaluation_params(PARAMS), keys, jax.random.key(1), ENV.max_steps)


@pytest.fixture(scope="module")
def episode(played):
    return hopper_replay.trace(ENV, played)


def test_the_recomputed_motors_are_those_of_the_steps(played, episode):
    length, info = played.length, played.time_steps.info
    assert length > 60
    assert episode.speed.shape == episode.command.shape == episode.applied.shape == (length, 5, 3)
    caps = np.array([140.4, 50.0, 50.0])
    assert (np.abs(episode.applied) <= caps + 1e-3).all()
    outside = np.abs(episode.command - episode.applied) > 1e-5 * caps
    np.testing.assert_allclose(outside.mean(axis=(1, 2)), info["outside_region"], atol=1e-6)
    assert outside.any()
    loads = np.stack([info[f"load_contact/{name}"] for name in ENV.hopper.motors], axis=1)
    rated = np.asarray(PARAMS.rated_load)
    np.testing.assert_allclose(episode.load[1:] * rated, loads, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(episode.turns[1:, 0], info["turns/base"], atol=1e-5)


def test_without_a_region_what_is_asked_for_is_given():
    joints, rates = PARAMS.nominal, jnp.zeros(3)
    penalty = PARAMS.replace(actuator=jnp.int32(CHOICES["actuator"].index("penalty")))
    for params, same in ((penalty, True), (PARAMS, False)):
        _, command, applied, _ = hopper_backends.motor_torques(params, params.motors, joints, rates, joints + 2.0)
        assert np.allclose(command, applied) is same


def test_the_torque_speed_picture_of_an_episode(played, episode):
    text = draw_torque_speed(ENV.hopper, episode).text_of()
    assert text.count("<circle") == 2 * 3 * 5 * played.length
    assert text.count("<polygon") == 3


def test_planar_states_in_space(episode):
    """MuJoCo finds the centre of mass where the planar physics has it."""
    import mujoco

    model = mujoco.MjModel.from_xml_string(mjcf(ENV.hopper))
    data = mujoco.MjData(model)
    for index in (0, 50, len(episode.time) - 1):
        data.qpos[:] = episode.qpos[index]
        mujoco.mj_forward(model, data)
        np.testing.assert_allclose(data.subtree_com[0], episode.com[index], atol=1e-4)


@pytest.mark.slow
def test_states_in_space_are_seen_in_their_heading(played):
    """The same jump on MJX, from a stance turned by any yaw, is drawn along x and asks the motors for much the same."""
    env, params = envs_jax.make("hopper-flip", load="off", physics="mjx")
    policy = (lambda params, key: jnp.int32(0)), jump
    keys = jax.random.split(jax.random.key(0), 1)
    spatial = play(env, policy, (), evaluation_params(params), keys, jax.random.key(1), 60)
    assert abs(float(spatial.states.motion.heading[0])) > 0.1
    flat, space = hopper_replay.trace(ENV, played), hopper_replay.trace(env, spatial)
    length = min(50, spatial.length)
    np.testing.assert_allclose(space.qpos[:length, :3], flat.qpos[:length, :3], atol=0.05)
    np.testing.assert_allclose(space.com[:length], flat.com[:length], atol=0.05)
    outside = np.abs(space.command - space.applied) > 1e-5 * np.array([140.4, 50.0, 50.0])
    np.testing.assert_allclose(outside.mean(axis=(1, 2)), spatial.time_steps.info["outside_region"], atol=1e-6)


def test_a_film_shows_the_flight_four_times_slower(episode):
    shown = hopper_film.shown_states(episode, 4.0)
    flight = np.flatnonzero(episode.phase == 1)
    stand = np.flatnonzero(episode.phase == 0)
    assert np.isin(flight[1:], shown).all()
    assert np.isin(stand, shown).sum() == pytest.approx(len(stand) / 4, abs=1)
    assert shown == sorted(set(shown))
    assert shown[-1] == len(episode.time) - 1


def test_a_picture_always_comes_out(played, monkeypatch):
    """No graphics: stick figures beside the same motors."""
    monkeypatch.setattr(offscreen, "BACKENDS", ("none", "such"))
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    short = played.__class__(
        played.params, jax.tree.map(lambda leaf: leaf[:9], played.states), played.actions[:8],
        jax.tree.map(lambda leaf: leaf[:8], played.time_steps),
    )  # fmt: skip
    frames = ENV.film(short)
    assert len(frames) == 3
    assert {frame.shape for frame in frames} == {(240, 480, 3)}
    assert (frames[0][:, :320] != frames[-1][:, :320]).any()
    assert (frames[0][:, 320:] != frames[-1][:, 320:]).any()


def test_mujoco_draws_offscreen(episode):
    some = [0, len(episode.time) // 2]
    pictures = offscreen.render_offscreen(
        mjcf(ENV.hopper), episode.qpos[some], episode.com[some], episode.centroidal_rate[some], 160, 120
    )
    if pictures is None:
        pytest.skip("neither EGL nor OSMesa can draw here")
    assert pictures.shape == (2, 120, 160, 3)
    assert pictures.dtype == np.uint8
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() > 50
    # The robot's dark blue is somewhere in the middle.
    assert (pictures[0][30:, 40:120].sum(axis=-1) < 300).any()


def test_poses_are_mujocos(episode):
    shapes, poses = shapes_and_poses(mjcf(ENV.hopper), episode.qpos[:3])
    assert {shape["kind"] for shape in shapes} == {"sphere", "capsule", "box"}
    assert len(shapes) == 9  # without the floor
    assert poses.shape == (3, 4, 7)
    np.testing.assert_allclose(poses[:, 1], episode.qpos[:3, :7], atol=1e-6)


@pytest.fixture(scope="module")
def page(played, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "flip.html"
    path.write_text(ENV.page(played, "a </script> flip"), encoding="utf-8")
    return path


def test_the_page_needs_nothing_else(page):
    text = page.read_text()
    assert "@DATA@" not in text
    assert "@TITLE@" not in text
    assert not re.search(r"https?://|\bsrc=|\bimport\b", text)
    assert "a &lt;/script&gt; flip" in text
    assert page.stat().st_size < 400_000


CLICKS = """
<script>
const seen = {errors: []};
addEventListener("error", event => seen.errors.push(event.message));
byId("slider").value = 500; byId("slider").dispatchEvent(new Event("input"));
seen.scrubbed = byId("clock").textContent; seen.phase = byId("phase").textContent;
byId("play").click(); seen.playing = byId("play").textContent;
byId("play").click(); seen.paused = byId("play").textContent;
const press = name => new PointerEvent(name, {clientX: 300, clientY: 300, bubbles: true});
scene.setPointerCapture = () => {};
const turnedFrom = camera.azimuth;
scene.dispatchEvent(press("pointerdown"));
scene.dispatchEvent(new PointerEvent("pointermove", {clientX: 400, clientY: 300}));
seen.turned = camera.azimuth !== turnedFrom;
document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
seen.stepped = byId("clock").textContent;
const pixels = new Uint8Array(4 * scene.width * scene.height);
gl.readPixels(0, 0, scene.width, scene.height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
const colors = new Set();
for (let i = 0; i < pixels.length; i += 4) colors.add(pixels[i] << 16 | pixels[i + 1] << 8 | pixels[i + 2]);
seen.colors = colors.size;
document.body.dataset.seen = JSON.stringify(seen);
</script>
"""


def browser():
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if shutil.which(name):
            return name
    pytest.skip("no Chromium is installed")


def test_the_page_in_a_browser(page, played, tmp_path):
    """Scrubs, plays, pauses, turns the camera and steps in a headless Chromium, then looks at the pixels."""
    copy = tmp_path / "clicked.html"
    copy.write_text(page.read_text().replace("</body>", CLICKS + "</body>"), encoding="utf-8")
    command = [
        browser(), "--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
        "--window-size=1000,700", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert 'data-ready="webgl"' in result.stdout, result.stderr[-2000:]
    seen = json.loads(html.unescape(re.search(r'data-seen="(.*?)"', result.stdout)[1]))
    middle = played.length * 0.01 / 2
    assert seen["scrubbed"] == f"{middle:.2f} s"
    assert seen["phase"] == ("take-off" if middle < 0.5 else "flight")
    assert (seen["playing"], seen["paused"]) == ("Pause", "Play")
    assert seen["turned"]
    assert float(seen["stepped"].split()[0]) > middle
    assert seen["colors"] > 500  # a shaded robot, no empty canvas
    assert not seen["errors"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of two small updates."""
    folder = tmp_path_factory.mktemp("hopper") / "run"
    tiny = [
        "ppo_hopper_flip", "num_updates=2", "config.num_envs=8", "config.unroll_length=8", "config.num_minibatches=2",
        "evaluation.every=2", "evaluation.num_episodes=4", "checkpoint.every=2", "log.every=1",
    ]  # fmt: skip
    result = CliRunner().invoke(app, ["train", *tiny, "--run-dir", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.slow
def test_the_command_line_renders_and_exports_a_run(run_dir, tmp_path):
    def succeed(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output + str(result.exception)
        return result.output

    heads = {"flip.gif": b"GIF", "flip.html": b"<!DOCTYPE html>", "flip.mp4": b""}
    for name, head in heads.items():
        output = succeed("render", run_dir, "--out", tmp_path / name)
        written = tmp_path / re.search(r"(flip\.\w+): return", output)[1]
        assert written.read_bytes().startswith(head)
    assert (tmp_path / "flip.gif").stat().st_size < 3e6
    assert "us per action" in succeed("export", run_dir, "--format", "npz")
    assert '"evaluation/return"' in (run_dir / "meta.json").read_text()


def test_info_of_an_environment(tmp_path):
    result = CliRunner().invoke(app, ["info", "hopper-flip", "--out", str(tmp_path / "region.svg")])
    assert result.exit_code == 0, result.output
    assert "corner rad/s" in result.output
    assert (tmp_path / "region.svg").read_text().startswith("<svg")
    assert CliRunner().invoke(app, ["info", "cartpole", "--out", str(tmp_path / "a.svg")]).exit_code == 2
    assert "did you mean 'hopper-flip'" in CliRunner().invoke(app, ["info", "hoper-flip"]).output
