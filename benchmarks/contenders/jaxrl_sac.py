"""SAC here: several seeds side by side, evaluated between chunks of updates."""

import json
import sys

import jax
import numpy as np

import jaxrl
from harness import Stopwatch, report
from jaxrl.loop import scan_updates
from jaxrl.run.program import play_evaluation

settings = json.loads(sys.argv[1])
run = jaxrl.load_config(settings["config"], settings["overrides"])
(env, _), agent, data = jaxrl.make_env(run), jaxrl.make_algorithm(run), jaxrl.load_data(run)
keys = jax.vmap(jax.random.key)(np.arange(settings["num_seeds"]))
init = jax.jit(jax.vmap(lambda key: agent.init(key, run.hparams, data)))


@jax.jit
@jax.vmap
def evaluate(state):
    return play_evaluation(run, env, agent, state, data).episode_return.mean()


def chunk(state):
    return jax.vmap(lambda state: scan_updates(agent, state, run.hparams, run.evaluation.every, data)[0])(state)


with Stopwatch() as compiling:
    state = init(keys)
    compiled = jax.jit(chunk, donate_argnums=0).lower(state).compile()
    evaluate = evaluate.lower(state).compile()
curves, cpu, wall = [], 0.0, 0.0
for _ in range(run.num_updates // run.evaluation.every):
    with Stopwatch() as training:
        state = jax.block_until_ready(compiled(state))
    cpu, wall = cpu + training.cpu, wall + training.wall
    curves.append(np.asarray(evaluate(state)).tolist())
    print(curves[-1], file=sys.stderr)
report(
    settings,
    run.num_updates * agent.steps_per_update * settings["num_seeds"],
    {"compile_seconds": compiling.wall, "compile_cpu_seconds": compiling.cpu, "seconds": wall, "cpu_seconds": cpu},
    returns=np.transpose(curves).round(1).tolist(),
)
