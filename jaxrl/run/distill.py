"""The mixture of a stored population as one network: a run folder of its own, with its loss in exploitability."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.algorithms.distillation import DistillationConfig, DistillationHParams, make_distillation
from jaxrl.algorithms.ppo import PPOConfig
from jaxrl.algorithms.psro import PSROConfig, make_population, output_strategies
from jaxrl.loop import scan_updates
from jaxrl.parts.bank import Member
from jaxrl.parts.roles import Mixture
from jaxrl.run.checkpoint import CheckpointWriter, write_json
from jaxrl.run.config import ConfigError, RunConfig, make_config
from jaxrl.run.entrants import common_game
from jaxrl.run.folder import RunFolder
from jaxrl.run.program import load_data, make_algorithm
from jaxrl.run.runner import load_state
from jaxrl.types import Data, PyTree


@dataclasses.dataclass(frozen=True)
class Distilled:
    """A student and what it lost."""

    folder: Path  # a run folder of PPO that holds the student
    role: str
    imitation: float  # -log probability of the mixture's actions, over the last tenth of the updates
    agreement: float  # how often the student's likeliest action is the one that the mixture took, likewise
    # What a fresh best response of the other role earns: mean utility and its standard error over episodes. How well
    # responses happen to train adds to that; more restarts and updates make it less.
    mixture: tuple[float, float]
    student: tuple[float, float]
    loss: tuple[float, float]  # student less mixture, in the same episodes

    def rows(self) -> list[dict[str, Any]]:
        """For a table."""
        named = {"mixture": self.mixture, "student": self.student, "loss": self.loss}
        best = f"best response to {self.role}"
        return [{best: name, "earns": mean, "standard error": error} for name, (mean, error) in named.items()]


def distill(
    run_dir: str | Path,
    out: str | Path,
    *,
    role: str | None = None,
    num_updates: int = 400,
    num_restarts: int = 3,
    response_updates: int | None = None,
    num_episodes: int = 1024,
    seed: int = 0,
) -> Distilled:
    """Distils one role's mixture of a PSRO run into a network of its oracle's architecture.

    The student imitates the posterior average of the members (see `jaxrl.algorithms.distillation`). It is stored as a
    run folder of PPO, which `jaxrl evaluate`, `export`, `league` and `train --init-from` read; only its value is
    untrained. `distillation.json` there holds the result.

    Args:
        run_dir: a run folder of PSRO whose oracle is PPO without normalised observations.
        out: the folder to make.
        role: whose mixture; None: the run's own role, else the game's first.
        num_updates: of the student, 64 episodes each.
        num_restarts: best responses to the mixture and to the student; the best counts.
        response_updates: of each best response; None: twice those of the run's oracles.
        num_episodes: that the best responses are rated in.
        seed: of everything.

    Raises:
        ConfigError: not such a run, an unknown role, or `out` already holds a run.
    """
    state, run = load_state(run_dir)
    game, game_params = common_game([run], [run_dir])
    config, roles = run.config, game.roles or ("0", "1")
    role = str(role or run.env.options.get("role", roles[0]))
    if not isinstance(config, PSROConfig):
        raise ConfigError(f"{run_dir} is a run of {run.algorithm!r}: only the mixture of a population can be distilled")
    if role not in roles:
        raise ConfigError(f"the role must be one of {', '.join(roles)}, got {role!r}")
    oracle = config.oracle.config
    if not isinstance(oracle, PPOConfig) or oracle.normalize_observations:
        raise ConfigError("a student shares its network with the oracle, which must be PPO without normalisation")
    if num_updates < 1 or num_restarts < 1:
        raise ConfigError(f"num_updates and num_restarts must be at least 1, got {num_updates} and {num_restarts}")
    if RunFolder(out).config.exists():
        raise ConfigError(f"{out} already holds a run; choose another folder")
    index, population = roles.index(role), make_population(config, game)
    mixture = Mixture(state.params, output_strategies(config, state))
    response_updates = response_updates or 2 * config.oracle.num_updates
    key_train, key_exploit = jax.random.split(jax.random.key(seed))
    try:
        agent = make_distillation(DistillationConfig(oracle, index), population)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    hparams = jax.tree.map(jnp.float32, DistillationHParams(anneal_updates=num_updates))

    @jax.jit
    def train(key: jax.Array, data: Data) -> tuple[PyTree, dict[str, jax.Array]]:
        trained, metrics = scan_updates(agent, agent.init(key, hparams, data), hparams, num_updates, data)
        return trained, jax.tree.map(lambda rows: jnp.mean(rows[-max(1, num_updates // 10) :]), metrics)

    trained, metrics = train(key_train, Data(game_params, frozen=mixture))
    student = population.learned_members(jax.tree.map(lambda leaf: leaf[None], agent.policy(trained, Data())))  # type: ignore[misc]
    bank = jax.tree.map(lambda a, b: jnp.concatenate([a[index], b]), mixture.members, student)
    weights = jnp.stack([jnp.append(mixture.weights[index], 0.0), jnp.zeros(len(bank.learned)).at[-1].set(1.0)])
    hparams = dataclasses.replace(run.hparams, anneal_updates=jnp.float32(response_updates))

    @jax.jit
    def exploit(key: jax.Array, game_params: Any, bank: Member, weights: jax.Array) -> jax.Array:
        def one(weights: jax.Array) -> jax.Array:
            return population.exploit(
                key, hparams, game_params, 1 - index, bank, weights / jnp.sum(weights),
                num_restarts=num_restarts, num_updates=response_updates, num_episodes=num_episodes,
            )  # fmt: skip

        return jax.vmap(one)(weights)  # equal keys: responses of the same start, in the same episodes

    earned = np.asarray(exploit(key_exploit, game_params, bank, weights), np.float64)  # [2, E]
    samples = {"mixture": earned[0], "student": earned[1], "loss": earned[1] - earned[0]}
    measured = {k: (float(x.mean()), float(x.std() / np.sqrt(num_episodes))) for k, x in samples.items()}
    imitation, agreement = float(metrics["loss/imitation"]), float(metrics["agreement"])
    store(run, role, oracle, trained, Path(out), seed)
    result = Distilled(Path(out), role, imitation, agreement, **measured)
    settings = {"num_updates": num_updates, "num_restarts": num_restarts, "response_updates": response_updates}
    facts = {"role": role, "imitation": imitation, "agreement": agreement}
    write_json(result.folder / "distillation.json", facts | settings | measured)
    return result


def store(run: RunConfig, role: str, oracle: PPOConfig, state: PyTree, out: Path, seed: int) -> None:
    """Writes the student as a run of PPO with the population's game and settings."""
    source = copy.deepcopy(dict(run.source))
    opponents = run.env.options.get("opponents", list(run.config.heuristics))
    student = make_config(
        {
            "name": out.name,
            "algorithm": "ppo",
            "seed": seed,
            "num_updates": 1,
            "env": source["env"] | {"role": role, "opponents": opponents},
            "config": source.get("config", {}).get("oracle", {}).get("config", {}),
            "hparams": source.get("hparams", {}),
            "evaluation": source.get("evaluation", {}) | {"every": 0},
        }
    )
    agent = make_algorithm(student)
    assert student.config == oracle
    first = jax.jit(agent.init)(jax.random.key(seed), student.hparams, load_data(student))
    folder = RunFolder(out)
    folder.create(student)
    writer = CheckpointWriter(folder.checkpoints, keep=1)
    writer.save(dataclasses.replace(first, params=state.params), 1, {})
    writer.wait()
