"""Studies: what is trained and measured is kept, reports say what was measured, bad requests are refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.results.stats import Interval
from jaxrl.run.config import ConfigError
from jaxrl.studies import STUDIES, find, poolflip, run_study
from jaxrl.studies.laboratory import Laboratory, over_seeds
from jaxrl.studies.report import Claim, Report, cell, markdown_table, plain

TINY = {
    "horizon": 32,
    "iterations": 1,
    "oracle_updates": 4,
    "num_episodes": 32,
    "single_heuristics": (),
    "exploit_seeds": 0,
}


@pytest.fixture(scope="module")
def tiny_study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "poolflip"
    return out, run_study("poolflip", "smoke", out, **TINY)


@pytest.mark.slow
def test_poolflip_study_measures_every_arm(tiny_study):
    out, report = tiny_study
    rows = {row["defender"]: row for row in report.tables["control"]}
    assert {"flip-psro", "B2 heuristic mix", "B3 self-play", "B0 sleep"} <= set(rows)
    for row in rows.values():
        for attack in poolflip.ATTACKS:
            value = row[attack].estimate if isinstance(row[attack], Interval) else row[attack]
            assert 0.0 <= value <= 1.0
    # Whoever sleeps loses all to an attack that takes what it finds, and keeps all from one that looks for enemies.
    assert rows["B0 sleep"]["guard(2)"] < 0.2
    assert rows["B0 sleep"]["shadow(4,1)"] == 1.0
    stored = json.loads((out / "results.json").read_text())
    assert stored["tables"]["control"][0]["guard(2)"]["estimate"] == pytest.approx(
        rows["flip-psro"]["guard(2)"].estimate
    )
    assert stored["versions"]["jax"]
    with (out / "tables" / "control.csv").open() as file:
        assert len(list(csv.reader(file))) == len(rows) + 1


@pytest.mark.slow
def test_poolflip_ratios_are_those_of_the_tables(tiny_study):
    _, report = tiny_study
    control = {row["defender"]: row for row in report.tables["control"]}
    ours, theirs, sleep = (control[name]["guard(6)"] for name in ("flip-psro", "B2 heuristic mix", "B0 sleep"))
    expected = (ours.estimate - sleep) / (theirs.estimate - sleep)
    row = next(r for r in report.tables["ratios"] if (r["baseline"], r["measure"]) == ("B2 heuristic mix", "control"))
    assert row["guard(6)"].estimate == pytest.approx(expected, rel=1e-6)
    assert len(report.claims) == 2  # one for each baseline
    assert all(claim.holds is None for claim in report.claims)  # two seeds decide nothing


@pytest.mark.slow
def test_a_finished_study_is_read_not_run_again(tiny_study):
    out, first = tiny_study
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    (out / "results.json").unlink()
    lost = out / "measurements" / "heuristics, attacks.npz"
    lost.unlink()
    again = run_study("poolflip", "smoke", out, **TINY)
    assert json.dumps(plain(again.tables)) == json.dumps(plain(first.tables))
    changed = [path for path in before if path.stat().st_mtime_ns != before[path]]
    assert changed == [lost]
    assert (out / "report.md").read_text().startswith("# Flip-PSRO")
    assert {path.name for path in (out / "figures").iterdir()} == set(first.figures)


def test_a_folder_of_another_study_is_refused(tmp_path):
    Laboratory(tmp_path / "other", {"study": "poolflip", "scale": "smoke", "sizes": {"horizon": 33}})
    with pytest.raises(ConfigError, match="another study"):
        run_study("poolflip", "smoke", tmp_path / "other", **TINY)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="not empty"):
        run_study("poolflip", "smoke", tmp_path, **TINY)


def fake_measurements(num_seeds=10):
    """Arms whose control is known: Flip-PSRO holds 0.8, its baselines 0.3 and 0.7, a sleeper 0.1."""
    spread = np.linspace(-0.01, 0.01, num_seeds)[:, None]
    control = {poolflip.PSRO: 0.8, "B1 sleep": 0.3, "B2 heuristic mix": 0.7, poolflip.COST_ONLY: 0.6}
    shape = (num_seeds, len(poolflip.ATTACKS))
    measured = {
        name: {key: value * scale + np.broadcast_to(spread, shape) for key, scale in (("control", 1), ("margin", 0.5))}
        | {"benefit": np.full(shape, 0.2 if name == poolflip.PSRO else 0.3)}
        for name, value in control.items()
    }
    heuristics = {key: np.full((5, len(poolflip.ATTACKS)), 0.1) for key in ("control", "margin", "benefit")}
    return measured, heuristics


def test_poolflip_claims_follow_from_the_measurements():
    report = Report("", "", "cpu", {})
    measured, heuristics = fake_measurements()
    scale = poolflip.SCALES["cpu"]
    poolflip.tables_of_attacks(report, measured, heuristics, scale)
    ratios = {(row["baseline"], row["measure"]): row for row in report.tables["ratios"]}
    assert ratios["B1 sleep", "control"][poolflip.PRIMARY].estimate == pytest.approx(0.7 / 0.2)
    assert ratios["B2 heuristic mix", "control"][poolflip.PRIMARY].estimate == pytest.approx(0.7 / 0.6)
    assert ratios["B1 sleep", "margin"]["guard(6)"].estimate == pytest.approx(0.3 / 0.05)
    assert [claim.holds for claim in report.claims] == [True, False, True]  # 3.5x, 1.2x, control +0.2 for -0.1
    gains = report.tables["control_maintained"][0]
    assert gains["gain in control"].estimate == pytest.approx(0.2)
    assert gains["gain in benefit"].estimate == pytest.approx(-0.1)
    few = Report("", "", "cpu", {})
    poolflip.tables_of_attacks(few, measured, heuristics, dataclasses.replace(scale, num_seeds=3))
    assert all(claim.holds is None for claim in few.claims)


def test_requests_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'poolflip'"):
        run_study("poolfip", "smoke", tmp_path)
    with pytest.raises(ConfigError, match="smoke, cpu, full"):
        run_study("poolflip", "huge", tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'num_seeds'"):
        run_study("poolflip", "smoke", tmp_path, num_seed=3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_three_scales_of_one_type(name):
    study = find(name)
    assert set(study.scales) == {"smoke", "cpu", "full"}
    assert len({type(scale) for scale in study.scales.values()}) == 1


@pytest.mark.parametrize("scale", poolflip.SCALES)
def test_poolflip_arms_train_defenders_for_equally_many_steps(scale):
    """Of the populations' steps half are the attacker's."""
    from jaxrl.run.program import make_algorithm

    sizes = poolflip.SCALES[scale]
    wanted = sizes.iterations * sizes.oracle_updates * 8192
    for name, run in poolflip.arms_of(sizes).items():
        roles = 1 if run.algorithm == "ppo" else 2
        assert run.num_updates * make_algorithm(run).steps_per_update == roles * wanted, name
        assert float(run.hparams.anneal_updates) in (sizes.oracle_updates, run.num_updates), name


def test_full_scale_has_every_ablation():
    arms = poolflip.arms_of(poolflip.SCALES["full"])
    assert len([name for name in arms if name.startswith("flip-psro, ")]) == 15
    assert arms["flip-psro, without uniform"].config.heuristics == (
        "sleep",
        "periodic(4)",
        "exponential(0.25)",
        "guard(2)",
        "burst(6,18)",
    )


def test_over_seeds_is_vmap():
    def scaled(x, factor):
        return {"y": x * factor}

    for num_seeds in (1, 3, 4):  # on one, one, four devices
        x = np.arange(num_seeds, dtype=np.float32)
        np.testing.assert_array_equal(over_seeds(scaled, (0, None), x, jnp.float32(2))["y"], 2 * x)


def test_laboratory_keeps_what_was_measured_and_loses_nothing_half(tmp_path):
    laboratory = Laboratory(tmp_path / "a", {"study": "x"})
    assert laboratory.measure("m", lambda: {"v": jnp.arange(3)})["v"].tolist() == [0, 1, 2]
    again = Laboratory(tmp_path / "a", {"study": "x"})
    assert again.measure("m", lambda: pytest.fail("measured twice"))["v"].tolist() == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        again.measure("n", lambda: {"v": 1 / 0})
    assert [row["step"] for row in again.timing()] == ["measure m"]
    assert [path.name for path in (tmp_path / "a" / "measurements").iterdir()] == ["m.npz"]


def test_report_writes_intervals_and_verdicts(tmp_path):
    report = Report("Title", "Paper", "smoke", {"num_seeds": 2})
    report.table("scores", [{"arm": "a", "score": Interval(0.5, 0.25, 0.75), "note": math.nan}], "Caption.")
    report.claims.append(Claim("It works", "2x", "0.5x", "at least 2x", False))
    report.write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| a | 0.500 [0.250, 0.750] | - |" in text
    assert "| It works | 2x | 0.5x | at least 2x | no |" in text
    row = json.loads((tmp_path / "results.json").read_text())["tables"]["scores"][0]
    assert row == {"arm": "a", "score": {"estimate": 0.5, "low": 0.25, "high": 0.75}, "note": None}
    assert (tmp_path / "tables" / "scores.csv").read_text().splitlines()[0] == "arm,score,score low,score high,note"


def test_cells():
    assert cell(Interval(1.0, math.nan, math.nan)) == "1.000"
    assert cell(7) == "7"
    assert cell(Interval(math.nan, math.nan, math.nan)) == "-"
    assert markdown_table([]) == "(empty)\n"


@pytest.mark.slow
def test_cyborg_study_scores_all_defenders_on_the_same_episodes(tmp_path):
    tiny = {"num_seeds": 1, "num_episodes": 64, "shorter": 100, "algorithms": ("ppo",)}
    report = run_study("cyborg", "smoke", tmp_path / "study", **tiny)
    returns = {row["defender"]: row for row in report.tables["returns"]}
    means = {name: row["bline 100"].estimate for name, row in returns.items()}
    # What is known of the original: a sleeper loses about 1135, and one that knows B_line's script about 14.
    assert means["sleep"] == pytest.approx(-1135, abs=30)
    assert means["scripted, knows B_line"] == pytest.approx(-13.6, abs=1.5)
    assert means["sleep"] < means["random"] < means["scripted, knows B_line"]
    plain = returns["ppo, base reward, challenge features, 11 kinds of action"]
    assert plain["bline 100"].estimate == means["ppo bline"]  # the same configuration, trained once
    assert len(list((tmp_path / "study" / "arms").iterdir())) == 2
    behaviour = {row["defender"]: row for row in report.tables["behaviour"]}["ppo bline"]
    shares = [value for name, value in behaviour.items() if name.endswith(" %") and not name.startswith("a host")]
    assert sum(shares) == pytest.approx(100.0, abs=1e-3)
    lost = sum(behaviour[part] for part in ("confidentiality", "availability", "action cost", "isolation cost"))
    assert lost == pytest.approx(plain["bline 100"].estimate, rel=1e-4)
    assert "not decided" in (tmp_path / "study" / "report.md").read_text()  # too short to judge
