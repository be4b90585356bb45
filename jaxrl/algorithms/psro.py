"""Policy-space response oracles (Lanctot et al. 2017, arXiv 1711.00832) as one compiled program.

A population of policies for each of two roles grows by best responses to the other role's mixed strategy in the
meta-game, the empirical game whose actions are the policies. One `update` is one iteration: train an oracle for both
roles at once against the meta-strategies, append them, play their row and column of the payoffs, solve again. Any
algorithm that trains one agent can be the oracle. Both roles answer the previous meta-strategies (simultaneous).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_jax.core import Environment
from envs_jax.registry import nearest
from envs_jax.versus import Versus
from jaxrl import algorithms
from jaxrl.algorithms.population import Population
from jaxrl.parts.bank import Member, append
from jaxrl.parts.meta_game import (
    best_response_gains,
    deviation_payoffs,
    expected_payoffs,
    make_meta_game,
    nash_conv,
    strategy_entropy,
)
from jaxrl.parts.meta_solvers import META_SOLVERS, make_meta_solver
from jaxrl.parts.roles import Mixture, mix, play_together, take
from jaxrl.types import Algorithm, Array, Data, Metrics, PyTree, Recipe, TrainState

ConfigT = TypeVar("ConfigT")
INITIAL = ("heuristics", "random")
OUTPUTS = ("meta", "learned", "last")
NEGLIGIBLE = 0.01  # share of heuristics that an exported mixture may leave out


@dataclasses.dataclass(frozen=True)
class OracleConfig(Generic[ConfigT]):
    """`[config.oracle]`: the algorithm that trains best responses. Its floats are the run's `[hparams]`."""

    algorithm: str = "ppo"
    num_updates: int = 400  # of one best response
    config: ConfigT | None = None  # its static settings; None: its defaults

    def __post_init__(self) -> None:
        if self.num_updates < 1:
            raise ValueError(f"config.oracle.num_updates must be at least 1, got {self.num_updates}")
        if self.config is None:
            object.__setattr__(self, "config", algorithms.find(self.algorithm).config())


