"""One evaluation episode again, step by step, for pictures."""

from __future__ import annotations

from pathlib import Path

import jax

from jaxrl.rollout import episodes
from jaxrl.run.config import ConfigError
from jaxrl.run.program import evaluation_keys, load_data, make_algorithm, make_env, max_episode_steps
from jaxrl.run.runner import load_state


def render_episode(run_dir: str | Path, out: str | Path, episode: int = 0, fps: float = 30.0) -> float:
    """Writes an episode of a run's evaluation as a moving picture.

    Args:
        run_dir: a run folder or a checkpoint.
        out: a `.gif`, `.html` or `.mp4` file.
        episode: its number among the evaluation episodes.
        fps: frames per second.

    Returns:
        The episode's return.

    Raises:
        ConfigError: the environment draws no pictures, or there is no such episode.
    """
    from envs_jax import render

    writers = {".gif": render.save_gif, ".html": render.save_html, ".mp4": render.save_mp4}
    if Path(out).suffix not in writers:
        raise ConfigError(f"--out must end in {', '.join(writers)}, got {str(out)!r}")
    state, run = load_state(run_dir)
    env, _ = make_env(run)
    if not env.can_render:
        raise ConfigError(f"environment {run.env.name!r} has no renderer")
    reset_keys, key = evaluation_keys(run)
    if not 0 <= episode < len(reset_keys):
        raise ConfigError(f"--episode must be in [0, {len(reset_keys) - 1}], got {episode}")
    agent, data = make_algorithm(run, env), load_data(run)

    # All episodes up to this one are played, so that it meets the same noise as in the evaluation.
    def play(state: object) -> object:
        return episodes(
            env,
            (agent.start, agent.act),  # type: ignore[arg-type]
            agent.policy(state, data),  # type: ignore[misc]
            data.env_params,
            reset_keys[: episode + 1],
            key,
            max_episode_steps(run, env),
            deterministic=run.evaluation.deterministic,
            record=lambda env_state, before, action, after, extras: env_state,
        )

    played = jax.device_get(jax.jit(play)(state))
    length = int(played.episode_length[episode])
    states = jax.tree.map(lambda leaf: leaf[:length, episode], played.record)
    writers[Path(out).suffix](render.frames(env, states), out, fps)
    return float(played.episode_return[episode])
