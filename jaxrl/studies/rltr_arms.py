"""The arms of the RLTR study: sizes, and a configuration for every planner that is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxrl.run.config import RunConfig, make_config

SFT, RLTR, E2E, SUMMARISER = "SFT", "RLTR", "E2E", "summariser"
WHOLE = f"{E2E}, whole pool"
REWARDS: dict[str, dict[str, float]] = {  # R3: what each reward changes in RLTR's
    "completeness": {"env.repeat_penalty": 0.0, "env.error_penalty": 0.0},
    "+ repeats": {"env.error_penalty": 0.0},
    "+ errors": {"env.repeat_penalty": 0.0},
    "all": {},
    "all + length": {"env.length_penalty": 0.1},
}
ALGORITHMS: dict[str, dict[str, Any]] = {  # R7: what each changes in GRPO's configuration
    "Dr. GRPO": {"variant": "dr_grpo", "aggregation": "sequence_sum_norm"},
    "RLOO": {"variant": "rloo", "aggregation": "sequence_mean"},
    "REINFORCE++": {"variant": "reinforce++"},
}

EXPERIMENTS = ("planning", "end_to_end", "learners", "rewards", "one_program", "hacking", "shares", "learned_judge",
               "judges", "cold_starts", "transfer")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the study is."""

    experiments: tuple[str, ...]  # names in `EXPERIMENTS`
    num_seeds: int
    hidden_size: int
    num_layers: int
    num_demonstrations: int  # of the cold start
    sft_updates: int
    summariser_updates: int
    num_groups: int  # starts of one update of reinforcement learning, eight conversations each
    num_updates: int  # of RLTR and E2E
    curve_every: int  # updates between the points of their curves
    ablation_updates: int  # of all other planners; a multiple of `curve_every`
    num_queries: int  # the pool of reinforcement learning
    share: float  # of the pool whose answers can be checked
    other_shares: tuple[float, ...]  # R2b
    noise: tuple[float, ...]  # R5: rates of either error of the judge
    judged: int  # R6: labelled plans of the learned judge
    judge_updates: int
    algorithms: tuple[str, ...]  # R7, names in `ALGORITHMS`
    described_sft_updates: int  # R10; 0: left out
    described_updates: int
    num_tasks: int  # held out, of the final evaluation
    num_development_tasks: int  # held out, of the curves
    speed_updates: int  # R11


_NANO: dict[str, Any] = {
    "experiments": EXPERIMENTS, "hidden_size": 64, "num_layers": 2, "num_demonstrations": 4000, "num_queries": 512,
    "share": 0.1, "num_tasks": 1024, "num_development_tasks": 128,
}  # fmt: skip
SCALES = {
    "smoke": Scale(
        experiments=("planning", "end_to_end", "hacking"), num_seeds=2, hidden_size=32, num_layers=1,
        num_demonstrations=1000, sft_updates=100, summariser_updates=100,
        num_groups=4, num_updates=20, curve_every=10, ablation_updates=10, num_queries=64, share=0.1,
        other_shares=(1.0,), noise=(0.0, 0.3), judged=200, judge_updates=40, algorithms=("RLOO",),
        described_sft_updates=0, described_updates=0,
        num_tasks=128, num_development_tasks=32, speed_updates=2,
    ),
    "cpu": Scale(
        **_NANO, num_seeds=3, sft_updates=600, summariser_updates=1200, num_groups=16, num_updates=200, curve_every=20,
        ablation_updates=100, other_shares=(0.01, 0.3, 1.0), noise=(0.0, 0.1, 0.3), judged=1000, judge_updates=400,
        algorithms=tuple(ALGORITHMS),
        described_sft_updates=1200, described_updates=100, speed_updates=10,
    ),
    "full": Scale(
        **_NANO, num_seeds=5, sft_updates=600, summariser_updates=2000, num_groups=32, num_updates=400, curve_every=20,
        ablation_updates=300, other_shares=(0.01, 0.3, 1.0), noise=(0.0, 0.05, 0.1, 0.2, 0.3), judged=1000,
        judge_updates=400, algorithms=tuple(ALGORITHMS), described_sft_updates=4000,
        described_updates=400, speed_updates=20,
    ),
}  # fmt: skip


