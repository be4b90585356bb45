"""Random actions in an environment of jaxrl, with auto-reset and true final observations, as training steps it."""

import json
import sys

import jax
import jax.numpy as jnp

import envs_jax
from harness import measure_compiled, report
from jaxrl.rollout import start_rollout, unroll

settings = json.loads(sys.argv[1])
env, params = envs_jax.make(settings["env"], **settings.get("options", {}))
space = env.action_space(params)
num_envs, num_steps = settings["num_envs"], settings["num_steps"]


def start(policy_params, key):
    return jnp.float32(0.0)


def act(policy_params, seen, time_step, key, greedy):
    # Where asked for, every number of the observation is read: the compiler leaves out what nobody looks at.
    if settings.get("read_observations"):
        seen = seen + jnp.sum(time_step.observation)
    return space.sample(key), seen, {}


@jax.jit
def play(key, params):
    key_start, key_play = jax.random.split(key)
    rollout = start_rollout(env, (start, act), (), params, key_start, num_envs)
    rollout, batch = unroll(env, (start, act), (), params, rollout, key_play, num_steps)
    return rollout.carry.sum(), rollout.episode_length.sum(), batch.stats, batch.transitions.reward.sum()


_, times = measure_compiled(play, jax.random.key(0), params)
report(settings, num_envs * num_steps, times)
