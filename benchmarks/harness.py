"""What all benchmarks share: contenders in processes of their own, taking turns; one JSON line per run."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTENDERS = Path(__file__).parent / "contenders"
# Whose versions are noted.
PACKAGES = ("jax", "brax", "mujoco", "mujoco-mjx", "numpy", "gym", "gymnax", "gymnasium", "stable-baselines3", "torch")


@dataclasses.dataclass
class Contender:
    """One side of a comparison: a script of `contenders/`, its interpreter and its settings."""

    name: str
    script: str
    settings: dict[str, Any]
    python: str = sys.executable


def take_turns(
    contenders: list[Contender], rounds: int, out: Path, unit: str = "env_steps", one_core: bool = False
) -> None:
    """Runs every contender once per round, in order, and appends what each prints to `out`.

    `unit` is that of `report`; with `one_core` each of them has one thread, on one core.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for number in range(rounds):
        for contender in contenders:
            load = os.getloadavg()[0]
            command = [contender.python, str(CONTENDERS / contender.script), json.dumps(contender.settings)]
            # A compiled program found in a cache would hide what compiling costs.
            environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONPATH": str(CONTENDERS.parent)}
            start = None
            if one_core:
                environment |= {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
                start = _one_core
            run = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False, preexec_fn=start
            )
            if run.returncode:
                sys.exit(f"{contender.name} failed:\n{run.stderr[-3000:]}")
            row = {"name": contender.name, "round": number, "load": round(load, 2)} | json.loads(
                run.stdout.splitlines()[-1]
            )
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{contender.name:28s} {row[f'{unit}_per_cpu_second']:>12,.4g} {unit} per CPU second")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every table has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="a .jsonl file to append to")
    parser.add_argument("--rounds", type=int, default=5)
    return parser


class Stopwatch:
    """Wall and process CPU seconds of a block."""

    def __enter__(self) -> Stopwatch:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu


def measure_compiled(function: Callable, *arguments: Any) -> tuple[Any, dict[str, float]]:
    """Compiles a jitted function, runs it once, and times both."""
    import jax

    with Stopwatch() as compiling:
        compiled = function.lower(*arguments).compile()
    with Stopwatch() as running:
        result = jax.block_until_ready(compiled(*arguments))
    return result, {
        "compile_seconds": compiling.wall,
        "compile_cpu_seconds": compiling.cpu,
        "seconds": running.wall,
        "cpu_seconds": running.cpu,
    }


def report(
    settings: dict[str, Any], count: int, times: dict[str, float], *, unit: str = "env_steps", **facts: Any
) -> None:
    """Prints the JSON line of one run, in which `count` environment steps (or other units) were done."""
    # Merged in the old way: interpreters of old simulators are older than `|` of dictionaries.
    row = {
        "settings": settings,
        unit: count,
        **{name: round(value, 4) for name, value in times.items()},
        f"{unit}_per_second": round(count / times["seconds"], 3),
        f"{unit}_per_cpu_second": round(count / times["cpu_seconds"], 3),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "versions": {"python": platform.python_version(), **_versions(*PACKAGES)},
        "device": _device(),
        "cores": os.cpu_count(),
        **facts,
    }
    print(json.dumps(row))


def seconds_to_return(curve: list[float], threshold: float, seconds: float) -> float | None:
    """When a smoothed curve of episode returns first reaches `threshold`, taking updates to be equally long."""
    for i in range(len(curve)):
        window = curve[max(0, i - 9) : i + 1]
        if sum(window) / len(window) >= threshold:
            return round(seconds * (i + 1) / len(curve), 3)
    return None


def _one_core() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _device() -> str:
    if "jax" not in sys.modules:
        return "cpu"
    import jax

    return jax.devices()[0].device_kind