@dataclasses.dataclass(frozen=True)
class PSROConfig(Generic[ConfigT]):
    """What shapes the program."""

    heuristics: tuple[str, ...] = ()  # of the game, by name; the first members of both roles
    initial: str = "heuristics"  # the population begins with these, or with one untrained network ("random")
    capacity: int = 12  # K; learned members that fit; a run makes one per update
    meta_solver: str = "rm+"
    meta_solver_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_episodes: int = 256  # E, per payoff entry
    num_groups: int = 16  # opponents in play at a time in training; see `Population`
    max_steps: int = 0  # bound of an episode; 0: the game's own
    # What acts in the end: the meta-strategy, the learned members with equal probability, or the last one alone, as the
    # oracle's own policy.
    output: str = "meta"
    oracle: OracleConfig[ConfigT] = dataclasses.field(default_factory=OracleConfig[ConfigT])

    def __post_init__(self) -> None:
        for name, allowed in (("initial", INITIAL), ("output", OUTPUTS), ("meta_solver", tuple(META_SOLVERS))):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"config.{name} must be one of {', '.join(allowed)}, got {value!r}{nearest(value, allowed)}"
                )
        for name, low in (("capacity", 1), ("num_episodes", 1), ("num_groups", 0), ("max_steps", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"config.{name} must be at least {low}, got {getattr(self, name)}")
        num_envs = getattr(self.oracle.config, "num_envs", None)
        if self.num_groups and num_envs and num_envs % self.num_groups:
            raise ValueError(
                f"config.num_groups={self.num_groups} must divide config.oracle.config.num_envs = {num_envs}"
            )

    @property
    def num_initial(self) -> int:
        """H, the members a population begins with."""
        return len(self.heuristics) if self.initial == "heuristics" else 1


@struct.dataclass
class PSROState(TrainState):
    """`params` is the bank, a `Member` with leaves `[2, M, ...]`: H first members, then K learned ones."""

    payoffs: Array = None  # type: ignore[assignment]  # f32 [2, M, M]; mean utility of role i where row met column
    info: dict[str, Array] = dataclasses.field(default_factory=dict)  # f32 [2, M, M]; means of `TimeStep.info` likewise
    strategies: Array = None  # type: ignore[assignment]  # f32 [2, M]; the meta-strategies
    episodes_key: Array = None  # type: ignore[assignment]  # of the payoff episodes, the same in every iteration


def make_population(config: PSROConfig, env: Environment) -> Population:
    """The training and playing functions behind PSRO, for a game or a `Versus` view of it; see `make_psro`."""
    if not isinstance(env, Environment):
        raise ValueError("PSRO needs an environment that runs inside JAX")
    recipe = algorithms.find(config.oracle.algorithm)
    return Population(
        env.env if isinstance(env, Versus) else env,
        lambda view: recipe.make(config.oracle.config, view),
        config.heuristics,
        num_updates=config.oracle.num_updates,
        num_groups=config.num_groups,
        num_episodes=config.num_episodes,
        max_steps=config.max_steps,
    )


def make_psro(config: PSROConfig, env: Environment) -> Algorithm:
    """PSRO with any algorithm as its oracle.

    Args:
        config: static settings.
        env: a game of two roles with heuristics; then `act` plays both roles, `[2]`. Or a `Versus` view of one, as
            `envs_jax.make(..., role=..., opponents=...)` builds: training is the same, and `act` plays that role, so
            that an evaluation meets those opponents.

    Returns:
        An `Algorithm`. More updates than `config.capacity` overwrite the last member.

    Raises:
        ValueError: not such a game, or a Nash solver for a utility that is not zero-sum.
    """
    population = make_population(config, env)
    game, roles = population.game, population.roles
    num_initial, num_slots = config.num_initial, config.num_initial + config.capacity
    options = dict(config.meta_solver_options)
    if config.meta_solver == "heuristics":
        options.setdefault("num_heuristics", num_initial)
    solve = make_meta_solver(config.meta_solver, zero_sum=getattr(game, "zero_sum", False), **options)
    names = [*(config.heuristics if config.initial == "heuristics" else ("untrained",))]
    names += [f"learned_{k}" for k in range(config.capacity)]
    one_role, every = isinstance(env, Versus), jnp.arange(num_slots)

    def game_params(data: Data) -> Any:
        return data.env_params.game if one_role else data.env_params

    def active(num_updates: Array) -> Array:
        return every < num_initial + num_updates

    def meta_game(payoffs: Array, num_updates: Array) -> Any:
        return make_meta_game(payoffs, (active(num_updates),) * 2)

    def strategies_of(payoffs: Array, num_updates: Array) -> Array:
        return jnp.stack(solve(meta_game(payoffs, num_updates)))

    def init(key: Array, hparams: PyTree, data: Data) -> PSROState:
        key_episodes, key_network, key_state = jax.random.split(key, 3)
        if config.initial == "heuristics":
            first = population.heuristic_members(config.heuristics, hparams)
            bank = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), first)
        else:
            networks = jax.vmap(population.untrained, (0, None))(jax.random.split(key_network, 2), hparams)
            bank = jax.tree.map(lambda leaf: leaf[:, None], population.learned_members(networks))
        rows, columns = jnp.repeat(jnp.arange(num_initial), num_initial), jnp.tile(jnp.arange(num_initial), num_initial)
        # Empty slots hold the first member over and over: something finite to compute with.
        bank = jax.tree.map(
            lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[:, :1], config.capacity, axis=1)], axis=1), bank
        )
        num_updates = jnp.zeros((), jnp.int32)
        played = measure(bank, rows, columns, data, key_episodes)
        tables = {name: jnp.zeros((2, num_slots, num_slots)).at[:, rows, columns].set(x) for name, x in played.items()}
        payoffs = tables.pop("utility")
        return PSROState(
            params=bank,
            opt_state=None,
            key=key_state,
            num_updates=num_updates,
            rollout=None,
            payoffs=payoffs,
            info=tables,
            strategies=strategies_of(payoffs, num_updates),
            episodes_key=key_episodes,
        )

    def measure(bank: Member, rows: Array, columns: Array, data: Data, key: Array) -> dict[str, Array]:
        """Mean utility and info, f32 `[2, P]`, of P pairs of slots."""
        played = population.play(take(bank, (0, rows)), take(bank, (1, columns)), game_params(data), key)
        values = {"utility": population.utility(played)} | played.info
        return {name: jnp.mean(leaf, axis=1).T for name, leaf in values.items()}

    def update(state: PSROState, hparams: PyTree, data: Data) -> tuple[PSROState, Metrics]:
        key, key_oracles = jax.random.split(state.key)
        slot = num_initial + state.num_updates
        responses, training = population.best_responses(
            key_oracles, hparams, game_params(data), state.params, state.strategies
        )
        bank = append(state.params, slot, responses)
        newest = jnp.full(num_slots, slot)
        rows, columns = jnp.concatenate([newest, every]), jnp.concatenate([every, newest])
        played = measure(bank, rows, columns, data, state.episodes_key)
        tables = {"utility": state.payoffs} | state.info
        tables = {name: table.at[:, rows, columns].set(played[name]) for name, table in tables.items()}
        payoffs, num_updates = tables.pop("utility"), state.num_updates + 1
        after = dataclasses.replace(
            state,
            params=bank,
            key=key,
            num_updates=num_updates,
            payoffs=payoffs,
            info=tables,
            strategies=strategies_of(payoffs, num_updates),
        )
        return after, diagnostics(after, state.strategies, slot) | by_role(training)

    def diagnostics(state: PSROState, previous: Array, newest: Array) -> Metrics:
        """The meta-game after an iteration; `previous` f32 [2, M] are the strategies that the newest members met."""
        game, strategies = meta_game(state.payoffs, state.num_updates), tuple(state.strategies)
        earlier = expected_payoffs(game, tuple(previous))
        values, gains = expected_payoffs(game, strategies), best_response_gains(game, strategies)
        metrics = {"meta/nash_conv": nash_conv(game, strategies)}
        for i, role in enumerate(roles):
            members = deviation_payoffs(game, strategies, i)
            # Of the newest member, on the strategies that it was trained against: a bound of their exploitability.
            gain = deviation_payoffs(game, tuple(previous), i)[newest] - earlier[i]
            metrics |= {f"meta/value/{role}": values[i], f"meta/regret/{role}": gains[i]}
            metrics |= {f"meta/entropy/{role}": strategy_entropy(strategies[i]), f"meta/newest_gain/{role}": gain}
            metrics |= {f"strategy/{role}/{name}": strategies[i][m] for m, name in enumerate(names)}
            metrics |= {f"utility/{role}/{name}": members[m] for m, name in enumerate(names)}
            for name, table in state.info.items():
                by_member = table[i] @ strategies[1] if i == 0 else strategies[0] @ table[i]
                metrics |= {f"play/{role}/{name}": strategies[i] @ by_member}
                metrics |= {f"newest/{role}/{name}": by_member[newest]}
        return metrics

    def by_role(training: Metrics) -> Metrics:
        """The oracles' metrics `[2]`, one entry for each role; their mean under the name of the oracle's own."""
        metrics = {name: jnp.sum(x) if name == "episode/count" else jnp.mean(x) for name, x in training.items()}
        return metrics | {f"{name}/{role}": x[i] for name, x in training.items() for i, role in enumerate(roles)}

    def policy(state: PSROState, data: Data) -> PyTree:
        weights = output_strategies(config, state)
        if config.output == "last":
            both = take(state.params.network, (slice(None), jnp.argmax(weights[0])))
        else:
            both = Mixture(state.params, weights)
        return take(both, data.env_params.role) if one_role else both

    def export(policy_params: PyTree) -> dict[str, Any]:
        if config.output == "last":
            return {} if oracle.export is None else oracle.export(policy_params)
        mixture, slots = learned_mixture(policy_params)
        described: dict[str, Any] = {"mixture": mixture, "slots": slots, "policy": (oracle.start, oracle.act)}
        if oracle.export is not None:
            described["members"] = [oracle.export(take(mixture.members, m)) for m in range(slots.shape[0])]
        return described

    oracle: Any = population.oracle
    alone = (oracle.start, oracle.act) if config.output == "last" else mix(population.policy)
    start, act = alone if one_role else play_together(alone)
    return Algorithm(
        init=init,
        update=update,
        policy=policy,
        start=start,
        act=act,
        steps_per_update=2 * config.oracle.num_updates * oracle.steps_per_update,
        export=export if one_role else None,
    )


