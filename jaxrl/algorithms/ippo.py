"""Independent PPO (de Witt et al. 2020, arXiv 2011.09533): every role of a game learns by itself, against the others.

One unroll of the game gives each role its own batch, and each role's learner, which knows nothing of the others,
learns from it; all learners run as one vmapped program. Each learner is what a configuration's algorithm makes of the
role's spaces alone, PPO unless `make_independent` is given another.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from envs_jax.core import Environment
from envs_jax.versus import Versus
from jaxrl import algorithms
from jaxrl.parts.roles import play_together
from jaxrl.rollout import start_rollout, unroll
from jaxrl.types import Algorithm, Array, Batch, Data, EpisodeStats, Metrics, PyTree, Recipe, TrainState, Transition


def make_ippo(config: Any, env: Environment) -> Algorithm:
    """PPO for every role of a game at once, latest against latest.

    Args:
        config: PPO's.
        env: a game of several roles that share one layout of observations and actions; then `act` plays all of them,
            `[A]`. Or a `Versus` view of one: training is the same, and `act` plays that role.

    Returns:
        An `Algorithm`; its state's `params` are the learners' states, leaves `[A, ...]`.

    Raises:
        ValueError: not such a game, or PPO refuses its spaces.
    """
    return make_independent(algorithms.find("ppo"), config, env)


def make_independent(recipe: Recipe, config: Any, env: Environment) -> Algorithm:
    """Independent learning with any algorithm whose `learn` takes the `Batch` of `unroll`; see `make_ippo`."""
    if not isinstance(env, Environment):
        raise ValueError("self-play needs an environment that runs inside JAX")
    one_role = isinstance(env, Versus)
    game: Environment = env.env if isinstance(env, Versus) else env
    num_roles = game.num_agents
    if num_roles < 2:
        raise ValueError(f"self-play needs a game of two roles or more, {type(game).__name__} has {num_roles}")
    roles = game.roles or tuple(str(i) for i in range(num_roles))
    learner = recipe.make(config, dataclasses.replace(game.spec(game.default_params), num_agents=1))
    both = play_together((learner.start, learner.act))  # type: ignore[arg-type]

    def game_params(data: Data) -> Any:
        return data.env_params.game if one_role else data.env_params

    def policies(learners: PyTree) -> PyTree:
        return jax.vmap(learner.policy, (0, None))(learners, Data())  # type: ignore[arg-type]

    def init(key: Array, hparams: PyTree, data: Data) -> TrainState:
        key_learners, key_rollout, key_state = jax.random.split(key, 3)
        learners = jax.vmap(learner.init, (0, None, None))(jax.random.split(key_learners, num_roles), hparams, Data())
        rollout = start_rollout(game, both, policies(learners), game_params(data), key_rollout, config.num_envs)
        return TrainState(learners, None, key_state, jnp.zeros((), jnp.int32), rollout)

    def collect(state: TrainState, hparams: PyTree, data: Data) -> tuple[TrainState, Batch]:
        key, key_unroll = jax.random.split(state.key)
        rollout, batch = unroll(
            game, both, policies(state.params), game_params(data), state.rollout, key_unroll, config.unroll_length,
            hparams.discount,
        )  # fmt: skip
        return dataclasses.replace(state, key=key, rollout=rollout), batch

    def learn(state: TrainState, hparams: PyTree, batch: Batch, data: Data) -> tuple[TrainState, Metrics]:
        del data
        learners, metrics = jax.vmap(learner.learn, (0, None, 0, None))(  # type: ignore[arg-type]
            state.params, hparams, by_role(batch, num_roles), Data()
        )
        state = dataclasses.replace(state, params=learners, num_updates=state.num_updates + 1)
        named = {f"{name}/{role}": x[i] for name, x in metrics.items() for i, role in enumerate(roles)}
        return state, {name: jnp.mean(x).astype(x.dtype) for name, x in metrics.items()} | named

    def update(state: TrainState, hparams: PyTree, data: Data) -> tuple[TrainState, Metrics]:
        state, batch = collect(state, hparams, data)
        return learn(state, hparams, batch, data)

    def policy(state: TrainState, data: Data) -> PyTree:
        params = policies(state.params)
        return jax.tree.map(lambda leaf: leaf[data.env_params.role], params) if one_role else params

    start, act = (learner.start, learner.act) if one_role else both
    steps = num_roles * config.num_envs * config.unroll_length
    return Algorithm(init, update, policy, start, act, collect, learn, steps)


def by_role(batch: Batch, num_roles: int) -> Batch:
    """A batch of a game, one for each role: leaves lead with `[A, T, B]`, `[A, B]` instead of `[T, B, A]`, `[B, A]`."""
    steps = batch.transitions

    def repeated(ending: Array) -> Array:
        return jnp.broadcast_to(ending, (num_roles, *ending.shape))

    moved: Transition = jax.tree.map(
        lambda leaf: jnp.moveaxis(leaf, 2, 0), dataclasses.replace(steps, terminated=None, truncated=None)
    )
    transitions = dataclasses.replace(moved, terminated=repeated(steps.terminated), truncated=repeated(steps.truncated))
    stats = EpisodeStats(batch.stats.return_sum, repeated(batch.stats.length_sum), repeated(batch.stats.count))
    carry, discounted_return = jax.tree.map(
        lambda leaf: jnp.moveaxis(leaf, 1, 0), (batch.carry, batch.discounted_return)
    )
    return Batch(transitions, carry, discounted_return, stats)


def specialise(settings: dict[str, Any]) -> Recipe:
    """The recipe with PPO's own settings."""
    del settings
    ppo = algorithms.find("ppo")
    return Recipe(make_ippo, ppo.config, ppo.hparams)


IPPO = Recipe(make_ippo, object, object, specialise)
