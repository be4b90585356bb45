"""Cross-play of stored policies and a leader board for each role.

Every entrant of one role meets every entrant of the other in the same episodes. N and M are the numbers of entrants of
the two roles, E the number of episodes. Intervals resample episodes: they say how well the games were measured, not how
another training run would do.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl.algorithms.cross_play import Family, cross_play
from jaxrl.parts.meta_game import make_meta_game
from jaxrl.parts.meta_solvers import make_meta_solver
from jaxrl.results.figures import draw_heat_map
from jaxrl.results.files import replacing
from jaxrl.run.config import ConfigError
from jaxrl.run.entrants import Entrants, load_entrants

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
CONTROL = "own"  # the entry of `TimeStep.info` that says what share of the game a role holds, where there is one


@dataclasses.dataclass(frozen=True)
class League:
    """The results of a league."""

    game: str
    roles: tuple[str, ...]
    names: tuple[tuple[str, ...], tuple[str, ...]]  # of the N and M entrants
    values: dict[str, np.ndarray]  # "utility" and the game's info, f32 [N, M, E, 2]; of mixtures, means over members
    solver: str
    strategies: tuple[np.ndarray, np.ndarray]  # of the meta-solver, [N] and [M]
    seed: int = 0

    @property
    def num_episodes(self) -> int:
        return self.values["utility"].shape[2]

    def payoffs(self) -> np.ndarray:
        """Mean utilities f64 `[2, N, M]`."""
        return np.moveaxis(self.values["utility"].mean(axis=2, dtype=np.float64), -1, 0)

    def standard_errors(self) -> np.ndarray:
        """Of `payoffs`, f64 `[2, N, M]`."""
        spread = self.values["utility"].std(axis=2, dtype=np.float64) / np.sqrt(self.num_episodes)
        return np.moveaxis(spread, -1, 0)

    def board(self, role: int) -> list[dict[str, Any]]:
        """The leader board of a role, best rating first, one row per entrant.

        utility: the mean over the other role's entrants; worst_case: the least over them, met with `against`;
        rating: the mean under the other role's strategy by the meta-solver (with a Nash solver, Nash averaging:
        Balduzzi et al. 2018, arXiv 1806.02643); weight: the entrant's probability in its own role's strategy. The
        rest are means of the game's info over the other role's entrants. `low` and `high` are 95 % percentile
        bootstrap bounds over episodes, all entrants resampled together; for the rating, with the strategies fixed.
        """
        # Own entrants first: [E, own, other].
        utility = np.moveaxis(self.values["utility"][..., role].astype(np.float64), 2, 0)
        utility = utility if role == 0 else np.swapaxes(utility, 1, 2)
        draws = np.random.default_rng(self.seed).multinomial(
            self.num_episodes, np.full(self.num_episodes, 1 / self.num_episodes), NUM_RESAMPLES
        )
        resampled = np.tensordot(draws / self.num_episodes, utility, 1)  # [resamples, own, other]
        estimate, opponents = utility.mean(axis=0), self.strategies[1 - role]
        measures = {
            "utility": (estimate.mean(axis=1), resampled.mean(axis=2)),
            "worst_case": (estimate.min(axis=1), resampled.min(axis=2)),
            "rating": (estimate @ opponents, resampled @ opponents),
        }
        tail = (1 - CONFIDENCE) / 2
        rows: list[dict[str, Any]] = []
        for i, name in enumerate(self.names[role]):
            row: dict[str, Any] = {"role": self.roles[role], "name": name}
            for measure, (means, samples) in measures.items():
                low, high = np.quantile(samples[:, i], [tail, 1 - tail])
                row |= {measure: float(means[i]), f"{measure}_low": float(low), f"{measure}_high": float(high)}
            row |= {"against": self.names[1 - role][int(estimate[i].argmin())]}
            row |= {"weight": float(self.strategies[role][i])}
            for key, table in self.values.items():
                if key != "utility":
                    row[key] = float(table[..., role].mean(axis=(1 - role, 2))[i])
            rows.append(row)
        return sorted(rows, key=lambda row: -row["rating"])

    def summary(self, role: int) -> list[dict[str, Any]]:
        """`board` as a person reads it; after the sign half the width of the interval."""
        rows = []
        for row in self.board(role):
            shown = {row["role"]: row["name"]}
            for measure in ("rating", "utility", "worst_case"):
                half = (row[f"{measure}_high"] - row[f"{measure}_low"]) / 2
                shown[measure.replace("_", " ")] = f"{row[measure]:.3f} ±{half:.3f}"
            shown |= {"against": row["against"], "weight": f"{row['weight']:.3f}"}
            rows.append(shown | ({"control": f"{row[CONTROL]:.3f}"} if CONTROL in row else {}))
        return rows

    def save(self, out: str | Path) -> Path:
        """Writes `league.json`, `leaderboard.csv`, `payoffs.csv` and `payoffs.png` into the folder `out`.

        A game that is not zero-sum has a picture for each role, `payoffs_ROLE.png`.
        """
        out, boards = Path(out), [self.board(0), self.board(1)]
        payoffs, errors = self.payoffs(), self.standard_errors()
        content = {
            "game": self.game, "num_episodes": self.num_episodes, "seed": self.seed, "solver": self.solver,
            "confidence": CONFIDENCE, "entrants": dict(zip(self.roles, self.names)),
            "payoffs": dict(zip(self.roles, payoffs.tolist())),
            "standard_errors": dict(zip(self.roles, errors.tolist())),
            "strategies": {role: x.tolist() for role, x in zip(self.roles, self.strategies)},
            "leader_boards": dict(zip(self.roles, boards)),
        }  # fmt: skip
        with replacing(out / "league.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1))
        pairs = []
        for i, j in np.ndindex(*payoffs.shape[1:]):
            pair: dict[str, Any] = {self.roles[0]: self.names[0][i], self.roles[1]: self.names[1][j]}
            for k, role in enumerate(self.roles):
                pair |= {f"utility/{role}": payoffs[k, i, j], f"standard_error/{role}": errors[k, i, j]}
                pair |= {f"{key}/{role}": x[i, j, :, k].mean() for key, x in self.values.items() if key != "utility"}
            pairs.append(pair)
        for name, rows in (("leaderboard.csv", boards[0] + boards[1]), ("payoffs.csv", pairs)):
            with replacing(out / name) as temporary, temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        zero_sum = bool(np.allclose(payoffs.sum(axis=0), 0.0, atol=1e-4))
        for role, table in zip(self.roles, payoffs[:1] if zero_sum else payoffs):
            picture = out / ("payoffs.png" if zero_sum else f"payoffs_{role}.png")
            draw_heat_map(
                table, *self.names, picture, title=f"utility of {role}", ylabel=self.roles[0], xlabel=self.roles[1]
            )
        return out


def play_league(
    entrants: Entrants, *, num_episodes: int = 256, seed: int = 0, solver: str | None = None, max_steps: int = 0
) -> League:
    """Plays every entrant of one role against every entrant of the other; one compiled program.

    Args:
        entrants: from `load_entrants`.
        num_episodes: E.
        seed: of the episodes, the same for every pair, and of the resampling.
        solver: a meta-solver for the ratings; None: "rm+" where the game is zero-sum, else "alpharank".
        max_steps: bound of an episode; 0: the game's own.

    Raises:
        ConfigError: too few episodes, a solver that does not fit, or a game without a bound.
    """
    game = entrants.game
    if num_episodes < 2:
        raise ConfigError(f"a league needs at least 2 episodes, got {num_episodes}")
    zero_sum, max_steps = bool(getattr(game, "zero_sum", False)), max_steps or game.max_steps or 0
    if not max_steps:
        raise ConfigError(f"max_steps must be given: {type(game).__name__} does not bound its episodes")
    solver = solver or ("rm+" if zero_sum else "alpharank")
    try:
        solve = make_meta_solver(solver, zero_sum=zero_sum)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    first, second = (roster.families() for roster in entrants.rosters)

    @jax.jit
    def play(params: tuple, game_params: Any, key: jax.Array) -> dict[str, jax.Array]:
        rows, columns = (
            [Family(family.start, family.act, own) for family, own in zip(side, stacks)]
            for side, stacks in zip((first, second), params)
        )
        return cross_play(game, rows, columns, game_params, key, num_episodes, max_steps)

    params = tuple([family.params for family in side] for side in (first, second))
    first_weights, second_weights = (roster.weights() for roster in entrants.rosters)
    values = {
        name: np.einsum("np,mq,pqei->nmei", first_weights, second_weights, np.asarray(table), optimize=True).astype(
            np.float32
        )
        for name, table in play(params, entrants.game_params, jax.random.key(seed)).items()
    }
    meta_game = make_meta_game(np.moveaxis(values["utility"].mean(axis=2), -1, 0))
    strategies = jax.device_get(jax.jit(solve)(meta_game))
    names = tuple(tuple(roster.entrants) for roster in entrants.rosters)
    return League(type(game).__name__, game.roles or ("0", "1"), names, values, solver, strategies, seed)  # type: ignore[arg-type]


def league(
    run_dirs: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    heuristics: Sequence[str] = (),
    members: bool = True,
    game: Sequence[str] = (),
    num_episodes: int = 256,
    seed: int = 0,
    solver: str | None = None,
) -> League:
    """Cross-play of run folders and heuristics, written to `out` if given; see `load_entrants` and `play_league`.

    Example:
        >>> result = league(["runs/psro_poolflip"], "runs/league", heuristics=["guard(2)", "burst(6,18)"])
        >>> result.board(0)[0]["name"]
    """
    entrants = load_entrants(run_dirs, heuristics, members=members, game=game)
    result = play_league(entrants, num_episodes=num_episodes, seed=seed, solver=solver)
    if out is not None:
        result.save(out)
    return result


def split_names(text: str) -> list[str]:
    """Names of heuristics separated by commas, commas within parentheses apart: "guard(2),burst(6,18)"."""
    return [name.strip() for name in re.findall(r"(?:[^,(]|\([^)]*\)?)+", text) if name.strip()]
