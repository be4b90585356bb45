"""One evaluation episode again, step by step, for pictures."""

from __future__ import annotations

from pathlib import Path

import jax

from jaxrl.rollout import Episodes, episodes
from jaxrl.run.config import ConfigError, RunConfig
from jaxrl.run.program import evaluation_keys, load_data, make_algorithm, make_env, max_episode_steps
from jaxrl.run.runner import load_state
from jaxrl.types import PyTree


def play_episode(run: RunConfig, state: PyTree, episode: int = 0) -> tuple[PyTree, float]:
    """Plays one evaluation episode again, with the noise it met in the evaluation.

    Args:
        run: names the environment and the evaluation.
        state: a training state.
        episode: its number among the evaluation episodes.

    Returns:
        The states of the environment before each step, leaves `[length, ...]`, and the episode's return.

    Raises:
        ConfigError: there is no such episode.
    """
    env, _ = make_env(run)
    reset_keys, key = evaluation_keys(run)
    if not 0 <= episode < len(reset_keys):
        raise ConfigError(f"the episode must be in [0, {len(reset_keys) - 1}], got {episode}")
    agent, data = make_algorithm(run, env), load_data(run)

    # All episodes up to this one are played: the noise of an episode depends on its number.
    def play(state: PyTree) -> Episodes:
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
    return jax.tree.map(lambda leaf: leaf[:length, episode], played.record), float(played.episode_return[episode])


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
    states, episode_return = play_episode(run, state, episode)
    writers[Path(out).suffix](render.frames(env, states), out, fps)
    return episode_return
