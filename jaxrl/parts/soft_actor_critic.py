"""What soft actor-critic and conservative Q-learning share: a squashed normal policy, twin critics, their losses.

Formula code has no batch axis and is given its noise, so that equal noise gives equal losses. Actions are in [-1, 1]
within. Source: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", arXiv 1812.05905.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from envs_jax.core import EnvSpec
from envs_jax.spaces import Box
from jaxrl.parts.distributions import DiagonalNormal, scale_from_bounds, scale_to_bounds
from jaxrl.parts.networks import Actor, NetworkConfig, QNetwork
from jaxrl.types import Array, Metrics, PyTree

LOG_STD_RANGE = (-20.0, 2.0)


class SoftActorCritic(NamedTuple):
    """Pure functions on `{"actor", "critic", "log_temperature"}`; the critic's leaves lead with 2."""

    init: Callable[[Array], dict[str, PyTree]]  # consumes its key
    # (actor, observation, noise [..., A]) -> (actions [..., A], log densities [...])
    sample: Callable[[PyTree, Array, Array], tuple[Array, Array]]
    values: Callable[[PyTree, Array, Array], Array]  # (critic, observation, actions [..., A]) -> both values [2, ...]
    choose: Callable[[PyTree, Array, Array, bool], Array]  # (actor, observation, key, deterministic) -> env's action
    to_unit: Callable[[Array], Array]  # an action of the environment -> in [-1, 1]
    # (params, observation, noise [A], target entropy) -> losses of the actor and of the temperature
    policy_losses: Callable[[PyTree, Array, Array, Any], Metrics]


def make_soft_actor_critic(network: NetworkConfig, spec: EnvSpec, learner: str) -> SoftActorCritic:
    """Networks and losses for vectors of floats.

    Args:
        network: of the actor and of both critics.
        spec: the spaces.
        learner: the algorithm's name, for messages.

    Raises:
        ValueError: other spaces, actions without bounds, or a torso that is no "mlp".
    """
    space, shape = spec.action_space, spec.observation_space.shape
    if not isinstance(space, Box) or len(space.shape) != 1 or len(shape) != 1:
        raise ValueError(f"{learner} needs vectors of floats, got {spec.observation_space} and {space}")
    if network.torso != "mlp":
        raise ValueError(f"config.network.torso must be mlp for vectors, got {network.torso!r}")
    size, to_unit, to_env = space.size, scale_from_bounds(space), scale_to_bounds(space)
    actor, critic = Actor(network, 2 * size), QNetwork(network, 1)
    actor_forward: Callable[..., Any] = actor.apply
    critic_forward: Callable[..., Any] = critic.apply

    def init(key: Array) -> dict[str, PyTree]:
        key_actor, key_critic = jax.random.split(key)
        critics = jax.vmap(critic.init, (0, None))(jax.random.split(key_critic), jnp.zeros(shape[0] + size))
        actor_params = actor.init(key_actor, jnp.zeros(shape))
        return {"actor": actor_params, "critic": critics, "log_temperature": jnp.zeros(())}

    def distribution(params: PyTree, observation: Array) -> DiagonalNormal:
        mean, log_std = jnp.split(actor_forward(params, observation), 2)
        return DiagonalNormal(mean, jnp.clip(log_std, *LOG_STD_RANGE))

    def sample(params: PyTree, observation: Array, noise: Array) -> tuple[Array, Array]:
        normal = distribution(params, observation)

        def one(noise: Array) -> tuple[Array, Array]:
            raw = normal.mean + jnp.exp(normal.log_std) * noise
            return jnp.tanh(raw), normal.log_prob(raw) - jnp.sum(log_slope(raw))

        return over_leading(one, noise)(noise)

    def values(params: PyTree, observation: Array, action: Array) -> Array:
        def one_critic(params: PyTree) -> Array:
            def one(action: Array) -> Array:
                return critic_forward(params, jnp.concatenate([observation, action]))[0]

            return over_leading(one, action)(action)

        return jax.vmap(one_critic)(params)

    def choose(params: PyTree, observation: Array, key: Array, deterministic: bool) -> Array:
        normal = distribution(params, observation)
        return to_env(jnp.tanh(normal.mode() if deterministic else normal.sample(key)))

    def policy_losses(params: PyTree, observation: Array, noise: Array, target_entropy: Any) -> Metrics:
        frozen = jax.lax.stop_gradient(params)
        action, log_prob = sample(params["actor"], observation, noise)
        value = jnp.min(values(frozen["critic"], observation, action))
        missing = jax.lax.stop_gradient(log_prob + target_entropy)
        return {
            "loss/policy": jnp.exp(frozen["log_temperature"]) * log_prob - value,  # eq. 7
            "loss/temperature": -params["log_temperature"] * missing,  # eq. 18, by its logarithm
            "entropy": -log_prob,
        }

    return SoftActorCritic(init, sample, values, choose, to_unit, policy_losses)


def over_leading(function: Callable[[Array], Any], vectors: Array) -> Callable[[Array], Any]:
    """A `function` of one vector, over the leading axes of `vectors`."""
    for _ in vectors.shape[:-1]:
        function = jax.vmap(function)
    return function


def log_slope(raw: Array) -> Array:
    """`log(1 - tanh(x)^2)`, without its cancellation."""
    return 2.0 * (math.log(2.0) - raw - jax.nn.softplus(-2.0 * raw))


def total_loss(metrics: Metrics) -> Array:
    """The sum of all `loss/*`: each loss stops the gradient of what it does not train, so one gradient serves all."""
    return sum((value for name, value in metrics.items() if name.startswith("loss/")), jnp.zeros(()))


def descend(
    params: dict[str, PyTree], gradient: PyTree, moments: PyTree, rates: dict[str, Any]
) -> tuple[dict[str, PyTree], PyTree]:
    """One Adam step in which every group of parameters has a learning rate of its own.

    Args:
        params: groups by name.
        gradient: like `params`.
        moments: the state of `optax.scale_by_adam`.
        rates: of each group.

    Returns:
        The parameters and moments after it.
    """
    change: Any
    change, moments = optax.scale_by_adam().update(gradient, moments)
    after = {
        name: jax.tree.map(lambda old, step, rate=rates[name]: old - rate * step, tree, change[name])
        for name, tree in params.items()
    }
    return after, moments
