"""Best responses of both roles at once, one compiled call, beside a floor that is counted: its matrix products."""

import itertools
import json
import sys

import jax
import jax.numpy as jnp

import jaxrl
from harness import Stopwatch, measure_compiled, report
from jaxrl.algorithms.psro import make_population

settings = json.loads(sys.argv[1])
run = jaxrl.make_config(settings["config"])
config, hparams, (env, env_params) = run.config, run.hparams, jaxrl.make_env(run)
population, oracle = make_population(config, env), config.oracle.config
first = population.heuristic_members(config.heuristics, hparams)
bank = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), first)
strategies = jnp.full((2, len(config.heuristics)), 1 / len(config.heuristics))


@jax.jit
def train(key, hparams, game_params, bank, strategies):
    return population.best_responses(key, hparams, game_params, bank, strategies)


game_params = getattr(env_params, "game", env_params)
_, times = measure_compiled(train, jax.random.key(settings["seed"]), hparams, game_params, bank, strategies)

# Multiplications of one forward pass of one observation: the layers of one shared torso and of its two heads.
sizes = [*env.observation_space(env_params).shape, *oracle.network.hidden_sizes]
products = sum(a * b for a, b in itertools.pairwise(sizes))
products += sizes[-1] * (env.action_space(env_params).num_values + 1)
# Per ego step: a pass to act, one of the opponent's network, num_epochs times forward and twice that backward, and one
# of the successor in every unroll_length steps.
passes = 2 + 3 * oracle.num_epochs + 1 / oracle.unroll_length
flops = 2 * products * passes


@jax.jit
def multiply(left, right):
    return jax.lax.fori_loop(0, 2000, lambda _, x: x @ right, left)


rows, width = oracle.num_envs * oracle.unroll_length // oracle.num_minibatches, sizes[-1]
arguments = jnp.ones((rows, width)), jnp.eye(width)
jax.block_until_ready(multiply(*arguments))
with Stopwatch() as multiplying:
    jax.block_until_ready(multiply(*arguments))
work = 2000 * 2 * rows * width**2
ego_steps = 2 * config.oracle.num_updates * oracle.num_envs * oracle.unroll_length
report(
    settings,
    ego_steps,
    times,
    flops_per_step=flops,
    matmul_flops_per_second=round(work / multiplying.wall),
    matmul_flops_per_cpu_second=round(work / multiplying.cpu),
    floor_seconds=round(ego_steps * flops * multiplying.wall / work, 4),
    floor_cpu_seconds=round(ego_steps * flops * multiplying.cpu / work, 4),
)
