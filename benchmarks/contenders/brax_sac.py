"""Brax's own SAC, one seed. Runs where brax's training does: with jax below 0.10."""

import functools
import json
import sys

from brax import envs
from brax.training.agents.sac import networks, train

from harness import Stopwatch, report

settings = json.loads(sys.argv[1])
returns, seconds, cpu_seconds = [], 0.0, 0.0


def progress(step: int, metrics: dict) -> None:
    returns.append(float(metrics["eval/episode_reward"]))
    print(step, returns[-1], file=sys.stderr)


hidden_sizes = settings.pop("hidden_sizes")
task, backend = settings.pop("task"), settings.pop("backend")
with Stopwatch() as everything:
    train.train(
        envs.get_environment(task, backend=backend),
        network_factory=functools.partial(networks.make_sac_networks, hidden_layer_sizes=tuple(hidden_sizes)),
        progress_fn=progress,
        deterministic_eval=True,
        **settings,
    )
# Training, evaluation and compilation take turns inside: only the whole can be timed.
times = {"seconds": everything.wall, "cpu_seconds": everything.cpu}
settings |= {"task": task, "backend": backend, "hidden_sizes": hidden_sizes}
report(settings, settings["num_timesteps"], times, returns=[[round(value, 1) for value in returns]])
