"""What population methods are made of: best responses for both roles at once, and play between members.

Everything is a pure function of arrays, so that a whole population loop compiles to one program and vmaps over seeds
and over parameters of the game. `jaxrl.algorithms.psro` is the loop; studies call the same functions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from envs_jax.core import Environment, EnvParams
from envs_jax.versus import Versus, VersusParams
from jaxrl.loop import reduce_metrics, scan_updates
from jaxrl.parts.bank import Member, choose_member, flip_roles
from jaxrl.parts.roles import play_together, systematic_draw, take
from jaxrl.rollout import Episodes, episodes, start_rollout
from jaxrl.types import Algorithm, Array, Data, Metrics, PyTree


class GroupedVersus(Versus):
    """`Versus` in G groups of environments, each against one opponent: `params.opponents` has no axis but the group's.

    The opponents' networks are evaluated as one batched product per layer, where an opponent per environment would
    gather weights per environment.
    """

    def __init__(self, game: Environment, start: Callable, act: Callable, default_params: VersusParams, groups: int):
        super().__init__(game, start, act, default_params)
        self.num_groups = groups

    def sample_params(self, key: Array, params: VersusParams) -> VersusParams:
        """Draws what the game itself draws; the opponent stays. Consumes `key`."""
        return dataclasses.replace(params, game=self.env.sample_params(key, params.game))

    def _opponent(self, params: VersusParams) -> PyTree:
        return params.opponents


class Population:
    """Training and playing members of a population, for a game of two roles.

    Args:
        game: the environment, `num_agents == 2`.
        make_oracle: builds an algorithm for a single-agent environment; it trains the best responses.
        heuristics: names of the game's heuristics, at least one.
        num_updates: updates of one best response.
        num_groups: G opponents are met at a time in training, redrawn by systematic resampling when episodes begin.
            0: one opponent is drawn per environment and episode, at about twice the cost.
        num_episodes: E, episodes per payoff entry.
        max_steps: bound of an episode; 0: the game's own.

    Raises:
        ValueError: the game does not have two roles, lacks a heuristic, or a number does not fit.
    """

    def __init__(
        self,
        game: Environment,
        make_oracle: Callable[[Environment], Algorithm],
        heuristics: Sequence[str],
        *,
        num_updates: int,
        num_groups: int = 16,
        num_episodes: int = 256,
        max_steps: int = 0,
    ):
        name = type(game).__name__
        if game.num_agents != 2:
            raise ValueError(f"a population needs a game of two roles, {name} has {game.num_agents}")
        self.game, self.num_updates, self.num_groups, self.num_episodes = game, num_updates, num_groups, num_episodes
        self.roles = game.roles or ("0", "1")
        self.max_steps = max_steps or game.max_steps or 0
        if not self.max_steps:
            raise ValueError(f"max_steps must be given: {name} does not bound its episodes")
        if not hasattr(game, "heuristics"):
            raise ValueError(f"a population begins with heuristics, {name} has none")
        if not heuristics:
            raise ValueError(f"heuristics must name at least one of the policies that {name} knows")
        self.heuristics = tuple(heuristics)
        *heuristic, self._heuristic_params = game.heuristics(self.heuristics)  # type: ignore[attr-defined]
        zero = jnp.zeros((), jnp.int32)
        default = VersusParams(game.default_params, zero, None, jnp.ones(1), zero)
        # Members contain the oracle's policy, and the oracle is built for the view that plays members.
        start, act = (lambda *args: self.policy[0](*args)), (lambda *args: self.policy[1](*args))
        view = GroupedVersus(game, start, act, default, num_groups) if num_groups else Versus(game, start, act, default)
        self.oracle = make_oracle(view)
        if self.oracle.policy is None or self.oracle.start is None or self.oracle.act is None:
            raise ValueError("the oracle must be an algorithm that acts")
        self.view = view
        # The same algorithm without environments: its first policy can be had before there is anyone to meet.
        self._bare = make_oracle(view.spec(default))  # type: ignore[arg-type]
        self.policy = choose_member((heuristic[0], heuristic[1]), (self.oracle.start, self.oracle.act))
        self.both = play_together(self.policy)  # the policy of a pair of members, leaves [2, ...]

    def untrained(self, key: Array, hparams: PyTree) -> PyTree:
        """Policy parameters of an oracle before its first update; consumes `key`."""
        return self._bare.policy(self._bare.init(key, hparams, Data()), Data())  # type: ignore[misc]

    def heuristic_members(self, names: Sequence[str], hparams: PyTree) -> Member:
        """The game's heuristics `names` as members, leaves `[len(names), ...]`, for either role."""
        shapes = jax.eval_shape(self.untrained, jax.random.key(0), hparams)
        network = jax.tree.map(lambda leaf: jnp.zeros((len(names), *leaf.shape), leaf.dtype), shapes)
        with jax.ensure_compile_time_eval():  # names are read on the host, also while tracing
            heuristic = self.game.heuristics(tuple(names))[2]  # type: ignore[attr-defined]
        return Member(jnp.zeros(len(names), bool), heuristic, network)

    def learned_members(self, networks: PyTree) -> Member:
        """Policy parameters of the oracle, leaves `[n, ...]`, as members."""
        count = jax.tree.leaves(networks)[0].shape[0]
        unused = jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], count, axis=0), self._heuristic_params)
        return Member(jnp.ones(count, bool), unused, networks)

    def best_responses(
        self,
        key: Array,
        hparams: PyTree,
        game_params: EnvParams,
        bank: Member,
        strategies: Array,
        num_updates: int | None = None,
    ) -> tuple[Member, Metrics]:
        """Trains a fresh oracle for each role against the other role's mixed strategy, both at once.

        Args:
            key: consumed.
            hparams: of the oracle.
            game_params: of the game.
            bank: leaves `[2, M, ...]`, members by role.
            strategies: f32 `[2, M]`, the mixture of each role.
            num_updates: of each oracle; None: the population's.

        Returns:
            The two responses, leaves `[2, ...]`, and the oracle's metrics over the last tenth of its updates, `[2]`.
        """
        networks, metrics = jax.vmap(self.best_response, (0, None, None, 0, 0, 0, None))(
            jax.random.split(key, 2),
            hparams,
            game_params,
            jnp.arange(2, dtype=jnp.int32),
            flip_roles(bank),
            strategies[::-1],
            num_updates,
        )
        return self.learned_members(networks), metrics

    def best_response(
        self,
        key: Array,
        hparams: PyTree,
        game_params: EnvParams,
        role: Array,
        opponents: Member,
        weights: Array,
        num_updates: int | None = None,
    ) -> tuple[PyTree, Metrics]:
        """Trains a fresh oracle for `role` i32 [] against a mixture of `opponents`, leaves `[M, ...]`.

        Args:
            key: consumed.
            hparams: of the oracle.
            game_params: of the game.
            role: the one that learns; may be traced.
            opponents: of the other role.
            weights: f32 `[M]`, how often each is met.
            num_updates: None: the population's.

        Returns:
            The oracle's policy parameters, and its metrics over the last tenth of its updates.
        """
        num_updates = num_updates or self.num_updates
        params = VersusParams(game_params, role, opponents, weights, jnp.zeros((), jnp.int32))
        train = self._train_grouped if self.num_groups else self._train_single
        state, metrics = train(key, hparams, params, num_updates)
        tail = jax.tree.map(lambda rows: rows[-max(1, num_updates // 10) :], metrics)
        return self.oracle.policy(state, Data(params)), reduce_metrics(tail)  # type: ignore[misc]

    def play(
        self, first: Member, second: Member, game_params: EnvParams, key: Array, num_episodes: int | None = None
    ) -> Episodes:
        """Plays P pairs of members, all with the same starts and noise (common random numbers).

        Args:
            first: of role 0, leaves `[P, ...]`.
            second: of role 1, leaves `[P, ...]`.
            game_params: of the game.
            key: of the episodes; equal keys give equal episodes.
            num_episodes: E; None: the population's.

        Returns:
            `Episodes` with leaves `[P, E]`, `[P, E, 2]` where there is one value for each role. Nothing is recorded.
        """
        key_reset, key_noise = jax.random.split(key)
        reset_keys = jax.random.split(key_reset, num_episodes or self.num_episodes)

        def one_pair(first: Member, second: Member) -> Episodes:
            pair = jax.tree.map(lambda a, b: jnp.stack([a, b]), first, second)
            # A record of nothing: the loop then has a fixed length and, batched over pairs, selects nothing.
            played = episodes(
                self.game, self.both, pair, game_params, reset_keys, key_noise, self.max_steps,
                deterministic=False, record=lambda *_: (),
            )  # fmt: skip
            return dataclasses.replace(played, record=None, mask=None)

        return jax.vmap(one_pair)(first, second)

    def utility(self, played: Episodes) -> Array:
        """Episode returns divided by the longest episode's length, a constant: f32, shaped as the returns.

        In a game of fixed length this is the mean reward per step; either way it is a positive multiple of the return,
        so that equilibria are those of the returns.
        """
        return played.episode_return / self.max_steps

    def play_mixture(
        self,
        role: int,
        members: Member,
        opponents: Member,
        weights: Array,
        game_params: EnvParams,
        key: Array,
        num_episodes: int | None = None,
    ) -> dict[str, Array]:
        """What members earn against a mixed strategy: every opponent is met in the same episodes, none is drawn.

        Args:
            role: of the members, 0 or 1.
            members: leaves `[P, ...]`.
            opponents: of the other role, leaves `[M, ...]`.
            weights: f32 `[M]`, sum 1.
            game_params: of the game.
            key: of the episodes.
            num_episodes: E; None: the population's.

        Returns:
            `utility` and the entries of `TimeStep.info`, f32 `[P, E, 2]` (both roles), averaged over the opponents.
            Their spread over E gives the standard error, up to that between starts of the opponents.
        """

        def meet(opponent: Member) -> dict[str, Array]:
            num_members = members.learned.shape[0]
            others = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_members, *leaf.shape)), opponent)
            pairs = (members, others) if role == 0 else (others, members)
            played = self.play(*pairs, game_params, key, num_episodes)
            return {"utility": self.utility(played)} | played.info

        return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), jax.vmap(meet)(opponents))

    def exploit(
        self,
        key: Array,
        hparams: PyTree,
        game_params: EnvParams,
        role: int,
        opponents: Member,
        weights: Array,
        *,
        num_restarts: int = 3,
        num_updates: int | None = None,
        num_episodes: int = 1024,
    ) -> Array:
        """What the best of some fresh best responses earns against a mixed strategy: a bound of its exploitability.

        The sum over both roles, of a zero-sum game, is the NashConv of the mixtures as far as the responses are best.

        Args:
            key: consumed.
            hparams: of the oracle; its schedules should end with `num_updates`.
            game_params: of the game.
            role: the one that responds, 0 or 1.
            opponents: of the other role, leaves `[M, ...]`.
            weights: f32 `[M]`, the mixture; sum 1.
            num_restarts: best responses; the one with the highest mean counts.
            num_updates: of each; None: twice the population's.
            num_episodes: E, per restart and opponent; the restart is chosen and rated in the same ones.

        Returns:
            Utility of the responding role in each episode, f32 `[E]`.
        """
        key_train, key_play = jax.random.split(key)
        respond = lambda key: self.best_response(  # noqa: E731
            key, hparams, game_params, jnp.int32(role), opponents, weights, num_updates or 2 * self.num_updates
        )[0]
        responses = self.learned_members(jax.vmap(respond)(jax.random.split(key_train, num_restarts)))
        played = self.play_mixture(role, responses, opponents, weights, game_params, key_play, num_episodes)
        utility = played["utility"][:, :, role]
        return utility[jnp.argmax(jnp.mean(utility, axis=1))]

    def _train_single(self, key: Array, hparams: PyTree, params: VersusParams, num_updates: int) -> tuple:
        """One oracle; every environment draws its own opponent."""
        state = self.oracle.init(key, hparams, Data(params))
        return scan_updates(self.oracle, state, hparams, num_updates, Data(params))

    def _train_grouped(self, key: Array, hparams: PyTree, params: VersusParams, num_updates: int) -> tuple:
        """One oracle; groups of environments meet one opponent each, all redrawn whenever episodes begin together."""
        oracle, game = self.oracle, (params.game, params.role, params.weights, params.opponent)
        acting: Any = (oracle.start, oracle.act)
        key_init, key_draw, key_loop = jax.random.split(key, 3)

        def draw(key: Array) -> PyTree:
            chosen = systematic_draw(key, params.weights, self.num_groups)
            return take(params.opponents, chosen)

        def data(opponents: PyTree) -> Data:
            repeated = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.num_groups, *leaf.shape)), game)
            return Data(VersusParams(repeated[0], repeated[1], opponents, *repeated[2:]))

        def update(loop: tuple, index: Array) -> tuple[tuple, Metrics]:
            state, opponents = loop

            def redraw() -> tuple:
                key_draw, key_start = jax.random.split(jax.random.fold_in(key_loop, index))
                opponents = draw(key_draw)
                policy = oracle.policy(state, data(opponents))  # type: ignore[misc]
                env_params = data(opponents).env_params
                return start_rollout(self.view, acting, policy, env_params, key_start, num_envs), opponents

            begin = (index % period == 0) & (index > 0)
            rollout, opponents = jax.lax.cond(begin, redraw, lambda: (state.rollout, opponents))
            state, metrics = oracle.update(dataclasses.replace(state, rollout=rollout), hparams, data(opponents))
            return (state, opponents), metrics

        opponents = draw(key_draw)
        state = oracle.init(key_init, hparams, data(opponents))
        num_envs = state.rollout.episode_length.shape[0]
        # Updates until all episodes are at their start again.
        period = math.lcm(oracle.steps_per_update // num_envs, self.max_steps) * num_envs // oracle.steps_per_update
        (state, _), metrics = jax.lax.scan(update, (state, opponents), jnp.arange(num_updates))
        return state, metrics
