"""An oracle that solves matrix games outright: the best response to a mixture is one of the actions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.core import EnvSpec
from jaxrl.rollout import start_rollout
from jaxrl.types import Algorithm, Recipe, TrainState, hparam, no_carry

NUM_ENVS = 4


@dataclasses.dataclass(frozen=True)
class ExactConfig:
    """Nothing to set."""


@struct.dataclass
class ExactHParams:
    anneal_updates: Any = hparam(0.0, low=0.0)


def make_exact(config, env):
    """Policies are probabilities f32 [N], as those of a matrix game's heuristics are."""
    num_actions = (env if isinstance(env, EnvSpec) else env.spec(env.default_params)).action_space.num_values

    def init(key, hparams, data):
        uniform = jnp.full(num_actions, 1.0 / num_actions)
        rollout = None
        if not isinstance(env, EnvSpec):
            rollout = start_rollout(env, (no_carry, act), uniform, data.env_params, key, NUM_ENVS)
        return TrainState(uniform, None, key, jnp.zeros((), jnp.int32), rollout)

    def update(state, hparams, data):
        met = data.env_params
        if env.num_groups is None:  # opponents [M] and how often each is met
            probabilities, weights, game, role = strategy(met.opponents), met.weights, met.game, met.role
        else:  # the opponents in play [G]
            probabilities = strategy(met.opponents)
            weights = jnp.ones(env.num_groups)
            game, role = jax.tree.map(lambda leaf: leaf[0], (met.game, met.role))
        mixture = weights @ probabilities / jnp.sum(weights)
        values = jnp.where(role == 0, game.payoffs[0] @ mixture, mixture @ game.payoffs[1])
        response = jax.nn.one_hot(jnp.argmax(values), num_actions)
        state = state.replace(params=response, num_updates=state.num_updates + 1)
        return state, {"loss/none": jnp.zeros(()), "episode/count": jnp.ones((), jnp.int32)}

    def strategy(members):
        return jnp.where(members.learned[:, None], members.network, members.heuristic)

    def act(policy_params, carry, time_step, key, deterministic):
        return jax.random.categorical(key, jnp.log(policy_params)).astype(jnp.int32), carry, {}

    return Algorithm(init, update, lambda state, data: state.params, no_carry, act, steps_per_update=NUM_ENVS)


EXACT = Recipe(make_exact, ExactConfig, ExactHParams)
