"""What the language-model core must be able to learn: strings by imitation, words by reward, order by preference.

No paper: these are the tests of the parts that other studies stand on, each with its bar. A transformer of about 80
thousand parameters learns the tasks of the environment `symbols` from scratch. Experiments are numbered C3 to C6 and C9
(C1, C2, C7 and C8 are parity, generation, sharding and speed: tests and a benchmark).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.results.stats import Interval, mean_interval
from jaxrl.rollout import episodes
from jaxrl.run.config import RunConfig, load_config, make_config
from jaxrl.run.program import load_data, make_algorithm, make_env
from jaxrl.studies import Study
from jaxrl.studies.laboratory import Arm, Laboratory, over_seeds
from jaxrl.studies.report import Claim, Report
from jaxrl.types import Array

BANDIT: Mapping[str, Any] = {"task": "copy", "length": 1}
BATCH = {"num_groups": 32, "group_size": 8}
LEARNERS: Mapping[str, tuple[str, Mapping[str, Any], float]] = {
    # name: algorithm, what its configuration says, the bar
    "GRPO": ("grpo", BATCH, 0.98),
    "Dr. GRPO": ("grpo", BATCH | {"variant": "dr_grpo"}, 0.98),
    "RLOO": ("grpo", BATCH | {"variant": "rloo"}, 0.98),
    "PPO": ("lm_ppo", {"batch_size": 256}, 0.95),
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the study is."""

    experiments: tuple[str, ...]  # names in `NAMES`
    num_seeds: int
    tasks: tuple[str, ...]  # of C3
    sft_updates: int
    learners: tuple[str, ...]  # of C4, names in `LEARNERS`
    policy_updates: int  # of C4 and C6
    base_updates: int  # of the models that C5 and C6 start from
    preference_updates: int
    num_episodes: int  # of every measurement


NAMES = ("imitation", "rewards", "preferences", "adapters", "one_program")
SCALES = {
    "smoke": Scale(("imitation", "rewards", "one_program"), 2, ("reverse",), 100, ("GRPO",), 50, 50, 50, 256),
    "cpu": Scale(NAMES, 3, ("copy", "reverse"), 2000, tuple(LEARNERS), 300, 200, 300, 1024),
    "full": Scale(NAMES, 10, ("copy", "reverse"), 2000, tuple(LEARNERS), 300, 200, 300, 4096),
}


def run(laboratory: Laboratory, scale: Scale, report: Report) -> None:
    """All experiments of a scale; the report on disk is that of what is done."""
    for name in scale.experiments:
        EXPERIMENTS[name](laboratory, scale, report)
        report.timing = laboratory.timing()
        report.write(laboratory.out)


def imitation(laboratory: Laboratory, scale: Scale, report: Report) -> None:
    """C3: supervised fine-tuning from scratch."""
    rows = []
    for task in scale.tasks:
        arm = laboratory.train(f"SFT, {task}", make_run("sft", scale.sft_updates, {"task": task}), scale.num_seeds)
        found = examine(laboratory, arm, scale, greedy=True)
        rows.append({"task": task, "exact": mean_interval(found["exact"]), "right": mean_interval(found["right"])})
        claim(report, scale, f"C3: strings of 8 symbols are learned by demonstration: {task}", found["exact"], 0.99,
              full=scale.sft_updates >= 2000)  # fmt: skip
    report.table(
        "imitation", rows, f"Greedy answers to {scale.num_episodes} new strings after {scale.sft_updates} updates of "
        "128 demonstrations: whole strings and single symbols that are right.",
    )  # fmt: skip


def rewards(laboratory: Laboratory, scale: Scale, report: Report) -> None:
    """C4: the word that the prompt names, by reward alone."""
    rows = []
    for name in scale.learners:
        algorithm, config, bar = LEARNERS[name]
        arm = laboratory.train(name, make_run(algorithm, scale.policy_updates, BANDIT, config), scale.num_seeds)
        found = examine(laboratory, arm, scale)["exact"]
        steps = [reached(columns, bar) for columns in arm.metrics]
        rows.append({"learner": name, "reward": mean_interval(found), "updates to the bar": mean_interval(steps)})
        claim(report, scale, f"C4: a word is learned by reward: {name}", found, bar, full=scale.policy_updates >= 300)
    report.table(
        "rewards", rows, f"Mean reward of sampled words in {scale.num_episodes} episodes after {scale.policy_updates} "
        "updates of 256 episodes from random weights, and the first logged update whose batch reaches the bar "
        "(infinite: none).",
    )  # fmt: skip


def preferences(laboratory: Laboratory, scale: Scale, report: Report) -> None:
    """C5: sorted strings preferred over shuffled ones."""
    base = laboratory.train("base of DPO", make_run("sft", scale.base_updates, {"task": "copy"}), 1)
    run = make_run("dpo", scale.preference_updates, {"task": "sort"}, {"batch_size": 64}, base=base)
    arm = laboratory.train("DPO", run, scale.num_seeds)
    last = {name: [columns[name][-5:].mean() for columns in arm.metrics] for name in
            ("accuracy", "margin", "reference_kl")}  # fmt: skip
    report.table(
        "preferences", [{name.replace("_", " "): mean_interval(values) for name, values in last.items()}],
        f"The last 5 logged batches of {scale.preference_updates} updates of 64 pairs, every pair new: how often the "
        "implicit reward prefers the sorted string, by how much, and the divergence from the reference per token.",
    )  # fmt: skip
    claim(report, scale, "C5: an order is learned from preferences", np.array(last["accuracy"]), 0.95,
          full=scale.preference_updates >= 300)  # fmt: skip


