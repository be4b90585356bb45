"""Random actions in gymnax's CartPole, whose step resets by itself."""

import json
import sys

import gymnax
import jax

from harness import measure_compiled, report

settings = json.loads(sys.argv[1])
env, params = gymnax.make("CartPole-v1")
num_envs, num_steps = settings["num_envs"], settings["num_steps"]


@jax.jit
def play(key):
    key_reset, key_play = jax.random.split(key)
    _, state = jax.vmap(env.reset, (0, None))(jax.random.split(key_reset, num_envs), params)

    def step(state, key):
        key_action, key_step = jax.random.split(key)
        action = jax.random.randint(key_action, (num_envs,), 0, 2)
        keys = jax.random.split(key_step, num_envs)
        _, state, reward, done, _ = jax.vmap(env.step, (0, 0, 0, None))(keys, state, action, params)
        return state, (reward.sum(), done.sum())

    return jax.lax.scan(step, state, jax.random.split(key_play, num_steps))


_, times = measure_compiled(play, jax.random.PRNGKey(0))
report(settings, num_envs * num_steps, times)
