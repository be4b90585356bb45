"""Deep Q-learning (Mnih et al. 2015): double, dueling, n-step, with uniform or prioritised replay, one compiled update.

`collect` plays T steps in each of B environments, epsilon-greedily; `learn` puts them into the replay buffer, draws
`num_gradient_steps` minibatches and takes a step on each. Sources: double Q-learning, van Hasselt et al. 2016, eq. 4;
dueling networks, Wang et al. 2016, eq. 9; n-step targets, Sutton and Barto 2018, eq. 7.1; prioritised replay
(proportional), Schaul et al. 2016, sections 3.3 and 3.4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from envs_jax.core import EnvSpec, TimeStep, draw_index
from envs_jax.spaces import Discrete
from jaxrl.parts import losses
from jaxrl.parts.buffers import NStep, ReplayConfig, ReplayState, Sample, make_replay
from jaxrl.parts.networks import NetworkConfig, QNetwork, describe_layers
from jaxrl.parts.schedules import linear_decay, progress
from jaxrl.parts.setup import at_least_one, single_agent_spec, without_memory
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

PRIORITY_OFFSET = 1e-6  # keeps windows without error in the draw ("epsilon" in Schaul et al. 2016, section 3.3)


@dataclasses.dataclass(frozen=True)
class DQNConfig:
    """What shapes the program."""

    num_envs: int = 32  # B
    unroll_length: int = 8  # T
    num_gradient_steps: int = 8  # per update
    batch_size: int = 128
    n_step: int = 1
    target_period: int = 1  # gradient steps between changes of the target network
    double: bool = True
    dueling: bool = True
    replay: ReplayConfig = dataclasses.field(default_factory=ReplayConfig)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)

    def __post_init__(self) -> None:
        at_least_one(self, "num_envs", "unroll_length", "num_gradient_steps", "batch_size", "n_step", "target_period")
        without_memory(self.network)
        if self.network.shared_torso:
            raise ValueError("config.network.shared_torso must be false: DQN has no policy beside its values")
        self.replay.check(self.num_envs, self.unroll_length, self.n_step)


@struct.dataclass
class DQNHParams:
    """What may be traced and swept."""

    learning_rate: Any = hparam(5e-4, low=0.0)
    anneal_updates: Any = hparam(0.0, low=0.0)  # the learning rate falls linearly to 0 over so many; 0: constant
    discount: Any = hparam(0.99, 0.0, 1.0)
    tau: Any = hparam(0.01, 0.0, 1.0)  # how far the target network moves to the network at a change; 1: a copy
    epsilon_start: Any = hparam(1.0, 0.0, 1.0)  # probability of a random action, in the first update
    epsilon_end: Any = hparam(0.05, 0.0, 1.0)
    epsilon_updates: Any = hparam(200.0, low=0.0)  # epsilon falls linearly over so many; 0: constant
    huber_threshold: Any = hparam(1.0, low=0.0)
    max_grad_norm: Any = hparam(10.0, low=0.0)
    priority_exponent: Any = hparam(0.6, low=0.0)  # alpha of prioritised replay; 0: uniform
    importance_exponent: Any = hparam(0.4, 0.0, 1.0)  # beta; rises linearly to 1 over `anneal_updates`


@struct.dataclass
class DQNPolicy:
    """What acting needs."""

    params: PyTree
    epsilon: Array  # f32 []


@struct.dataclass
class DQNState(TrainState):
    target_params: PyTree = None
    buffer: ReplayState = None  # type: ignore[assignment]
    epsilon: Array = None  # type: ignore[assignment]  # f32 []; of the next `collect`


def make_dqn(config: DQNConfig, env: Any) -> Algorithm:
    """DQN for discrete actions, with masks.

    Args:
        config: static settings.
        env: an `Environment`, or an `EnvSpec` when a host collects; then `collect` is None.

    Returns:
        An `Algorithm` whose `learn` takes the `Batch` of `jaxrl.rollout.unroll`. Until the buffer is warm, `learn`
        only fills it, and its losses are reported as 0.

    Raises:
        ValueError: the actions are not discrete, or a network setting does not fit the observations.
    """
    spec = single_agent_spec(env, "DQN", config.network)
    if not isinstance(spec.action_space, Discrete):
        raise ValueError(f"DQN needs a Discrete action space, got {spec.action_space}")
    observation_space = spec.observation_space

    num_actions = spec.action_space.num_values
    network = QNetwork(config.network, num_actions, config.dueling)
    forward: Callable[..., Any] = network.apply
    action_values = jax.vmap(forward, (None, 0))  # (params, [n, ...]) -> [n, N]
    replay = make_replay(config.replay, config.num_envs, config.unroll_length, config.n_step)

    def optimizer(hparams: DQNHParams, num_updates: Array) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(hparams.max_grad_norm),
            optax.scale_by_adam(),
            optax.scale(-hparams.learning_rate * linear_decay(num_updates, hparams.anneal_updates)),
        )

    def init(key: Array, hparams: DQNHParams, data: Data) -> DQNState:
        key_params, key_rollout, key_state = jax.random.split(key, 3)
        observation = jnp.zeros(observation_space.shape, observation_space.dtype)
        params = network.init(key_params, observation)
        num_updates = jnp.zeros((), jnp.int32)
        epsilon = jnp.asarray(hparams.epsilon_start, jnp.float32)
        rollout, legal_actions = None, None
        if not isinstance(env, EnvSpec):
            policy_params = DQNPolicy(params, epsilon)
            rollout = start_rollout(env, (no_carry, act), policy_params, data.env_params, key_rollout, config.num_envs)
            legal_actions = None if rollout.time_step.legal_actions is None else rollout.time_step.legal_actions[0]
        item = Transition(
            observation=observation,
            action=jnp.zeros((), jnp.int32),
            reward=jnp.zeros(()),
            terminated=jnp.zeros((), bool),
            truncated=jnp.zeros((), bool),
            next_observation=observation,
            next_legal_actions=legal_actions,
        )
        return DQNState(
            params=params,
            opt_state=optimizer(hparams, num_updates).init(params),
            key=key_state,
            num_updates=num_updates,
            rollout=rollout,
            target_params=params,
            buffer=replay.init(item),
            epsilon=epsilon,
        )

    def policy(state: DQNState, data: Data) -> DQNPolicy:
        del data
        return DQNPolicy(state.params, state.epsilon)

    def act(policy_params: DQNPolicy, carry: PyTree, time_step: TimeStep, key: Array, deterministic: bool) -> tuple:
        legal = time_step.legal_actions
        greedy = best_action(forward(policy_params.params, time_step.observation), legal)
        if deterministic:
            return greedy, carry, {}
        # Greedy and exploring as one distribution, so that one draw suffices.
        uniform = jnp.full(num_actions, 1.0 / num_actions) if legal is None else legal / jnp.sum(legal)
        epsilon = policy_params.epsilon
        return draw_index(key, epsilon * uniform + (1.0 - epsilon) * jax.nn.one_hot(greedy, num_actions)), carry, {}

    def collect(state: DQNState, hparams: DQNHParams, data: Data) -> tuple[DQNState, Batch]:
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

    def learn(state: DQNState, hparams: DQNHParams, batch: Batch, data: Data) -> tuple[DQNState, Metrics]:
        del data
        key, key_sample = jax.random.split(state.key)
        kept = dataclasses.replace(
            batch.transitions, legal_actions=None, critic_observation=None, next_critic_observation=None, extras={}
        )
        buffer = replay.add(state.buffer, kept)
        # All minibatches are drawn at once, from the priorities before the first step.
        sample = replay.sample(buffer, key_sample, config.num_gradient_steps * config.batch_size)
        minibatches = jax.tree.map(lambda x: x.reshape(config.num_gradient_steps, config.batch_size), sample)
        update = optimizer(hparams, state.num_updates).update
        importance_exponent = hparams.importance_exponent + (1.0 - hparams.importance_exponent) * progress(
            state.num_updates, hparams.anneal_updates
        )

        def gradient_step(loop: tuple, inputs: tuple[Array, Sample]) -> tuple[tuple, tuple[Array, Metrics]]:
            params, target_params, opt_state = loop
            count, minibatch = inputs
            steps = replay.read(buffer, minibatch.index, hparams.discount)
            targets = q_targets(params, target_params, steps)
            weights = minibatch.density**-importance_exponent if config.replay.prioritized else None
            gradient, (errors, metrics) = jax.grad(loss, has_aux=True)(params, steps, targets, weights, hparams)
            change, opt_state = update(gradient, opt_state)
            params = optax.apply_updates(params, change)
            rate = jnp.where((count + 1) % config.target_period == 0, hparams.tau, 0.0)
            target_params = jax.tree.map(lambda new, old: rate * new + (1.0 - rate) * old, params, target_params)
            priorities = (jnp.abs(errors) + PRIORITY_OFFSET) ** hparams.priority_exponent
            metrics["grad_norm"] = optax.tree.norm(gradient)
            return (params, target_params, opt_state), (priorities, metrics)

        def train(loop: tuple) -> tuple[tuple, tuple[Array, Metrics]]:
            count = state.num_updates * config.num_gradient_steps
            counts = count + jnp.arange(config.num_gradient_steps, dtype=jnp.int32)
            return jax.lax.scan(gradient_step, loop, (counts, minibatches))

        def wait(loop: tuple) -> tuple[tuple, tuple[Array, Metrics]]:
            return loop, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(train, loop)[1])

        # The buffer is only read in here: a conditional that returned it would copy it.
        warm = replay.is_warm(buffer)
        loop, (priorities, metrics) = jax.lax.cond(
            warm, train, wait, (state.params, state.target_params, state.opt_state)
        )
        priorities = jnp.where(warm, priorities.reshape(-1), sample.priority)
        after = DQNState(
            params=loop[0],
            target_params=loop[1],
            opt_state=loop[2],
            key=key,
            num_updates=state.num_updates + 1,
            rollout=state.rollout,
            buffer=replay.set_priorities(buffer, sample.index, priorities),
            epsilon=exploration_rate(hparams, state.num_updates + 1),
        )
        return after, jax.tree.map(jnp.mean, metrics) | {"epsilon": state.epsilon} | episode_metrics(batch.stats)

    def update(state: DQNState, hparams: DQNHParams, data: Data) -> tuple[DQNState, Metrics]:
        state, batch = collect(state, hparams, data)
        return learn(state, hparams, batch, data)

    def q_targets(params: PyTree, target_params: PyTree, steps: NStep) -> Array:
        """n-step returns bootstrapped from the target network's value of the best legal action, `[n]`."""
        values = action_values(target_params, steps.next_observation)
        judged = action_values(params, steps.next_observation) if config.double else values
        return steps.reward + steps.bootstrap * of_actions(values, best_action(judged, steps.next_legal_actions))

    def loss(
        params: PyTree, steps: NStep, targets: Array, weights: Array | None, hparams: DQNHParams
    ) -> tuple[Array, tuple[Array, Metrics]]:
        values = of_actions(action_values(params, steps.observation), steps.action)
        errors = targets - values
        sample_losses = losses.huber_loss(errors, hparams.huber_threshold)
        if weights is not None:
            sample_losses *= weights / jnp.max(weights)
        total = jnp.mean(sample_losses)
        return total, (errors, {"loss/q": total, "q/mean": jnp.mean(values)})

    def export(policy_params: DQNPolicy) -> dict[str, Any]:
        params = policy_params.params["params"]
        head = params["head"]
        if config.dueling:  # linear, hence one dense layer: value + advantages - their mean
            head = jax.tree.map(
                lambda value, advantages: value + advantages - jnp.mean(advantages, -1, keepdims=True),
                params["value_head"],
                head,
            )
        return {
            "layers": describe_layers(config.network, params["torso"], head),
            "statistics": None,
            "action_space": spec.action_space,
        }

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


def exploration_rate(hparams: DQNHParams, num_updates: Array) -> Array:
    """Epsilon, falling linearly; f32 []."""
    fall = hparams.epsilon_start - hparams.epsilon_end
    return jnp.asarray(hparams.epsilon_start - fall * progress(num_updates, hparams.epsilon_updates), jnp.float32)


def best_action(values: Array, legal_actions: Array | None) -> Array:
    """The legal action of the largest value, i32 `[...]` from `[..., N]`."""
    if legal_actions is not None:
        values = jnp.where(legal_actions, values, jnp.finfo(values.dtype).min)
    return jnp.argmax(values, axis=-1).astype(jnp.int32)


def of_actions(values: Array, actions: Array) -> Array:
    """The values `[n, N]` of the actions `[n]`; by a one-hot row, cheaper than a gather for the N of action spaces."""
    chosen = actions[:, None] == jnp.arange(values.shape[-1], dtype=actions.dtype)[None]
    return jnp.sum(jnp.where(chosen, values, 0.0), axis=-1)


DQN = Recipe(make_dqn, DQNConfig, DQNHParams)
