"""CybORG against records of the original simulator: every transition, every red decision, and the distributions.

`golden/cyborg` holds 194 episodes of CAGE Challenge 2 (commit 26ce1c1): B_line, Meander and Sleep, six blue policies,
green asleep and active, lengths 30, 50 and 100.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs_jax.security.cyborg import Cyborg
from envs_jax.security.cyborg.distributions import compare_distributions
from envs_jax.security.cyborg.network import cage2_network
from envs_jax.security.cyborg.parity import (
    as_recorded,
    check_folder,
    compare,
    replay,
    replay_traces,
    trace_environment,
)
from envs_jax.security.cyborg.rules import Rules
from envs_jax.security.cyborg.traces import INPUTS, MORE_RESULTS, RED_AGENTS, RESULTS, read_traces

GOLDEN = Path(__file__).parent / "golden" / "cyborg"
SLOTS = (38, 1, 33, 20, 39, 5, 12, 36, 31, 32, 3, 25, 8)  # of 40, on both sides of a word's edge


@pytest.fixture(scope="module")
def traces():
    return read_traces(GOLDEN)


@pytest.fixture(scope="module")
def played(traces):
    return replay_traces(traces)


def mismatches(traces, played):
    return {name: int(wrong.sum()) for name, wrong in compare(traces, played).items() if wrong.any()}


def test_every_transition_and_decision_agrees(traces, played):
    wrong = compare(traces, played)
    assert set(wrong) >= {*RESULTS, *MORE_RESULTS, "red_class", "red_subnet", "red_host"}
    assert traces.mask().sum() == 15_800
    assert {name: int(rows.sum()) for name, rows in wrong.items() if rows.any()} == {}


def test_record_exercises_what_is_hard(traces):
    assert np.unique(traces.arrays["blue_action"]).size == 145
    assert np.unique(traces.arrays["ep_red"]).size == 3
    assert (traces.arrays["red_detected"] == 0).sum() > 20
    assert (traces.arrays["n_user_removable"] + traces.arrays["n_user_sticky"]).max() > 3


def test_without_vmap(traces, played):
    env = trace_environment(traces)
    params = env.default_params
    alone = jax.jit(lambda agent, rows: replay(env, params, agent, rows))
    mask = traces.mask()
    for red in range(3):
        for green in (0, 1):
            cell = (traces.arrays["ep_red"] == red) & (traces.arrays["ep_green"] == green)
            for episode in np.flatnonzero(cell)[:2]:
                rows = {name: jnp.asarray(traces.padded(name)[:, episode], jnp.int32) for name in INPUTS}
                single = jax.tree.map(lambda leaf: np.asarray(leaf)[:, None], alone(jnp.int32(red), rows))
                one = dataclasses.replace(traces, arrays=traces.arrays | {"ep_red": traces.arrays["ep_red"][[episode]]})
                single = as_recorded(one, single)
                for name, value in single.items():
                    if value.shape[:2] == (len(mask), 1) and name in played:
                        steps = mask[:, episode]
                        np.testing.assert_array_equal(value[steps, 0], played[name][steps, episode], err_msg=name)


def embedded_replay(traces):
    """The record on a network of 40 hosts and 5 subnets that holds the 13 at odd places, with the extension."""
    reds = tuple(RED_AGENTS[name] for name in traces.legend["red_agents"])
    network = cage2_network(Rules(), SLOTS, 40, 5)
    env = Cyborg(red=reds, green=True, extension=True, network=network)
    params, slots = env.default_params, np.array([*SLOTS, -1])
    rows = {name: traces.padded(name).astype(np.int64) for name in INPUTS}
    kind, host = np.divmod(rows["blue_action"] - 2, 13)
    rows["blue_action"] = np.where(rows["blue_action"] < 2, rows["blue_action"], 2 + 40 * kind + slots[host])
    rows |= {name: slots[rows[name]] for name in ("green_host", "red_host")}
    rows = {name: jnp.asarray(value, jnp.int32) for name, value in rows.items()}
    play = jax.jit(jax.vmap(lambda agent, episode: replay(env, params, agent, episode), (0, 1), 1))
    result = jax.tree.map(np.asarray, play(jnp.asarray(traces.arrays["ep_red"], jnp.int32), rows))
    return as_recorded(traces, result, SLOTS)


def test_generic_network_extension_and_x64(traces):
    """Everything at once: hosts spread over a padded network, the extension switched on, 64-bit types allowed."""
    with jax.enable_x64(True):
        assert mismatches(traces, embedded_replay(traces)) == {}


@pytest.mark.slow
def test_generic_network_and_extension(traces):
    assert mismatches(traces, embedded_replay(traces)) == {}


@pytest.mark.slow
def test_x64(traces):
    with jax.enable_x64(True):
        assert mismatches(traces, replay_traces(traces)) == {}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("obs", lambda row: row ^ 1),
        ("reward", lambda row: row - np.float32(0.1)),
        ("red_choice_mask", lambda row: row ^ 4),
        ("red_agent", lambda row: row + 1),
        ("n_user_sticky", lambda row: row + 1),
        ("red_known_ip", lambda row: row ^ 64),
    ],
)
def test_a_changed_record_is_noticed(traces, played, name, change):
    episode, step = 7, 11
    arrays = {key: value.copy() for key, value in traces.arrays.items()}
    row = arrays["ep_start"][episode] + step
    arrays[name][row] = change(arrays[name][row])
    wrong = compare(dataclasses.replace(traces, arrays=arrays), played)
    assert np.argwhere(wrong[name]).tolist() == [[step, episode]]
    assert not any(rows.any() for other, rows in wrong.items() if other != name)


def test_report(traces, played, monkeypatch):
    monkeypatch.setattr("envs_jax.security.cyborg.parity.replay_traces", lambda traces: played)
    report = check_folder(GOLDEN, seeds=())
    assert report.passed
    assert report.transitions == 15_800
    assert "PASS" in str(report)
    assert "B_line/random" in str(report)  # its distribution was not compared
    broken = dataclasses.replace(report, mismatches={**report.mismatches, "obs": 2}, examples={"obs": (3, 4)})
    assert not broken.passed
    assert "episode 3, step 4" in str(broken)
    assert "FAIL" in str(broken)


def test_unknown_policies_are_listed():
    cells = {"B_line/strange": {"red": "B_line", "blue": "strange", "green": "sleep", "episodes": 10, "steps": 100}}
    (result,) = compare_distributions(cells, seeds=(0,))
    assert result.not_checked == ("B_line/strange",)
    assert result.figures == ()


def spoiled(folder, change):
    """A copy of the golden folder, the first 40 rows of it, after `change(folder, arrays, legend)`."""
    folder = folder / "traces"
    shutil.copytree(GOLDEN, folder)
    with np.load(folder / "traces.npz") as file:
        arrays = dict(file)
    legend = json.loads((folder / "legend.json").read_text())
    change(folder, arrays, legend)
    (folder / "legend.json").write_text(json.dumps(legend))
    if (folder / "traces.npz").exists() and arrays:
        np.savez(folder / "traces.npz", **arrays)
    return folder


def drop(table, name):
    table.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder, arrays, legend: drop(arrays, "red_agent"), "lacks red_agent"),
        (lambda folder, arrays, legend: arrays.update(obs=arrays["obs"][:, :50]), "'obs' must be numbers of shape"),
        (lambda folder, arrays, legend: arrays.update(blue_action=arrays["blue_action"] + 100), "'blue_action' must"),
        (lambda folder, arrays, legend: arrays.update(ep_len=arrays["ep_len"] + 10**6), "must name rows"),
        (lambda folder, arrays, legend: legend.update(hosts=["A", "B"]), "'hosts' must be"),
        (lambda folder, arrays, legend: legend.update(exploits=["SSHBruteForce"]), "'exploits' lacks"),
        (lambda folder, arrays, legend: legend.update(red_agents=["B_line", "Ghost"]), "unknown 'red_agents'"),
        (lambda folder, arrays, legend: (folder / "traces.npz").unlink(), "traces.npz"),
        (lambda folder, arrays, legend: (arrays.clear(), (folder / "traces.npz").write_text("no zip")), "traces.npz"),
        (lambda folder, arrays, legend: (folder / "stats.json").write_text("[1]"), "stats.json must hold a table"),
        (lambda folder, arrays, legend: (folder / "stats.json").write_text("{"), "cannot be read as JSON"),
    ],
)
def test_other_formats_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_traces(spoiled(tmp_path, change))


def test_missing_folder_and_legend(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        read_traces(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"legend.json is missing"):
        read_traces(tmp_path)


@pytest.mark.slow
def test_distributions_at_three_keys():
    cells = json.loads((GOLDEN / "stats.json").read_text())["cells"]
    for result in compare_distributions(cells, seeds=(0, 1, 2)):
        assert len(result.figures) > 500
        assert result.not_checked == ()
        assert result.max_z <= 4.5
        assert result.share_unusual <= 0.01
        assert result.chi_square_p > 0.001
