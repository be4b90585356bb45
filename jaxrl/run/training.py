"""The host side of a training: chunk after chunk of the compiled program, with logs, evaluations and checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np

from jaxrl.results.metrics import MetricsWriter, TensorBoardWriter, Writer, plain_row, tensorboard_installed, truncate
from jaxrl.run.checkpoint import CheckpointWriter, restore_newest, write_json
from jaxrl.run.folder import RunFolder
from jaxrl.run.host import HostProgram
from jaxrl.run.program import Program
from jaxrl.run.progress import Progress
from jaxrl.types import PyTree

Row = dict[str, Any]  # numbers, None, and the text "nan" or "inf", as they stand in metrics.jsonl


class TrainingStopped(Exception):
    """A training that ended before its last update; the message says why and how to go on."""

    exit_status = 130


class NotFinite(TrainingStopped):
    """A loss is not a finite number."""

    exit_status = 1


@dataclasses.dataclass
class Position:
    """Where a training stands; stored with every checkpoint."""

    update: int = 0
    offsets: list[int] = dataclasses.field(default_factory=list)  # bytes of each member's metrics
    best: dict[str, float] | None = None  # update and evaluation return (mean over members) of the best checkpoint


class Training:
    """Runs a `Program` to its last update.

    Args:
        program: compiled for one run or for the members of a sweep group.
        folder: where checkpoints and timing go; None writes nothing.
        members: a folder for each member's metrics; for a single run the folder itself.
        progress: shows what happens.
    """

    def __init__(
        self, program: Program | HostProgram, folder: RunFolder | None, members: list[RunFolder], progress: Progress
    ):
        self.program, self.folder, self.members, self.progress = program, folder, members, progress
        self.rows: list[list[Row]] = [[] for _ in program.runs]
        self.position = Position(offsets=[0] * len(members))
        self._writers: list[MetricsWriter] = []
        self._events: list[TensorBoardWriter] = []
        self._saver = None if folder is None else CheckpointWriter(folder.checkpoints, program.run.checkpoint.keep)
        self._steps_per_update = program.agent.steps_per_update  # 0 where nothing is played
        self._started = time.perf_counter()

    def restore(self) -> PyTree | None:
        """The newest checkpoint's state, with logs cut back to it; None where nothing was saved yet."""
        assert self.folder is not None
        for leftover in self.folder.checkpoints.glob(".tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        found = restore_newest(self.folder.checkpoints, self.program.state_shape, self.progress.warn)
        if found is not None:
            self.position = Position(**found[1])
        for member, rows, offset in zip(self.members, self.rows, self.position.offsets):
            truncate(member.metrics, offset)
            rows.extend(json.loads(line) for line in _lines(member.metrics))
        best = self.folder.checkpoints / "best.json"
        if self.position.best is None:
            best.unlink(missing_ok=True)
        else:
            write_json(best, self.position.best)
        return None if found is None else found[0]

    def run(self, state: PyTree) -> PyTree:
        """Trains from `state` (donated) to the last update and returns the final state.

        Raises:
            NotFinite: a loss is NaN or infinite; the last checkpoint is kept.
            TrainingStopped: a signal asked to stop; the state was saved.
        """
        run = self.program.run
        self._writers = [MetricsWriter(member.metrics) for member in self.members]
        if run.log.tensorboard and tensorboard_installed():
            purge = self.position.update * (self._steps_per_update or 1)
            self._events = [TensorBoardWriter(member.tensorboard, purge or None) for member in self.members]
        with contextlib.closing(self), _StopRequest() as stop, self.progress:
            self.progress.start(run.num_updates, self.position.update)
            while self.position.update < run.num_updates:
                state = self._advance(state, stop)
                if stop.requested and self.position.update < run.num_updates:
                    where = f"stopped at update {self.position.update} of {run.num_updates}"
                    raise TrainingStopped(where + self._how_to_resume())
        return state

    def close(self) -> None:
        """Waits for the last checkpoint, raises what went wrong in it, and closes the logs."""
        try:
            if self._saver is not None:
                self._saver.wait()
        finally:
            for writer in (*self._writers, *self._events):
                writer.close()

    def _advance(self, state: PyTree, stop: _StopRequest) -> PyTree:
        """One chunk, and what is due after it."""
        run = self.program.run
        begin = time.perf_counter()
        state, metrics = self.program.chunk(state)
        rows = self._rows(jax.device_get(metrics))
        seconds = time.perf_counter() - begin
        self._check_finite(rows)
        self.position.update += run.chunk
        last = self.position.update == run.num_updates
        improved = False
        if self.program.evaluates and (last or _due(self.position.update, run.evaluation.every)):
            improved = self._evaluate(state, rows)
        self._record(rows, seconds)
        if last or improved or stop.requested or _due(self.position.update, run.checkpoint.every):
            self._save(state, improved)
        return state

    def _rows(self, metrics: dict[str, np.ndarray]) -> list[list[Row]]:
        """Metrics of one chunk as rows `[member][row]` of Python numbers."""
        run = self.program.run
        if not self.program.batched:
            metrics = {name: values[None] for name, values in metrics.items()}
        num_rows = run.chunk // run.log.every
        result = []
        for member in range(len(self.program.runs)):
            rows: list[Row] = []
            for i in range(num_rows):
                update = self.position.update + (i + 1) * run.log.every
                row: Row = {"update": update}
                if self._steps_per_update:
                    row["env_steps"] = update * self._steps_per_update
                row |= {name: values[member, i] for name, values in metrics.items()}
                rows.append(plain_row(row))
            result.append(rows)
        return result

    def _check_finite(self, rows: list[list[Row]]) -> None:
        """Stops a single run whose loss is not finite; a member of a sweep goes on beside the others."""
        if self.program.batched:
            return
        for row in rows[0]:
            for name, value in row.items():
                if name.startswith("loss/") and isinstance(value, str):
                    raise NotFinite(
                        f"{name} is {value} at update {row['update']}; the last good checkpoint is kept. "
                        "Try a smaller hparams.learning_rate, or run with --debug to find the operation"
                    )

    def _evaluate(self, state: PyTree, rows: list[list[Row]]) -> bool:
        """Adds the evaluation to each member's last row; tells whether its mean is the best so far."""
        result = jax.device_get(self.program.evaluate(state))
        returns, lengths = (
            x if self.program.batched else x[None] for x in (result.episode_return, result.episode_length)
        )
        for member, member_rows in enumerate(rows):
            member_rows[-1] |= {
                "evaluation/return": float(returns[member].mean()),
                "evaluation/return_std": float(returns[member].std()),
                "evaluation/length": float(lengths[member].mean()),
            }
        mean = float(np.mean(returns))
        if self.position.best is None or mean > self.position.best["return"]:
            self.position.best = {"update": self.position.update, "return": mean}
            return True
        return False

    def _record(self, rows: list[list[Row]], seconds: float) -> None:
        run = self.program.run
        writers: list[Sequence[Writer]] = [self._writers, self._events] if self._events else [self._writers]
        for group in writers:
            for writer, member_rows in zip(group, rows):
                for row in member_rows:
                    writer.write(row)
        for kept, member_rows in zip(self.rows, rows):
            kept.extend(member_rows)
        self.position.offsets = [writer.offset for writer in self._writers]
        updates = run.chunk * len(self.program.runs)
        steps = updates * self._steps_per_update
        if self.folder is not None:
            timing = {
                "update": self.position.update,
                "chunk_seconds": round(seconds, 6),
                "env_steps_per_second": round(steps / seconds, 1),
                "updates_per_second": round(updates / seconds, 3),
                "elapsed_seconds": round(time.perf_counter() - self._started, 3),
                "process_cpu_seconds": round(time.process_time(), 3),
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT,
                "compile_seconds": {k: round(v, 3) for k, v in self.program.compile_seconds.items()},
            }
            with self.folder.timing.open("a") as file:
                file.write(json.dumps(timing) + "\n")
        speed = (steps / seconds, "steps") if steps else (updates / seconds, "updates")
        self.progress.update(self.position.update, *speed, rows)

    def _save(self, state: PyTree, improved: bool) -> None:
        if self._saver is None or self.folder is None:
            return
        best, file = self.position.best, self.folder.checkpoints / "best.json"
        then = (lambda: write_json(file, best)) if improved else None
        self._saver.save(state, self.position.update, dataclasses.asdict(self.position), then)

    def _how_to_resume(self) -> str:
        return (
            ""
            if self.folder is None
            else f"; the state is saved. Continue with: jaxrl train --resume {self.folder.path}"
        )


_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _due(update: int, every: int) -> bool:
    return every > 0 and update % every == 0


class _StopRequest:
    """Turns the first Ctrl-C or termination signal into a request to stop after the chunk; a second one interrupts."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
