"""Conservative Q-learning, CQL(H) (Kumar et al. 2020, eq. 4), on a data set.

Values of actions that the data does not show are pushed down: the critics' loss has `alpha (log sum exp Q - Q(a))`.
Discrete actions: on a double Q-network. Continuous ones: on soft actor-critic with twin critics, where the sum over
actions is estimated from uniform actions and the policy's at the observation and at its successor, each weighted by
its density (section 5.2 and appendix F; details as in CORL, `cql.py`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import struct

from envs_jax.core import EnvSpec, TimeStep
from envs_jax.spaces import Box, Discrete
from jaxrl.data.dataset import sample_rows, take_rows
from jaxrl.parts.distributions import DiagonalNormal, scale_from_bounds, scale_to_bounds
from jaxrl.parts.networks import Actor, NetworkConfig, QNetwork
from jaxrl.parts.normalize import RunningStatistics, init_statistics, normalize
from jaxrl.types import Algorithm, Array, Data, Metrics, PyTree, Recipe, TrainState, Transition, hparam, no_carry

LOG_STD_RANGE = (-20.0, 2.0)


@dataclasses.dataclass(frozen=True)
class CQLConfig:
    """What shapes the program."""

    batch_size: int = 256
    num_sampled_actions: int = 10  # of each of the three sorts; continuous actions
    lagrange: bool = False  # the weight of the penalty is learned, so that the gap stays at `target_gap`
    normalize_observations: bool = True  # with the statistics of the data set
    network: NetworkConfig = dataclasses.field(
        default_factory=lambda: NetworkConfig(hidden_sizes=(256, 256, 256), activation="relu")
    )

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_sampled_actions"):
            if getattr(self, name) < 1:
                raise ValueError(f"config.{name} must be at least 1, got {getattr(self, name)}")
        if self.network.recurrent:
            raise ValueError("config.network.torso must be mlp or cnn: rows are drawn one by one, got 'gru'")


@struct.dataclass
class CQLHParams:
    """What may be traced and swept."""

    learning_rate: Any = hparam(3e-4, low=0.0)  # of the critics
    policy_learning_rate: Any = hparam(3e-5, low=0.0)  # and of both weights that are learned; continuous actions
    discount: Any = hparam(0.99, 0.0, 1.0)
    tau: Any = hparam(5e-3, 0.0, 1.0)  # how far the target critics move to the critics in an update
    penalty_weight: Any = hparam(10.0, low=0.0)  # alpha
    target_gap: Any = hparam(0.0)  # of the penalty, with `lagrange`


@struct.dataclass
class CQLPolicy:
    """What acting needs: the actor, or the critic of discrete actions."""

    params: PyTree
    statistics: RunningStatistics | None


@struct.dataclass
class CQLState(TrainState):
    target_params: Any = None  # of the critics
    statistics: Any = None  # None without normalisation


def make_cql(config: CQLConfig, env: Any) -> Algorithm:
    """CQL(H) for discrete actions, or for continuous ones with bounds.

    Args:
        config: static settings.
        env: an `Environment`, or the `EnvSpec` of a data set.

    Returns:
        An `Algorithm` that learns from `data.dataset` alone.

    Raises:
        ValueError: several agents, or spaces that are not supported.
    """
    spec = env if isinstance(env, EnvSpec) else env.spec(env.default_params)
    space, shape = spec.action_space, spec.observation_space.shape
    if spec.num_agents != 1:
        raise ValueError("CQL trains one agent: choose a role of the environment and its opponents")
    if isinstance(space, Discrete):
        if config.network.torso == "cnn" and len(shape) != 3:
            raise ValueError(f"config.network.torso='cnn' needs observations [height, width, channels], got {shape}")
        if config.lagrange:
            raise ValueError("config.lagrange must be false: it is for continuous actions")
        form = discrete_form(config, space, shape)
    elif isinstance(space, Box) and len(space.shape) == 1 and len(shape) == 1 and config.network.torso == "mlp":
        form = continuous_form(config, space, shape)
    else:
        raise ValueError(
            f"CQL needs Discrete actions, or vectors of floats and torso='mlp'; got {space} on observations {shape}"
        )
    init_params, choose, losses = form
    optimizer = optax.scale_by_adam()

    def seen(statistics: RunningStatistics | None, observation: Array) -> Array:
        observation = jnp.asarray(observation, jnp.float32)
        return observation if statistics is None else normalize(statistics, observation)

    def init(key: Array, hparams: CQLHParams, data: Data) -> CQLState:
        del hparams
        key_params, key_state = jax.random.split(key)
        params = init_params(key_params)
        statistics = None
        if config.normalize_observations:
            # Without a data set: only the form of a state is asked for.
            statistics = init_statistics(shape) if data.dataset is None else data.dataset.statistics
        return CQLState(
            params=params,
            opt_state=optimizer.init(params),
            key=key_state,
            num_updates=jnp.zeros((), jnp.int32),
            rollout=None,
            target_params=params["critic"],
            statistics=statistics,
        )

    def policy(state: CQLState, data: Data) -> CQLPolicy:
        del data
        return CQLPolicy(state.params.get("actor", state.params["critic"]), state.statistics)

    def act(policy_params: CQLPolicy, carry: PyTree, time_step: TimeStep, key: Array, deterministic: bool) -> tuple:
        observation = seen(policy_params.statistics, time_step.observation)
        return choose(policy_params.params, observation, time_step.legal_actions, key, deterministic), carry, {}

    def update(state: CQLState, hparams: CQLHParams, data: Data) -> tuple[CQLState, Metrics]:
        key, key_sample, key_loss = jax.random.split(state.key, 3)
        dataset: Any = data.dataset
        steps = take_rows(dataset.transitions, sample_rows(dataset, key_sample, config.batch_size))
        steps = dataclasses.replace(
            steps,
            observation=seen(state.statistics, steps.observation),
            next_observation=seen(state.statistics, steps.next_observation),
        )

        def loss(params: PyTree) -> tuple[Array, Metrics]:
            metrics = losses(params, state.target_params, steps, hparams, key_loss)
            return sum(value for name, value in metrics.items() if name.startswith("loss/")), metrics  # type: ignore[return-value]

        # One gradient of the sum: each loss stops the gradient of what it does not train.
        gradient, metrics = jax.grad(loss, has_aux=True)(state.params)
        change, opt_state = cast(Any, optimizer.update(gradient, state.opt_state))
        rates: Any = dict.fromkeys(state.params, hparams.policy_learning_rate)
        rates |= {"critic": hparams.learning_rate}
        change = {
            name: jax.tree.map(lambda x, name=name: -cast(Any, rates[name]) * x, tree) for name, tree in change.items()
        }
        params = cast(Any, optax.apply_updates(state.params, change))
        target_params = optax.incremental_update(params["critic"], state.target_params, hparams.tau)
        state = dataclasses.replace(
            state,
            params=params,
            opt_state=opt_state,
            key=key,
            num_updates=state.num_updates + 1,
            target_params=target_params,
        )
        return state, metrics

    return Algorithm(init=init, update=update, policy=policy, start=no_carry, act=act)


Form = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Metrics]]  # init_params, choose, losses


def discrete_form(config: CQLConfig, space: Discrete, shape: tuple[int, ...]) -> Form:
    """Double Q-learning with the penalty."""
    network = QNetwork(config.network, space.num_values)
    forward: Callable[..., Any] = network.apply
    values_of = jax.vmap(forward, (None, 0))

    def init_params(key: Array) -> PyTree:
        return {"critic": network.init(key, jnp.zeros(shape))}

    def choose(params: PyTree, observation: Array, legal: Array | None, key: Array, deterministic: bool) -> Array:
        del key, deterministic
        values = forward(params, observation)
        return jnp.argmax(values if legal is None else jnp.where(legal, values, -jnp.inf)).astype(jnp.int32)

    def losses(params: PyTree, target_params: PyTree, steps: Transition, hparams: CQLHParams, key: Array) -> Metrics:
        del key
        values = values_of(params["critic"], steps.observation)
        best = jnp.argmax(values_of(params["critic"], steps.next_observation), axis=-1)
        after = pick(values_of(target_params, steps.next_observation), best)
        target = steps.reward + hparams.discount * jnp.where(steps.terminated, 0.0, after)
        chosen = pick(values, steps.action)
        gap = jnp.mean(jax.nn.logsumexp(values, axis=-1) - chosen)
        return {
            "loss/critic": jnp.mean(jnp.square(chosen - jax.lax.stop_gradient(target))),
            "loss/penalty": hparams.penalty_weight * gap,
            "q/mean": jnp.mean(chosen),
            "gap": gap,
        }

    return init_params, choose, losses


def continuous_form(config: CQLConfig, space: Box, shape: tuple[int, ...]) -> Form:
    """Soft actor-critic with the penalty; actions are in [-1, 1] within."""
    size, num_samples = space.size, config.num_sampled_actions
    to_unit, to_env = scale_from_bounds(space), scale_to_bounds(space)
    actor, critic = Actor(config.network, 2 * size), QNetwork(config.network, 1)
    actor_forward: Callable[..., Any] = actor.apply
    critic_forward: Callable[..., Any] = critic.apply

    def init_params(key: Array) -> PyTree:
        key_actor, key_critic = jax.random.split(key)
        critics = jax.vmap(critic.init, (0, None))(jax.random.split(key_critic), jnp.zeros(shape[0] + size))
        params = {"actor": actor.init(key_actor, jnp.zeros(shape)), "critic": critics, "log_temperature": jnp.zeros(())}
        return params | ({"log_penalty": jnp.zeros(())} if config.lagrange else {})

    def distribution(params: PyTree, observation: Array) -> DiagonalNormal:
        mean, log_std = jnp.split(actor_forward(params, observation), 2)
        return DiagonalNormal(mean, jnp.clip(log_std, *LOG_STD_RANGE))

    def choose(params: PyTree, observation: Array, legal: Array | None, key: Array, deterministic: bool) -> Array:
        del legal
        chosen = distribution(params, observation)
        return to_env(jnp.tanh(chosen.mode() if deterministic else chosen.sample(key)))

    def sample(params: PyTree, observation: Array, key: Array) -> tuple[Array, Array]:
        """A squashed action `[A]` and its log density."""
        chosen = distribution(params, observation)
        raw = chosen.sample(key)
        return jnp.tanh(raw), chosen.log_prob(raw) - jnp.sum(log_slope(raw))

    def values(params: PyTree, observation: Array, action: Array) -> Array:
        """Both critics, `[2]`."""
        return jax.vmap(critic_forward, (0, None))(params, jnp.concatenate([observation, action]))[:, 0]

    def losses(params: PyTree, target_params: PyTree, steps: Transition, hparams: CQLHParams, key: Array) -> Metrics:
        keys = jax.random.split(key, len(steps.reward))
        terms = jax.vmap(row_losses, (None, None, 0, None, 0))(params, target_params, steps, hparams, keys)
        return jax.tree.map(jnp.mean, terms)

    def row_losses(params: PyTree, target: PyTree, step: Transition, hparams: CQLHParams, key: Array) -> Metrics:
        """Of one row; the policy is trained by its own loss alone, the critics by theirs."""
        key_now, key_next, key_uniform, key_here, key_there = jax.random.split(key, 5)
        frozen = jax.lax.stop_gradient(params)
        action, log_prob = sample(params["actor"], step.observation, key_now)
        temperature = jnp.exp(frozen["log_temperature"])
        next_action, _ = sample(frozen["actor"], step.next_observation, key_next)
        after = jnp.min(values(target, step.next_observation, next_action))
        goal = step.reward + hparams.discount * jnp.where(step.terminated, 0.0, after)
        shown = values(params["critic"], step.observation, to_unit(step.action))

        many = jax.vmap(sample, (None, None, 0))
        here, here_density = many(frozen["actor"], step.observation, jax.random.split(key_here, num_samples))
        there, there_density = many(frozen["actor"], step.next_observation, jax.random.split(key_there, num_samples))
        uniform = jax.random.uniform(key_uniform, (num_samples, size), minval=-1.0, maxval=1.0)
        density = jnp.concatenate([jnp.full(num_samples, -size * math.log(2.0)), there_density, here_density])
        sampled = jax.vmap(values, (None, None, 0), 1)(
            params["critic"], step.observation, jnp.concatenate([uniform, there, here])
        )
        gap = jax.nn.logsumexp(sampled - density[None], axis=1) - shown  # [2]
        terms = {
            "loss/critic": jnp.sum(jnp.square(shown - goal)),
            "loss/policy": temperature * log_prob - jnp.min(values(frozen["critic"], step.observation, action)),
            "loss/temperature": -params["log_temperature"] * (jax.lax.stop_gradient(log_prob) - size),
            "loss/penalty": hparams.penalty_weight * jnp.sum(gap),
            "q/mean": jnp.mean(shown),
            "gap": jnp.mean(gap),
        }
        if config.lagrange:
            excess = hparams.penalty_weight * jnp.sum(gap - hparams.target_gap)
            terms["loss/penalty"] = jnp.clip(jnp.exp(frozen["log_penalty"]), 0.0, 1e6) * excess
            weight = jnp.clip(jnp.exp(params["log_penalty"]), 0.0, 1e6)
            terms["loss/lagrange"] = -0.5 * weight * jax.lax.stop_gradient(excess)
        return terms

    return init_params, choose, losses


def log_slope(raw: Array) -> Array:
    """`log(1 - tanh(x)^2)`, without its cancellation."""
    return 2.0 * (math.log(2.0) - raw - jax.nn.softplus(-2.0 * raw))


def pick(values: Array, action: Array) -> Array:
    """The values `[n, N]` of the actions `[n]`."""
    return jnp.take_along_axis(values, action[:, None], axis=-1)[:, 0]


CQL = Recipe(make_cql, CQLConfig, CQLHParams, offline=True)
