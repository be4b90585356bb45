"""A mixture of policies distilled into one network, by imitation of what the mixture does in its own games.

The mixture draws a member per episode; the student sees only what one player sees. Trained on the mixture's own
episodes against the other role's mixture, it comes to the posterior average: at an observation o the probability of an
action a is that of the members, weighted by how likely each is, given that o was reached (with a recurrent network,
given all that was observed so far). That plays like the mixture on average, but mixes within an episode where the
mixture mixes between episodes, so it can be exploited more; `jaxrl.run.distill` measures by how much.
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
from jaxrl import algorithms
from jaxrl.algorithms.population import Population
from jaxrl.parts.distributions import action_head
from jaxrl.parts.networks import ActorCritic
from jaxrl.parts.roles import systematic_draw, take
from jaxrl.parts.schedules import linear_decay
from jaxrl.parts.shuffle import random_order
from jaxrl.rollout import episodes
from jaxrl.types import Algorithm, Array, Data, Metrics, PyTree, TrainState, hparam


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """What shapes the program."""

    student: Any  # the settings of PPO, whose network the student has; it normalises nothing
    role: int = 0  # of the mixture that is imitated
    num_groups: int = 16  # G pairs of members, one of each role, that play in an update
    num_episodes: int = 64  # of all pairs together
    num_minibatches: int = 8  # of whole episodes

    def __post_init__(self) -> None:
        for name in ("num_groups", "num_minibatches"):
            value = getattr(self, name)
            if value < 1 or self.num_episodes % value:
                raise ValueError(f"{name}={value} must divide num_episodes = {self.num_episodes}")
        if self.student.normalize_observations:
            raise ValueError("a student does not normalise observations")


@struct.dataclass
class DistillationHParams:
    learning_rate: Any = hparam(1e-3, low=0.0)
    anneal_updates: Any = hparam(0.0, low=0.0)  # the learning rate falls linearly to 0 over so many; 0: constant
    max_grad_norm: Any = hparam(0.5, low=0.0)


@struct.dataclass
class Example:
    """What the imitated role saw and did, leaves `[B, T, ...]`."""

    observation: Array
    action: Array
    legal_actions: Array | None
    counts: Array  # bool; False after an episode's end


def make_distillation(config: DistillationConfig, population: Population) -> Algorithm:
    """Behaviour cloning of one role's mixture.

    Args:
        config: static settings.
        population: whose members the mixtures hold, of a game with discrete actions.

    Returns:
        An `Algorithm`. `data.env_params` are the game's; `data.frozen` is a `Mixture` of both roles, leaves
        `[2, M, ...]`. Its state is PPO's, trained but for the value, so `policy`, `act` and `export` are PPO's too.

    Raises:
        ValueError: actions are continuous.
    """
    game, role = population.game, config.role
    spec = dataclasses.replace(game.spec(game.default_params), num_agents=1)
    student = algorithms.find("ppo").make(config.student, spec)
    head = action_head(spec.action_space)
    if head.continuous:
        raise ValueError("only policies of discrete actions can be distilled")
    network = ActorCritic(config.student.network, head.num_outputs, head.continuous)
    forward: Callable[..., Any] = network.apply
    critic_space = spec.critic_observation_space or spec.observation_space
    # The value is not trained, whatever its network sees.
    unseen = jnp.zeros(critic_space.shape)

    def optimizer(hparams: DistillationHParams, num_updates: Array) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(hparams.max_grad_norm),
            optax.scale_by_adam(eps=1e-5),
            optax.scale(-hparams.learning_rate * linear_decay(num_updates, hparams.anneal_updates)),
        )

    def init(key: Array, hparams: DistillationHParams, data: Data) -> TrainState:
        del data
        key_student, key_state = jax.random.split(key)
        ppo = algorithms.find("ppo").hparams()
        state = student.init(key_student, ppo, Data())
        opt_state = optimizer(hparams, jnp.zeros((), jnp.int32)).init(state.params)
        return dataclasses.replace(state, opt_state=opt_state, key=key_state)

    def play(key: Array, data: Data) -> Example:
        """Episodes of G pairs that are drawn by the mixtures' weights."""
        key_first, key_second, key_order, key_reset, key_noise = jax.random.split(key, 5)
        mixture: Any = data.frozen
        num_groups = config.num_groups
        first = systematic_draw(key_first, mixture.weights[0], num_groups)
        second = systematic_draw(key_second, mixture.weights[1], num_groups)
        second = jax.random.permutation(key_order, second)  # else the draws of both would rise together
        members = jax.tree.map(lambda leaf: jnp.stack([leaf[0, first], leaf[1, second]], 1), mixture.members)

        def record(state: PyTree, before: TimeStep, action: Array, after: TimeStep, extras: dict) -> PyTree:
            del state, after, extras
            seen = (before.observation, action, before.legal_actions)
            return jax.tree.map(lambda leaf: leaf[:, role], seen)

        def one_pair(pair: PyTree, key_reset: Array, key_noise: Array) -> Example:
            reset_keys = jax.random.split(key_reset, config.num_episodes // num_groups)
            played = episodes(
                game, population.both, pair, data.env_params, reset_keys, key_noise, population.max_steps,
                deterministic=False, record=record,
            )  # fmt: skip
            example = Example(*played.record, played.mask)  # type: ignore[arg-type]
            return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), example)

        examples = jax.vmap(one_pair)(
            members, jax.random.split(key_reset, num_groups), jax.random.split(key_noise, num_groups)
        )
        return jax.tree.map(lambda leaf: leaf.reshape(config.num_episodes, *leaf.shape[2:]), examples)

    def outputs_along(params: PyTree, observation: Array) -> Array:
        """Of one episode `[T, ...]`, from its start on."""

        def step(carry: PyTree, observation: Array) -> tuple[PyTree, Array]:
            after, (outputs, _, _) = forward(params, carry, observation, unseen)
            return after, outputs

        if config.student.network.recurrent:
            return jax.lax.scan(step, network.start(), observation)[1]
        return jax.vmap(lambda observation: step(network.start(), observation)[1])(observation)

    def loss(params: PyTree, examples: Example) -> tuple[Array, Metrics]:
        def terms(outputs: Array, example: Example) -> tuple[Array, Array]:
            distribution = head.distribution(outputs, None, example.legal_actions)
            agrees = jnp.all(distribution.mode() == example.action)
            return -distribution.log_prob(example.action), agrees.astype(jnp.float32)

        outputs = jax.vmap(outputs_along, (None, 0))(params, examples.observation)
        losses, agreement = jax.vmap(jax.vmap(terms))(outputs, examples)
        weights = examples.counts / jnp.maximum(jnp.sum(examples.counts), 1)
        total = jnp.sum(weights * losses)
        return total, {"loss/imitation": total, "agreement": jnp.sum(weights * agreement)}

    def update(state: TrainState, hparams: DistillationHParams, data: Data) -> tuple[TrainState, Metrics]:
        key, key_play, key_order = jax.random.split(state.key, 3)
        examples, change = play(key_play, data), optimizer(hparams, state.num_updates).update

        def minibatch_step(loop: tuple, rows: Array) -> tuple[tuple, Metrics]:
            params, opt_state = loop
            gradient, metrics = jax.grad(loss, has_aux=True)(params, take(examples, rows))
            updates, opt_state = change(gradient, opt_state)
            return (optax.apply_updates(params, updates), opt_state), metrics

        rows = random_order(key_order, config.num_episodes).reshape(config.num_minibatches, -1)
        (params, opt_state), metrics = jax.lax.scan(minibatch_step, (state.params, state.opt_state), rows)
        state = dataclasses.replace(
            state, params=params, opt_state=opt_state, key=key, num_updates=state.num_updates + 1
        )
        return state, jax.tree.map(jnp.mean, metrics)

    return Algorithm(
        init=init,
        update=update,
        policy=student.policy,
        start=student.start,
        act=student.act,
        steps_per_update=config.num_episodes * population.max_steps,
        export=student.export,
    )
