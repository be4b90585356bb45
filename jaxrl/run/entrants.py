"""Who plays in a league: the policies of run folders and heuristics, by role."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import envs_jax
from envs_jax.core import Environment
from envs_jax.versus import Versus, versus_params
from jaxrl import algorithms
from jaxrl.algorithms.cross_play import Family
from jaxrl.algorithms.psro import PSROConfig, make_population, output_strategies
from jaxrl.parts.roles import Policy, take
from jaxrl.run.config import ConfigError, RunConfig, parse_grid
from jaxrl.run.runner import load_state
from jaxrl.types import Data, PyTree

Place = tuple[Any, str]  # the program of a policy and the policy's name within it
LEARNERS = {"ippo": "ppo"}  # what makes the policies of algorithms that train several


@dataclasses.dataclass
class Roster:
    """The entrants of one role: mixed strategies over distinct policies.

    A mixture's members are policies of their own, so that what a mixture earns is a weighted sum of what they earn:
    nothing is drawn, and a policy in several mixtures plays once.
    """

    programs: dict[Any, Policy] = dataclasses.field(default_factory=dict)
    policies: dict[Any, dict[str, PyTree]] = dataclasses.field(default_factory=dict)  # parameters by program and name
    entrants: dict[str, dict[Place, float]] = dataclasses.field(default_factory=dict)

    def add(self, program: Any, policy: Policy, name: str, params: PyTree) -> Place:
        """A policy; one whose program and name are there already is the same one."""
        self.programs.setdefault(program, policy)
        self.policies.setdefault(program, {}).setdefault(name, params)
        return program, name

    def families(self) -> list[Family]:
        """The policies, stacked by program; P in all."""
        return [
            Family(*self.programs[program], jax.tree.map(lambda *leaves: jnp.stack(leaves), *members.values()))
            for program, members in self.policies.items()
        ]

    def weights(self) -> np.ndarray:
        """f64 `[N, P]`: how often each of N entrants plays each policy; rows sum to 1."""
        places = [(program, name) for program, members in self.policies.items() for name in members]
        table = np.zeros((len(self.entrants), len(places)))
        for row, mixture in zip(table, self.entrants.values()):
            for place, weight in mixture.items():
                row[places.index(place)] += weight
        return table / table.sum(axis=1, keepdims=True)


@dataclasses.dataclass
class Entrants:
    """A game and who plays it."""

    game: Environment
    game_params: Any
    rosters: tuple[Roster, Roster]

    def enter_heuristic(self, name: str) -> None:
        """A heuristic of the game as an entrant of both roles; `ConfigError` where the game has none of this name."""
        for role in (0, 1):
            self.rosters[role].entrants[name] = {self._heuristic(role, name): 1.0}

    def enter_run(self, run: RunConfig, state: PyTree, name: str, *, members: bool = True) -> None:
        """What a run has trained: `name` for each role that it plays.

        Args:
            run: of a population, of self-play, or of one role.
            state: its training state.
            name: of the entrants.
            members: of a population, enter the learned ones too, as `name/learned_0` and so on.
        """
        if isinstance(run.config, PSROConfig):
            self._enter_population(run.config, state, name, members)
            return
        for role in self._trained_roles(run):
            view = one_role(self.game, self.game_params, role)
            agent: Any = algorithms.find(run.algorithm).make(run.config, view)
            params = agent.policy(state, Data(view.default_params))
            program = (LEARNERS.get(run.algorithm, run.algorithm), run.config)
            place = self.rosters[role].add(program, (agent.start, agent.act), name, params)
            self.rosters[role].entrants[name] = {place: 1.0}

    def _enter_population(self, config: PSROConfig, state: PyTree, name: str, members: bool) -> None:
        population = make_population(config, self.game)
        oracle: Any = population.oracle
        strategies = np.asarray(output_strategies(config, state))
        num_slots = min(config.num_initial + int(state.num_updates), strategies.shape[1])
        for role, roster in enumerate(self.rosters):
            bank, mixture = take(state.params, role), {}
            for slot in range(num_slots):
                if not bank.learned[slot]:
                    mixture[self._heuristic(role, config.heuristics[slot])] = strategies[role, slot]
                    continue
                number = slot - config.num_initial
                member = f"{name}/learned_{number}" if number >= 0 else f"{name}/untrained"
                program = (config.oracle.algorithm, config.oracle.config)
                place = roster.add(program, (oracle.start, oracle.act), member, take(bank.network, slot))
                mixture[place] = strategies[role, slot]
                if members and number >= 0:
                    roster.entrants[member] = {place: 1.0}
            roster.entrants[name] = {place: weight for place, weight in mixture.items() if weight > 0}

    def _heuristic(self, role: int, name: str) -> Place:
        if not hasattr(self.game, "heuristics"):
            raise ConfigError(f"{type(self.game).__name__} has no heuristics")
        try:
            start, act, params = self.game.heuristics((name,))  # type: ignore[attr-defined]
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return self.rosters[role].add("heuristics", (start, act), name, take(params, 0))

    def _trained_roles(self, run: RunConfig) -> tuple[int, ...]:
        """Both where the algorithm takes the whole game (self-play), else the run's own."""
        try:
            algorithms.find(run.algorithm).make(run.config, self.game)
        except ValueError:
            return (self.game.roles.index(run.env.options["role"]),)
        return (0, 1)