def learned_mixture(mixture: Mixture) -> tuple[Mixture, Array]:
    """A mixture of members as one of networks alone, with their slots i32 `[M']` in it: what can leave a run.

    Raises:
        ValueError: heuristics, which read more than observations, have a share above `NEGLIGIBLE`. (Where they are
            dominated, a meta-solver leaves them the last traces of its start.)
    """
    weights = np.asarray(mixture.weights, np.float64)
    weights /= weights.sum()
    learned = np.asarray(mixture.members.learned)
    share = float(weights[~learned].sum())
    if share > NEGLIGIBLE:
        raise ValueError(
            f"the mixture plays heuristics with probability {share:.2g}, which read more than observations; "
            "distil it (jaxrl league DIR --distill) and export the student"
        )
    slots = jnp.asarray(np.flatnonzero(learned & (weights > 0)), jnp.int32)
    kept = mixture.weights[slots]
    return Mixture(take(mixture.members.network, slots), kept / jnp.sum(kept)), slots


def output_strategies(config: PSROConfig, state: PSROState) -> Array:
    """The mixed strategy of each role that acts in the end, by `config.output`: f32 `[2, M]`, any positive scale."""
    if config.output == "meta":
        return state.strategies
    slots = jnp.arange(state.strategies.shape[1])
    newest = jnp.minimum(config.num_initial + jnp.maximum(state.num_updates, 1), slots.shape[0]) - 1
    chosen = (slots >= (newest if config.output == "last" else config.num_initial)) & (slots <= newest)
    return jnp.broadcast_to(chosen.astype(jnp.float32), state.strategies.shape)


