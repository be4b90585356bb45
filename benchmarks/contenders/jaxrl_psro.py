"""PSRO of jaxrl: all iterations as one compiled call, whose number is an argument of the program."""

import json
import sys

import jax
import jax.monitoring

import jaxrl
from harness import Stopwatch, report

COMPILATION = "/jax/core/compile/backend_compile_duration"
settings = json.loads(sys.argv[1])
run = jaxrl.make_config(settings["config"])
agent, data, hparams = jaxrl.make_algorithm(run), jaxrl.load_data(run), run.hparams
programs = []


def train(key, hparams, data, num_iterations):
    return jax.lax.fori_loop(
        0, num_iterations, lambda _, state: agent.update(state, hparams, data)[0], agent.init(key, hparams, data)
    )


key, counts = jax.random.key(settings["seed"]), settings.get("iterations", [run.num_updates])
with Stopwatch() as tracing:
    lowered = jax.jit(train).lower(key, hparams, data, counts[0])
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: programs.append(seconds) if name == COMPILATION else None
)
with Stopwatch() as compiling:
    program = lowered.compile()
measured, repeats = [], settings.get("repeats", 1)
for count in counts:
    with Stopwatch() as running:
        for _ in range(repeats):
            state = jax.block_until_ready(program(key, hparams, data, count))
    measured.append((running.wall / repeats, running.cpu / repeats))
first, slots = run.config.num_initial, run.config.num_initial + counts[-1]
report(
    settings,
    counts[-1] * agent.steps_per_update,
    {
        "compile_seconds": tracing.wall + compiling.wall,
        "compile_cpu_seconds": tracing.cpu + compiling.cpu,
        "seconds": measured[-1][0],
        "cpu_seconds": measured[-1][1],
    },
    programs=len(programs),
    payoff_episodes=run.config.num_episodes * (slots**2 - first**2),
    cpu_seconds_by_iterations=dict(zip(map(str, counts), (round(cpu, 4) for _, cpu in measured))),
    seconds_by_iterations=dict(zip(map(str, counts), (round(wall, 4) for wall, _ in measured))),
)
