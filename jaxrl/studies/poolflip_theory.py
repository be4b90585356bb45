"""E4 of the Flip-PSRO study: learned play of one resource beside exact optima and closed-form equilibria."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import envs_jax
from envs_jax.games import flipit_theory
from jaxrl import algorithms
from jaxrl.loop import scan_updates
from jaxrl.rollout import episodes
from jaxrl.run.config import load_config, make_hparams, structure
from jaxrl.studies.laboratory import Arrays, Laboratory, over_seeds
from jaxrl.studies.report import Claim, Report
from jaxrl.types import Data

# Chance of the attacker's flip per tick, the defender's costs of a flip and a check.
ROWS = (
    (0.02, 4.0, 1.0),
    (0.05, 4.0, 1.0),
    (0.0737, 4.0, 1.0),
    (0.1, 4.0, 1.0),
    (0.1, 4.0, 0.25),
    (0.1, 2.0, 0.2),
    (0.2, 4.0, 1.0),
    (0.3, 4.0, 1.0),
)
HORIZON = 512  # long beside every period, so that the defender's initial ownership matters little
COSTS = (1.0, 2.0)  # of a flip, defender and attacker, where PSRO is compared with the equilibria
# Larger steps and a shorter horizon of credit than in the population: one sharp response is wanted.
CONFIG = {
    "num_envs": 128,
    "unroll_length": 64,
    "num_epochs": 4,
    "num_minibatches": 8,
    "network": {"hidden_sizes": [64, 64], "shared_torso": True},
}
HPARAMS = {"learning_rate": 2e-3, "discount": 0.98, "gae_lambda": 0.95, "entropy_cost": 0.003}
# In the first half of the updates: blind flips are a local optimum, which only wide exploration leaves.
EXPLORING_ENTROPY_COST = 0.04


def study_theory(laboratory: Laboratory, scale: Any, report: Report) -> None:
    """Adds the table of optima, and PSRO's rates beside the equilibria of the periodic and exponential games."""
    learned = laboratory.measure("optima", lambda: learned_responses(scale.theory_seeds, scale.theory_updates))
    rows, gaps = [], []
    for i, (p, flip_cost, check_cost) in enumerate(ROWS):
        optimum = flipit_theory.best_response_to_geometric(p, flip_cost, check_cost)
        finite = flipit_theory.finite_optimum_against_geometric(p, flip_cost, check_cost, HORIZON)
        best = float(learned["benefit"][i].mean())
        # What the first ticks add, when the defender owns the resource for nothing, is not the policy's merit.
        gaps.append(finite - best)
        rows.append(
            {
                "p": p, "flip cost": flip_cost, "check cost": check_cost,
                "optimum": optimum.beta, "policy": f"{optimum.policy} {optimum.period or ''}",
                f"optimum of {HORIZON} ticks": finite, "learned": best, "gap": finite - best,
                "flips per 100": 100 * float(learned["flips"][i].mean()),
                "checks per 100": 100 * float(learned["checks"][i].mean()),
            }
        )  # fmt: skip
    report.table(
        "optimum",
        rows,
        "One defender against flips with probability p per tick, benefit per tick: the exact optimum of the long run, "
        f"that of an episode of {HORIZON} ticks (dynamic programming), and PPO, which learned each row by itself "
        f"({scale.theory_seeds} seeds, one program).",
    )
    report.claims.append(
        Claim(
            "Learned best responses reach the exact optimum (R = 1)", "not stated (a check of the oracle)",
            f"largest gap {max(gaps):.3f}", "every row within 0.05", bool(max(gaps) <= 0.05),
        )
    )  # fmt: skip
    if scale.theory_population:
        _equilibrium_rates(laboratory, scale, report)


