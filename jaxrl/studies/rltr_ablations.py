"""The smaller experiments of the RLTR study, R2b to R12: the reward, its judge, the start, the learner, the program."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from envs_jax.text.tool_desk_plans import HACKS
from jaxrl.results.stats import Interval, mean_interval
from jaxrl.studies.report import Claim, Report
from jaxrl.studies.rltr_arms import (
    ALGORITHMS,
    E2E,
    REWARDS,
    RLTR,
    SFT,
    curve,
    end_to_end,
    judge_run,
    planner_run,
    ppo_run,
    sft_run,
)
from jaxrl.studies.rltr_figures import draw_judges, draw_shares
from jaxrl.studies.rltr_protocol import Examination, scripted_return
from jaxrl.studies.rltr_speed import measure_speed

if TYPE_CHECKING:
    from jaxrl.studies.rltr import Course

PLAN_COLUMNS = {  # of the tables of planners: what `Examination.plans` calls it
    "complete": "complete", "completeness": "share of goals", "precision": "precision", "num_calls": "calls",
    "num_repeats": "repeats", "num_errors": "errors", "invalid": "ill-formed",
}  # fmt: skip
LENGTH_PENALTY = 0.1  # of R12, as in R3


def shares_and_weights(course: Course, report: Report) -> None:
    """R2b and R9: more queries whose answers can be checked; both rewards for one model."""
    scale = course.scale
    arms = {
        f"{E2E}, {share:.0%}": {"env.num_queries": end_to_end(scale, share)["num_queries"]}
        for share in scale.other_shares
    }
    joint = {"env.completeness_weight": 0.5, "env.answer_weight": 0.5, "env.num_queries": scale.num_queries}
    base = planner_run(scale, scale.num_updates, end_to_end(scale, 1.0))
    trained = course.train_together("end to end", base, arms | {"joint": joint})
    planner, rival = (course.plans(name, course.arms[name].states.params) for name in (RLTR, E2E))
    found = {scale.share: rival["complete"]}
    found |= {
        share: course.plans(name, trained[name].states.params)["complete"]
        for share, name in zip(scale.other_shares, arms)
    }
    shares = sorted(found)
    advantages = {share: planner["complete"] - found[share] for share in shares}
    report.table(
        "shares", [{"verifiable share": f"{share:.0%}", E2E: mean_interval(found[share]),
                    "RLTR's advantage": mean_interval(advantages[share])} for share in shares],
        "R2b. Complete plans of E2E by the share of the pool whose answers it may learn from; RLTR needs none.",
    )  # fmt: skip
    draw_shares(
        course.laboratory,
        report,
        {RLTR: dict.fromkeys(shares, planner["complete"]), E2E: dict(sorted(found.items()))},
    )
    rises = [mean_interval(advantages[b] - advantages[a]) for a, b in itertools.pairwise(shares)]
    report.claims.append(
        Claim("R2b: the fewer answers can be checked, the larger the advantage", "the motive, without a figure",
              "; ".join(f"{share:.0%}: {text(mean_interval(advantages[share]))}" for share in shares),
              "nowhere rising with the share beyond its interval",
              all(bool(rise.low <= 0) for rise in rises) if course.decided else None)
    )  # fmt: skip
    both = course.plans("joint", trained["joint"].states.params)
    answers = course.laboratory.measure(
        "own answers of joint", lambda: course.test.answers(trained["joint"].states.params)
    )  # fmt: skip
    report.table(
        "joint", [plan_row(RLTR, planner), plan_row("joint", both)],
        f"R9. One model rewarded half by completeness and half by its answers, all of the pool verifiable; it answers "
        f"{cell(answers['right'])} right by itself.",
    )  # fmt: skip
    apart = mean_interval(planner["complete"] - both["complete"])
    report.claims.append(
        Claim("R9: planner and summariser are better apart", "the design, without a figure", text(apart),
              "completeness at least that of one model for both", bool(apart.estimate >= 0) if course.decided else None)
    )  # fmt: skip


def rewards(course: Course, report: Report) -> None:
    """R3 and R4: the terms of the reward."""
    scale = course.scale
    changed = {name: settings for name, settings in REWARDS.items() if settings}
    trained = course.train_together("rewards", planner_run(scale, scale.ablation_updates), changed)
    params = {name: arm.states.params for name, arm in trained.items()} | {"all": course.after_ablation_updates()}
    found = {name: course.plans(f"reward {name}", params[name]) for name in REWARDS}
    report.table(
        "rewards", [plan_row(name, values) for name, values in found.items()],
        f"R3. What is rewarded, {scale.ablation_updates} updates: completeness alone, less 0.1 per repeated call, per "
        "wrong call, both, and 0.1 per call more than needed.",
    )  # fmt: skip
    repeats = [float(found[name]["num_repeats"].mean()) for name in ("completeness", "+ repeats")]
    precise, lost = found["all + length"]["precision"], found["all"]["complete"] - found["all + length"]["complete"]
    report.claims.append(
        Claim("R3: penalties do what they are for", "the terms, without a figure",
              f"repeats {repeats[0]:.3f} to {repeats[1]:.3f}; with the length penalty precision {cell(precise)}, "
              f"completeness {text(mean_interval(-lost))}",
              "repeats halved; precision >= 0.9 at a loss <= 0.02",
              bool(repeats[1] <= 0.5 * repeats[0] and precise.mean() >= 0.9 and lost.mean() <= 0.02)
              if course.decided else None)
    )  # fmt: skip
    strict = course.train("strict", curve(planner_run(scale, scale.num_updates, {"strict": True}), scale.curve_every))
    curves = {"fraction": course.curve(course.arms[RLTR]), "strict": course.curve(strict)}
    reached = {name: first_update(found["update"], found["complete"].mean(axis=0)) for name, found in curves.items()}
    values = course.plans("strict", strict.states.params)
    words = ", ".join(f"{name} {'never' if np.isinf(n) else int(n)}" for name, n in reached.items())
    report.claims.append(
        Claim("R4: rewarded by the share of goals, it learns no slower than by all or nothing", "none",
              f"updates to 0.9: {words}; complete in the end, strict: {cell(values['complete'])}", "no more updates",
              bool(reached["fraction"] <= reached["strict"]) if course.decided else None)
    )  # fmt: skip


def learned_judge(course: Course, report: Report) -> None:
    """R6: a reward model that has read labelled plans, in place of the rules."""
    scale = course.scale
    judge = course.laboratory.train("judge", judge_run(scale, course.start.folders[0]), 1)
    run = planner_run(scale, scale.num_updates, config={"reward": "model"}, judge=judge.folders[0])
    taught = course.train("RLTR, learned judge", run)
    found = {RLTR: course.plans(RLTR, course.arms[RLTR].states.params),
             "learned judge": course.plans("learned judge", taught.states.params)}  # fmt: skip
    last = {name: float(values[-1]) for name, values in judge.metrics[0].items() if name.startswith("held_out/")}
    words = ", ".join(f"{name.partition('/')[2].replace('_', ' ')} {value:.3f}" for name, value in last.items())
    report.table(
        "learned_judge", [plan_row(name, values) for name, values in found.items()],
        f"R6. {scale.num_updates} updates; the judge learned from {scale.judged} plans of the cold start whether all "
        f"was found out, and sees neither repeats nor errors punished. On held-out plans: {words}.",
    )  # fmt: skip
    lost = found[RLTR]["complete"] - found["learned judge"]["complete"]
    kappa = last["held_out/kappa"]
    report.claims.append(
        Claim("R6: a learned judge will do", "a strong language model judged", f"{text(mean_interval(-lost))} complete "
              f"plans beside the rules; Cohen's kappa {kappa:.3f}", "within 0.05 of R1",
              bool(lost.mean() <= 0.05) if course.decided else None)
    )  # fmt: skip


def judges(course: Course, report: Report) -> None:
    """R5: a judge that errs."""
    scale = course.scale
    arms = {
        f"{positive:g}, {negative:g}": {"env.judge_false_positive": positive, "env.judge_false_negative": negative}
        for positive in scale.noise
        for negative in scale.noise
    }
    never = "0, 0"
    erring = {name: settings for name, settings in arms.items() if name != never}
    trained = course.train_together("judges", planner_run(scale, scale.ablation_updates), erring)
    params = {
        name: trained[name].states.params if name in trained else course.after_ablation_updates() for name in arms
    }
    found = {name: course.plans(f"judge {name}", params[name])["complete"] for name in arms}
    size = len(scale.noise)
    table = np.array([values.mean() for values in found.values()]).reshape(size, size)
    labels = [f"{rate:g}" for rate in scale.noise]
    rows = [
        {"false positives": labels[i]}
        | {f"false negatives {labels[j]}": mean_interval(list(found.values())[size * i + j]) for j in range(size)}
        for i in range(size)
    ]
    report.table("judges", rows, f"R5. Complete plans after {scale.ablation_updates} updates; of each goal, the judge "
                 "takes a miss for found (false positive) or the reverse.")  # fmt: skip
    draw_judges(course.laboratory, report, scale.noise, table)
    clean, worst = found[never], scale.noise[-1]
    if 0.1 in scale.noise:
        share = float(found["0.1, 0.1"].mean() / clean.mean())
        report.claims.append(
            Claim("R5: a judge may err one time in ten", "none", f"{share:.3f} of the noise-free completeness",
                  ">= 0.85 of it at (0.1, 0.1)", share >= 0.85 if course.decided else None)
        )  # fmt: skip
    difference = mean_interval(found[f"0, {worst:g}"] - found[f"{worst:g}, 0"])
    report.claims.append(
        Claim("R5: false positives hurt more than false negatives", "none",
              f"at {worst:g}: {text(difference)} complete plans", "the interval is above 0",
              bool(difference.low > 0) if course.decided else None)
    )  # fmt: skip


def learners(course: Course, report: Report) -> None:
    """R7: other algorithms with the same reward."""
    scale = course.scale
    found = {"GRPO": course.plans("reward all", course.after_ablation_updates())}
    for name in scale.algorithms:
        run = planner_run(scale, scale.ablation_updates, config={"aggregation": "", **ALGORITHMS[name]})
        found[name] = course.plans(name, course.train(name, run).states.params)
    by_ppo = course.train("PPO", ppo_run(scale, scale.ablation_updates)).states.params["model"]
    found["PPO"] = course.plans("PPO", by_ppo)
    report.table("algorithms", [plan_row(name, values) for name, values in found.items()],
                 f"R7. The same reward, {scale.ablation_updates} updates.")  # fmt: skip
    report.claims.append(
        Claim("R7: the reward serves every algorithm", "none",
              ", ".join(f"{name} {cell(values['complete'])}" for name, values in found.items()), "all >= 0.85",
              all(bool(values["complete"].mean() >= 0.85) for values in found.values()) if course.decided else None)
    )  # fmt: skip


def cold_starts(course: Course, report: Report) -> None:
    """R8: reinforcement learning from nothing, from faulty demonstrations, from the best of four."""
    scale, laboratory = course.scale, course.laboratory
    sft = sft_run(scale, scale.sft_updates, {"answers": True, "num_attempts": 4}, scale.num_demonstrations)
    chosen = laboratory.train("SFT, best of four", sft, scale.num_seeds)
    run = planner_run(scale, scale.ablation_updates)
    after = {
        "none": laboratory.train("from nothing", run, scale.num_seeds).states.params,
        "faulty": course.after_ablation_updates(),
        "best of four": course.train("from the best of four", run, chosen).states.params,
    }
    before = {"faulty": course.plans(SFT, course.start.states.params),
              "best of four": course.plans("SFT, best of four", chosen.states.params)}  # fmt: skip
    found = {name: course.plans(f"start {name}", params) for name, params in after.items()}
    rows = [
        {"demonstrations": name, "complete before": mean_interval(before[name]["complete"]) if name in before else "-"}
        | {key: value for key, value in plan_row(name, values).items() if key != "planner"}
        for name, values in found.items()
    ]
    report.table("cold_starts", rows, f"R8. After {scale.ablation_updates} updates of RLTR from different starts; of "
                 "four faulty attempts at a demonstration the best is kept.")  # fmt: skip
    gain = mean_interval(found["best of four"]["complete"] - found["faulty"]["complete"])
    report.claims.append(
        Claim("R8: after chosen demonstrations RLTR is no worse", "none", text(gain), "the interval reaches 0",
              bool(gain.high >= 0) if course.decided else None)
    )  # fmt: skip


def transfer(course: Course, report: Report) -> None:
    """R10: tools in orders never met in training, described in the prompt."""
    scale = course.scale
    if not scale.described_sft_updates:
        return
    examination = Examination(course.model, scale.num_tasks, described=True)
    sft = sft_run(scale, scale.described_sft_updates, {"described_tools": True}, 0)
    start = course.laboratory.train("SFT, described tools", sft, scale.num_seeds)
    run = planner_run(scale, scale.described_updates, {"described_tools": True, "num_queries": 0})
    planner = course.train("RLTR, described tools", run, start)
    rows, found = [], {}
    for name, arm in (("SFT", start), ("RLTR", planner)):
        found[name] = course.laboratory.measure(
            f"plans of {arm.name}", lambda arm=arm: examination.plans(arm.states.params)
        )
        rows.append(plan_row(name, found[name]))
    report.table("transfer", rows, "R10. What each tool does is dealt anew for every query and told in the prompt; "
                 f"{scale.described_sft_updates} updates of fine-tuning on ever new demonstrations, "
                 f"{scale.described_updates} of RLTR. Tested on orders of the tools never met before.")  # fmt: skip
    complete = found["RLTR"]["complete"]
    report.claims.append(
        Claim("R10: it reads what tools do", "none", cell(complete), ">= 0.6 on unseen orders",
              bool(complete.mean() >= 0.6) if course.decided else None)
    )  # fmt: skip


def one_program(course: Course, report: Report) -> None:
    """R11: generation, environment, reward and update in one program, beside a loop over tokens."""
    scale = course.scale
    run = planner_run(scale, scale.speed_updates, config={"num_groups": 32})
    params = jax.tree.map(lambda leaf: leaf[0], course.start.states.params)
    found = course.laboratory.measure("speed", lambda: measure_speed(run, params, scale.speed_updates))
    rates = {name: float(found[name]) for name in ("compiled", "loop")}
    ratio = rates["compiled"] / rates["loop"]
    report.claims.append(
        Claim("R11: an update is one program", "none",
              f"{int(found['callbacks'])} host callbacks, {int(found['compilations'])} compilation; 256 conversations: "
              f"{rates['compiled']:.2f} updates/s, {ratio:.2f} times a Python loop over tokens",
              "0 callbacks, 1 compilation, never below 1 times",
              int(found["callbacks"]) == 0 and int(found["compilations"]) == 1 and ratio >= 1.0)
    )  # fmt: skip


def hacking(course: Course, report: Report) -> None:
    """R12: plans that only look busy."""
    tasks = course.scale.num_tasks
    oracle = scripted_return("", tasks, LENGTH_PENALTY)
    found = {name: scripted_return(name, tasks, LENGTH_PENALTY) for name in HACKS}
    rows: list[dict[str, Any]] = [
        {"plan": name or "fewest calls", "return": scripted_return(name, tasks, LENGTH_PENALTY),
         "without the length penalty": scripted_return(name, tasks, 0.0)}
        for name in ("", *HACKS)
    ]  # fmt: skip
    report.table("hacking", rows, f"R12. Mean returns of scripted plans with a length penalty of {LENGTH_PENALTY}.")
    highest = max(found.values())
    report.claims.append(
        Claim("R12: plans that only look busy do not pay", "none", f"at most {highest:.3f} of {oracle:.3f}",
              "each <= half of the fewest calls' return", highest <= 0.5 * oracle)
    )  # fmt: skip


def first_update(updates: np.ndarray, complete: np.ndarray, level: float = 0.9) -> float:
    """The first of `updates` `[C]` at which `complete` `[C]` has reached the level; infinity where none has."""
    reached = np.flatnonzero(complete >= level)
    return float(updates[reached[0]]) if len(reached) else float("inf")


def plan_row(name: str, found: Any) -> dict[str, Any]:
    """A row of a table of planners."""
    return {"planner": name} | {title: mean_interval(found[column]) for column, title in PLAN_COLUMNS.items()}


def text(interval: Interval) -> str:
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def cell(values: np.ndarray) -> str:
    """The mean over seeds."""
    return f"{float(np.mean(values)):.3f}"
