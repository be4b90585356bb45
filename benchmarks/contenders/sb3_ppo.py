"""PPO of Stable-Baselines3 on Gymnasium's CartPole."""

import json
import sys

import gymnasium
import numpy as np
import stable_baselines3
from stable_baselines3.common.env_util import make_vec_env

from harness import Stopwatch, report

settings = json.loads(sys.argv[1])
with Stopwatch() as building:
    envs = make_vec_env(lambda: gymnasium.make("CartPole-v1"), n_envs=settings["num_envs"], seed=settings["seed"])
    anneal = settings["learning_rate"]
    model = stable_baselines3.PPO(
        "MlpPolicy", envs, learning_rate=lambda remaining: anneal * remaining, n_steps=settings["unroll_length"],
        batch_size=settings["batch_size"], n_epochs=4, ent_coef=0.01, seed=settings["seed"], device="cpu",
    )  # fmt: skip
with Stopwatch() as training:
    model.learn(settings["env_steps"])
times = {
    "compile_seconds": building.wall,
    "compile_cpu_seconds": building.cpu,
    "seconds": training.wall,
    "cpu_seconds": training.cpu,
}
final = float(np.mean([episode["r"] for episode in model.ep_info_buffer]))
report(settings, model.num_timesteps, times, final_return=final)
