"""ONNX policies: the same actions as the live policy, from graphs of a free and of a fixed batch."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import envs_jax
from jaxrl.algorithms.ppo import PPOConfig, make_ppo
from jaxrl.parts.networks import NetworkConfig
from jaxrl.results.acting import live_actions, record_observations
from jaxrl.results.export import export_policy, load_policy
from jaxrl.types import Data
from test_export import CASES, broken_export, live_steps, make_case, random_state

MLPS = ("discrete", "multi_discrete", "continuous", "unbounded")


@pytest.fixture(scope="module")
def onnx():
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    return pytest.importorskip("onnx", reason="the extra onnx is not installed")


@pytest.fixture(scope="module")
def hopper():
    """(agent, state, data, environment) of the flip with random weights in the configuration's network."""
    env, params = envs_jax.make("hopper-flip", frame_stack=3)
    network = NetworkConfig(activation="elu", hidden_sizes=(128, 128))
    config = PPOConfig(
        num_envs=4, unroll_length=4, num_minibatches=1, normalize_observations=True, normalize_rewards=True,
        network=network,
    )  # fmt: skip
    agent, data = make_ppo(config, env), Data(params)
    state = jax.tree.map(lambda leaf: leaf * 0.2 if leaf.ndim == 2 else leaf, random_state(agent, data))
    return agent, state, data, env


@pytest.mark.parametrize("name", MLPS)
def test_it_acts_like_the_live_policy(onnx, name, tmp_path):
    agent, state, spec = make_case(name)
    observation, legal, wanted = live_steps(agent, state, spec)
    path = export_policy(agent, state, tmp_path / "policy.onnx", Data(), spec=spec)
    for file, batches in ((path, (1, 7)), (tmp_path / "policy.batch1.onnx", (1,))):
        policy = load_policy(file)
        for batch in batches:
            action, _ = policy.act(observation[0, :batch], None if legal is None else legal[0, :batch])
            assert action.dtype == wanted.dtype
            np.testing.assert_allclose(action, wanted[0, :batch], rtol=1e-5, atol=1e-5)
    model = onnx.load(path)
    assert model.opset_import[0].version == 17
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "b"
    assert json.loads((tmp_path / "meta.json").read_text())["policy"] == "policy.onnx"
    assert policy.latency(3) > 0


@pytest.mark.slow
def test_three_formats_agree_on_a_thousand_observations(hopper, tmp_path):
    agent, state, data, env = hopper
    policy_params = agent.policy(state, data)
    template, recorded = record_observations(agent, policy_params, state, data, env)
    wanted = live_actions(agent, policy_params, template, recorded).reshape(-1, 3)
    rows = recorded["observation"].reshape(-1, 66)
    assert len(rows) >= 1000
    assert np.std(wanted, axis=0).max() > 0.05, "a constant policy would prove nothing"
    formats = ["npz", "stablehlo"]
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError:
        pass
    else:
        formats.append("onnx")
    for format in formats:
        policy = load_policy(export_policy(agent, state, tmp_path / f"policy.{format}", data, spec=env))
        np.testing.assert_allclose(np.asarray(policy.act(rows)[0]), wanted, rtol=0, atol=1e-5)
        assert policy.metadata["environment"]["frame_stack"] == {"num_frames": 3, "order": "oldest first"}


def test_meta_json_describes_the_observation(hopper, tmp_path):
    agent, state, data, env = hopper
    export_policy(agent, state, tmp_path / "policy.npz", data, spec=env, metadata={"evaluation": {"return": 1.0}})
    meta = json.loads((tmp_path / "meta.json").read_text())
    about = meta["environment"]
    assert sum(len(part["entries"]) for part in about["observation_frame"]) == 22
    assert meta["observation"]["shape"] == [66]
    assert about["joint_order"] == ["knee", "ankle_pitch", "ankle_roll"]
    assert about["joints"]["knee"]["nominal_rad"] == 0.9
    assert about["joints"]["ankle_pitch"]["proportional_gain_Nm_per_rad"] == 60.0
    assert about["control_rate_Hz"] == pytest.approx(100.0)
    assert about["clock"]["num_steps"] == 200
    assert meta["user"]["evaluation"] == {"return": 1.0}
    assert meta["git"] is None or len(meta["git"].rstrip("+")) == 40


def test_the_layout_is_the_one_that_is_observed(hopper):
    """Rebuilds a frame from what the layout says."""
    *_, env = hopper
    inner, params = env.env, env.default_params
    quiet = params.replace(noise=0.0 * params.noise)
    state, shown = jax.jit(inner.reset)(jax.random.key(3), quiet)
    snapshot = inner.physics.snapshot(quiet, state.motion)
    raw = [snapshot.gravity, snapshot.base_rate, snapshot.joints, snapshot.joint_rates, *state.actions]
    layout = env.describe()["observation_frame"]
    frame = [part["scale"] * (np.asarray(v) - np.asarray(part["offset"])) for part, v in zip(layout, raw)]
    np.testing.assert_allclose(np.concatenate(frame), shown.observation[:18], atol=1e-6)


def test_what_has_no_onnx_form_is_refused(onnx, tmp_path):
    for name, message in (("cnn", "not 'conv'"), ("gru", "not 'gru'")):
        agent, state, spec = make_case(name)
        with pytest.raises(ValueError, match=message):
            export_policy(agent, state, tmp_path / "policy.onnx", Data(), spec=spec)
    agent, state, spec = make_case("continuous")
    with pytest.raises(ValueError, match="would act unlike the live policy"):
        export_policy(broken_export(agent), state, tmp_path / "policy.onnx", Data(), spec=spec)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "torn.onnx").write_bytes(b"not a graph")
    with pytest.raises(ValueError, match="is damaged or no exported policy"):
        load_policy(tmp_path / "torn.onnx")


def test_without_the_extra_the_error_names_it(tmp_path):
    code = """
import sys
sys.modules["onnx"] = None
from jaxrl.results import onnx
try:
    onnx.require()
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "pip install 'jaxrl[onnx]'" in result.stdout
    assert set(CASES) > set(MLPS)