def one_role(game: Environment, game_params: Any, role: int) -> Versus:
    """The view of a role against nobody: for policies, never played."""

    def nobody(*_: Any) -> Any:
        raise NotImplementedError

    return Versus(game, nobody, nobody, versus_params(game_params, jnp.zeros(1), role))


def load_entrants(
    run_dirs: Sequence[str | Path], heuristics: Sequence[str] = (), *, members: bool = True, game: Sequence[str] = ()
) -> Entrants:
    """Reads run folders of one game.

    Args:
        run_dirs: run folders or checkpoints; at least one.
        heuristics: names such as "guard(2)", entered for both roles.
        members: of populations, enter the learned members beside the mixture.
        game: "option=value" settings of the game that is played, where the runs disagree.

    Raises:
        ConfigError: no runs, not one game of two roles, an unknown heuristic, or a role without entrants.
        CheckpointError: a checkpoint cannot be read.
    """
    if not run_dirs:
        raise ConfigError("name at least one run folder")
    loaded = [load_state(path) for path in run_dirs]
    env, params = common_game([run for _, run in loaded], run_dirs, game)
    entrants = Entrants(env, params, (Roster(), Roster()))
    names = [Path(path).resolve().name for path in run_dirs]
    for (state, run), name, path in zip(loaded, names, run_dirs):
        entrants.enter_run(run, state, name if names.count(name) == 1 else str(path), members=members)
    for name in heuristics:
        entrants.enter_heuristic(name)
    for role, roster in zip(env.roles or ("0", "1"), entrants.rosters):
        if not roster.entrants:
            raise ConfigError(f"nobody plays {role}: name heuristics, or a run that has trained it")
    return entrants


def common_game(
    runs: Sequence[RunConfig], run_dirs: Sequence[str | Path], settings: Sequence[str] = ()
) -> tuple[Environment, Any]:
    """The game that all of `runs` play, both roles, and its parameters; see `load_entrants`."""
    chosen = {key: values[0] for key, values in parse_grid(settings).items()}

    def options(run: RunConfig) -> dict[str, Any]:
        return {key: x for key, x in run.env.options.items() if key not in ("role", "opponents")} | chosen

    first = runs[0]
    for run, path in zip(runs, run_dirs):
        if run.env.name != first.env.name or run.env.backend != "jax":
            raise ConfigError(f"{path} is a run of {run.env.name!r}, {run_dirs[0]} of {first.env.name!r}")
        here, there = options(run), options(first)
        for key in sorted(here.keys() | there.keys()):
            if here.get(key) != there.get(key):
                raise ConfigError(
                    f"the runs play different games: {key} is {here.get(key)!r} in {path} and {there.get(key)!r} in "
                    f"{run_dirs[0]}; say what the league plays with --game {key}=VALUE"
                )
    try:
        env, params = envs_jax.make(first.env.name, **options(first))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"[env] {error}") from error
    if env.num_agents != 2:
        raise ConfigError(f"a league needs a game of two roles, {first.env.name!r} has {env.num_agents}")
    return env, params
