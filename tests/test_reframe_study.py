"""The Re:Frame study: its arms, its teacher, what its claims follow from, and a tiny run of it."""

import dataclasses
import json

import numpy as np
import pytest

import jaxrl
from jaxrl.data.recording import Episode, Header, from_episodes
from jaxrl.results.stats import Interval
from jaxrl.run.config import ConfigError
from jaxrl.run.record import mean_return, recording_keys, scripted_player
from jaxrl.studies import reframe, reframe_arms, reframe_data, reframe_figures, run_study
from jaxrl.studies.laboratory import Laboratory
from jaxrl.studies.reframe_arms import ABLATIONS, FROM_DATA, HEADLINE, MIXED, PLAIN, RANDOM, REFRAME, SCALES
from jaxrl.studies.report import Report

FACTS = {"environment": "pendulum", "environment_options": {}, "ref_min_score": -1200.0, "ref_max_score": -200.0,
         "mean_return": -700.0}  # fmt: skip


def stand_in():
    """A recording of one step that says where it is from, as those of the study do."""
    env, params = jaxrl.make_env(jaxrl.load_config("bc_pendulum"))
    spec, yes, no = env.spec(params), np.ones(1, bool), np.zeros(1, bool)
    episode = Episode(np.zeros((2, 3), np.float32), np.zeros((1, 1), np.float32), np.zeros(1, np.float32), no, yes)
    return from_episodes([episode], Header(spec.observation_space, spec.action_space, FACTS))


def arms_of(scale, setting):
    paths = {name: f"{name}.hdf5" for name in ("expert", "medium", "medium-replay", "random")}
    return reframe_arms.sequence_arms(SCALES[scale], setting, stand_in(), paths)


def test_scores_and_targets():
    assert reframe_arms.score(np.array([-1200.0, -200.0, -700.0]), stand_in()).tolist() == [0.0, 100.0, 50.0]
    assert reframe_arms.target_return(stand_in()) == -200.0
    assert reframe_arms.target_return(stand_in(), 0.5) == -700.0


@pytest.mark.parametrize("scale", SCALES)
def test_arms_differ_in_what_they_are_about(scale):
    sizes = SCALES[scale]
    assert set(sizes.headline) | set(sizes.controls) | set(sizes.ablations) <= set(sizes.settings)
    setting = sizes.ablations[0]
    arms = arms_of(scale, setting)
    plain, mixed, memory = (arms[name] for name in (PLAIN, MIXED, REFRAME))
    assert {run.num_updates for run in arms.values()} == {sizes.num_updates}
    assert (plain.data.expert, mixed.data.mix_expert, memory.data.mix_expert) == ("", True, False)
    assert mixed.data.num_expert_episodes == memory.data.num_expert_episodes == sizes.expert_episodes
    assert plain.config.transformer == memory.config.transformer == mixed.config.transformer
    assert float(memory.hparams.target_return) == -200.0
    assert memory.config.memory.size == sizes.memory_size
    assert arms[FROM_DATA].data.expert == arms[FROM_DATA].data.name == memory.data.name
    assert arms[RANDOM].config.retrieval == "random"
    assert arms[reframe_arms.WIDE].config.fusion == "wide"
    assert arms[reframe_arms.EXPERT_ALONE].data.name == memory.data.expert
    if sizes.value_settings:
        values = reframe_arms.value_arms(sizes, stand_in(), "medium-replay.hdf5")
        assert {run.num_updates for run in values.values()} == {sizes.value_updates}


def test_the_cpu_scale_has_the_sizes_it_promises():
    run = arms_of("cpu", "hopper/medium")[REFRAME]
    assert (run.config.transformer.width, run.config.transformer.num_layers) == (64, 2)
    assert (run.config.context_length, run.num_updates, SCALES["cpu"].num_seeds) == (10, 5000, 3)
    cql = reframe_arms.value_arms(SCALES["cpu"], stand_in(), "medium-replay.hdf5")["CQL"]
    assert (cql.config.network.hidden_sizes, cql.config.num_sampled_actions) == ((256, 256), 4)
    assert cql.num_updates == 20_000


def test_full_scale_has_every_ablation_and_the_published_sizes():
    arms = arms_of("full", "hopper/medium")
    assert set(ABLATIONS) <= set(arms)
    assert float(arms["A3 k 4"].hparams.num_retrieved) == 4.0
    assert arms["A4 200 episodes, mixed"].data.num_expert_episodes == 200
    assert arms["A5 latent 64"].config.memory.latent_size == 64
    config = arms[PLAIN].config
    assert (config.context_length, config.transformer.width, config.transformer.num_layers) == (20, 128, 3)
    assert reframe_arms.value_arms(SCALES["full"], stand_in(), "x.hdf5")["CQL"].config.num_sampled_actions == 10
    assert len(SCALES["full"].settings) == 9


def test_the_teacher_swings_the_pendulum_up():
    """Uniform torques earn about -1230, the best policies about -145."""
    key = recording_keys(0)[2]
    players = [scripted_player("pendulum", {}, f"jaxrl.studies.reframe_data:{n}_teacher") for n in ("expert", "medium")]
    expert, medium = (mean_return(player, 64, key, 200) for player in players)
    assert expert > -200.0
    assert -850.0 < medium < -500.0


def test_a_folder_that_lacks_a_set_is_refused(tmp_path):
    laboratory = Laboratory(tmp_path / "study", {})
    scale = dataclasses.replace(SCALES["cpu"], data=str(tmp_path))
    with pytest.raises(ConfigError, match=r"lacks .*hopper.expert\.hdf5"):
        reframe_data.make_sets(laboratory, scale, "hopper")


