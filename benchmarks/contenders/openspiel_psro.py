"""`psro_v2` of OpenSpiel with its DQN oracle, on PoolFlip embedded there."""

import importlib.metadata
import json
import sys

import numpy as np
from open_spiel.python import rl_environment
from open_spiel.python.algorithms.psro_v2 import psro_v2, rl_oracle, rl_policy
from poolflip_openspiel import make_game

from harness import Stopwatch, report

settings = json.loads(sys.argv[1])
# OpenSpiel draws from the global generator.
np.random.seed(settings["seed"])  # noqa: NPY002
horizon, episodes = settings["horizon"], settings["oracle_episodes"]
game = make_game(settings["num_resources"], horizon)
env = rl_environment.Environment(game)
counts = {"training": 0, "payoff": 0}


class CountingOracle(rl_oracle.RLOracle):
    def sample_episode(self, *args, **kwargs):
        counts["training"] += 1
        return super().sample_episode(*args, **kwargs)


class CountingSolver(psro_v2.PSROSolver):
    def sample_episodes(self, policies, num_episodes):
        counts["payoff"] += num_episodes
        return super().sample_episodes(policies, num_episodes)


agent_settings = {
    "state_representation_size": env.observation_spec()["info_state"][0],
    "num_actions": env.action_spec()["num_actions"],
    "hidden_layers_sizes": settings["hidden_sizes"],
    "batch_size": 32,
    "learn_every": 10,
    "min_buffer_size_to_learn": 200,
    "learning_rate": 1e-3,
    "optimizer_str": "adam",
}
# An oracle ends when every policy has trained for more than so many episodes.
oracle = CountingOracle(env, rl_policy.DQNPolicy, agent_settings, episodes - 1, 0.0, sigma=0.0)
agents = [rl_policy.DQNPolicy(env, player, **agent_settings) for player in (0, 1)]
for agent in agents:
    agent.freeze()
with Stopwatch() as starting:  # compiles what it jits, and plays the first payoff
    solver = CountingSolver(
        game, oracle, initial_policies=agents, training_strategy_selector="probabilistic", rectifier="",
        sims_per_entry=settings["payoff_episodes"], number_policies_selected=1, meta_strategy_method="nash",
        sample_from_marginals=True,
    )  # fmt: skip
counts["training"] = counts["payoff"] = 0
with Stopwatch() as running:
    for _ in range(settings["num_iterations"]):
        solver.iteration()
report(
    settings,
    counts["training"] * horizon,  # one of the two players learns in each episode
    {
        "seconds": running.wall,
        "cpu_seconds": running.cpu,
        "compile_seconds": starting.wall,
        "compile_cpu_seconds": starting.cpu,
    },
    training_episodes=counts["training"],
    payoff_episodes=counts["payoff"],
    peer=f"open_spiel {importlib.metadata.version('open_spiel')}, psro_v2 with JAX DQN",
)