def sft_run(scale: Scale, num_updates: int, env: Mapping[str, Any], num_demonstrations: int) -> RunConfig:
    """Supervised fine-tuning on ToolDesk's own demonstrations."""
    config = {"batch_size": 64, "num_demonstrations": num_demonstrations}
    return make_config(_common(scale, "sft", num_updates, env, config, {"learning_rate": 2e-3}))


def planner_run(
    scale: Scale,
    num_updates: int,
    env: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    judge: Path | None = None,
) -> RunConfig:
    """GRPO of a planner on the pool; by default RLTR: what is rewarded is how complete its calls are.

    `judge` is the run of a reward model, for the configuration that asks for one.
    """
    env = {"num_queries": scale.num_queries} | dict(env or {})
    grpo = {"num_groups": scale.num_groups, "group_size": 8, "num_epochs": 2, "aggregation": "token_mean"}
    hparams = {"learning_rate": 5e-4, "anneal_updates": 0}
    values = _common(scale, "grpo", num_updates, env, grpo | dict(config or {}), hparams)
    if judge is not None:
        values["config"]["reward_model"] = values["config"]["model"]
        values["data"] = {"reward": str(judge.absolute())}
    return make_config(values)


def judge_run(scale: Scale, base: Path) -> RunConfig:
    """A reward model of plans that the run `base` makes: whether they are complete."""
    config = {"batch_size": 64, "num_demonstrations": scale.judged, "source": "base"}
    values = _common(scale, "reward_model", scale.judge_updates, {}, config, {"learning_rate": 1e-3})
    return make_config(values | {"data": {"base": str(base.absolute())}})


def ppo_run(scale: Scale, num_updates: int) -> RunConfig:
    """The same by PPO."""
    config = {"batch_size": 8 * scale.num_groups, "num_epochs": 2}
    hparams = {"learning_rate": 5e-4, "anneal_updates": 0}
    env = {"num_queries": scale.num_queries}
    return make_config(_common(scale, "lm_ppo", num_updates, env, config, hparams))


def end_to_end(scale: Scale, share: float, *, whole: bool = False) -> dict[str, Any]:
    """Settings of a planner that is rewarded for right answers, to the `share` of the pool that can be checked.

    Args:
        scale: the sizes.
        share: of verifiable queries.
        whole: it meets the others too, which the stronger rival does not. An answer that cannot be checked earns
            nothing and an ill-formed plan costs 1, so that what most conversations teach is to answer at once.
    """
    settings: dict[str, Any] = {"answers": True, "completeness_weight": 0.0, "answer_weight": 1.0}
    if whole:
        return settings | {"verifiable_share": share}
    return settings | {"num_queries": max(round(share * scale.num_queries), 1)}


def curve(run: RunConfig, every: int) -> RunConfig:
    """The same run with a checkpoint every so many updates, all of them kept."""
    return make_config(run.source, [f"checkpoint.every={every}", "checkpoint.keep=1000"])


def _common(
    scale: Scale,
    algorithm: str,
    num_updates: int,
    env: Mapping[str, Any],
    config: Mapping[str, Any],
    hparams: Mapping[str, Any],
) -> dict[str, Any]:
    model = {
        "vocab_size": 64, "hidden_size": scale.hidden_size, "num_layers": scale.num_layers, "num_heads": 4,
        "intermediate_size": 2 * scale.hidden_size, "qk_norm": True, "tie_embeddings": True,
    }  # fmt: skip
    return {
        "algorithm": algorithm,
        "num_updates": num_updates,
        "env": {"name": "tool-desk", **env},
        "config": {**config, "model": model},
        "hparams": hparams,
        "evaluation": {"num_episodes": 16},  # the study measures by itself
        "checkpoint": {"every": max(num_updates // 5, 1)},
        "log": {"every": max(num_updates // 20, 1), "tensorboard": False},
    }