# --- claims


def fake_scores(ours, mixed=(60.0, 60.0, 60.0, 60.0)):
    spread = np.array([-0.5, 0.0, 0.5])
    return {
        setting: {PLAIN: 50 + spread, MIXED: mixed[i] + spread, REFRAME: ours[i] + spread}
        for i, setting in enumerate(HEADLINE)
    }


def test_claims_follow_from_the_scores():
    report = Report("", "", "cpu", {})
    reframe.headline(report, SCALES["cpu"], fake_scores((61.0, 55.0, 50.2, 49.0)))
    rows = {row["setting"]: row for row in report.tables["headline"]}
    assert rows["hopper/medium"]["over C1"].estimate == pytest.approx(11.0)
    assert rows["walker2d/medium"]["over C2"].estimate == pytest.approx(-5.0)
    assert rows["all"][PLAIN].estimate == pytest.approx(50.0)
    assert [claim.holds for claim in report.claims] == [True, None, False]
    assert report.claims[0].ours == "3 of 4, 2 with intervals above 0"
    assert "hopper/medium" in report.claims[1].ours
    few = Report("", "", "smoke", {})
    reframe.headline(few, dataclasses.replace(SCALES["cpu"], num_seeds=2), fake_scores((61.0, 55.0, 51.0, 49.0)))
    assert all(claim.holds is None for claim in few.claims)


def test_the_mechanism_must_lose_its_gain():
    for left, holds in ((51.0, True), (58.0, False)):
        report, scores = Report("", "", "cpu", {}), fake_scores((60.0, 60.0, 60.0, 60.0))
        scores["hopper/medium"] |= {FROM_DATA: np.full(3, left), RANDOM: np.full(3, 50.0)}
        reframe.ablations(report, SCALES["cpu"], scores)
        assert report.claims[0].holds is holds
        rows = {row["ablation"]: row for row in report.tables["ablations"]}
        assert rows[RANDOM]["less Re:Frame"].estimate == pytest.approx(-10.0)


def test_value_learning_beside_cloning():
    report = Report("", "", "cpu", {})
    values = {setting: {"BC": np.full(3, 20.0), "CQL": np.full(3, 31.0)} for setting in SCALES["cpu"].value_settings}
    reframe.compare_values(report, SCALES["cpu"], values)
    assert report.claims[0].holds is True
    assert report.tables["values"][0]["difference"].estimate == 11.0
    reframe.plain_transformer(report, SCALES["smoke"], {"pendulum/medium": stand_in()},
                              {"pendulum/medium": {PLAIN: np.full(3, 47.0)}})  # fmt: skip
    assert "-3.0" in report.claims[1].ours


def test_data_efficiency_goes_by_the_number_of_episodes():
    scores = {REFRAME: np.full(3, 3.0), MIXED: np.full(3, 30.0), "A4 6 episodes": np.full(3, 1.0),
              "A4 6 episodes, mixed": np.full(3, 10.0), "A4 20 episodes": np.full(3, 2.0)}  # fmt: skip
    curves = reframe_figures.data_efficiency(SCALES["cpu"], scores)
    x, y = curves[REFRAME][0]
    assert (x.tolist(), y.tolist()) == ([6.0, 20.0, 60.0], [1.0, 2.0, 3.0])
    assert curves[MIXED][2][1].tolist() == [10.0, 30.0]


# --- a run

TINY = {
    "data_steps": 1000, "stored_episodes": 4, "expert_episodes": 4, "num_updates": 10, "width": 8, "memory_size": 64,
    "autoencoder_updates": 10, "num_episodes": 4, "half_target": True, "value_settings": ("pendulum/random",),
    "value_updates": 10,
}  # fmt: skip


@pytest.mark.slow
def test_a_tiny_study_measures_every_arm_and_goes_on_where_it_was(tmp_path):
    report = run_study("reframe", "smoke", tmp_path / "study", **TINY)
    row = report.tables["controls"][0]
    arms = (PLAIN, MIXED, REFRAME, reframe_arms.EXPERT_ALONE, reframe_arms.NEAREST, reframe_arms.WIDE)
    assert all(isinstance(row[arm], Interval) and np.isfinite(row[arm].estimate) for arm in arms)
    # An expert's nearest neighbour knows more than a network after ten updates.
    assert row[reframe_arms.NEAREST].estimate > row[PLAIN].estimate
    names = {row["ablation"] for row in report.tables["ablations"]}
    assert names == {FROM_DATA, RANDOM, reframe_arms.SHUFFLED, reframe_arms.DETACHED}
    watched = report.tables["memory"][0]
    assert 0 <= watched["steps with gate > 0.5"].estimate <= 1
    assert abs(watched["largest cosine"].estimate) <= 1 + 1e-5
    assert {"BC", "CQL"} <= set(report.tables["values"][0])
    figures = {path.name for path in (tmp_path / "study" / "figures").iterdir()}
    assert figures == set(report.figures) >= {"scores.png", "gate.png", "similarity_training.png"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "study" / "arms").rglob("metrics.jsonl")}
    again = run_study("reframe", "smoke", tmp_path / "study", **TINY)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    stored = json.loads((tmp_path / "study" / "results.json").read_text())
    assert stored["tables"]["headline"][0]["setting"] == "pendulum/medium"
    assert json.dumps(again.claim_rows()) == json.dumps(report.claim_rows())
