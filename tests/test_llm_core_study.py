"""The study of the language-model core at a small size, and its reading of learning curves."""

import json

import numpy as np
import pytest

from jaxrl.studies import run_study
from jaxrl.studies.llm_core import LEARNERS, SCALES, make_run, reached

SMALL = {"sft_updates": 20, "policy_updates": 40, "num_episodes": 64, "num_seeds": 2}


@pytest.mark.slow
def test_the_study_runs_and_goes_on(tmp_path):
    report = run_study("llm_core", "smoke", tmp_path, **SMALL)
    rows = {claim.statement.partition(":")[0]: claim for claim in report.claims}
    assert set(rows) == {"C3", "C4", "C9"}
    assert rows["C9"].holds
    assert rows["C3"].holds is None  # not decided at this size
    reward = report.tables["rewards"][0]["reward"].estimate
    assert reward > 0.1  # chance is 1 in 16
    stored = json.loads((tmp_path / "results.json").read_text())
    again = run_study("llm_core", "smoke", tmp_path, **SMALL)
    assert json.loads((tmp_path / "results.json").read_text())["tables"] == stored["tables"]
    assert again.claim_rows() == report.claim_rows()


@pytest.mark.slow
def test_preferences_and_adapters_start_from_trained_models(tmp_path):
    sizes = SMALL | {"experiments": ("preferences", "adapters"), "base_updates": 50, "preference_updates": 50}
    report = run_study("llm_core", "smoke", tmp_path, **sizes)
    assert report.tables["preferences"][0]["accuracy"].estimate > 0.8
    found = {row["trained"]: row["reward"].estimate for row in report.tables["adapters"]}
    assert found["base"] > 0.2
    assert min(found["all weights"], found["adapters"]) > found["base"]


def test_every_learner_has_a_configuration():
    for algorithm, config, bar in LEARNERS.values():
        run = make_run(algorithm, 10, {"task": "copy", "length": 1}, config)
        assert run.algorithm == algorithm
        assert 0.9 < bar < 1
    assert all(set(scale.learners) <= set(LEARNERS) for scale in SCALES.values())


def test_the_update_that_reaches_a_bar():
    columns = {"update": np.array([10, 20, 30]), "episode/return": np.array([0.2, 0.97, 0.99])}
    assert reached(columns, 0.97) == 20
    assert reached(columns, 1.0) == float("inf")
