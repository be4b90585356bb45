"""Conservative Q-learning, CQL(H) (Kumar et al. 2020, eq. 4), on a data set.

Values of actions that the data does not show are pushed down: the critics' loss has `alpha (log sum exp Q - Q(a))`.
Discrete actions: on a double Q-network. Continuous ones: on soft actor-critic with twin critics, where the sum over
actions is estimated from uniform actions and the policy's at the observation and at its successor, each weighted by
its density (section 5.2 and appendix F; details and options as in CORL, `cql.py`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from envs_jax.core import EnvSpec, TimeStep
from envs_jax.spaces import Discrete
from jaxrl.data.dataset import sample_rows, take_rows
from jaxrl.parts.networks import NetworkConfig, QNetwork, describe_layers
from jaxrl.parts.normalize import RunningStatistics, normalized
from jaxrl.parts.schedules import cosine_decay
from jaxrl.parts.setup import at_least_one, dataset_statistics, single_agent_spec, without_memory
from jaxrl.parts.soft_actor_critic import descend, make_soft_actor_critic, total_loss
from jaxrl.types import Algorithm, Array, Data, Metrics, PyTree, Recipe, TrainState, Transition, hparam, no_carry

LARGEST_PENALTY = 1e6  # of the weight that is learned


@dataclasses.dataclass(frozen=True)
class CQLConfig:
    """What shapes the program."""

    batch_size: int = 256
    num_sampled_actions: int = 10  # of each of the three sorts; continuous actions
    # These four for continuous actions only.
    importance_correction: bool = True  # weight sampled actions by their densities
    lagrange: bool = False  # the weight of the penalty is learned, so that the gap stays at `target_gap`
    max_backup: bool = False  # targets: the best of `num_sampled_actions` actions instead of one action's value
    entropy_backup: bool = False  # targets: less the temperature times the log density, as in soft actor-critic
    normalize_observations: bool = True  # with the statistics of the data set
    network: NetworkConfig = dataclasses.field(
        default_factory=lambda: NetworkConfig(hidden_sizes=(256, 256, 256), activation="relu")
    )

    def __post_init__(self) -> None:
        at_least_one(self, "batch_size", "num_sampled_actions")
        without_memory(self.network)


@struct.dataclass
class CQLHParams:
    """What may be traced and swept."""

    learning_rate: Any = hparam(3e-4, low=0.0)  # of the critics, and of the penalty's weight with `lagrange`
    policy_learning_rate: Any = hparam(3e-5, low=0.0)  # and of the temperature; continuous actions
    cosine_updates: Any = hparam(0.0, low=0.0)  # rates fall to 0 along half a cosine over so many updates; 0: constant
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
    spec = single_agent_spec(env, "CQL", config.network)
    make_form = discrete_form if isinstance(spec.action_space, Discrete) else continuous_form
    init_params, choose, losses = make_form(config, spec)

    def init(key: Array, hparams: CQLHParams, data: Data) -> CQLState:
        del hparams
        key_params, key_state = jax.random.split(key)
        params = init_params(key_params)
        return CQLState(
            params=params,
            opt_state=optax.scale_by_adam().init(params),
            key=key_state,
            num_updates=jnp.zeros((), jnp.int32),
            rollout=None,
            target_params=params["critic"],
            statistics=dataset_statistics(data, spec) if config.normalize_observations else None,
        )

    def policy(state: CQLState, data: Data) -> CQLPolicy:
        del data
        return CQLPolicy(state.params.get("actor", state.params["critic"]), state.statistics)

    def act(policy_params: CQLPolicy, carry: PyTree, time_step: TimeStep, key: Array, deterministic: bool) -> tuple:
        observation = normalized(policy_params.statistics, time_step.observation)
        return choose(policy_params.params, observation, time_step.legal_actions, key, deterministic), carry, {}

    def update(state: CQLState, hparams: CQLHParams, data: Data) -> tuple[CQLState, Metrics]:
        key, key_sample, key_loss = jax.random.split(state.key, 3)
        dataset: Any = data.dataset
        steps = take_rows(dataset.transitions, sample_rows(dataset, key_sample, config.batch_size))
        steps = dataclasses.replace(
            steps,
            observation=normalized(state.statistics, steps.observation),
            next_observation=normalized(state.statistics, steps.next_observation),
        )

        def loss(params: PyTree) -> tuple[Array, Metrics]:
            metrics = losses(params, state.target_params, steps, hparams, key_loss)
            return total_loss(metrics), metrics

        gradient, metrics = jax.grad(loss, has_aux=True)(state.params)
        factor = cosine_decay(state.num_updates, hparams.cosine_updates)
        rates = dict.fromkeys(state.params, factor * hparams.learning_rate)
        rates |= dict.fromkeys(("actor", "log_temperature"), factor * hparams.policy_learning_rate)
        params, opt_state = descend(state.params, gradient, state.opt_state, rates)
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

    def export(policy_params: CQLPolicy) -> dict[str, Any]:
        params, space = policy_params.params["params"], spec.action_space
        head, discrete = params["head"], isinstance(space, Discrete)
        if not discrete:  # of means and spreads, the means
            head = {name: values[..., : space.shape[0]] for name, values in head.items()}
        layers = describe_layers(config.network, params["torso"], head)
        layers[-1]["activation"] = "none" if discrete else "tanh"
        return {"layers": layers, "statistics": policy_params.statistics, "action_space": space}

    return Algorithm(init=init, update=update, policy=policy, start=no_carry, act=act, export=export)


Form = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Metrics]]  # init_params, choose, losses


def discrete_form(config: CQLConfig, spec: EnvSpec) -> Form:
    """Double Q-learning with the penalty."""
    assert isinstance(spec.action_space, Discrete)
    for name in ("lagrange", "max_backup", "entropy_backup"):
        if getattr(config, name):
            raise ValueError(f"config.{name} must be false: it is for continuous actions")
    network = QNetwork(config.network, spec.action_space.num_values)
    forward: Callable[..., Any] = network.apply
    values_of = jax.vmap(forward, (None, 0))

    def init_params(key: Array) -> PyTree:
        return {"critic": network.init(key, jnp.zeros(spec.observation_space.shape))}

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


@struct.dataclass
class Noise:
    """What an update draws for continuous actions, of one row; leaves lead with the batch in `continuous_noise`."""

    now: Array  # f32 [A]; normal, of the action that trains the policy
    target: Array  # f32 [A], or [n, A] with `max_backup`; normal, of the successor's action in the target
    uniform: Array  # f32 [n, A] in [-1, 1]; these and those below are the actions of the penalty
    here: Array  # f32 [n, A]; normal, at the observation
    there: Array  # f32 [n, A]; normal, at its successor


def continuous_noise(config: CQLConfig, size: int, key: Array) -> Noise:
    """Everything that an update draws, leaves `[batch_size, ...]`; consumes `key`."""
    keys = jax.random.split(key, 5)
    one, many = (config.batch_size, size), (config.batch_size, config.num_sampled_actions, size)
    return Noise(
        now=jax.random.normal(keys[0], one),
        target=jax.random.normal(keys[1], many if config.max_backup else one),
        uniform=jax.random.uniform(keys[2], many, minval=-1.0, maxval=1.0),
        here=jax.random.normal(keys[3], many),
        there=jax.random.normal(keys[4], many),
    )


def continuous_form(config: CQLConfig, spec: EnvSpec) -> Form:
    """Soft actor-critic with the penalty."""
    parts = make_soft_actor_critic(config.network, spec, "CQL")
    size = spec.action_space.shape[0]

    def init_params(key: Array) -> PyTree:
        return parts.init(key) | ({"log_penalty": jnp.zeros(())} if config.lagrange else {})

    def choose(params: PyTree, observation: Array, legal: Array | None, key: Array, deterministic: bool) -> Array:
        del legal
        return parts.choose(params, observation, key, deterministic)

    def losses(params: PyTree, target_params: PyTree, steps: Transition, hparams: CQLHParams, key: Array) -> Metrics:
        noise = continuous_noise(config, size, key)
        terms = jax.vmap(row_losses, (None, None, 0, None, 0))(params, target_params, steps, hparams, noise)
        return jax.tree.map(jnp.mean, terms)

    def row_losses(params: PyTree, target: PyTree, step: Transition, hparams: CQLHParams, noise: Noise) -> Metrics:
        """Of one row; the policy is trained by its own loss alone, the critics by theirs."""
        frozen = jax.lax.stop_gradient(params)
        next_action, next_density = parts.sample(frozen["actor"], step.next_observation, noise.target)
        after = jnp.min(parts.values(target, step.next_observation, next_action), axis=0)
        if config.max_backup:
            best = jnp.argmax(after)
            after, next_density = after[best], next_density[best]
        if config.entropy_backup:
            after -= jnp.exp(frozen["log_temperature"]) * next_density
        goal = step.reward + hparams.discount * jnp.where(step.terminated, 0.0, after)

        here, here_density = parts.sample(frozen["actor"], step.observation, noise.here)
        there, there_density = parts.sample(frozen["actor"], step.next_observation, noise.there)
        shown_action = parts.to_unit(step.action)[None]
        values = parts.values(
            params["critic"], step.observation, jnp.concatenate([shown_action, noise.uniform, there, here])
        )
        shown, sampled = values[:, 0], values[:, 1:]  # [2], [2, 3 n]
        if config.importance_correction:
            uniform_density = jnp.full(config.num_sampled_actions, -size * math.log(2.0))
            sampled -= jnp.concatenate([uniform_density, there_density, here_density])[None]
            spread = jax.nn.logsumexp(sampled, axis=1)
        else:
            spread = jax.nn.logsumexp(values, axis=1)  # as in CORL the action of the data is one of them
        gap = spread - shown  # [2]
        terms = parts.policy_losses(params, step.observation, noise.now, -float(size)) | {
            "loss/critic": jnp.sum(jnp.square(shown - goal)),
            "loss/penalty": hparams.penalty_weight * jnp.sum(gap),
            "q/mean": jnp.mean(shown),
            "gap": jnp.mean(gap),
        }
        if config.lagrange:
            excess = hparams.penalty_weight * jnp.sum(gap - hparams.target_gap)
            weight = jnp.clip(jnp.exp(params["log_penalty"]), 0.0, LARGEST_PENALTY)
            terms["loss/penalty"] = jax.lax.stop_gradient(weight) * excess
            terms["loss/lagrange"] = -0.5 * weight * jax.lax.stop_gradient(excess)
        return terms

    return init_params, choose, losses


def pick(values: Array, action: Array) -> Array:
    """The values `[n, N]` of the actions `[n]`."""
    return jnp.take_along_axis(values, action[:, None], axis=-1)[:, 0]


CQL = Recipe(make_cql, CQLConfig, CQLHParams, offline=True)
