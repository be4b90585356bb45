"""Exported policies act like the live one, from one file for every batch size, and say so when they cannot."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from envs_jax.core import EnvSpec, time_step
from envs_jax.spaces import Box, Discrete, MultiDiscrete
from jaxrl.algorithms.ppo import PPOConfig, PPOHParams, make_ppo
from jaxrl.parts.networks import NetworkConfig
from jaxrl.parts.normalize import RunningStatistics
from jaxrl.results import export
from jaxrl.results.export import export_policy, load_policy
from jaxrl.types import Algorithm, Data

FORMATS = ("stablehlo", "npz")
BOX = Box(-1.0, 1.0, (5,))
# name -> spaces, network, observations normalised
CASES = {
    "discrete": (EnvSpec(BOX, Discrete(4)), NetworkConfig(activation="relu", hidden_sizes=(16, 16)), False),
    "multi_discrete": (
        EnvSpec(BOX, MultiDiscrete((3, 2, 4))),
        NetworkConfig(activation="swish", hidden_sizes=(16,)),
        False,
    ),
    "continuous": (
        EnvSpec(Box(-np.inf, np.inf, (5,)), Box(np.array([-2.0, 0.0]), np.array([2.0, 5.0]), (2,))),
        NetworkConfig(activation="elu", hidden_sizes=(16,)),
        True,
    ),
    "unbounded": (
        EnvSpec(BOX, Box(-np.inf, np.inf, (2,))),
        NetworkConfig(activation="gelu", hidden_sizes=(16,), shared_torso=True),
        False,
    ),
    "cnn": (
        EnvSpec(Box(0, 255, (9, 6, 2), jnp.uint8), Box(-np.inf, np.inf, (2,))),
        NetworkConfig(torso="cnn", activation="swish", cnn_channels=(4, 8), hidden_sizes=(16,)),
        False,
    ),
    "gru": (
        EnvSpec(BOX, Box(-1.0, 1.0, (2,)), critic_observation_space=Box(-1.0, 1.0, (7,))),
        NetworkConfig(torso="gru", gru_size=12, hidden_sizes=(16,)),
        True,
    ),
}


def random_state(agent, data, seed=0):
    """A state as after some training, without the cost of compiling any."""
    generator = np.random.default_rng(seed)

    def fill(leaf):
        if isinstance(leaf, RunningStatistics):
            shape = leaf.mean.shape
            return RunningStatistics(
                jnp.float32(100.0),
                jnp.asarray(generator.normal(size=shape), jnp.float32),
                jnp.asarray(100.0 * generator.uniform(0.2, 2.0, shape), jnp.float32),
            )
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        scale = 0.4 if jnp.issubdtype(leaf.dtype, jnp.floating) else 0.0
        return jnp.asarray(generator.normal(0.0, 1.0, leaf.shape) * scale, leaf.dtype)

    shapes = jax.eval_shape(lambda key: agent.init(key, PPOHParams(), data), jax.random.key(0))
    return jax.tree.map(fill, shapes, is_leaf=lambda leaf: isinstance(leaf, RunningStatistics))


def make_case(name):
    spec, network, normalized = CASES[name]
    agent = make_ppo(PPOConfig(network=network, normalize_observations=normalized), spec)
    return agent, random_state(agent, Data()), spec


def live_steps(agent, state, spec, num_steps=3, batch=7):
    """Random observations and masks, and the live policy's actions, all `[T, b, ...]`."""
    policy_params = agent.policy(state, Data())
    generator = np.random.default_rng(1)
    space, critic, legal = spec.observation_space, spec.critic_observation_space, None
    scale = 1.0 if space.dtype == jnp.float32 else 3.0
    observation = np.abs(scale * generator.normal(size=(num_steps, batch, *space.shape))).astype(space.dtype)
    if not isinstance(spec.action_space, Box):
        legal = generator.random((num_steps, batch, spec.action_space.mask_size)) < 0.5
        legal[..., np.cumsum(spec.action_space.num_values) - 1] = True  # something is legal in each component

    @jax.jit
    @jax.vmap
    def act(carry, observation, legal):
        critic_observation = None if critic is None else jnp.ones(critic.shape)
        step = time_step(observation, legal_actions=legal, critic_observation=critic_observation)
        return agent.act(policy_params, carry, step, jax.random.key(0), True)[:2]

    first = agent.start(policy_params, jax.random.key(0))
    carry = jax.tree.map(lambda leaf: jnp.zeros((batch, *leaf.shape), leaf.dtype), first)
    actions = []
    for t in range(num_steps):
        action, carry = act(carry, observation[t], None if legal is None else legal[t])
        actions.append(np.asarray(action))
    return observation, legal, np.stack(actions)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(case, format) -> the exported file."""
    folder = tmp_path_factory.mktemp("policies")
    files = {}
    for name in CASES:
        agent, state, spec = make_case(name)
        for suffix in FORMATS:
            files[name, suffix] = export_policy(agent, state, folder / f"{name}.{suffix}", Data(), spec=spec)
    return files


@pytest.mark.parametrize("name", CASES)
def test_one_file_acts_like_the_live_policy_for_every_batch_size(exported, name):
    agent, state, spec = make_case(name)
    observation, legal, wanted = live_steps(agent, state, spec)
    assert len(np.unique(wanted)) > 1, "a constant policy would prove nothing"
    for suffix in FORMATS:
        policy = load_policy(exported[name, suffix])
        for batch in (1, 7):
            carry = policy.start(batch)
            for t in range(len(observation)):
                mask = None if legal is None else legal[t, :batch]
                action, carry = policy.act(observation[t, :batch], mask, carry)
                action = np.asarray(action)
                assert action.dtype == wanted.dtype
                np.testing.assert_allclose(action, wanted[t, :batch], rtol=1e-5, atol=1e-5)
                assert all(spec.action_space.contains(row) for row in action)


def test_masks_decide(exported):
    observation = np.zeros((4, 5), np.float32)
    for suffix in FORMATS:
        action, carry = load_policy(exported["discrete", suffix]).act(observation, np.eye(4, dtype=bool))
        assert np.asarray(action).tolist() == [0, 1, 2, 3]
        assert carry == ()


def test_the_critic_stays_behind(exported):
    for suffix in FORMATS:
        policy = load_policy(exported["gru", suffix])
        assert [leaf.shape for leaf in policy.start(3)] == [(3, 12)]  # the actor's memory, not the critic's
        assert policy.metadata["observation"]["shape"] == [5]


def test_metadata(exported):
    metadata = load_policy(exported["continuous", "stablehlo"]).metadata
    assert metadata["platforms"] == ["cpu", "cuda", "tpu"]
    assert metadata["format_version"] == 1
    assert metadata["observation"] == {"shape": [5], "dtype": "float32", "kind": "box", "low": None, "high": None}
    assert metadata["action"] == {"shape": [2], "dtype": "float32", "kind": "box", "low": [-2, 0], "high": [2, 5]}
    assert metadata["versions"]["jax"] == jax.__version__
    metadata = load_policy(exported["multi_discrete", "npz"]).metadata
    assert metadata["action"]["num_values"] == [3, 2, 4]
    assert metadata["legal_actions"] == 9


ONLY_NUMPY = """
import importlib.util, json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy"}:
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Refuse())
script, *policies = sys.argv[1:]
spec = importlib.util.spec_from_file_location("infer_numpy", script)
infer_numpy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(infer_numpy)
import numpy as np
results = {}
for path in policies:
    policy = infer_numpy.load(path)
    policy.verify()
    observation = policy.examples["observation"][0]
    results[path] = policy.act(observation)[0].tolist()
    infer_numpy.main(path)
