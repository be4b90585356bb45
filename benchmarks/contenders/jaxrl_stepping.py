"""Random actions in an environment of jaxrl, with auto-reset and true final observations, as training steps it."""

import json
import sys

import jax

import envs_jax
from harness import measure_compiled, report
from jaxrl.rollout import start_rollout, unroll

settings = json.loads(sys.argv[1])
env, params = envs_jax.make(settings["env"], **settings.get("options", {}))
space = env.action_space(params)
policy = (lambda policy_params, key: (), lambda policy_params, carry, step, key, greedy: (space.sample(key), carry, {}))
num_envs, num_steps = settings["num_envs"], settings["num_steps"]


@jax.jit
def play(key, params):
    key_start, key_play = jax.random.split(key)
    rollout = start_rollout(env, policy, (), params, key_start, num_envs)
    rollout, batch = unroll(env, policy, (), params, rollout, key_play, num_steps)
    return rollout.episode_length.sum(), batch.stats, batch.transitions.reward.sum()


_, times = measure_compiled(play, jax.random.key(0), params)
report(settings, num_envs * num_steps, times)
