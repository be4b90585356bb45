"""The same PSRO as a Python loop: environments of a batch step in one jitted call, learning is another.

Nothing in it waits for a result, buffers are donated, both roles and all pairs of a payoff run side by side and shapes
never change, so that every function compiles once: what is left is the loop. Networks, game, losses, meta-solver and
numbers of steps are those of the compiled program.
"""

import dataclasses
import functools
import json
import sys

import jax
import jax.numpy as jnp

import jaxrl
from envs_jax.versus import VersusParams
from harness import Stopwatch, report
from jaxrl.algorithms.psro import make_population
from jaxrl.parts.bank import append
from jaxrl.parts.meta_game import make_meta_game
from jaxrl.parts.meta_solvers import make_meta_solver
from jaxrl.parts.roles import systematic_draw
from jaxrl.rollout import start_rollout, unroll
from jaxrl.types import Batch, Data, EpisodeStats

settings = json.loads(sys.argv[1])
run = jaxrl.make_config(settings["config"])
config, hparams, (env, env_params) = run.config, run.hparams, jaxrl.make_env(run)
population = make_population(config, env)
oracle, view, game, num_groups = population.oracle, population.view, population.game, config.num_groups
acting = (oracle.start, oracle.act)
shape = config.oracle.config
num_initial, num_slots = config.num_initial, config.num_initial + config.capacity
every, max_steps, num_episodes = jnp.arange(num_slots), population.max_steps, config.num_episodes
game_params = getattr(env_params, "game", env_params)
solve = make_meta_solver(config.meta_solver, zero_sum=game.zero_sum)


def repeated(leaf):
    return jnp.broadcast_to(leaf, (num_groups, *leaf.shape))


def view_params(role, opponents):
    zeros, weights = jnp.zeros(num_groups, jnp.int32), jnp.ones((num_groups, 1))
    return VersusParams(jax.tree.map(repeated, game_params), repeated(role), opponents, weights, zeros)


def both_roles(function, *axes):
    return functools.partial(jax.vmap(function, (0, *axes)), jnp.arange(2, dtype=jnp.int32))


@jax.jit
def draw(key, bank, strategies):
    def one(role, key):
        chosen = systematic_draw(key, strategies[1 - role], num_groups)
        return jax.tree.map(lambda leaf: leaf[1 - role, chosen], bank)

    return both_roles(one, 0)(jax.random.split(key))


@jax.jit
def init(key, opponents):
    def one(role, key, opponents):
        return oracle.init(key, hparams, Data(view_params(role, opponents)))

    return both_roles(one, 0, 0)(jax.random.split(key), opponents)


@jax.jit
def begin(key, state, opponents):
    def one(role, key, state, opponents):
        params = view_params(role, opponents)
        policy = oracle.policy(state, Data(params))
        return start_rollout(view, acting, policy, params, key, shape.num_envs)

    return both_roles(one, 0, 0, 0)(jax.random.split(key), state, opponents)


@functools.partial(jax.jit, donate_argnums=1)
def step(state, rollout, key, opponents):
    """One step of all environments of both roles."""
    key, key_step = jax.random.split(key)

    def one(role, state, rollout, key, opponents):
        params = view_params(role, opponents)
        policy = oracle.policy(state, Data(params))
        return unroll(view, acting, policy, params, rollout, key, 1, hparams.discount)

    return *both_roles(one, 0, 0, 0, 0)(state, rollout, jax.random.split(key_step), opponents), key


@functools.partial(jax.jit, donate_argnums=0)
def learn(state, batches):
    transitions = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, 1), *[batch.transitions for batch in batches])
    stats = jax.tree.map(lambda *leaves: sum(leaves), *[batch.stats for batch in batches])
    batch = Batch(transitions, batches[0].carry, batches[0].discounted_return, EpisodeStats(*vars(stats).values()))
    return jax.vmap(lambda state, batch: oracle.learn(state, hparams, batch, Data()))(state, batch)[0]


@jax.jit
def pairs_of(bank, rows, columns):
    return jax.tree.map(lambda leaf: jnp.stack([leaf[0, rows], leaf[1, columns]], 1), bank)


