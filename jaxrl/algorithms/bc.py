"""Behaviour cloning: a network learns to do what was done in a data set.

Discrete actions: a categorical policy and the cross entropy. Continuous ones: a deterministic policy, squashed by tanh
and scaled to the bounds, and the squared error in units where the bounds are -1 and 1 (as in CORL, `any_percent_bc`).
An update draws a minibatch uniformly and takes one Adam step; a whole training is one scan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from envs_jax.core import TimeStep
from envs_jax.spaces import Box
from jaxrl.data.dataset import sample_rows, take_rows
from jaxrl.parts.distributions import action_head, scale_from_bounds
from jaxrl.parts.networks import Actor, NetworkConfig, describe_layers
from jaxrl.parts.normalize import RunningStatistics, normalize
from jaxrl.parts.schedules import linear_decay
from jaxrl.parts.setup import at_least_one, dataset_statistics, single_agent_spec, without_memory
from jaxrl.types import Algorithm, Array, Data, Metrics, PyTree, Recipe, TrainState, hparam, no_carry


@dataclasses.dataclass(frozen=True)
class BCConfig:
    """What shapes the program."""

    batch_size: int = 256
    normalize_observations: bool = True  # with the statistics of the data set
    network: NetworkConfig = dataclasses.field(
        default_factory=lambda: NetworkConfig(hidden_sizes=(256, 256), activation="relu")
    )

    def __post_init__(self) -> None:
        at_least_one(self, "batch_size")
        without_memory(self.network)


@struct.dataclass
class BCHParams:
    """What may be traced and swept."""

    learning_rate: Any = hparam(1e-3, low=0.0)
    anneal_updates: Any = hparam(0.0, low=0.0)  # the learning rate falls linearly to 0 over so many; 0: constant
    weight_decay: Any = hparam(0.0, low=0.0)  # decoupled (AdamW)


@struct.dataclass
class BCPolicy:
    """What acting needs."""

    params: PyTree
    statistics: RunningStatistics | None


@struct.dataclass
class BCState(TrainState):
    statistics: Any = None  # of the data set's observations; None without normalisation


def make_bc(config: BCConfig, env: Any) -> Algorithm:
    """Behaviour cloning.

    Args:
        config: static settings.
        env: an `Environment`, or the `EnvSpec` of a data set.

    Returns:
        An `Algorithm` that learns from `data.dataset` alone.

    Raises:
        ValueError: several agents, actions that have no bounds, or a network that does not fit the observations.
    """
    spec = single_agent_spec(env, "BC", config.network)
    head = action_head(spec.action_space)
    to_unit = scale_from_bounds(spec.action_space) if isinstance(spec.action_space, Box) else None
    network = Actor(config.network, head.num_outputs)
    forward: Callable[..., Any] = network.apply

    def optimizer(hparams: BCHParams, num_updates: Array) -> optax.GradientTransformation:
        factor = linear_decay(num_updates, hparams.anneal_updates)
        return optax.chain(
            optax.scale_by_adam(),
            optax.add_decayed_weights(hparams.weight_decay),
            optax.scale(-hparams.learning_rate * factor),
        )

    def init(key: Array, hparams: BCHParams, data: Data) -> BCState:
        key_params, key_state = jax.random.split(key)
        params = network.init(key_params, jnp.zeros(spec.observation_space.shape))
        statistics = dataset_statistics(data, spec) if config.normalize_observations else None
        num_updates = jnp.zeros((), jnp.int32)
        opt_state = optimizer(hparams, num_updates).init(params)
        return BCState(params, opt_state, key_state, num_updates, rollout=None, statistics=statistics)

    def policy(state: BCState, data: Data) -> BCPolicy:
        del data
        return BCPolicy(state.params, state.statistics)

    def outputs(policy_params: BCPolicy, observation: Array) -> Array:
        observation = jnp.asarray(observation, jnp.float32)
        if policy_params.statistics is not None:
            observation = normalize(policy_params.statistics, observation)
        result = forward(policy_params.params, observation)
        return jnp.tanh(result) if head.continuous else result

    def act(policy_params: BCPolicy, carry: PyTree, time_step: TimeStep, key: Array, deterministic: bool) -> tuple:
        result = outputs(policy_params, time_step.observation)
        if head.continuous:
            return head.to_env(result), carry, {}
        distribution = head.distribution(result, None, time_step.legal_actions)
        return distribution.mode() if deterministic else distribution.sample(key), carry, {}

    def row_loss(policy_params: BCPolicy, observation: Array, action: Array) -> tuple[Array, Array]:
        """The loss of one row, and whether the action is the policy's (0 where actions are continuous)."""
        result = outputs(policy_params, observation)
        if to_unit is not None:
            return jnp.mean(jnp.square(result - to_unit(action))), jnp.zeros(())
        distribution = head.distribution(result, None, None)
        return -distribution.log_prob(action), jnp.all(distribution.mode() == action).astype(jnp.float32)

    def update(state: BCState, hparams: BCHParams, data: Data) -> tuple[BCState, Metrics]:
        key, key_sample = jax.random.split(state.key)
        dataset: Any = data.dataset
        rows = sample_rows(dataset, key_sample, config.batch_size)
        batch = take_rows((dataset.transitions.observation, dataset.transitions.action), rows)

        def loss(params: PyTree) -> tuple[Array, Metrics]:
            policy_params = BCPolicy(params, state.statistics)
            losses, agreement = jax.vmap(row_loss, (None, 0, 0))(policy_params, *batch)
            metrics = {"loss/imitation": jnp.mean(losses)}
            if not head.continuous:
                metrics["agreement"] = jnp.mean(agreement)
            return metrics["loss/imitation"], metrics

        gradient, metrics = jax.grad(loss, has_aux=True)(state.params)
        change, opt_state = optimizer(hparams, state.num_updates).update(gradient, state.opt_state, state.params)
        metrics["grad_norm"] = optax.tree.norm(gradient)
        state = dataclasses.replace(
            state,
            params=optax.apply_updates(state.params, change),
            opt_state=opt_state,
            key=key,
            num_updates=state.num_updates + 1,
        )
        return state, metrics

    def export(policy_params: BCPolicy) -> dict[str, Any]:
        params = policy_params.params["params"]
        layers = describe_layers(config.network, params["torso"], params["head"])
        layers[-1]["activation"] = "tanh" if head.continuous else "none"
        return {"layers": layers, "statistics": policy_params.statistics, "action_space": spec.action_space}

    return Algorithm(init=init, update=update, policy=policy, start=no_carry, act=act, export=export)


BC = Recipe(make_bc, BCConfig, BCHParams, offline=True)