def learned_responses(num_seeds: int, num_updates: int, num_episodes: int = 256) -> Arrays:
    """PPO against every row of `ROWS`, all in one program.

    Returns:
        `benefit`, `flips` and `checks` per tick, f32 `[rows, S]`.
    """
    # One resource: a Poisson rate of -log(1 - p) flips it with probability p.
    opponents = [f"exponential({-math.log1p(-p):.8f})" for p, *_ in ROWS]
    env, params = envs_jax.make("poolflip-r1", role="blue", opponents=opponents, utility="flipit", horizon=HORIZON)
    recipe = algorithms.find("ppo")
    agent = recipe.make(structure(CONFIG, recipe.config, "config"), env)
    hparams = make_hparams(HPARAMS | {"anneal_updates": num_updates}, recipe.hparams)
    exploring = dataclasses.replace(hparams, entropy_cost=jnp.float32(EXPLORING_ENTROPY_COST))
    costs = jnp.asarray([row[1:] for row in ROWS])

    def one(key: jax.Array, row: jax.Array) -> dict[str, jax.Array]:
        game = dataclasses.replace(
            params.game,
            flip_cost=jnp.full((2, 1), costs[row, 0]),
            check_cost=jnp.full((2, 1), costs[row, 1]),
        )
        data = Data(dataclasses.replace(params, game=game, weights=jax.nn.one_hot(row, len(ROWS))))
        state = agent.init(key, hparams, data)
        for stage, updates in ((exploring, num_updates // 2), (hparams, num_updates - num_updates // 2)):
            state, _ = scan_updates(agent, state, stage, updates, data)
        played = episodes(
            env, (agent.start, agent.act), agent.policy(state, data), data.env_params,  # type: ignore[misc]
            jax.random.split(jax.random.key(0), num_episodes), jax.random.key(1), HORIZON, deterministic=False,
        )  # fmt: skip
        return {
            "benefit": jnp.mean(played.episode_return) / HORIZON,
            "flips": jnp.mean(played.info["num_flips"]),
            "checks": jnp.mean(played.info["num_checks"]),
        }

    rows = jnp.tile(jnp.arange(len(ROWS)), num_seeds)
    result = over_seeds(one, (0, 0), jax.random.split(jax.random.key(0), len(rows)), rows)
    return {name: np.reshape(values, (num_seeds, len(ROWS))).T for name, values in result.items()}


def _equilibrium_rates(laboratory: Laboratory, scale: Any, report: Report) -> None:
    blue, red = COSTS
    run = load_config(
        "psro_poolflip",
        [
            "env.name=poolflip-r1", "env.utility=flipit", "env.allow_checks=false", f"env.horizon={scale.horizon}",
            f"env.flip_cost=[[{blue}], [{red}]]", f"num_updates={scale.iterations}", "config.meta_solver=prd",
            f"config.oracle.num_updates={scale.oracle_updates}", "evaluation.num_episodes=128",
        ],
    )  # fmt: skip
    arm = laboratory.train("theory", run, scale.theory_seeds)
    last = {name: np.mean([columns[name][-1] for columns in arm.metrics]) for name in arm.metrics[0]}
    rows = [
        {
            "play": "Flip-PSRO, one resource, no checks",
            "rate of blue": float(last["play/blue/num_flips"]), "rate of red": float(last["play/red/num_flips"]),
            "benefit of blue": float(last["meta/value/blue"]), "benefit of red": float(last["meta/value/red"]),
        }
    ]  # fmt: skip
    for name, solve in (
        ("Nash of periodic play", flipit_theory.periodic_equilibrium),
        ("Nash of exponential play", flipit_theory.exponential_equilibrium),
    ):
        nash = solve(blue, red)
        rows.append(
            {
                "play": name, "rate of blue": nash.alpha[0], "rate of red": nash.alpha[1],
                "benefit of blue": nash.beta[0], "benefit of red": nash.beta[1],
            }
        )  # fmt: skip
    report.table(
        "equilibrium",
        rows,
        f"Flips per tick and benefits with flip costs {blue:g} (blue) and {red:g} (red). The closed forms are "
        "equilibria within their own classes of play, in continuous time: beside ours, no bar for it.",
    )
