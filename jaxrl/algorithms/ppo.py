"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347), one compiled update.

`collect` unrolls B environments for T steps; `learn` computes advantages and takes `num_epochs x num_minibatches`
gradient steps. With a GRU, minibatches split B and never T, and every epoch replays the memory from the stored one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from envs_jax.core import EnvSpec, TimeStep
from jaxrl.parts import losses
from jaxrl.parts.distributions import action_head
from jaxrl.parts.networks import ActorCritic, NetworkConfig, describe_layers
from jaxrl.parts.normalize import (
    RunningStatistics,
    init_statistics,
    normalized,
    standard_deviation,
    update_statistics,
)
from jaxrl.parts.returns import discounted_returns, generalized_advantages
from jaxrl.parts.schedules import adapt_rate, linear_decay
from jaxrl.parts.shuffle import random_order
from jaxrl.rollout import any_of_all, start_rollout, unroll
from jaxrl.types import (
    Algorithm,
    Array,
    Batch,
    Data,
    Metrics,
    PyTree,
    Recipe,
    TrainState,
    Transition,
    episode_metrics,
    hparam,
)


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """What shapes the program."""

    num_envs: int = 64  # B
    unroll_length: int = 128  # T
    num_epochs: int = 4
    num_minibatches: int = 4
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    normalize_observations: bool = False
    normalize_rewards: bool = False  # divide rewards by the standard deviation of the running discounted return
    normalize_advantages: bool = True  # within each minibatch
    clip_values: bool = True

    def __post_init__(self) -> None:
        for name in ("num_envs", "unroll_length", "num_epochs", "num_minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"config.{name} must be at least 1, got {getattr(self, name)}")
        what, size = "num_envs * unroll_length", self.num_envs * self.unroll_length
        if self.network.recurrent:
            what, size = "num_envs (a recurrent network keeps time whole)", self.num_envs
        if size % self.num_minibatches:
            raise ValueError(f"config.num_minibatches={self.num_minibatches} must divide {what} = {size}")


@struct.dataclass
class PPOHParams:
    """What may be traced and swept."""

    learning_rate: Any = hparam(3e-4, low=0.0)
    anneal_updates: Any = hparam(0.0, low=0.0)  # the learning rate falls linearly to 0 over so many; 0: constant
    discount: Any = hparam(0.99, 0.0, 1.0)
    gae_lambda: Any = hparam(0.95, 0.0, 1.0)
    clip_epsilon: Any = hparam(0.2, low=0.0)
    entropy_cost: Any = hparam(0.01, low=0.0)
    value_cost: Any = hparam(0.5, low=0.0)
    max_grad_norm: Any = hparam(0.5, low=0.0)
    target_kl: Any = hparam(0.0, low=0.0)  # the learning rate follows this divergence of a minibatch; 0: it does not


@struct.dataclass
class PPOPolicy:
    """What acting needs."""

    params: PyTree
    statistics: RunningStatistics | None  # of observations
    critic_statistics: RunningStatistics | None  # of critic observations


@struct.dataclass
class PPOState(TrainState):
    # `RunningStatistics`, or None where nothing is normalised: of observations, of critic observations, of
    # running discounted returns.
    statistics: Any = None
    critic_statistics: Any = None
    return_statistics: Any = None
    rate_factor: Any = None  # f32 []; of the learning rate, moved by `target_kl`


@struct.dataclass
class Sample:
    """What the loss reads of one step."""

    observation: Array
    critic_observation: Array
    action: Array  # as sampled, before scaling to bounds
    legal_actions: Array | None
    log_prob: Array
    value: Array
    advantage: Array
    target: Array
    ended: Array


def make_ppo(config: PPOConfig, env: Any) -> Algorithm:
    """PPO for discrete, multi-discrete (with masks) and continuous actions.

    Args:
        config: static settings.
        env: an `Environment`, or an `EnvSpec` when a host collects; then `collect` is None.

    Returns:
        An `Algorithm` whose `learn` takes the `Batch` of `jaxrl.rollout.unroll`.

    Raises:
        ValueError: the action space is not supported, or a network setting does not fit the observations.
    """
    spec = env if isinstance(env, EnvSpec) else env.spec(env.default_params)
    if spec.num_agents != 1:
        raise ValueError("PPO trains one agent: choose a role of the environment and its opponents")
    observation_shape = spec.observation_space.shape
    asymmetric = spec.critic_observation_space is not None
    critic_shape = spec.critic_observation_space.shape if spec.critic_observation_space else observation_shape
    recurrent = config.network.recurrent
    if asymmetric and config.network.shared_torso:
        raise ValueError("config.network.shared_torso must be false: the critic of this environment observes more")
    for shape in (observation_shape, critic_shape):
        if config.network.torso == "cnn" and len(shape) != 3:
            raise ValueError(f"config.network.torso='cnn' needs observations [height, width, channels], got {shape}")

    head = action_head(spec.action_space)
    network = ActorCritic(config.network, head.num_outputs, head.continuous)
    forward: Callable[..., Any] = network.apply
    num_samples = config.num_envs * config.unroll_length

    # The optimiser sees one vector: a dozen small arrays cost more in calls than in arithmetic.
    def optimizer(hparams: PPOHParams, learning_rate: Array) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(hparams.max_grad_norm),
            optax.scale_by_adam(eps=1e-5),
            optax.scale(-learning_rate),
        )

    def init(key: Array, hparams: PPOHParams, data: Data) -> PPOState:
        key_params, key_rollout, key_state = jax.random.split(key, 3)
        params = network.init(key_params, network.start(), jnp.zeros(observation_shape), jnp.zeros(critic_shape))
        statistics = init_statistics(observation_shape) if config.normalize_observations else None
        state = PPOState(
            params=params,
            opt_state=optimizer(hparams, hparams.learning_rate).init(ravel_pytree(params)[0]),
            key=key_state,
            num_updates=jnp.zeros((), jnp.int32),
            rollout=None,
            statistics=statistics,
            critic_statistics=init_statistics(critic_shape) if config.normalize_observations and asymmetric else None,
            return_statistics=init_statistics(()) if config.normalize_rewards else None,
            rate_factor=jnp.ones(()),
        )
        if isinstance(env, EnvSpec):
            return state
        rollout = start_rollout(env, (start, act), policy(state, data), data.env_params, key_rollout, config.num_envs)
        return dataclasses.replace(state, rollout=rollout)

    def policy(state: PPOState, data: Data) -> PPOPolicy:
        del data
        return PPOPolicy(state.params, state.statistics, state.critic_statistics)

    def start(policy_params: PPOPolicy, key: Array) -> PyTree:
        del policy_params, key
        return network.start()

    def act(policy_params: PPOPolicy, carry: PyTree, time_step: TimeStep, key: Array, deterministic: bool) -> tuple:
        observation = normalized(policy_params.statistics, time_step.observation)
        critic_observation = observation
        if asymmetric:
            critic_observation = normalized(policy_params.critic_statistics, time_step.critic_observation)
        carry, (outputs, log_std, value) = forward(policy_params.params, carry, observation, critic_observation)
        distribution = head.distribution(outputs, log_std, time_step.legal_actions)
        action = distribution.mode() if deterministic else distribution.sample(key)
        extras = {"log_prob": distribution.log_prob(action), "value": value, "raw_action": action}
        return head.to_env(action), carry, extras

    def collect(state: PPOState, hparams: PPOHParams, data: Data) -> tuple[PPOState, Batch]:
        key, key_unroll = jax.random.split(state.key)
        rollout, batch = unroll(
            env,  # type: ignore[arg-type]
            (start, act),
            policy(state, data),
            data.env_params,
            state.rollout,
            key_unroll,
            config.unroll_length,
            hparams.discount,
        )
        return dataclasses.replace(state, rollout=rollout, key=key), batch

    def learn(state: PPOState, hparams: PPOHParams, batch: Batch, data: Data) -> tuple[PPOState, Metrics]:
        del data
        key, key_epochs = jax.random.split(state.key)
        samples, statistics = prepare(state, hparams, batch)
        annealed = hparams.learning_rate * linear_decay(state.num_updates, hparams.anneal_updates)
        if recurrent:
            rows, items = config.num_envs, (batch.carry, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), samples))
        else:
            rows, items = num_samples, (None, jax.tree.map(lambda x: x.reshape(num_samples, *x.shape[2:]), samples))

        def minibatch_step(loop: tuple, rows: Array) -> tuple[tuple, Metrics]:
            params, opt_state, rate_factor = loop
            minibatch = jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds", unique_indices=True), items)
            gradient, metrics = jax.grad(loss, has_aux=True)(params, minibatch, hparams)
            vector, unravel = ravel_pytree(gradient)
            change: Any
            metrics["grad_norm"] = jnp.sqrt(jnp.sum(jnp.square(vector)))
            rate_factor = adapt_rate(rate_factor, metrics["approx_kl"], hparams.target_kl)
            learning_rate = metrics["learning_rate"] = annealed * rate_factor
            change, opt_state = optimizer(hparams, learning_rate).update(vector, opt_state)
            return (optax.apply_updates(params, unravel(change)), opt_state, rate_factor), metrics

        def epoch(loop: tuple, key: Array) -> tuple[tuple, Metrics]:
            order = random_order(key, rows).reshape(config.num_minibatches, -1)
            return jax.lax.scan(minibatch_step, loop, order)

        (params, opt_state, rate_factor), metrics = jax.lax.scan(
            epoch, (state.params, state.opt_state, state.rate_factor), jax.random.split(key_epochs, config.num_epochs)
        )
        state = dataclasses.replace(
            state, params=params, opt_state=opt_state, rate_factor=rate_factor, key=key,
            num_updates=state.num_updates + 1, **statistics,
        )  # fmt: skip
        return state, jax.tree.map(jnp.mean, metrics) | episode_metrics(batch.stats)

    def update(state: PPOState, hparams: PPOHParams, data: Data) -> tuple[PPOState, Metrics]:
        state, batch = collect(state, hparams, data)
        return learn(state, hparams, batch, data)

    def prepare(state: PPOState, hparams: PPOHParams, batch: Batch) -> tuple[Sample, dict[str, Any]]:
        """Advantages and targets `[T, B]`, with observations normalised as they were when the actions were chosen."""
        steps = batch.transitions
        rewards, statistics = steps.reward, {}
        if config.normalize_rewards:
            returns, _ = jax.vmap(discounted_returns, (1, 1, 0, None), (1, 0))(
                steps.reward, steps.ended, batch.discounted_return, hparams.discount
            )
            statistics["return_statistics"] = update_statistics(state.return_statistics, returns)
            rewards = jnp.clip(rewards / standard_deviation(statistics["return_statistics"]), -10.0, 10.0)
        observation = normalized(state.statistics, steps.observation)
        critic_observation = observation
        if asymmetric:
            critic_observation = normalized(state.critic_statistics, steps.critic_observation)
        values = steps.extras["value"]
        advantages = jax.vmap(generalized_advantages, (1, 1, 1, 1, 1, None, None), 1)(
            rewards, values, successor_values(state, batch, values), steps.terminated, steps.ended,
            hparams.discount, hparams.gae_lambda,
        )  # fmt: skip
        if config.normalize_observations:
            statistics["statistics"] = update_statistics(state.statistics, steps.observation)
            if asymmetric:
                statistics["critic_statistics"] = update_statistics(
                    state.critic_statistics,
                    steps.critic_observation,  # type: ignore[arg-type]
                )
        samples = Sample(
            observation, critic_observation, steps.extras["raw_action"], steps.legal_actions,
            steps.extras["log_prob"], values, advantages, advantages + values, steps.ended,
        )  # fmt: skip
        return samples, statistics

    def successor_values(state: PPOState, batch: Batch, values: Array) -> Array:
        """Values of the true successors `[T, B]`.

        Within an episode the next row has them already, so the network runs on successors only for the last row, and
        for all rows when some episode of the batch was truncated.
        """
        steps = batch.transitions

        def evaluate(carry: PyTree, next_observation: Array, next_critic_observation: Array | None) -> Array:
            observation = normalized(state.statistics, next_observation)
            critic_observation = observation
            if asymmetric:
                critic_observation = normalized(state.critic_statistics, next_critic_observation)
            return forward(state.params, carry, observation, critic_observation)[1][2]

        successors = (steps.next_observation, steps.next_critic_observation)
        if recurrent:
            memories = replay(state.params, batch.carry, steps, state)
            return jax.vmap(jax.vmap(evaluate))(memories, *successors)

        def every_row() -> Array:
            return jax.vmap(jax.vmap(evaluate, (None, 0, 0)), (None, 0, 0))(network.start(), *successors)

        def last_row() -> Array:
            last = jax.vmap(evaluate, (None, 0, 0))(network.start(), *jax.tree.map(lambda x: x[-1], successors))
            return jnp.concatenate([values[1:], last[None]])

        return jax.lax.cond(any_of_all(steps.truncated[:-1]), every_row, last_row)

    def restart(ended: Array, memory: PyTree) -> PyTree:
        return jax.tree.map(lambda first, last: jnp.where(ended, first, last), network.start(), memory)

    def replay(params: PyTree, carry: PyTree, steps: Transition, state: PPOState) -> PyTree:
        """The memories after each step, before any reset, `[T, B]`."""
        observation = normalized(state.statistics, steps.observation)
        critic_observation = (
            normalized(state.critic_statistics, steps.critic_observation) if asymmetric else observation
        )

        def one_env(carry: PyTree, *inputs: Array) -> PyTree:
            def step(carry: PyTree, inputs: tuple) -> tuple[PyTree, PyTree]:
                *observations, ended = inputs
                after, _ = forward(params, carry, *observations)
                return restart(ended, after), after

            return jax.lax.scan(step, carry, inputs)[1]

        return jax.vmap(one_env, (0, 1, 1, 1), 1)(carry, observation, critic_observation, steps.ended)

    def loss(params: PyTree, minibatch: tuple, hparams: PPOHParams) -> tuple[Array, Metrics]:
        carry, samples = minibatch
        if recurrent:
            outputs = jax.vmap(sequence_outputs, (None, 0, 0))(params, carry, samples)
            outputs, samples = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (outputs, samples))
        else:
            inputs = (samples.observation, samples.critic_observation)
            outputs = jax.vmap(forward, (None, None, 0, 0))(params, network.start(), *inputs)[1]
        advantages = samples.advantage
        if config.normalize_advantages:
            advantages = (advantages - jnp.mean(advantages)) / (jnp.std(advantages) + 1e-8)

        def terms(outputs: tuple, sample: Sample, advantage: Array) -> Metrics:
            logits, log_std, value = outputs
            distribution = head.distribution(logits, log_std, sample.legal_actions)
            log_ratio = distribution.log_prob(sample.action) - sample.log_prob
            if config.clip_values:
                value_loss = losses.clipped_value_loss(value, sample.value, sample.target, hparams.clip_epsilon)
            else:
                value_loss = 0.5 * jnp.square(value - sample.target)
            return {
                "loss/policy": losses.clipped_surrogate_loss(log_ratio, advantage, hparams.clip_epsilon),
                "loss/value": value_loss,
                "entropy": distribution.entropy(),
                "approx_kl": jnp.exp(log_ratio) - 1.0 - log_ratio,
                "clip_fraction": (jnp.abs(jnp.exp(log_ratio) - 1.0) > hparams.clip_epsilon).astype(jnp.float32),
            }

        metrics = jax.tree.map(jnp.mean, jax.vmap(terms)(outputs, samples, advantages))
        total = metrics["loss/policy"] + hparams.value_cost * metrics["loss/value"]
        return total - hparams.entropy_cost * metrics["entropy"], metrics

    def sequence_outputs(params: PyTree, carry: PyTree, samples: Sample) -> tuple:
        """Network outputs along one environment's steps `[T]`, from the memory before the first of them."""

        def step(carry: PyTree, sample: Sample) -> tuple[PyTree, tuple]:
            after, outputs = forward(params, carry, sample.observation, sample.critic_observation)
            return restart(sample.ended, after), outputs

        return jax.lax.scan(step, carry, samples)[1]

    def export(policy_params: PPOPolicy) -> dict[str, Any]:
        params = policy_params.params["params"]
        return {
            "layers": describe_layers(config.network, params["actor"], params["actor_head"]),
            "statistics": policy_params.statistics,
            "action_space": spec.action_space,
        }

    return Algorithm(
        init=init,
        update=update,
        policy=policy,
        start=start,
        act=act,
        collect=None if isinstance(env, EnvSpec) else collect,
        learn=learn,
        steps_per_update=num_samples,
        export=export,
    )


PPO = Recipe(make_ppo, PPOConfig, PPOHParams)
