"""Updates of an offline algorithm on random data, for one core, one or several seeds side by side."""

import json
import sys

import jax
import numpy as np

from envs_jax.core import EnvSpec
from envs_jax.spaces import Box
from harness import Stopwatch, report
from jaxrl import algorithms
from jaxrl.data.dataset import load_dataset
from jaxrl.data.recording import Episode, Header, from_episodes
from jaxrl.loop import scan_updates
from jaxrl.run.config import make_hparams, structure
from jaxrl.types import Data

settings = json.loads(sys.argv[1])
rng, num_seeds = np.random.default_rng(0), settings["num_seeds"]
spec = EnvSpec(Box(-np.inf, np.inf, (settings["observation"],)), Box(-1.0, 1.0, (settings["action"],)))
last = np.arange(1000) == 999
episodes = [
    Episode(
        rng.normal(size=(1001, settings["observation"])).astype(np.float32),
        rng.uniform(-1, 1, (1000, settings["action"])).astype(np.float32),
        rng.normal(size=1000).astype(np.float32),
        np.zeros(1000, bool),
        last,
    )
    for _ in range(20)
]
data = Data(dataset=load_dataset(from_episodes(episodes, Header(spec.observation_space, spec.action_space))))
recipe = algorithms.find(settings["algorithm"])
agent = recipe.make(structure(settings["config"], recipe.config, "config"), spec)
hparams = make_hparams({}, recipe.hparams)


def chunk(state, data):
    return scan_updates(agent, state, hparams, settings["num_updates"], data, settings["num_updates"])


def init(key, data):
    return agent.init(key, hparams, data)


over = (lambda f: jax.vmap(f, (0, None))) if num_seeds > 1 else lambda f: f
keys = jax.random.split(jax.random.key(0), num_seeds) if num_seeds > 1 else jax.random.key(0)
with Stopwatch() as compiling:
    state = jax.jit(over(init))(keys, data)
    compiled = jax.jit(over(chunk), donate_argnums=0).lower(state, data).compile()
state = jax.block_until_ready(compiled(state, data)[0])  # warm-up
with Stopwatch() as running:
    jax.block_until_ready(compiled(state, data))
times = {"compile_seconds": compiling.wall, "compile_cpu_seconds": compiling.cpu}
times |= {"seconds": running.wall, "cpu_seconds": running.cpu}
report(settings, settings["num_updates"] * num_seeds, times, unit="updates")