@jax.jit
def payoff_begin(key, pairs):
    keys = jax.random.split(key, (2, num_episodes))

    def one(pair, key_reset, key_start):
        state, time_step = game.reset(key_reset, game_params)
        totals = {name: jnp.zeros(2) for name, leaf in time_step.info.items() if leaf.shape == (2,)}
        return state, time_step, population.both[0](pair, key_start), totals | {"utility": jnp.zeros(2)}

    return jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, None))(pairs, *keys)


@functools.partial(jax.jit, donate_argnums=1)
def payoff_step(pairs, playing, key):
    key, key_step = jax.random.split(key)
    keys = jax.random.split(key_step, (2, num_episodes))

    def one(pair, playing, key_act, key_step):
        state, time_step, carry, totals = playing
        action, carry, _ = population.both[1](pair, carry, time_step, key_act, False)
        state, time_step = game.step(key_step, state, action, game_params)
        values = time_step.info | {"utility": time_step.reward}
        return state, time_step, carry, {name: total + values[name] for name, total in totals.items()}

    return jax.vmap(jax.vmap(one, (None, 0, 0, 0)), (0, 0, None, None))(pairs, playing, *keys), key


@jax.jit
def solved(payoffs, num_updates):
    return jnp.stack(solve(make_meta_game(payoffs, (every < num_initial + num_updates,) * 2)))


@jax.jit
def filled(tables, rows, columns, totals):
    """As in the compiled program, the tables of what a game reports are kept beside the payoffs."""
    return {
        name: tables.get(name, jnp.zeros((2, num_slots, num_slots)))
        .at[:, rows, columns]
        .set(jnp.mean(total, 1).T / max_steps)
        for name, total in totals.items()
    }


def measure(tables, bank, rows, columns, key):
    pairs = pairs_of(bank, rows, columns)
    playing = payoff_begin(key, pairs)
    for _ in range(max_steps):
        playing, key = payoff_step(pairs, playing, key)
    return filled(tables, rows, columns, playing[3])


def best_responses(key, bank, strategies, num_updates):
    opponents = draw(key, bank, strategies)
    state = init(key, opponents)
    rollout, elapsed = state.rollout, 0
    for _ in range(num_updates):
        if elapsed and elapsed % max_steps == 0:
            key, key_draw, key_begin = jax.random.split(key, 3)
            opponents = draw(key_draw, bank, strategies)
            rollout = begin(key_begin, state, opponents)
        state = dataclasses.replace(state, rollout=None)
        batches = []
        for _ in range(shape.unroll_length):
            rollout, batch, key = step(state, rollout, key, opponents)
            batches.append(batch)
        elapsed += shape.unroll_length
        state = learn(state, batches)
    return population.learned_members(jax.vmap(oracle.policy, (0, None))(state, Data()))


def psro(key, num_iterations, num_updates):
    first = population.heuristic_members(config.heuristics, hparams)
    bank = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), first)
    bank = jax.tree.map(
        lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[:, :1], config.capacity, axis=1)], axis=1), bank
    )
    rows = jnp.repeat(jnp.arange(num_initial), num_initial)
    columns = jnp.tile(jnp.arange(num_initial), num_initial)
    tables = measure({}, bank, rows, columns, key)
    strategies = solved(tables["utility"], 0)
    for k in range(num_iterations):
        key, key_train = jax.random.split(key)
        slot = num_initial + k
        bank = store(bank, slot, best_responses(key_train, bank, strategies, num_updates))
        newest = jnp.full(num_slots, slot)
        rows, columns = jnp.concatenate([newest, every]), jnp.concatenate([every, newest])
        tables = measure(tables, bank, rows, columns, key)
        strategies = solved(tables["utility"], k + 1)
    return jax.block_until_ready((tables, strategies))


store = jax.jit(append)
with Stopwatch() as compiling:
    psro(jax.random.key(1), 1, max_steps // shape.unroll_length + 1)
with Stopwatch() as running:
    psro(jax.random.key(settings["seed"]), run.num_updates, config.oracle.num_updates)
times = {"seconds": running.wall, "cpu_seconds": running.cpu}
times |= {"compile_seconds": compiling.wall, "compile_cpu_seconds": compiling.cpu}
report(settings, run.num_updates * 2 * config.oracle.num_updates * shape.num_envs * shape.unroll_length, times)
