"""Soft actor-critic with a learned temperature (Haarnoja et al. 2018, arXiv 1812.05905), one compiled update.

`collect` plays T steps in each of B environments; `learn` puts them into the replay buffer, draws
`num_gradient_steps` minibatches and takes one step of the critics, the actor and the temperature on each, all three
from the parameters before it. The targets are clipped double Q-learning's (the lower of two critics).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from envs_jax.core import EnvSpec, TimeStep
from jaxrl.parts.buffers import NStep, ReplayConfig, ReplayState, make_replay
from jaxrl.parts.networks import NetworkConfig, describe_layers
from jaxrl.parts.normalize import RunningStatistics, init_statistics, normalized, update_statistics
from jaxrl.parts.setup import at_least_one, single_agent_spec, without_memory
from jaxrl.parts.soft_actor_critic import descend, make_soft_actor_critic, total_loss
from jaxrl.rollout import start_rollout, unroll
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
    no_carry,
)


@dataclasses.dataclass(frozen=True)
class SACConfig:
    """What shapes the program."""

    num_envs: int = 16  # B
    unroll_length: int = 4  # T
    num_gradient_steps: int = 16  # per update
    batch_size: int = 256
    normalize_observations: bool = False  # by the running statistics of all that was played
    replay: ReplayConfig = dataclasses.field(default_factory=ReplayConfig)
    network: NetworkConfig = dataclasses.field(
        default_factory=lambda: NetworkConfig(hidden_sizes=(256, 256), activation="relu")
    )

    def __post_init__(self) -> None:
        at_least_one(self, "num_envs", "unroll_length", "num_gradient_steps", "batch_size")
        without_memory(self.network)
        self.replay.check(self.num_envs, self.unroll_length, n_step=1)


@struct.dataclass
class SACHParams:
    """What may be traced and swept."""

    learning_rate: Any = hparam(3e-4, low=0.0)  # of the critics
    policy_learning_rate: Any = hparam(3e-4, low=0.0)
    temperature_learning_rate: Any = hparam(3e-4, low=0.0)
    discount: Any = hparam(0.99, 0.0, 1.0)
    tau: Any = hparam(5e-3, 0.0, 1.0)  # how far the target critics move to the critics in a gradient step
    target_entropy: Any = hparam(-1.0)  # of a component of the action, in [-1, 1]; the temperature is led by it
    reward_scale: Any = hparam(1.0)


@struct.dataclass
class SACPolicy:
    """What acting needs."""

    params: PyTree  # of the actor
    statistics: RunningStatistics | None


@struct.dataclass
class SACState(TrainState):
    target_params: PyTree = None  # of the critics
    statistics: Any = None  # `RunningStatistics` of observations; None where they are not normalised
    buffer: ReplayState = None  # type: ignore[assignment]  # observations and actions as the environment has them


def make_sac(config: SACConfig, env: Any) -> Algorithm:
    """Soft actor-critic for continuous actions with bounds.

    Args:
        config: static settings.
        env: an `Environment`, or an `EnvSpec` when a host collects; then `collect` is None.

    Returns:
        An `Algorithm` whose `learn` takes the `Batch` of `jaxrl.rollout.unroll`. Until the buffer is warm, `learn`
        only fills it and gathers statistics, and its losses are reported as 0.

    Raises:
        ValueError: several agents, or spaces that are not vectors of floats, the actions with bounds.
    """
    spec = single_agent_spec(env, "SAC")
    parts = make_soft_actor_critic(config.network, spec, "SAC")
    observation_space, size = spec.observation_space, spec.action_space.shape[0]
    replay = make_replay(config.replay, config.num_envs, config.unroll_length)

    def init(key: Array, hparams: SACHParams, data: Data) -> SACState:
        del hparams
        key_params, key_rollout, key_state = jax.random.split(key, 3)
        params = parts.init(key_params)
        statistics = init_statistics(observation_space.shape) if config.normalize_observations else None
        observation = jnp.zeros(observation_space.shape, observation_space.dtype)
        item = Transition(
            observation=observation,
            action=jnp.zeros(size, spec.action_space.dtype),
            reward=jnp.zeros(()),
            terminated=jnp.zeros((), bool),
            truncated=jnp.zeros((), bool),
            next_observation=observation,
        )
        state = SACState(
            params=params,
            opt_state=optax.scale_by_adam().init(params),
            key=key_state,
            num_updates=jnp.zeros((), jnp.int32),
            rollout=None,
            target_params=params["critic"],
            statistics=statistics,
            buffer=replay.init(item),
        )
        if isinstance(env, EnvSpec):
            return state
        rollout = start_rollout(
            env, (no_carry, act), policy(state, data), data.env_params, key_rollout, config.num_envs
        )
        return dataclasses.replace(state, rollout=rollout)

    def policy(state: SACState, data: Data) -> SACPolicy:
        del data
        return SACPolicy(state.params["actor"], state.statistics)

    def act(policy_params: SACPolicy, carry: PyTree, time_step: TimeStep, key: Array, deterministic: bool) -> tuple:
        observation = normalized(policy_params.statistics, time_step.observation)
        return parts.choose(policy_params.params, observation, key, deterministic), carry, {}

    def collect(state: SACState, hparams: SACHParams, data: Data) -> tuple[SACState, Batch]:
        del hparams
        key, key_unroll = jax.random.split(state.key)
        rollout, batch = unroll(
            env,  # type: ignore[arg-type]
            (no_carry, act),
            policy(state, data),
            data.env_params,
            state.rollout,
            key_unroll,
            config.unroll_length,
        )
        return dataclasses.replace(state, rollout=rollout, key=key), batch

    def learn(state: SACState, hparams: SACHParams, batch: Batch, data: Data) -> tuple[SACState, Metrics]:
        del data
        key, key_sample, key_noise = jax.random.split(state.key, 3)
        steps = batch.transitions
        kept = dataclasses.replace(
            steps,
            legal_actions=None, next_legal_actions=None, critic_observation=None, next_critic_observation=None,
            extras={},
        )  # fmt: skip
        buffer, statistics = replay.add(state.buffer, kept), state.statistics
        if statistics is not None:
            statistics = update_statistics(statistics, jnp.asarray(steps.observation, jnp.float32))
        count, batch_size = config.num_gradient_steps, config.batch_size
        index = replay.sample(buffer, key_sample, count * batch_size).index.reshape(count, batch_size)

        def gradient_step(loop: tuple, inputs: tuple[Array, Array]) -> tuple[tuple, Metrics]:
            params, target_params, opt_state = loop
            rows = replay.read(buffer, inputs[0], hparams.discount)
            rows = dataclasses.replace(
                rows,
                observation=normalized(statistics, rows.observation),
                action=jax.vmap(parts.to_unit)(rows.action),
                reward=hparams.reward_scale * rows.reward,
                next_observation=normalized(statistics, rows.next_observation),
            )
            noise = jax.random.normal(inputs[1], (batch_size, 2, size))
            gradient, metrics = jax.grad(loss, has_aux=True)(params, target_params, rows, noise, hparams)
            params, opt_state = descend(params, gradient, opt_state, learning_rates(hparams))
            target_params = optax.incremental_update(params["critic"], target_params, hparams.tau)
            return (params, target_params, opt_state), metrics

        def train(loop: tuple) -> tuple[tuple, Metrics]:
            return jax.lax.scan(gradient_step, loop, (index, jax.random.split(key_noise, count)))

        def wait(loop: tuple) -> tuple[tuple, Metrics]:
            return loop, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(train, loop)[1])

        # The buffer is only read in here: a conditional that returned it would copy it.
        loop = (state.params, state.target_params, state.opt_state)
        loop, metrics = jax.lax.cond(replay.is_warm(buffer), train, wait, loop)
        after = dataclasses.replace(
            state,
            params=loop[0],
            target_params=loop[1],
            opt_state=loop[2],
            key=key,
            num_updates=state.num_updates + 1,
            statistics=statistics,
            buffer=buffer,
        )
        temperature = jnp.exp(loop[0]["log_temperature"])
        return after, jax.tree.map(jnp.mean, metrics) | {"temperature": temperature} | episode_metrics(batch.stats)

    def update(state: SACState, hparams: SACHParams, data: Data) -> tuple[SACState, Metrics]:
        state, batch = collect(state, hparams, data)
        return learn(state, hparams, batch, data)

    def loss(
        params: PyTree, target_params: PyTree, rows: NStep, noise: Array, hparams: SACHParams
    ) -> tuple[Array, Metrics]:
        terms = jax.vmap(row_losses, (None, None, 0, 0, None))(params, target_params, rows, noise, hparams)
        metrics = jax.tree.map(jnp.mean, terms)
        return total_loss(metrics), metrics

    def row_losses(params: PyTree, target_params: PyTree, row: NStep, noise: Array, hparams: SACHParams) -> Metrics:
        """Of one row; `noise` f32 `[2, A]`: of the successor's action and of the one that trains the policy."""
        frozen = jax.lax.stop_gradient(params)
        action, log_prob = parts.sample(frozen["actor"], row.next_observation, noise[0])
        after = jnp.min(parts.values(target_params, row.next_observation, action))
        goal = row.reward + row.bootstrap * (after - jnp.exp(frozen["log_temperature"]) * log_prob)  # eqs. 2 and 3
        shown = parts.values(params["critic"], row.observation, row.action)
        return parts.policy_losses(params, row.observation, noise[1], hparams.target_entropy * size) | {
            "loss/critic": 0.5 * jnp.sum(jnp.square(shown - goal)),  # eq. 5
            "q/mean": jnp.mean(shown),
        }

    def export(policy_params: SACPolicy) -> dict[str, Any]:
        params = policy_params.params["params"]
        means = {name: values[..., :size] for name, values in params["head"].items()}
        layers = describe_layers(config.network, params["torso"], means)
        layers[-1]["activation"] = "tanh"
        return {"layers": layers, "statistics": policy_params.statistics, "action_space": spec.action_space}

    return Algorithm(
        init=init,
        update=update,
        policy=policy,
        start=no_carry,
        act=act,
        collect=None if isinstance(env, EnvSpec) else collect,
        learn=learn,
        steps_per_update=config.num_envs * config.unroll_length,
        export=export,
    )


def learning_rates(hparams: SACHParams) -> dict[str, Any]:
    """Of each group of parameters."""
    return {
        "critic": hparams.learning_rate,
        "actor": hparams.policy_learning_rate,
        "log_temperature": hparams.temperature_learning_rate,
    }


SAC = Recipe(make_sac, SACConfig, SACHParams)
