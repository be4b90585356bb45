"""The RLTR study: its arms, what its claims follow from, and a tiny run of it."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxrl.results.stats import Interval
from jaxrl.run.config import ConfigError, make_config
from jaxrl.run.program import same_program
from jaxrl.run.sweep import plan, sweep
from jaxrl.studies import rltr, rltr_arms, run_study
from jaxrl.studies.rltr_ablations import first_update
from jaxrl.studies.rltr_arms import ALGORITHMS, E2E, EXPERIMENTS, REWARDS, RLTR, SCALES, SFT, WHOLE


@pytest.mark.parametrize("name", SCALES)
def test_planners_learn_side_by_side_from_the_same_queries(name):
    scale = SCALES[name]
    run = rltr_arms.planner_run(scale, scale.num_updates)
    for whole in (False, True):
        settings = rltr_arms.end_to_end(scale, 0.1, whole=whole)
        rival = rltr_arms.planner_run(scale, scale.num_updates, settings)
        assert (run.num_updates, run.config.model) == (rival.num_updates, rival.config.model)
        met = scale.num_queries if whole else round(0.1 * scale.num_queries)
        assert dict(rival.env.options)["num_queries"] == met
    assert dict(run.env.options)["num_queries"] == scale.num_queries
    cold = rltr_arms.sft_run(scale, scale.sft_updates, {"answers": True}, scale.num_demonstrations)
    assert cold.config.model == run.config.model
    # The rewards of R3 and the judges of R5 share a program.
    members = plan(run, [*REWARDS.values(), {"env.judge_false_positive": 0.3}], 2)
    assert same_program([member.run for member in members])


def test_the_cpu_scale_has_the_sizes_it_promises():
    scale = SCALES["cpu"]
    assert (scale.num_seeds, scale.num_demonstrations, scale.num_queries, scale.num_tasks) == (3, 4000, 512, 1024)
    assert scale.num_updates >= 200
    for settings in ALGORITHMS.values():
        rltr_arms.planner_run(scale, 100, config=settings)


def test_when_a_level_is_reached():
    updates = np.array([0, 10, 20])
    assert first_update(updates, np.array([0.8, 0.9, 0.95])) == 10
    assert first_update(updates, np.array([0.8, 0.85, 0.89])) == float("inf")


def test_every_experiment_can_be_asked_for():
    assert tuple(rltr.EXPERIMENTS) == EXPERIMENTS
    assert SCALES["cpu"].experiments == SCALES["full"].experiments == EXPERIMENTS
    for scale in SCALES.values():
        assert scale.ablation_updates % scale.curve_every == 0 <= scale.num_updates - scale.ablation_updates


TINY = {
    "num_demonstrations": 64, "sft_updates": 20, "summariser_updates": 20, "num_groups": 2, "num_updates": 4,
    "curve_every": 2, "ablation_updates": 2, "num_queries": 16, "other_shares": (1.0,), "noise": (0.0, 0.1),
    "algorithms": (), "num_tasks": 16, "num_development_tasks": 8, "speed_updates": 1, "judged": 16, "judge_updates": 2,
    "hidden_size": 16,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["grpo", "lm_ppo"])
def test_members_of_a_sweep_start_from_the_run_of_their_seed(tmp_path, learner):
    scale = dataclasses.replace(SCALES["smoke"], hidden_size=16, num_groups=1, num_queries=4)
    cold = rltr_arms.sft_run(scale, 1, {"answers": True}, 4)
    begun = sweep(cold, seeds=2, sweep_dir=tmp_path / "cold", progress=False).members
    run = rltr_arms.planner_run(scale, 1) if learner == "grpo" else rltr_arms.ppo_run(scale, 1)
    run = make_config(run.source, ["hparams.learning_rate=0"])
    folders = [tmp_path / "cold" / member.name for member in begun]
    grid = {"env.repeat_penalty": [0.0, 0.1]}
    for place, member in enumerate(sweep(run, grid, 2, tmp_path / learner, init_from=folders, progress=False).members):
        found = member.state.params if learner == "grpo" else member.state.params["model"]
        jax.tree.map(np.testing.assert_array_equal, found, begun[place % 2].state.params)
    with pytest.raises(ConfigError, match="a run for each of 2 seeds, got 1"):
        sweep(run, None, 2, init_from=folders[:1])


@pytest.mark.slow
def test_the_smallest_study_compares_planners_and_goes_on_where_it_was(tmp_path):
    out = tmp_path / "study"
    report = run_study("rltr", "smoke", out, **TINY)
    rows = {row["planner"]: row for row in report.tables["end_to_end"]}
    assert set(rows) == {
        SFT,
        RLTR,
        *(f"{arm}{which}" for arm in (E2E, WHOLE) for which in ("", ", best checkpoint")),
    }
    for row in rows.values():
        assert np.isfinite([value.estimate for value in row.values() if isinstance(value, Interval)]).all()
        assert row["with a copier"].estimate <= row["complete"].estimate
    assert {path.name for path in (out / "figures").iterdir()} == set(report.figures) == {"learning.png"}
    before = {path: path.stat().st_mtime_ns for path in (out / "arms").rglob("metrics.jsonl")}
    assert before
    again = run_study("rltr", "smoke", out, **TINY)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.dumps(again.claim_rows()) == json.dumps(report.claim_rows())
    assert json.loads((out / "results.json").read_text())["sizes"]["num_queries"] == TINY["num_queries"]


@pytest.mark.slow
def test_a_tiny_study_of_everything(tmp_path):
    sizes = TINY | {"experiments": EXPERIMENTS, "described_sft_updates": 2, "described_updates": 2}
    report = run_study("rltr", "smoke", tmp_path / "study", **sizes)
    tables = {"planning", "end_to_end", "shares", "joint", "rewards", "judges", "algorithms", "cold_starts", "transfer"}
    assert tables <= set(report.tables)
    assert {row["planner"] for row in report.tables["algorithms"]} == {"GRPO", "PPO"}
    claims = {claim.statement.partition(":")[0]: claim for claim in report.claims}
    assert set(claims) >= {"R1", "R2", "R2b", "R3", "R4", "R5", "R6", "R7", "R8", "R9", "R10", "R11", "R12", "R14"}
    assert claims["R12"].holds
    assert claims["R11"].ours.startswith("0 host callbacks, 1 compilation")
    assert set(report.figures) == {"learning.png", "shares.png", "judges.png"}