assert not {"jax", "flax", "jaxrl"} & set(sys.modules)
print(json.dumps(results))
"""


def test_the_script_needs_only_numpy(exported, tmp_path):
    files = [path for (_, suffix), path in exported.items() if suffix == "npz"]
    script = files[0].with_name("infer_numpy.py")
    result = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", ONLY_NUMPY, str(script), *map(str, files)],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    *lines, actions = result.stdout.splitlines()
    assert len(lines) == len(files)
    assert all("16 recorded actions reproduced" in line for line in lines)
    for path, action in json.loads(actions).items():
        policy = load_policy(path)
        np.testing.assert_array_equal(action, policy.act(policy.examples["observation"][0])[0])


def test_recording_in_the_environment_and_from_the_state(tmp_path):
    env, params = envs_jax.make("pendulum")
    data = Data(params)
    config = PPOConfig(num_envs=8, unroll_length=4, num_minibatches=1, normalize_observations=True)
    agent = make_ppo(config, env)
    state = random_state(agent, data)
    played = load_policy(export_policy(agent, state, tmp_path / "a.stablehlo", data, spec=env, metadata={"run": "a"}))
    assert played.metadata["user"] == {"run": "a"}
    assert played.metadata["observation"]["high"] == [1.0, 1.0, 8.0]
    cosine, sine, _ = np.moveaxis(played.examples["observation"], -1, 0)
    np.testing.assert_allclose(cosine**2 + sine**2, 1.0, atol=1e-5)
    stood = load_policy(export_policy(agent, state, tmp_path / "b.npz", data))
    rows = np.asarray(state.rollout.time_step.observation)
    np.testing.assert_array_equal(stood.examples["observation"].reshape(-1, 3), rows)
    assert stood.metadata["action"]["high"] == 2.0  # the algorithm knows its action space


def broken_export(agent):
    def export(policy_params):
        described = agent.export(policy_params)
        described["layers"][1]["activation"] = "tanh"
        return described

    return agent._replace(export=export)


def test_a_file_unlike_the_live_policy_is_not_left_behind(tmp_path, monkeypatch):
    for name in ("discrete", "continuous"):
        agent, state, spec = make_case(name)
        with pytest.raises(ValueError, match="is not written, it would act unlike the live policy"):
            export_policy(broken_export(agent), state, tmp_path / "policy.npz", Data(), spec=spec)

    trim = export.trim

    def wrong(*inputs):
        program, *rest = trim(*inputs)
        return lambda *x: (program(*x)[0] + 0.01, program(*x)[1]), *rest

    monkeypatch.setattr(export, "trim", wrong)
    with pytest.raises(ValueError, match=r"differ from the recorded ones by up to 0\.01"):
        export_policy(agent, state, tmp_path / "policy.stablehlo", Data(), spec=spec)
    assert list(tmp_path.iterdir()) == []


def test_torn_and_foreign_files(exported, tmp_path):
    generator = np.random.default_rng(0)
    bad = tmp_path / "bad"
    for suffix in FORMATS:
        whole = exported["discrete", suffix].read_bytes()
        for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
            bad.write_bytes(whole[:length])
            with pytest.raises(ValueError, match="is damaged or no exported policy"):
                load_policy(bad)
        # A flipped bit is found, unless it lies where the archive keeps nothing that is read.
        found = 0
        for position in generator.integers(len(whole), size=20):
            changed = bytearray(whole)
            changed[position] ^= 16
            bad.write_bytes(changed)
            try:
                load_policy(bad).verify()
            except ValueError:
                found += 1
        assert found >= 17
    bad.write_bytes(b"not an archive at all")
    with pytest.raises(ValueError, match="is damaged or no exported policy"):
        load_policy(bad)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match="is damaged or no exported policy"):
        load_policy(tmp_path / "array.npy")
    with pytest.raises(FileNotFoundError):
        load_policy(tmp_path / "absent.npz")


def test_another_format_version(exported, tmp_path):
    with np.load(exported["discrete", "npz"]) as content:
        arrays = dict(content)
    metadata = json.loads(arrays.pop("metadata").tobytes()) | {"format_version": 2}
    np.savez(tmp_path / "new.npz", metadata=np.frombuffer(json.dumps(metadata).encode(), np.uint8), **arrays)
    with pytest.raises(ValueError, match="has format version 2; this reader knows 1"):
        load_policy(tmp_path / "new.npz")


def test_refused_settings(tmp_path):
    agent, state, spec = make_case("discrete")
    arguments = (agent, state)
    with pytest.raises(ValueError, match=r"format must be one of stablehlo, npz, onnx, got 'stablehol'; did you mean"):
        export_policy(*arguments, tmp_path / "policy.stablehol", Data(), spec=spec)
    with pytest.raises(ValueError, match="this state holds no environments"):
        export_policy(*arguments, tmp_path / "policy.npz", Data())
    with pytest.raises(ValueError, match="platforms must contain"):
        export_policy(*arguments, tmp_path / "policy.stablehlo", Data(), spec=spec, platforms=["rocm"])
    with pytest.raises(ValueError, match="metadata must be JSON values"):
        export_policy(*arguments, tmp_path / "policy.npz", Data(), spec=spec, metadata={"when": object()})
    with pytest.raises(ValueError, match="no export to NumPy"):
        export_policy(agent._replace(export=None), state, tmp_path / "policy.npz", Data(), spec=spec)
    with pytest.raises(ValueError, match="learns no policy"):
        export_policy(Algorithm(agent.init, agent.update), state, tmp_path / "policy.npz", Data(), spec=spec)
    assert list(tmp_path.iterdir()) == []


def test_policies_that_need_more_than_an_observation_are_refused(tmp_path):
    agent, state, spec = make_case("discrete")
    acts = {
        r"acts on \.reward cannot": lambda p, c, step, key, d: (jnp.where(step.reward > 0, 1, 0), c, {}),
        "acts on random numbers cannot": lambda p, c, step, key, d: (jax.random.randint(key, (), 0, 3), c, {}),
    }
    for message, act in acts.items():
        with pytest.raises(ValueError, match=message):
            export_policy(agent._replace(act=act), state, tmp_path / "policy.stablehlo", Data(), spec=spec)
    member = agent._replace(start=lambda policy_params, key: jax.random.randint(key, (), 0, 3))
    with pytest.raises(ValueError, match="begins episodes at random"):
        export_policy(member, state, tmp_path / "policy.stablehlo", Data(), spec=spec)


def test_a_policy_with_a_counter(tmp_path):
    """A carry that is no float: the policy repeats 0, 1, 2; the second leaf never matters."""
    agent, state, spec = make_case("discrete")
    agent = agent._replace(
        start=lambda policy_params, key: {"steps": jnp.zeros((), jnp.int32), "unused": jnp.zeros(2)},
        act=lambda p, carry, step, key, d: (
            carry["steps"] % 3,
            {"steps": carry["steps"] + 1, "unused": carry["unused"] + step.reward},
            {},
        ),
    )
    policy = load_policy(export_policy(agent, state, tmp_path / "policy.stablehlo", Data(), spec=spec))
    assert policy.metadata["legal_actions"] is None  # the policy does not look at them
    carry, actions = None, []
    for _ in range(4):
        action, carry = policy.act(np.zeros((1, 5)), carry=carry)
        actions.append(int(action[0]))
    assert actions == [0, 1, 2, 0]
    with pytest.raises(ValueError, match="takes no legal_actions"):
        policy.act(np.zeros((1, 5)), np.ones((1, 4), bool))


def test_refused_inputs(exported):
    for suffix in FORMATS:
        policy = load_policy(exported["discrete", suffix])
        with pytest.raises(ValueError, match=r"observation must have the shape \[b, \*\[5\]\], got \[5\]"):
            policy.act(np.zeros(5))
        with pytest.raises(ValueError, match="observation must be float32, got complex128"):
            policy.act(np.zeros((1, 5), complex))
        with pytest.raises(ValueError, match=r"legal_actions must be bool \[2, 4\], got bool \[1, 4\]"):
            policy.act(np.zeros((2, 5)), np.ones((1, 4), bool))
        with pytest.raises(ValueError, match="carry must have the shapes"):
            load_policy(exported["gru", suffix]).act(np.zeros((2, 5)), carry=policy.start(2))


def test_sharded_state(tmp_path):
    """A run over several devices exports to one."""
    agent, state, spec = make_case("discrete")
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = dataclasses.replace(state, params=jax.device_put(state.params, everywhere))
    path = export_policy(agent, state, tmp_path / "policy.stablehlo", Data(), spec=spec)
    assert np.asarray(load_policy(path).act(np.zeros((2, 5)))[0]).shape == (2,)