def adapters(laboratory: Laboratory, scale: Scale, report: Report) -> None:
    """C6: adapters of rank 4 beside all weights, both from a model that is right half of the time."""
    env = {**BANDIT, "fault_probability": 0.5}
    base = laboratory.train("base of C6", make_run("sft", scale.base_updates, env), 1)
    found = {"base": examine(laboratory, base, scale)["exact"]}
    for name, more in (("all weights", {}), ("adapters", {"lora": {"rank": 4}})):
        run = make_run("grpo", scale.policy_updates, BANDIT, BATCH | more, base=base)
        found[name] = examine(laboratory, laboratory.train(name, run, scale.num_seeds), scale)["exact"]
    report.table(
        "adapters", [{"trained": name, "reward": mean_interval(values)} for name, values in found.items()],
        f"Mean reward of sampled words, as in C4. The base is one model, after {scale.base_updates} updates on "
        "demonstrations of which half say another word.",
    )  # fmt: skip
    gap = mean_interval(found["adapters"] - found["all weights"])
    holds = bool(abs(gap.estimate) <= 0.03) if scale.policy_updates >= 300 and scale.num_seeds >= 3 else None
    report.claims.append(
        Claim("C6: adapters of rank 4 learn what all weights learn", "none", text(gap), "within 0.03", holds)
    )


def one_program(laboratory: Laboratory, scale: Scale, report: Report) -> None:
    """C9: generation, environment, reward and update of C4 are one compiled program."""

    def compute() -> dict[str, int]:
        run = make_run("grpo", 10, BANDIT, BATCH)
        agent, data = make_algorithm(run), load_data(run)
        update = jax.jit(lambda state: agent.update(state, run.hparams, data))
        state = jax.jit(lambda key: agent.init(key, run.hparams, data))(jax.random.key(0))
        text = str(jax.make_jaxpr(update)(state))
        for _ in range(3):
            state, _ = update(state)
        jax.block_until_ready(state.params)
        counted = {"loops": "scan[", "draws": "random_bits", "callbacks": "callback"}
        compilations: int = update._cache_size()  # type: ignore[attr-defined]
        return {name: text.count(part) for name, part in counted.items()} | {"compilations": compilations}

    found = {name: int(value) for name, value in laboratory.measure("one program", compute).items()}
    holds = found["callbacks"] == 0 and found["compilations"] == 1 and found["loops"] > 0 and found["draws"] > 0
    ours = f"{found['callbacks']} callbacks, {found['compilations']} compilation in 3 updates, {found['loops']} loops"
    report.claims.append(
        Claim("C9: an update is one program", "none", ours, "0 callbacks, 1 compilation, loops inside", holds)
    )


def make_run(
    algorithm: str,
    num_updates: int,
    env: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    base: Arm | None = None,
) -> RunConfig:
    """A run on `symbols`, with the model and settings that are shipped, `base` the model of an arm's first seed."""
    shipped = load_config("sft_symbols" if algorithm == "sft" else "grpo_symbols").source
    every = num_updates  # neither evaluated nor saved on the way
    settings = shipped["config"] if config is None else {**config, "model": shipped["config"]["model"]}
    return make_config(
        {
            "name": algorithm,
            "algorithm": algorithm,
            "num_updates": num_updates,
            "env": {"name": "symbols", **env},
            "config": settings,
            "hparams": shipped["hparams"],
            "data": {"base": str(base.folders[0])} if base else {},
            "evaluation": {"every": every, "num_episodes": 64},
            "checkpoint": {"every": every},
            "log": {"every": 10},
        }
    )


def examine(laboratory: Laboratory, arm: Arm, scale: Scale, *, greedy: bool = False) -> dict[str, np.ndarray]:
    """Shares of new strings that are answered exactly and of symbols that are right, `[S]`."""
    run = arm.run

    def compute() -> dict[str, Any]:
        agent, data = make_algorithm(run), load_data(run, dataset=False)
        assert agent.policy is not None
        policies = jax.device_get(jax.jit(jax.vmap(agent.policy, (0, None)))(arm.states, data))
        env, params = make_env(run)
        play = partial(_play, env, (agent.start, agent.act), params, scale.num_episodes, greedy)
        return over_seeds(play, (0,), policies)

    return laboratory.measure(f"answers of {arm.name}", compute)


def _play(env: Any, policy: Any, params: Any, num_episodes: int, greedy: bool, weights: Any) -> dict[str, Array]:
    key_reset, key = jax.random.split(jax.random.key(12345))
    reset_keys = jax.random.split(key_reset, num_episodes)
    final = episodes(
        *(env, policy, weights, params, reset_keys, key, env.max_steps), deterministic=greedy
    ).final  # fmt: skip
    return {name: jnp.mean(final[name]) for name in ("exact", "right")}


def reached(columns: Mapping[str, np.ndarray], bar: float) -> float:
    """The first logged update whose batch has the mean return `bar`."""
    there = np.flatnonzero(columns["episode/return"] >= bar)
    return float(columns["update"][there[0]]) if len(there) else float("inf")


def claim(report: Report, scale: Scale, words: str, values: np.ndarray, bar: float, *, full: bool) -> None:
    """The mean over seeds beside its bar, decided where the training was `full`."""
    value = mean_interval(values)
    holds = bool(value.estimate >= bar) if full and scale.num_seeds >= 3 else None
    report.claims.append(Claim(words, "none", text(value), f">= {bar:g}", holds))


def text(interval: Interval) -> str:
    return f"{interval.estimate:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


EXPERIMENTS: Mapping[str, Callable[[Laboratory, Scale, Report], None]] = dict(
    zip(NAMES, (imitation, rewards, preferences, adapters, one_program), strict=True)
)
STUDY = Study(
    "The core for language models: imitation, rewards, preferences, adapters",
    "Our own bars: no paper. Tasks, sizes and hyper-parameters are our choice.",
    SCALES,
    run,
)
