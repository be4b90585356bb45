"""Random actions in MiniCAGE against its own B_line, which counts; one reset, before the clock starts."""

import json
import sys
import types

import numpy as np

from harness import Stopwatch, report

settings = json.loads(sys.argv[1])
num_envs, num_steps = settings["num_envs"], settings["num_steps"]
# Its modules import each other by the name of its repository, whatever the checkout is called.
package = types.ModuleType("CybORG_plus_plus")
package.__path__ = [settings["checkout"]]
sys.modules[package.__name__] = package
with Stopwatch() as building:
    from CybORG_plus_plus.mini_CAGE.minimal import SimplifiedCAGE
    from CybORG_plus_plus.mini_CAGE.test_agent import B_line_minimal

    env, red = SimplifiedCAGE(num_envs=num_envs), B_line_minimal()
    state, _ = env.reset()
generator = np.random.RandomState(settings["seed"])
with Stopwatch() as playing:
    for _ in range(num_steps):
        red_action = red.get_action(observation=state["Red"])
        blue_action = generator.randint(0, 53, (num_envs, 1))
        state, reward, done, info = env.step(blue_action=blue_action, red_action=red_action)
times = {
    "compile_seconds": building.wall,
    "compile_cpu_seconds": building.cpu,
    "seconds": playing.wall,
    "cpu_seconds": playing.cpu,
}
report({**settings, "checkout": "CybORG_plus_plus"}, num_envs * num_steps, times)
