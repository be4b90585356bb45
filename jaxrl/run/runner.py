"""`fit` trains one run, `evaluate` plays it: the Python face of what the command line does."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl.results.stats import mean_interval
from jaxrl.rollout import Episodes
from jaxrl.run.checkpoint import CheckpointError, best_checkpoint, list_checkpoints, restore
from jaxrl.run.config import ConfigError, RunConfig
from jaxrl.run.folder import RunFolder
from jaxrl.run.program import load_data, make_algorithm, make_env, make_program, play_evaluation
from jaxrl.run.progress import make_progress
from jaxrl.run.training import Row, Training
from jaxrl.types import Algorithm, Data, PyTree, kept_hparams


def fit(
    run: RunConfig,
    run_dir: str | Path | None = None,
    *,
    resume: bool = False,
    init_from: str | Path | None = None,
    progress: bool = True,
    debug: bool = False,
) -> tuple[PyTree, list[Row]]:
    """Trains a run: compiled chunks of updates with live logs, evaluations and checkpoints between them.

    Args:
        run: from `load_config`.
        run_dir: where everything is written; None writes nothing.
        resume: continue the run in `run_dir` from its newest checkpoint, exactly as if it had never stopped.
        init_from: a run folder (or one of its checkpoints) whose trained parameters this run starts from.
        progress: show a progress bar (a plain line per chunk where the output is no terminal).
        debug: check every operation for NaN; slow.

    Returns:
        The final training state and all rows of metrics of the run.

    Raises:
        ConfigError: the folder already holds a run, or there is none to resume.
        CheckpointError: a checkpoint does not fit the configuration.
        NotFinite: a loss became NaN or infinite.
        TrainingStopped: Ctrl-C; the state was saved first.

    Example:
        >>> state, log = fit(load_config("ppo_cartpole", ["num_updates=60"]), progress=False)
    """
    folder = None if run_dir is None else RunFolder(run_dir)
    if resume and folder is None:
        raise ConfigError("resume needs a run_dir")
    with debug_nans(debug):
        program = make_program([run], batched=False)
        if folder is not None and not resume:
            folder.create(run)
        training = Training(program, folder, [] if folder is None else [folder], make_progress(progress))
        state = training.restore() if resume else None
        if state is None:
            state = program.init()
            if init_from is not None:
                state = start_from(state, program.agent, init_from)
        elif folder is not None:
            folder.write_config(run)
        state = training.run(state)
    if folder is not None:
        from jaxrl.results.plot import plot_runs

        plot_runs([folder.path], folder.picture)
    return state, training.rows[0]


def start_from(state: PyTree, agent: Algorithm, source: str | Path) -> PyTree:
    """`state` with the parameters (and target parameters and statistics) of a trained run, by name and shape.

    Raises:
        CheckpointError: nothing there fits.
    """
    stored, _ = load_state(source)
    taken = {}
    for name in ("params", "target_params", "statistics", "critic_statistics"):
        old, new = getattr(state, name, None), getattr(stored, name, None)
        if old is None or new is None:
            continue
        shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (old, new)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(f"the {name} in {source} do not fit this configuration's networks")
        taken[name] = new
    return dataclasses.replace(state, **taken)


def load_state(path: str | Path, overrides: Sequence[str] = ()) -> tuple[PyTree, RunConfig]:
    """The trained state in a run folder (its best checkpoint, else its newest) or in one checkpoint, with its run.

    Args:
        path: the folder or checkpoint.
        overrides: settings of the run to change. Hyper-parameters that acting needs change the state too, such as
            `"hparams.target_return=3600"` of a Decision Transformer.
    """
    folder, checkpoint = find_checkpoint(path)
    run = folder.load_run(tuple(overrides))
    data = load_data(run, dataset=False)
    program_state = jax.eval_shape(make_algorithm(run).init, jax.random.key(0), run.hparams, data)
    state = restore(checkpoint, program_state)[0]
    return (dataclasses.replace(state, **kept_hparams(state, run.hparams)) if overrides else state), run


def find_checkpoint(path: str | Path) -> tuple[RunFolder, Path]:
    """The run folder and the checkpoint that a path names: the best of a run, else its newest, or exactly the one."""
    path = Path(path)
    if path.parent.name == "checkpoints":
        if not path.is_dir():
            raise CheckpointError(f"there is no checkpoint {path}")
        return RunFolder(path.parent.parent), path
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise ConfigError(f"{path} holds no run: there is no {folder.config.name}")
    finished = list_checkpoints(folder.checkpoints)
    if not finished:
        raise CheckpointError(f"{path} holds no finished checkpoint")
    return folder, best_checkpoint(folder.checkpoints) or finished[-1]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Returns of the evaluation episodes, with a 95 % bootstrap interval of their mean."""

    mean: float
    low: float
    high: float
    returns: np.ndarray  # f32 [num_episodes]
    lengths: np.ndarray  # i32 [num_episodes]
    info: dict[str, float]  # means over steps and episodes of the scalar entries of `TimeStep.info`
    final: dict[str, float]  # means over episodes of the same entries at the last step

    def __str__(self) -> str:
        return f"return {self.mean:.4g} [{self.low:.4g}, {self.high:.4g}] over {len(self.returns)} episodes"


def evaluate(agent: Algorithm, state: PyTree, run: RunConfig, data: Data) -> Evaluation:
    """Plays the evaluation episodes of a run: the same ones for every seed, checkpoint and algorithm.

    Args:
        agent: from `make_algorithm`.
        state: a training state.
        run: names the environment, the number of episodes, their bound and their seed.
        data: from `load_data`.
    """
    if run.env.backend != "jax":
        return summarize(make_program([run], batched=False).evaluate(state))
    env, _ = make_env(run)
    play = jax.jit(lambda state, data: play_evaluation(run, env, agent, state, data))
    return summarize(jax.device_get(play(state, data)))


def summarize(result: Episodes) -> Evaluation:
    """The statistics of episodes that were played."""
    returns = np.asarray(result.episode_return)
    mean, low, high = mean_interval(returns)
    info, final = (
        {name: float(np.mean(values)) for name, values in part.items()} for part in (result.info, result.final)
    )
    return Evaluation(mean, low, high, returns, np.asarray(result.episode_length), info, final)


def debug_nans(on: bool) -> Any:
    return jax.debug_nans(True) if on else contextlib.nullcontext()
