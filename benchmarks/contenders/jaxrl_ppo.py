"""PPO of jaxrl: a whole training as one compiled call."""

import json
import sys

import jax
import numpy as np

import jaxrl
from harness import measure_compiled, report, seconds_to_return

settings = json.loads(sys.argv[1])
run = jaxrl.make_config(settings["config"])
agent, data = jaxrl.make_algorithm(run), jaxrl.load_data(run)
train = jax.jit(
    lambda key, hparams, data: jaxrl.scan_updates(
        agent, agent.init(key, hparams, data), hparams, run.num_updates, data
    )[1]
)
metrics, times = measure_compiled(train, jax.random.key(settings["seed"]), run.hparams, data)
counts, returns = np.asarray(metrics["episode/count"]), np.asarray(metrics["episode/return"])
last = slice(-max(len(counts) // 10, 1), None)
final = float((counts[last] * returns[last]).sum() / max(counts[last].sum(), 1))
curve = [float(value) for value in returns[counts > 0]]
threshold = settings.get("threshold", float("inf"))
report(
    settings,
    run.num_updates * agent.steps_per_update,
    times,
    final_return=final,
    seconds_to_return=seconds_to_return(curve, threshold, times["seconds"]),
)
