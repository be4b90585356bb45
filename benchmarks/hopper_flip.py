"""The hopper's flip as it is shipped: five seeds side by side, their success on the robot as built, and the time.

    python benchmarks/hopper_flip.py --out benchmarks/results/hopper_flip.jsonl --run-dir runs/hopper-seeds

A sweep that is already in `--run-dir` is continued, or only measured where it has ended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

import harness
import jaxrl

NOMINAL = ["env.randomisation=0.0", "env.noise=0.0", "env.flight_starts=0.0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a .jsonl file to append to")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--config", default="ppo_hopper_flip")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()

    run = jaxrl.load_config(options.config)
    jaxrl.sweep(run, seeds=options.seeds, sweep_dir=options.run_dir, resume=options.run_dir.exists(), progress=False)
    nominal = jaxrl.load_config(options.config, NOMINAL)
    agent, data = jaxrl.make_algorithm(nominal), jaxrl.load_data(nominal)
    results = [
        jaxrl.evaluate(agent, jaxrl.load_state(options.run_dir / f"{seed:03d}")[0], nominal, data)
        for seed in range(options.seeds)
    ]
    rows = [json.loads(line) for line in (options.run_dir / "group-0" / "timing.jsonl").read_text().splitlines()]
    facts: dict[str, Any] = {
        "name": options.config,
        "success": [round(result.final["success"], 4) for result in results],
        "centroidal_turns": [round(result.final["turns/centroidal"], 4) for result in results],
        "num_episodes": nominal.evaluation.num_episodes,
        "compile_seconds": rows[-1]["compile_seconds"],
    }
    times = {"seconds": rows[-1]["elapsed_seconds"], "cpu_seconds": rows[-1]["process_cpu_seconds"]}
    with options.out.open("a") as file, contextlib.redirect_stdout(file):
        harness.report(
            {"config": options.config, "seeds": options.seeds},
            run.num_updates * agent.steps_per_update * options.seeds, times, **facts,
        )  # fmt: skip


if __name__ == "__main__":
    main()
