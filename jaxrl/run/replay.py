"""One evaluation episode again, step by step, for pictures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import numpy as np

from envs_jax.core import Array, Environment, EnvParams
from envs_jax.timeline import Played
from jaxrl.rollout import Episodes, Policy, episodes
from jaxrl.run.config import ConfigError, RunConfig
from jaxrl.run.program import evaluation_keys, load_data, make_algorithm, make_env, max_episode_steps
from jaxrl.run.runner import load_state
from jaxrl.types import PyTree

FILMS = (".gif", ".html", ".mp4")


def play(
    env: Environment,
    policy: Policy,
    policy_params: PyTree,
    env_params: EnvParams,
    reset_keys: Array,
    key: Array,
    max_steps: int,
    *,
    deterministic: bool = True,
) -> Played:
    """The last of the episodes that `rollout.episodes` plays for the same arguments, with all that happened in it.

    Args:
        reset_keys: `[B]`; the other episodes are played too: the noise of an episode depends on its number.
        others: as in `rollout.episodes`.
    """

    def run(policy_params: PyTree, env_params: EnvParams, reset_keys: Array, key: Array) -> Episodes:
        # One step more than the longest episode, so that the state after the last step is recorded too.
        return episodes(
            env, policy, policy_params, env_params, reset_keys, key, max_steps + 1, deterministic=deterministic,
            record=lambda state, before, action, after, extras: jax.tree.map(
                lambda leaf: leaf[-1], (state, action, after)
            ),
        )  # fmt: skip

    played = jax.device_get(jax.jit(run)(policy_params, env_params, reset_keys, key))
    length = min(int(played.episode_length[-1]), max_steps)
    states, actions, time_steps = played.record
    key_params = jax.random.split(reset_keys[-1], 3)[0]  # as `rollout.episodes` splits it
    return Played(
        params=jax.device_get(jax.jit(env.sample_params)(key_params, env_params)),
        states=jax.tree.map(lambda leaf: leaf[: length + 1], states),
        actions=np.asarray(actions)[:length],
        time_steps=jax.tree.map(lambda leaf: leaf[:length], time_steps),
    )


def play_episode(run: RunConfig, state: PyTree, episode: int = 0) -> Played:
    """Plays one evaluation episode again, with the noise it met in the evaluation.

    Args:
        run: names the environment and the evaluation.
        state: a training state.
        episode: its number among the evaluation episodes.

    Raises:
        ConfigError: there is no such episode.
    """
    env, _ = make_env(run)
    reset_keys, key = evaluation_keys(run)
    if not 0 <= episode < len(reset_keys):
        raise ConfigError(f"the episode must be in [0, {len(reset_keys) - 1}], got {episode}")
    agent, data = make_algorithm(run, env), load_data(run, dataset=False)
    return play(
        env,
        (agent.start, agent.act),  # type: ignore[arg-type]
        jax.jit(agent.policy)(state, data),  # type: ignore[arg-type]
        data.env_params,
        reset_keys[: episode + 1],
        key,
        max_episode_steps(run, env),
        deterministic=run.evaluation.deterministic,
    )


def film_path(out: str | Path) -> Path:
    """Where a film asked for at `out` is written: a GIF beside it where MP4 lacks its encoder."""
    out = Path(out)
    missing = out.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None
    return out.with_suffix(".gif") if missing else out


def render_episode(run_dir: str | Path, out: str | Path, episode: int = 0, fps: float | None = None) -> np.ndarray:
    """Writes an episode of a run's evaluation: as a moving picture, a timeline, or a table.

    Args:
        run_dir: a run folder or a checkpoint.
        out: `.gif` and `.mp4` are moving pictures, `.svg`, `.png` and `.txt` (for a terminal) timelines, `.json` and
            `.csv` tables; `.html` is a page with all that the environment has to show.
        episode: its number among the evaluation episodes.
        fps: frames per second; by default the environment's own `frames_per_second`.

    Returns:
        The episode's return, [] or [A].

    Raises:
        ConfigError: the format is unknown, the environment cannot be shown in it, or there is no such episode.
    """
    from envs_jax import render, timeline

    suffix, known = Path(out).suffix, [*FILMS, *(name for name in timeline.FORMATS if name not in FILMS)]
    if suffix not in known:
        raise ConfigError(f"--out must end in {', '.join(known)}, got {str(out)!r}")
    state, run = load_state(run_dir)
    env, _ = make_env(run)
    films, timelines = suffix in FILMS and env.can_render, suffix in timeline.FORMATS and env.has_timeline
    if not films and not timelines:
        what = "renderer" if suffix in FILMS else f"timeline, which {suffix} needs"
        raise ConfigError(f"environment {run.env.name!r} has no {what}")
    played = play_episode(run, state, episode)
    if suffix == ".html":
        page = env.page(played, f"{run.env.name}, episode {episode}")
        if page is not None:
            with render.replacing(out) as temporary:
                temporary.write_text(page, encoding="utf-8")
            return played.episode_return
    if not films:
        timeline.save(env.timeline(played), out)
        return played.episode_return
    frames, fps = env.film(played), fps or env.frames_per_second
    if suffix == ".html":
        below = timeline.to_svg(env.timeline(played)) if timelines else ""
        render.save_html(frames, out, fps, title=f"{run.env.name}, episode {episode}", timeline=below)
    else:
        save = render.save_gif if suffix == ".gif" else render.save_mp4
        save(frames, out, fps)
    return played.episode_return
