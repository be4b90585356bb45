"""Evaluation episodes in a report: the best run of each group plays again. Imports jax and what plays."""

from __future__ import annotations

import base64
import html
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from envs_jax import render, timeline
from jaxrl.results.page_scores import final_score
from jaxrl.results.page_tables import HTML
from jaxrl.results.runs import Group, Run
from jaxrl.run.program import make_algorithm, make_env
from jaxrl.run.replay import play_episode
from jaxrl.run.runner import load_state

# What a film may cost: 100 frames of 360 pixels are some 100 to 400 kB.
MAX_WIDTH, MAX_FRAMES, MAX_FPS = 360, 100, 25.0


def film_section(groups: Sequence[Group], metric: str, num_episodes: int) -> HTML:
    """The first evaluation episodes of each group's best run, or why there are none."""
    sign = -1.0 if metric.startswith("loss/") else 1.0
    lines = ['<section id="episodes">\n<h2>Episodes</h2>']
    for group in groups:
        best = max(group.runs, key=lambda run: np.nan_to_num(sign * final_score(run, metric), nan=-np.inf))
        lines.append(f"<h3>{html.escape(group.label)}</h3>")
        try:
            lines.append(f'<div class="films">\n{_figures(best, num_episodes)}\n</div>')
        except ValueError as error:
            lines.append(f'<p class="note">No episode: {html.escape(str(error))}</p>')
    lines.append(
        '<p class="note">The first episodes of the evaluation, played again by the best checkpoint of the run with '
        f"the best final score. Films of more than {MAX_FRAMES} frames leave frames out and keep their speed.</p>"
        "\n</section>"
    )
    return "\n".join(lines)


def _figures(run: Run, num_episodes: int) -> HTML:
    state, config = load_state(run.path)
    if config.env.backend != "jax":
        raise ValueError("the environment runs outside of jaxrl")
    env, _ = make_env(config)
    if make_algorithm(config, env).policy is None:
        raise ValueError(f"{config.algorithm} learns no policy that acts")
    if not env.can_render and not env.has_timeline:
        raise ValueError(f"environment {config.env.name!r} has no renderer")
    figures = []
    for episode in range(min(num_episodes, config.evaluation.num_episodes)):
        played = play_episode(config, state, episode)
        if env.can_render:
            kind, content = "gif", small_gif(env.film(played), env.frames_per_second)
        else:
            kind, content = "svg+xml", timeline.to_svg(env.timeline(played)).encode()
        returns = ", ".join(f"{value:.4g}" for value in np.reshape(played.episode_return, -1))
        seed = "" if run.seed is None else f", seed {run.seed}"
        figures.append(
            f'<figure class="{"wide" if kind != "gif" else ""}">'
            f'<img alt="Episode {episode}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'
            f"<figcaption>episode {episode}{seed}: return {returns}</figcaption></figure>"
        )
    return "\n".join(figures)


def small_gif(frames: Sequence[np.ndarray], fps: float) -> bytes:
    """A GIF within the limits above, at the speed of `frames` (u8 `[height, width, 3]`) shown at `fps`."""
    stride = max(1, math.ceil(len(frames) / MAX_FRAMES), math.ceil(fps / MAX_FPS))
    height, width = frames[0].shape[:2]
    scale = min(1.0, MAX_WIDTH / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames[::stride]]
    with tempfile.TemporaryDirectory() as folder:
        return render.save_gif(small, Path(folder) / "episode.gif", fps / stride).read_bytes()
