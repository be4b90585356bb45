"""From recorded states to pictures and films."""

import base64
import contextlib
import importlib.util
import io
import itertools
import re
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import envs_jax
from envs_jax import render


@pytest.fixture(scope="module")
def film():
    """Eleven frames of a pendulum, unequal from each other."""
    env, params = envs_jax.make("pendulum")
    state, _ = env.reset(jax.random.key(0), params)

    def body(state, _):
        after, _ = env.step(jax.random.key(0), state, jnp.ones(1), params)
        return after, state

    return render.frames(env, jax.lax.scan(body, state, length=11)[1])


@pytest.mark.parametrize(("name", "shape"), [("cartpole", (200, 300, 3)), ("pendulum", (200, 200, 3))])
def test_pictures(name, shape):
    env, params = envs_jax.make(name)
    state, _ = env.reset(jax.random.key(0), params)
    picture = env.render(state)
    assert picture.shape == shape
    assert picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20  # edges are smoothed
    leaning = env.render(state.replace(angle=jnp.float32(0.5)))
    mirrored = env.render(state.replace(angle=jnp.float32(-0.5)))
    assert (picture != leaning).any()
    assert (leaning != mirrored).any()


def test_the_pole_leans_the_way_its_angle_says():
    env, params = envs_jax.make("cartpole")
    state = jax.tree.map(jnp.zeros_like, env.reset(jax.random.key(0), params)[0])
    yellow = lambda picture: np.argwhere((picture == [0xED, 0xAE, 0x49]).all(axis=-1))  # noqa: E731
    upright, right = yellow(env.render(state)), yellow(env.render(state.replace(angle=jnp.float32(0.4))))
    assert abs(upright[:, 1].mean() - 149.5) < 1
    assert right[:, 1].mean() > 155
    assert upright[:, 0].mean() < 120  # above the track at 158


def test_frames(film):
    assert len(film) == 11
    assert all(frame.shape == (200, 200, 3) for frame in film)
    assert all((a != b).any() for a, b in itertools.pairwise(film))
    env, _ = envs_jax.make("toy-discounting")
    with pytest.raises(ValueError, match="Discounting has no renderer"):
        render.frames(env, {"step": jnp.zeros(3)})


def test_gif(film, tmp_path):
    path = render.save_gif(film, tmp_path / "new" / "film.gif", fps=30)
    with Image.open(path) as image:
        assert image.n_frames == 11
        assert image.info["loop"] == 0
        durations = []
        for index, frame in enumerate(film):
            image.seek(index)
            durations.append(image.info["duration"])
            error = np.abs(np.asarray(image.convert("RGB")).astype(int) - frame)
            assert error.mean() < 2
    assert sum(durations) == 370  # 11 / 30 s, in whole hundredths
    assert set(durations) == {30, 40}


def test_html(film, tmp_path):
    page = render.save_html(film, tmp_path / "film.html", fps=12.5, title="A <pendulum>").read_text()
    pictures = re.findall(r'"data:image/png;base64,([A-Za-z0-9+/=]+)"', page)
    assert len(pictures) == 11
    for encoded, frame in zip(pictures, film, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))), frame)
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert "http" not in text
    assert "src=" not in text
    assert not re.search(r"@[A-Z]+@", text)
    assert "A &lt;pendulum&gt;" in text
    assert 'type="range" min="0" max="10"' in text


def test_mp4(film, tmp_path):
    path = tmp_path / "film.mp4"
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        with pytest.raises(ImportError, match="pip install imageio-ffmpeg"):
            render.save_mp4(film, path)
        assert list(tmp_path.iterdir()) == []
        return
    import imageio_ffmpeg

    render.save_mp4([frame[:-1, :-1] for frame in film], path, fps=10)  # odd sides
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    decoded = subprocess.run(command, capture_output=True, check=True)
    played = np.frombuffer(decoded.stdout, np.uint8).reshape(11, 200, 200, 3)
    assert np.abs(played[:, :-1, :-1] - np.stack(film)[:, :-1, :-1].astype(int)).mean() < 3
    assert b"Duration: 00:00:01.10" in decoded.stderr


@pytest.mark.parametrize("save", [render.save_gif, render.save_html, render.save_mp4])
def test_refusals(save, film, tmp_path):
    path = tmp_path / "film.x"
    for frames, fps, message in (
        ([], 30, "there are no frames"),
        (film, 0, "fps must be above 0"),
        (film, 1_000, "and at most"),
        ([film[0], film[1][:50]], 30, r"got uint8 \[50, 200, 3\] at index 1"),
        ([film[0] / 255.0], 30, "got float64"),
    ):
        with pytest.raises(ValueError, match=message):
            save(frames, path, fps=fps)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "film.gif"
    path.write_bytes(b"old")
    with contextlib.suppress(RuntimeError), render.replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with render.replacing(path) as temporary:
        assert temporary.suffix == ".gif"
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
