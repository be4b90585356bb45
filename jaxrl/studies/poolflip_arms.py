"""The arms of the Flip-PSRO study: sizes, attacks, and a configuration for every contender."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from jaxrl.run.config import RunConfig, load_config, make_config

TRAINING = ("sleep", "periodic(4)", "exponential(0.25)", "uniform(4,2)")
PRIMARY = "guard(2)"
HELD_OUT = (PRIMARY, "guard(6)", "burst(6,18)", "periodic(2)", "shadow(4,1)", "greedy_exp(0.1)")
RULES = ("observation_mode", "allow_checks")  # options of the game that change what a policy may see or do
PSRO = "flip-psro"
COST_ONLY = "flip-psro, utility flipit"
ATTACKS = (*HELD_OUT, *TRAINING[1:])  # all that is measured; the last are known from training
# Leave one family out: trained on the other four, measured on the one left out.
FAMILIES = {
    "periodic": "periodic(4)",
    "exponential": "exponential(0.25)",
    "uniform": "uniform(4,2)",
    "guard": "guard(2)",
    "burst": "burst(6,18)",
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the study is."""

    num_seeds: int
    horizon: int
    iterations: int  # K, of the population
    oracle_updates: int  # of 8,192 steps, per best response
    num_episodes: int  # per seed and attack
    single_heuristics: tuple[str, ...]  # best responses to one heuristic each (B1)
    oracle_attacks: tuple[str, ...]  # held-out attacks that a defender is trained on (B6)
    population_baselines: tuple[str, ...]  # meta-solvers: "last" (B4), "uniform" (B5)
    cost_only: bool  # the ablation with the utility flipit
    ablations: bool  # every other ablation
    exploit_seeds: int  # 0: no approximate exploitability
    exploit_restarts: int
    exploit_updates: int
    theory_seeds: int  # 0: no E4
    theory_updates: int
    theory_population: bool  # PSRO's equilibrium rates beside the closed forms


SCALES = {
    "smoke": Scale(
        num_seeds=2, horizon=64, iterations=2, oracle_updates=20, num_episodes=128,
        single_heuristics=("exponential(0.25)",), oracle_attacks=(), population_baselines=(), cost_only=False,
        ablations=False, exploit_seeds=2, exploit_restarts=1, exploit_updates=20, theory_seeds=0, theory_updates=0,
        theory_population=False,
    ),
    "cpu": Scale(
        num_seeds=10, horizon=128, iterations=6, oracle_updates=150, num_episodes=1024,
        single_heuristics=TRAINING[1:], oracle_attacks=(PRIMARY,), population_baselines=("last", "uniform"),
        cost_only=True, ablations=False, exploit_seeds=4, exploit_restarts=1, exploit_updates=300, theory_seeds=2,
        theory_updates=400, theory_population=True,
    ),
    "full": Scale(
        num_seeds=10, horizon=256, iterations=12, oracle_updates=400, num_episodes=1024,
        single_heuristics=TRAINING, oracle_attacks=HELD_OUT, population_baselines=("last", "uniform"),
        cost_only=True, ablations=True, exploit_seeds=10, exploit_restarts=3, exploit_updates=800, theory_seeds=10,
        theory_updates=800, theory_population=True,
    ),
}  # fmt: skip


def population_run(scale: Scale, *overrides: str) -> RunConfig:
    """`configs/psro_poolflip.toml` at this scale."""
    sizes = [
        f"env.horizon={scale.horizon}",
        f"num_updates={scale.iterations}",
        f"config.oracle.num_updates={scale.oracle_updates}",
        "evaluation.num_episodes=128",
    ]
    return load_config("psro_poolflip", [*sizes, *overrides])


def single_run(population: RunConfig, scale: Scale, opponents: tuple[str, ...]) -> RunConfig:
    """One defender trained by the population's oracle, with as many steps as the population's defenders together."""
    source: Any = population.source
    return make_config(
        {
            "algorithm": population.config.oracle.algorithm,
            "num_updates": scale.iterations * scale.oracle_updates,
            "env": dict(source["env"]) | {"opponents": list(opponents)},
            "config": source["config"]["oracle"]["config"],
            "hparams": source["hparams"],
            "evaluation": source["evaluation"],
        }
    )


def arms_of(scale: Scale) -> dict[str, RunConfig]:
    """The contenders by name, Flip-PSRO first; equal steps of the defender."""
    psro = population_run(scale)
    arms = {PSRO: psro}
    if scale.cost_only:  # a general-sum game: no Nash solver
        arms[COST_ONLY] = population_run(scale, "env.utility=flipit", "config.meta_solver=prd")
    for heuristic in scale.single_heuristics:
        arms[f"B1 {heuristic}"] = single_run(psro, scale, (heuristic,))
    arms["B2 heuristic mix"] = single_run(psro, scale, TRAINING)
    num_updates = scale.iterations * scale.oracle_updates
    arms["B3 self-play"] = load_config(
        "ippo_poolflip", [f"env.horizon={scale.horizon}", f"num_updates={num_updates}", "evaluation.num_episodes=128"]
    )
    if "last" in scale.population_baselines:
        arms["B4 iterated"] = population_run(scale, "config.meta_solver=last", "config.output=last")
    if "uniform" in scale.population_baselines:
        arms["B5 uniform"] = population_run(scale, "config.meta_solver=uniform", "config.output=learned")
    for attack in scale.oracle_attacks:
        arms[f"B6 oracle of {attack}"] = single_run(psro, scale, (attack,))
    if scale.ablations:
        arms |= ablations(scale)
    return arms


def ablations(scale: Scale) -> dict[str, RunConfig]:
    """One setting of Flip-PSRO changed at a time."""
    changes = {
        "utility ownership": ["env.utility=ownership"],
        "utility ownership_floor": ["env.utility=ownership_floor", "config.meta_solver=prd"],
        "meta prd": ["config.meta_solver=prd"],
        "meta alpharank": ["config.meta_solver=alpharank"],
        "random start": ["config.initial=random"],
        "observation paper": ["env.observation_mode=paper"],
        "no checks": ["env.allow_checks=false"],
    }
    for family in FAMILIES:
        rest = [TRAINING[0], *(attack for name, attack in FAMILIES.items() if name != family)]
        changes[f"without {family}"] = [f"config.heuristics={json.dumps(rest)}"]
    changes |= {f"{r} resources": [f"env.name=poolflip-r{r}"] for r in (1, 10)}
    return {f"{PSRO}, {name}": population_run(scale, *overrides) for name, overrides in changes.items()}
