"""Random actions in the original CybORG (CAGE Challenge 2, Scenario 2) against B_line, resets included."""

import inspect
import json
import random
import sys
from pathlib import Path

from harness import Stopwatch, report

settings = json.loads(sys.argv[1])
sys.path.insert(0, str(Path(settings["checkout"]) / "CybORG"))
with Stopwatch() as building:
    from CybORG import CybORG
    from CybORG.Agents import B_lineAgent
    from CybORG.Agents.Wrappers import ChallengeWrapper

    scenario = Path(inspect.getfile(CybORG)).parent / "Shared" / "Scenarios" / "Scenario2.yaml"
    random.seed(settings["seed"])
    env = ChallengeWrapper(env=CybORG(str(scenario), "sim", agents={"Red": B_lineAgent}), agent_name="Blue")
blue, total = random.Random(settings["seed"]), 0.0
with Stopwatch() as playing:
    for _ in range(settings["num_episodes"]):
        env.reset()
        for _ in range(settings["episode_length"]):
            total += env.step(blue.randrange(145))[1]
times = {
    "compile_seconds": building.wall,
    "compile_cpu_seconds": building.cpu,
    "seconds": playing.wall,
    "cpu_seconds": playing.cpu,
}
num_steps = settings["num_episodes"] * settings["episode_length"]
report({**settings, "checkout": "cage-challenge-2"}, num_steps, times, mean_return=total / settings["num_episodes"])
