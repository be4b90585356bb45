"""Runs: exactness of chunks, checkpoints and resumes; sweeps; evaluation; what happens when something goes wrong."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from envs_jax import registry
from jaxrl.run import checkpoint
from jaxrl.run.checkpoint import CheckpointError, list_checkpoints, named_leaves
from jaxrl.run.config import ConfigError, make_config
from jaxrl.run.folder import RunFolder
from jaxrl.run.training import NotFinite, TrainingStopped

VALUES = {
    "name": "tiny",
    "algorithm": "ppo",
    "num_updates": 8,
    "env": {"name": "cartpole", "max_steps": 50},
    "config": {"num_envs": 4, "unroll_length": 16, "num_minibatches": 2, "network": {"hidden_sizes": [16]}},
    "hparams": {"learning_rate": 1e-3},
    "evaluation": {"every": 4, "num_episodes": 8},
    "checkpoint": {"every": 2},
    "log": {"chunk": 2, "tensorboard": False},
}


def equal(one, other):
    left, right = named_leaves(one), named_leaves(other)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(np.asarray(left[name]), np.asarray(right[name]), err_msg=name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that went through without interruption."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run = make_config(VALUES)
    state, log = jaxrl.fit(run, folder, progress=False)
    return run, folder, state, log


def test_chunks_equal_one_scan(finished):
    run, _, state, log = finished
    agent, data = jaxrl.make_algorithm(run), jaxrl.load_data(run)
    init = jax.jit(agent.init)(jax.random.key(run.seed), run.hparams, data)
    train = jax.jit(lambda s, hparams, data: jaxrl.scan_updates(agent, s, hparams, run.num_updates, data))
    whole, metrics = train(init, run.hparams, data)
    equal(whole, state)
    logged = np.array([row["loss/value"] for row in log], np.float32)
    np.testing.assert_array_equal(logged, np.asarray(metrics["loss/value"]))


def test_the_folder_holds_what_it_should(finished):
    _, folder, _, log = finished
    stored = json.loads((folder / "config.json").read_text())
    assert stored["resolved"]["hparams"]["learning_rate"] == 1e-3
    assert {"jax", "python"} <= stored["versions"].keys()
    assert stored["device"]["platform"] == jax.default_backend()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in lines] == list(range(1, 9))
    assert json.loads(lines[-1])["env_steps"] == 8 * 4 * 16
    assert "evaluation/return" in json.loads(lines[3])
    assert len((folder / "timing.jsonl").read_text().splitlines()) == 4
    assert [path.name for path in list_checkpoints(folder / "checkpoints")][-1] == "000000008"
    assert (folder / "curve.png").stat().st_size > 1000
    assert log[-1]["evaluation/return"] == json.loads(lines[-1])["evaluation/return"]


def test_resume_equals_the_uninterrupted_run(finished, tmp_path):
    _, folder, state, _ = finished
    partial = make_config(VALUES, ["num_updates=4", "hparams.anneal_updates=8"])
    jaxrl.fit(partial, tmp_path / "r", progress=False)
    # Lines that a killed process wrote after its last checkpoint are written anew, not doubled.
    with (tmp_path / "r" / "metrics.jsonl").open("a") as file:
        file.write('{"update": 5, "env_steps": 320}\n')
    extended = RunFolder(tmp_path / "r").load_run(["num_updates=8"])
    resumed, log = jaxrl.fit(extended, tmp_path / "r", resume=True, progress=False)
    equal(resumed, state)
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
    assert len(log) == 8


def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(finished, tmp_path, capsys):
    _, folder, state, _ = finished
    jaxrl.fit(make_config(VALUES, ["num_updates=4", "hparams.anneal_updates=8"]), tmp_path / "r", progress=False)
    newest = list_checkpoints(tmp_path / "r" / "checkpoints")[-1]
    for file in (newest / "arrays").rglob("*"):
        if file.is_file() and file.stat().st_size > 200:
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 0xFF
            file.write_bytes(content)
    extended = RunFolder(tmp_path / "r").load_run(["num_updates=8"])
    resumed, _ = jaxrl.fit(extended, tmp_path / "r", resume=True, progress=False)
    assert "is damaged" in capsys.readouterr().err
    equal(resumed, state)
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()


def test_a_folder_is_never_overwritten(finished):
    run, folder, _, _ = finished
    with pytest.raises(ConfigError, match="already holds a run"):
        jaxrl.fit(run, folder, progress=False)


def test_a_checkpoint_of_another_configuration_is_refused(finished, tmp_path):
    _, folder, _, _ = finished
    with pytest.raises(
        CheckpointError, match=r"is of another configuration: \S+ is float32\S+ there and float32\S+ in this run"
    ):
        jaxrl.fit(
            RunFolder(folder).load_run(["config.network.hidden_sizes=[8]", "num_updates=16"]),
            folder,
            resume=True,
            progress=False,
        )


def test_another_format_version_is_refused(finished, tmp_path):
    _, folder, _, _ = finished
    path = list_checkpoints(folder / "checkpoints")[-1]
    copy = tmp_path / path.name
    copy.mkdir()
    facts = json.loads((path / "checkpoint.json").read_text())
    (copy / "checkpoint.json").write_text(json.dumps(facts | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="has format version 99; this version of jaxrl reads 1"):
        checkpoint.read_facts(copy)


def test_start_from_trained_parameters(finished):
    folder = finished[1]
    trained, _ = jaxrl.load_state(folder)
    frozen = make_config(VALUES, ["num_updates=2", "hparams.learning_rate=0.0", "evaluation.every=0"])
    state, _ = jaxrl.fit(frozen, init_from=folder, progress=False)
    equal(state.params, trained.params)
    other = make_config(VALUES, ["num_updates=2", "config.network.hidden_sizes=[8]", "evaluation.every=0"])
    with pytest.raises(CheckpointError, match="do not fit"):
        jaxrl.fit(other, init_from=folder, progress=False)


def test_arrays_without_entries_are_restored(tmp_path):
    """Environments switch off a part of their state by giving it the size 0."""
    state = {"full": jnp.arange(3), "off": jnp.zeros((0, 2), jnp.int16)}
    writer = checkpoint.CheckpointWriter(tmp_path, keep=1)
    writer.save(state, 1, {})
    writer.wait()
    (path,) = list_checkpoints(tmp_path)
    restored, facts = checkpoint.restore(path, state)
    assert facts == {"update": 1}
    assert (restored["off"].shape, restored["off"].dtype) == ((0, 2), jnp.int16)
    np.testing.assert_array_equal(restored["full"], state["full"])


def test_evaluation_is_the_same_for_every_seed_and_checkpoint(finished):
    run, _, state, log = finished
    agent, data = jaxrl.make_algorithm(run), jaxrl.load_data(run)
    first = jaxrl.evaluate(agent, state, run, data)
    again = jaxrl.evaluate(agent, state, make_config(VALUES, ["seed=9"]), data)
    np.testing.assert_array_equal(first.returns, again.returns)
    assert first.low <= first.mean <= first.high
    assert np.float32(log[-1]["evaluation/return"]) == pytest.approx(np.float32(first.mean), rel=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    run = make_config(VALUES, ["hparams.learning_rate=1e30", "hparams.max_grad_norm=1e30"])
    with pytest.raises(NotFinite, match=r"loss/\w+ is (nan|inf) at update \d+; the last good checkpoint is kept"):
        jaxrl.fit(run, tmp_path / "r", progress=False)
    for path in list_checkpoints(tmp_path / "r" / "checkpoints"):
        assert checkpoint.read_facts(path)["facts"]["update"] < 8


def test_a_full_disk_leaves_earlier_checkpoints_whole(tmp_path, monkeypatch):
    jaxrl.fit(make_config(VALUES, ["num_updates=4"]), tmp_path / "r", progress=False)
    before = [path.name for path in list_checkpoints(tmp_path / "r" / "checkpoints")]

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        jaxrl.fit(RunFolder(tmp_path / "r").load_run(["num_updates=8"]), tmp_path / "r", resume=True, progress=False)
    assert [path.name for path in list_checkpoints(tmp_path / "r" / "checkpoints")] == before


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, monkeypatch):
    from jaxrl.run import training

    run = make_config(VALUES, ["num_updates=400", "evaluation.every=0"])
    original = training.Training._record

    def interrupt(self, rows, seconds):
        original(self, rows, seconds)
        if self.position.update == 4:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(training.Training, "_record", interrupt)
    with pytest.raises(TrainingStopped, match="jaxrl train --resume"):
        jaxrl.fit(run, tmp_path / "r", progress=False)
    assert list_checkpoints(tmp_path / "r" / "checkpoints")[-1].name == "000000004"


def test_another_version_of_the_environment_is_told(finished, tmp_path):
    shutil.copytree(finished[1], tmp_path / "r")
    file = tmp_path / "r" / "config.json"
    stored = json.loads(file.read_text())
    assert stored["environment_version"] == registry.version("cartpole")
    file.write_text(json.dumps(stored | {"environment_version": 0}))
    with pytest.warns(UserWarning, match="version 0 of 'cartpole', which is version 1 here"):
        RunFolder(tmp_path / "r").load_run()


def test_a_sweep_member_equals_its_single_run(tmp_path):
    run = make_config(VALUES, ["num_updates=2", "evaluation.every=0", "checkpoint.every=0", "log.chunk=2"])
    grid = {"hparams.learning_rate": [1e-3, 3e-3], "config.network.activation": ["tanh", "relu"]}
    result = jaxrl.sweep(run, grid, seeds=2, sweep_dir=tmp_path / "s", progress=False)
    assert len(result.members) == 8
    assert {member.group for member in result.members} == {0, 1}
    member = result.members[5]
    single, log = jaxrl.fit(member.run, progress=False)
    for one, other in zip(jax.tree.leaves(single.params), jax.tree.leaves(member.state.params)):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=1e-5)
    assert log[0]["loss/value"] == pytest.approx(member.rows[0]["loss/value"], abs=1e-4)
    table = result.table()
    assert [row["seeds"] for row in table] == [2] * 4
    assert table[0]["mean"] == max(row["mean"] for row in table)
    stored, stored_run = jaxrl.load_state(tmp_path / "s" / "005")
    equal(stored.params, member.state.params)
    assert stored_run.seed == member.run.seed
    with pytest.raises(ConfigError, match="already holds a sweep"):
        jaxrl.sweep(run, grid, seeds=2, sweep_dir=tmp_path / "s", progress=False)
    resumed = jaxrl.sweep(run, grid, seeds=2, sweep_dir=tmp_path / "s", resume=True, progress=False)
    assert resumed.table() == table


def test_parameters_of_the_environment_share_a_program(tmp_path):
    run = make_config(VALUES, ["num_updates=2", "evaluation.every=0", "checkpoint.every=0", "log.chunk=2"])
    points = [{"env.gravity": 9.8}, {"env.gravity": 30.0}]
    result = jaxrl.sweep(run, points, seeds=1, sweep_dir=tmp_path / "s", progress=False)
    assert [member.group for member in result.members] == [0, 0]
    for member in result.members:
        single, log = jaxrl.fit(member.run, progress=False)
        for one, other in zip(jax.tree.leaves(single.params), jax.tree.leaves(member.state.params)):
            np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=1e-5)
        assert log[-1]["evaluation/return"] == pytest.approx(member.rows[-1]["evaluation/return"], abs=1.0)
    one, other = (jax.tree.leaves(member.state.params)[0] for member in result.members)
    assert np.max(np.abs(one - other)) > 1e-4
    # What shapes the program makes groups: options of the constructor, unless it says that it only sets parameters.
    options = {"physics": "planar", "reward": "base", "noise": 0.0, "frame_stack": 3}
    assert registry.static_options("hopper-flip", options) == {"physics": "planar", "frame_stack": 3}
    for physics, shaping in (("planar", False), ("mjx", True)):
        options = {"physics": physics, "variant": "light_thigh"}
        assert ("variant" in registry.static_options("hopper-flip", options)) is shaping
    with pytest.raises(ConfigError, match="at least one seed and one value"):
        jaxrl.sweep(run, [], seeds=1)


def test_four_devices_equal_one(finished):
    if jax.local_device_count() < 4:
        pytest.skip("needs 4 (fake) devices")
    values = ["num_updates=3", "evaluation.every=0", "checkpoint.every=0", "log.chunk=3"]
    one, _ = jaxrl.fit(make_config(VALUES, values), progress=False)
    four, _ = jaxrl.fit(make_config(VALUES, [*values, "num_devices=4"]), progress=False)
    assert len(four.rollout.episode_length.sharding.device_set) == 4
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(four.params)):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)
    with pytest.raises(ValueError, match="must be a multiple of the 4 devices, got 6"):
        jaxrl.fit(make_config(VALUES, [*values, "num_devices=4", "config.num_envs=6"]), progress=False)


@pytest.mark.slow
def test_four_devices_learn_what_one_learns():
    if jax.local_device_count() < 4:
        pytest.skip("needs 4 (fake) devices")
    values = ["evaluation.every=0", "checkpoint.every=0"]
    for devices in (1, 4):
        _, log = jaxrl.fit(jaxrl.load_config("ppo_cartpole", [*values, f"num_devices={devices}"]), progress=False)
        assert log[-1]["evaluation/return"] >= 475


def test_tensorboard_events_where_the_extra_is_installed(tmp_path):
    pytest.importorskip("tensorboardX")
    run = make_config(VALUES, ["num_updates=2", "evaluation.every=0", "log.tensorboard=true"])
    jaxrl.fit(run, tmp_path / "r", progress=False)
    assert list((tmp_path / "r" / "tensorboard").glob("events.*"))


def test_num_devices_is_checked():
    with pytest.raises(ValueError, match="num_devices must be at most"):
        jaxrl.fit(make_config(VALUES, ["num_devices=4096"]), progress=False)


def test_every_program_compiles_once(finished):
    run = finished[0]
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **__: compiled.append(name) if name.endswith("backend_compile_duration") else None
    )
    try:
        jaxrl.fit(run, progress=False)
        few = len(compiled)
        compiled.clear()
        jaxrl.fit(make_config(VALUES, ["num_updates=32"]), progress=False)
        assert len(compiled) <= few
    finally:
        jax.monitoring.clear_event_listeners()


@pytest.mark.slow
def test_killed_three_times_equals_uninterrupted(tmp_path):
    """SIGKILL at random moments: parameters bitwise, metrics byte for byte."""
    config = tmp_path / "run.toml"
    config.write_text(
        'algorithm = "ppo"\nnum_updates = 3000\n[env]\nname = "cartpole"\n'
        "[config]\nnum_envs = 4\nunroll_length = 32\n[config.network]\nhidden_sizes = [16]\n"
        "[evaluation]\nevery = 300\nnum_episodes = 8\n[checkpoint]\nevery = 100\n"
    )
    command = [sys.executable, "-m", "jaxrl.cli", "train"]
    subprocess.run([*command, str(config), "--run-dir", str(tmp_path / "whole")], check=True, capture_output=True)
    folder = tmp_path / "killed"
    random = np.random.default_rng(0)
    arguments = [str(config), "--run-dir", str(folder)]
    for _ in range(3):
        process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while len(list_checkpoints(folder / "checkpoints")) < 1 and process.poll() is None:
            time.sleep(0.05)
        time.sleep(float(random.uniform(0.2, 1.5)))
        process.kill()
        process.communicate()
        arguments = ["--resume", str(folder)]
    subprocess.run([*command, *arguments], check=True, capture_output=True)
    whole, killed = (jaxrl.load_state(path)[0] for path in (tmp_path / "whole", folder))
    equal(whole, killed)
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()


def test_gymnasium_environments_train_on_the_host(tmp_path):
    pytest.importorskip("gymnasium")
    values = VALUES | {"env": {"name": "CartPole-v1", "backend": "gymnasium"}}
    run = make_config(values, ["num_updates=4", "log.every=2"])
    state, log = jaxrl.fit(run, tmp_path / "r", progress=False)
    assert len(log) == 2
    assert log[-1]["env_steps"] == 4 * 64
    assert log[-1]["evaluation/length"] >= 8
    assert jnp.all(jnp.isfinite(jax.tree.leaves(state.params)[0]))
    with pytest.raises(ConfigError, match=r"needs env.backend='jax'"):
        jaxrl.sweep(run, {}, seeds=2, progress=False)
    with pytest.raises(ConfigError, match=r"version `v99` for environment `CartPole` doesn't exist"):
        jaxrl.fit(make_config(values, ["env.name=CartPole-v99"]), progress=False)
