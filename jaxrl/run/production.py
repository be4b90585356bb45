"""Four data sets from one run of a teacher: expert, medium, medium-replay and random.

The names are D4RL's (Fu et al. 2020, section 5). Medium is the first checkpoint whose evaluation reached a third of the
best one's return (our choice), medium-replay everything that was played up to it, random uniform actions. The expert is
the best checkpoint. All of them act as in training (sampled actions); each set says where it comes from and has the
local reference scores. A teacher without a replay buffer keeps nothing of what it played: the checkpoints up to the
medium one play equal shares of medium-replay anew.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl.data.files import WRITERS
from jaxrl.data.recording import Episode, Header, Recording, from_episodes, joined
from jaxrl.parts.buffers import ReplayState
from jaxrl.run import record
from jaxrl.run.checkpoint import list_checkpoints
from jaxrl.run.config import ConfigError
from jaxrl.run.folder import RunFolder, versions
from jaxrl.run.runner import find_checkpoint, load_state

MEDIUM_SHARE = 1.0 / 3.0  # of the expert's return
SUFFIXES = {"d4rl": ".hdf5", "minari": "-v0"}


def produce(
    run_dir: str | Path, out: str | Path, *, num_steps: int = 200_000, expert_episodes: int = 60, seed: int = 0
) -> dict[str, Path]:
    """Writes the data sets of a run, each in both formats: `out/medium.hdf5`, `out/medium-v0`, ...

    Args:
        run_dir: of a run with enough checkpoints (`checkpoint.keep`); a replay buffer should have kept all of it.
        out: a folder; it may exist, the data sets may not.
        num_steps: of medium and random, at least; their last episode is whole. Of medium-replay, where it is played.
        expert_episodes: of expert.
        seed: of the episodes; none is one of an evaluation.

    Returns:
        The HDF5 file of each set, by its name.

    Raises:
        ConfigError: no checkpoint near the medium level is left.
    """
    folder, best = find_checkpoint(run_dir)
    medium = medium_checkpoint(folder, best)
    expert, middling = record.trained_player(best), record.trained_player(medium)
    references = record.reference_scores(expert, seed, 0)
    random = record.scripted_player(expert.facts["environment"], expert.facts["environment_options"], "random")
    makers = {
        "expert": lambda: record.record(expert, expert_episodes, seed=seed),
        "medium": lambda: record.record(middling, 1, num_steps=num_steps, seed=seed),
        "medium-replay": lambda: replay_recording(medium, middling) or played_again(folder, medium, num_steps, seed),
        "random": lambda: record.record(random, 1, num_steps=num_steps, seed=seed),
    }
    written = {}
    for name, make in makers.items():
        recording = make()
        facts = recording.header.facts | references | {"set": name}
        recording = dataclasses.replace(recording, header=dataclasses.replace(recording.header, facts=facts))
        for format, suffix in SUFFIXES.items():
            path = WRITERS[format](recording, Path(out) / f"{name}{suffix}")
            written.setdefault(name, path)
    return written


def medium_checkpoint(folder: RunFolder, best: Path) -> Path:
    """The first checkpoint whose evaluation return is at least a third of that of `best`.

    Raises:
        ConfigError: the run was not evaluated where it was saved, its best return is not positive, or the checkpoint
            before the first one that is left may have been the one.
    """
    returns = {
        path: folder.evaluation(int(path.name)).get("evaluation/return")
        for path in list_checkpoints(folder.checkpoints)
    }
    measured = {path: value for path, value in returns.items() if value is not None}
    level = MEDIUM_SHARE * measured.get(best, -np.inf)
    if not level > 0:
        raise ConfigError(f"{folder.path}: a third of the best evaluation return must be positive, got {level:g}")
    found = next(path for path, value in sorted(measured.items()) if value >= level)
    run = folder.load_run()
    if found == min(measured) and int(found.name) > run.checkpoint.every > 0:
        raise ConfigError(f"{folder.path}: earlier checkpoints are gone, keep more of them with checkpoint.keep")
    return found


def played_again(folder: RunFolder, last: Path, num_steps: int, seed: int) -> Recording:
    """Equal shares of `num_steps` steps, by every checkpoint that is left up to `last`."""
    paths = [path for path in list_checkpoints(folder.checkpoints) if int(path.name) <= int(last.name)]
    share = -(-num_steps // len(paths))
    parts = [record.record(record.trained_player(path), 1, num_steps=share, seed=seed) for path in paths]
    whole = functools.reduce(joined, parts)
    returns = np.array([episode.episode_return for episode in whole.episodes()])
    facts = parts[-1].header.facts | {
        "policy": f"{parts[-1].header.facts['policy']} (and {len(paths) - 1} checkpoints before it)",
        "mean_return": float(np.mean(returns)),
        "median_return": float(np.median(returns)),
    }
    return dataclasses.replace(whole, header=dataclasses.replace(whole.header, facts=facts))


def replay_recording(checkpoint: Path, player: record.Player) -> Recording | None:
    """Everything that was played up to a checkpoint, episode after episode, from its replay buffer.

    None where the algorithm has no replay buffer.
    """
    state, run = load_state(checkpoint)
    buffer = getattr(state, "buffer", None)
    if buffer is None:
        return None
    played = int(state.num_updates) * run.config.unroll_length
    kept = replay_episodes(jax.device_get(buffer), played)
    facts = dict(player.facts) | {
        "policy": f"{player.facts['policy']} (replay buffer)",
        "environment_version": player.env.version,
        "seed": run.seed,
        "deterministic": False,
        "mean_return": float(np.mean([episode.episode_return for episode in kept])),
        "median_return": float(np.median([episode.episode_return for episode in kept])),
        "versions": versions(),
    }
    spec = player.env.spec(player.env_params)
    return from_episodes(kept, Header(spec.observation_space, spec.action_space, facts))


def replay_episodes(buffer: ReplayState, num_played: int) -> list[Episode]:
    """The episodes in a replay buffer of `Transition`s (on the host), those of one environment after the other's.

    The last one of each environment is cut where the buffer ends and counts as truncated. Where a ring was written
    over (`num_played` steps of each environment are more than it holds) what is left of its oldest episode is dropped.
    """
    steps: Any = buffer.items
    num_envs, length = steps.reward.shape
    count = int(buffer.num_steps)
    order = (int(buffer.position) - count + np.arange(count)) % length
    episodes = []
    for env in range(num_envs):
        rows = jax.tree.map(lambda leaf, env=env: leaf[env, order], steps)
        ends = np.flatnonzero(rows.terminated | rows.truncated) + 1
        bounds = [0, *ends.tolist()] + ([count] if len(ends) == 0 or ends[-1] < count else [])
        for first, last in list(itertools.pairwise(bounds))[int(num_played > length) :]:
            span = slice(first, last)
            terminated, truncated = rows.terminated[span], rows.truncated[span] & ~rows.terminated[span]
            truncated[-1] |= not terminated[-1]
            episodes.append(
                Episode(
                    observation=np.concatenate([rows.observation[span], rows.next_observation[last - 1 : last]]),
                    action=rows.action[span],
                    reward=rows.reward[span],
                    terminated=terminated,
                    truncated=truncated,
                )
            )
    return episodes
