"""PPO of a PureJaxRL checkout on gymnax's CartPole, as its own script trains it."""

import importlib
import json
import sys
import types
from pathlib import Path

import jax
import numpy as np

from harness import measure_compiled, report, seconds_to_return

settings = json.loads(sys.argv[1])
sys.path.insert(0, str(Path(settings["checkout"]) / "purejaxrl"))
# Its wrappers import these two for other environments; nothing here uses them.
for name, parts in {
    "brax": ("envs",),
    "brax.envs.wrappers.training": ("EpisodeWrapper", "AutoResetWrapper"),
    "navix": (),
}.items():
    stand_in = types.ModuleType(name)
    for part in parts:
        setattr(stand_in, part, object)
    sys.modules[name] = stand_in
for name in ("brax.envs", "brax.envs.wrappers"):
    sys.modules[name] = types.ModuleType(name)

make_train = importlib.import_module("ppo").make_train
train = jax.jit(make_train(dict(settings["config"])))
result, times = measure_compiled(train, jax.random.PRNGKey(settings["seed"]))
info = result["metrics"]
ended, returns = np.asarray(info["returned_episode"]), np.asarray(info["returned_episode_returns"])
num_updates = ended.shape[0]
last = slice(-max(num_updates // 10, 1), None)
curve = [float(returns[i][ended[i]].mean()) for i in range(num_updates) if ended[i].any()]
report(
    settings | {"checkout": "purejaxrl"},
    ended.size,
    times,
    final_return=float(returns[last][ended[last]].mean()),
    seconds_to_return=seconds_to_return(curve, settings["threshold"], times["seconds"]),
)
