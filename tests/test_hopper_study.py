"""The hopper study: one program for all conditions, what it measures, and how it decides its claims."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
import jaxrl
from envs_jax.robotics.hopper_params import CHOICES, CONDITIONS
from jaxrl.results.stats import Interval
from jaxrl.run.sweep import plan
from jaxrl.studies import hopper_flip, run_study
from jaxrl.studies.hopper_flip_protocol import FAILURES, WAYS, _failures, ways

TINY = {"num_updates": 4, "num_episodes": 8, "replays": 1}


def test_all_conditions_share_a_program():
    scale = hopper_flip.SCALES["cpu"]
    assert {name.split(" ")[0] for name in scale.arms} == set(CONDITIONS)
    points = [{f"env.{key}": value for key, value in hopper_flip.ARMS[name].items()} for name in scale.arms]
    members = plan(hopper_flip.config_of(scale), points, scale.num_seeds)
    assert len(members) == scale.num_seeds * len(scale.arms)
    assert {member.group for member in members} == {0}


def test_policies_are_measured_on_the_robot_as_built_with_its_motors():
    _, params = envs_jax.make("hopper-flip", actuator="rectangle", start="mixed", randomisation=0.3)
    nominal, randomised, as_trained = ways(params)
    assert len(WAYS) == 3
    region, rectangle = (CHOICES["actuator"].index(name) for name in ("region", "rectangle"))
    assert (int(nominal.actuator), int(randomised.actuator), int(as_trained.actuator)) == (region, region, rectangle)
    assert [float(way.randomisation) for way in (nominal, randomised, as_trained)] == [0.0, 1.0, 0.0]
    assert [float(way.noise) for way in (nominal, randomised, as_trained)] == [0.0, 1.0, 0.0]
    assert all(float(way.flight_starts) == 0.0 for way in (nominal, randomised, as_trained))


def test_every_failure_counts_once_where_it_fits_first():
    final = {
        "success": jnp.array([1.0, 0, 0, 0, 0, 0, 0]),
        "turns/centroidal": jnp.array([1.0, 0.0, 0.5, 1.2, 0.5, 1.3, 1.0]),
        "failure/body": jnp.array([0.0, 1, 1, 0, 0, 0, 0]),
        "failure/overload": jnp.array([0.0, 0, 0, 1, 0, 0, 0]),
    }
    flight = jnp.array([0.5, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5])
    shares = dict(zip(FAILURES, np.asarray(_failures(final, flight)) * 7))
    assert shares == pytest.approx(dict.fromkeys(FAILURES, 1.0))


@pytest.fixture(scope="module")
def tiny_study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "hopper"
    return out, run_study("hopper_flip", "smoke", out, **TINY)


@pytest.mark.slow
def test_the_study_measures_what_it_promises(tiny_study):
    out, report = tiny_study
    rows = {row["condition"]: row for row in report.tables["success"]}
    assert set(rows) == set(hopper_flip.SCALES["smoke"].arms)
    failures = {row["condition"]: row for row in report.tables["failures"]}
    for name, row in rows.items():
        assert 0.0 <= row["success"].estimate <= 1.0
        # What does not succeed fails in exactly one way.
        lost = sum(value.estimate for value in failures[name].values() if isinstance(value, Interval))
        assert row["success"].estimate + lost == pytest.approx(1.0, abs=1e-5)
        # The integral of the centroidal rate in the air is part of the whole.
        assert abs(row["in flight"].estimate) <= 3.0
    for row in report.tables["loads"]:
        assert row["peak A N m"].estimate > 0.0
        assert row["episodes with A above rated"].estimate >= row["A above destructive"].estimate
    for row in report.tables["motors"]:
        assert row["electrical J"].estimate > row["mechanical J"].estimate
    mujoco = "C MuJoCo, 0.5 ms, 100 iterations"
    assert {row["physics"] for row in report.tables["other_physics"]} == {mujoco, f"{mujoco}, roll not held", "planar"}
    assert all(claim.holds is None for claim in report.claims)  # four updates decide nothing
    assert {path.name for path in (out / "figures").iterdir()} == set(report.figures)
    assert json.loads((out / "results.json").read_text())["tables"]["success"]


@pytest.mark.slow
def test_an_arm_leaves_ordinary_runs(tiny_study):
    out, _ = tiny_study
    state, run = jaxrl.load_state(out / "arms" / "000")
    assert run.env.options["reward"] == "base"
    assert run.env.options["variant"] == "light_thigh"
    other, other_run = jaxrl.load_state(out / "arms" / "003")
    assert (run.seed, other_run.seed) == (0, 1)
    assert other_run.env.options["reward"] == "centroidal"
    agent, data = jaxrl.make_algorithm(run), jaxrl.load_data(run)
    assert float(data.env_params.robot.mass[0]) == pytest.approx(3.0)
    results = [jaxrl.evaluate(agent, trained, run, data) for trained in (state, other)]
    assert all(np.isfinite(result.mean) for result in results)
    assert results[0].mean != results[1].mean