def specialise(settings: dict[str, Any]) -> Recipe:
    """The recipe for the oracle that a configuration file names; its schedules end with each best response."""
    config = _table(settings, "config", "config")
    oracle = _table(config, "oracle", "config.oracle")
    recipe = algorithms.find(str(oracle.get("algorithm", OracleConfig.algorithm)))
    if recipe.specialise is not None:
        raise ValueError(f"config.oracle.algorithm must train one agent, got {oracle['algorithm']!r}")
    capacity, num_updates = config.setdefault("capacity", settings["num_updates"]), settings["num_updates"]
    if isinstance(capacity, int) and isinstance(num_updates, int) and num_updates > capacity:
        raise ValueError(f"config.capacity={capacity} is too small for the {num_updates} members that the run adds")
    if "anneal_updates" in {field.name for field in dataclasses.fields(recipe.hparams)}:
        _table(settings, "hparams", "hparams").setdefault(
            "anneal_updates", oracle.get("num_updates", OracleConfig.num_updates)
        )
    return Recipe(make_psro, PSROConfig[recipe.config], recipe.hparams)  # type: ignore[arg-type,name-defined]


def _table(values: dict[str, Any], key: str, name: str) -> dict[str, Any]:
    table = values.setdefault(key, {})
    if not isinstance(table, dict):
        raise ValueError(f"{name} must be a table, got {table!r}")
    return table


PSRO = Recipe(make_psro, PSROConfig, object, specialise)
