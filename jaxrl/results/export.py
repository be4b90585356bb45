"""Policies that leave the project: StableHLO for any XLA runtime, plain arrays for NumPy alone, ONNX for the rest.

Each is one file that holds all that acting takes: the normaliser of observations, the network, the bounds of actions.
It is checked against the live policy before it gets its name. `meta.json` beside it says what the numbers mean.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from envs_jax.core import Environment, EnvSpec, TimeStep
from envs_jax.registry import nearest
from envs_jax.spaces import Box, Discrete, MultiDiscrete, Space
from jaxrl.parts.normalize import normalize, standard_deviation
from jaxrl.results import infer_numpy, onnx
from jaxrl.results.acting import Program, deployed, live_actions, record_observations, trim
from jaxrl.results.files import git_commit, replacing
from jaxrl.results.infer_numpy import FORMAT, FORMAT_VERSION, NumpyPolicy, Policy, read_container
from jaxrl.types import Algorithm, Array, Data, PyTree

FORMATS = ("stablehlo", "npz", "onnx")
PLATFORMS = ("cpu", "cuda", "tpu")
NUM_EXAMPLES = (8, 2)  # steps and environments of the recorded observations that stay in the file


def export_policy(
    agent: Algorithm,
    state: PyTree,
    path: str | Path,
    data: Data,
    *,
    format: str | None = None,
    spec: Environment | EnvSpec | None = None,
    platforms: Sequence[str] = PLATFORMS,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the deterministic policy of a training state to one file, checked against the live policy.

    The StableHLO program maps observation `[b, ...]`, legal actions bool `[b, N]` (where the policy reads them) and
    the carry (leaves `[b, ...]`, for policies with memory) to action `[b, ...]` and carry, for any b. Of a mixture, the
    first leaf of the carry is the member that plays the episode, which `Policy.start` draws.

    Args:
        agent: the algorithm; for "npz" one whose `export` describes its layers.
        state: of one run, without a member axis.
        path: "policy.stablehlo", "policy.npz" or "policy.onnx". Beside it goes `meta.json`, the metadata with what the
            environment says of its observations and actions; beside an npz `infer_numpy.py`, which runs it; beside
            ONNX, whose batch is free, "policy.batch1.onnx" for runtimes that want fixed shapes.
        data: what the run reads.
        format: "stablehlo", "npz" or "onnx"; by default from the suffix.
        spec: the environment, in which the policy is recorded for the check, or its spaces, from which observations
            are drawn; by default the observations at which the environments of `state` stand.
        platforms: that a StableHLO program is lowered for, the present one included.
        metadata: JSON values to keep under "user": the run, names and units of observations and actions.

    Returns:
        `path`.

    Raises:
        ValueError: a setting is not allowed, the policy cannot be exported, or the file acts unlike the live policy;
            in each case no file is left behind.
        ImportError: ONNX without the extra `onnx`.

    Example:
        >>> export_policy(agent, state, "policy.stablehlo", data, spec=env)
        >>> action, carry = load_policy("policy.stablehlo").act(observation)
    """
    path = Path(path)
    format = path.suffix.removeprefix(".") if format is None else format
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}{nearest(format, FORMATS)}")
    if format == "onnx":
        onnx.require()
    if agent.policy is None or agent.act is None or agent.start is None:
        raise ValueError("this algorithm learns no policy that acts")
    # On one device, whatever the sharding of the run.
    policy_params = jax.tree.map(jnp.asarray, jax.device_get(agent.policy(state, data)))
    described = agent.export(policy_params) if agent.export is not None else {}
    mixture = described.get("mixture")
    members = [described] if mixture is None else described.get("members", [{}])
    if format != "stablehlo" and not members[0]:
        raise ValueError("this algorithm has no export to NumPy and ONNX; use the format 'stablehlo'")
    if format == "onnx" and mixture is not None:
        raise ValueError("a mixture has no export to ONNX; use the format 'stablehlo' or 'npz'")

    template, recorded = record_observations(agent, policy_params, state, data, spec)
    sent = (agent, policy_params) if mixture is None else deployed(agent, described)
    program, first_carry, masked = trim(*sent, template)
    member = slots = None
    if mixture is not None:  # each member plays in some of the recorded environments
        member = np.arange(recorded["observation"].shape[1], dtype=np.int32) % len(mixture.weights)
        slots = np.asarray(described["slots"])[member]
    recorded["action"] = live_actions(agent, policy_params, template, recorded, slots)
    if not masked:
        recorded.pop("legal_actions", None)

    if format == "stablehlo":
        arrays = {"program": stablehlo(program, template, first_carry, masked, platforms)}
        layers, facts = [], {"kind": "stablehlo", "platforms": list(platforms)}
    else:
        layers, arrays = plain_layers(members[0])
        if mixture is not None:
            every = [plain_layers(one)[1] for one in members]
            arrays |= {k: np.stack([one[k] for one in every]) for k in arrays if not k.startswith("action/")}
        facts = {"kind": "numpy" if format == "npz" else "onnx", "layers": layers}
    arrays |= {f"carry/{i}": np.asarray(leaf) for i, leaf in enumerate(first_carry)}
    arrays |= {f"example/{name}": rows[: NUM_EXAMPLES[0], : NUM_EXAMPLES[1]] for name, rows in recorded.items()}
    if mixture is not None and member is not None:
        arrays |= {"mixture/weights": np.asarray(mixture.weights), "example/member": member[: NUM_EXAMPLES[1]]}
        recorded["member"] = member
    environment = {}
    if spec is not None and not isinstance(spec, EnvSpec):
        environment = spec.describe()
        spec = spec.spec(spec.default_params if data.env_params is None else data.env_params)
    action_space = members[0].get("action_space") if spec is None else spec.action_space
    facts |= {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "observation": describe(recorded["observation"], spec and spec.observation_space),
        "action": describe(recorded["action"], action_space),
        "legal_actions": recorded["legal_actions"].shape[-1] if masked else None,
        "num_carry": len(first_carry),
        "num_members": None if mixture is None else len(mixture.weights),
        "environment": environment,
        "versions": {name: importlib.metadata.version(name) for name in ("jaxrl", "jax", "numpy")},
        "git": git_commit(),
        "user": dict(metadata or {}),
    }
    if format == "onnx":
        _write_onnx(path, facts, layers, arrays, recorded)
    else:
        _write_archive(path, facts, arrays, recorded)
    with replacing(path.with_name("meta.json")) as temporary:
        temporary.write_text(json.dumps({"policy": path.name, **facts}, indent=1) + "\n")
    if format == "npz":
        with replacing(path.with_name("infer_numpy.py")) as temporary:
            temporary.write_text(inspect.getsource(infer_numpy))
    return path


def load_policy(path: str | Path) -> Policy:
    """Reads what `export_policy` wrote.

    Returns:
        A `Policy`: `act(observation, legal_actions=None, carry=None) -> (action, carry)`, `start(batch) -> carry`,
        `verify()`, `latency()` and `metadata`.

    Raises:
        ValueError: the file is torn, no exported policy, or of another format version.
        ImportError: ONNX without the extra `onnx`.
    """
    if Path(path).suffix == ".onnx":
        return onnx.load_onnx(path)
    metadata, arrays = read_container(path)
    kinds = {"stablehlo": StableHLOPolicy, "numpy": NumpyPolicy}
    return kinds[metadata["kind"]](metadata, arrays)


class StableHLOPolicy(Policy):
    """A policy as a compiled program; `act` compiles once per batch size."""

    def __init__(self, metadata: dict[str, Any], arrays: dict[str, np.ndarray]):
        super().__init__(metadata, arrays)
        try:
            exported = export.deserialize(bytearray(arrays["program"]))
        except Exception as error:  # whatever the reader says of a program that it is too old or too new for
            raise ValueError(
                f"jax {jax.__version__} cannot read a program of jax {metadata['versions']['jax']}: {error}"
            ) from error
        self._call = jax.jit(exported.call)

    def _run(self, observation: np.ndarray, legal_actions: np.ndarray | None, carry: tuple[Any, ...]) -> Any:
        return self._call(observation, legal_actions, carry)


def stablehlo(
    program: Program, template: TimeStep, first_carry: tuple[Array, ...], masked: bool, platforms: Sequence[str]
) -> np.ndarray:
    """The program with a free batch axis b, serialised, u8 `[bytes]`."""
    present = export.default_export_platform()
    if present not in platforms:
        raise ValueError(f"platforms must contain {present!r}, where the export is checked, got {list(platforms)}")
    (batch,) = export.symbolic_shape("b")
    inputs = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape), leaf.dtype),
        (template.observation, template.legal_actions if masked else None, first_carry),
    )
    # Accelerators would multiply f32 in fewer bits; the platforms would then disagree by far more than rounding.
    with jax.default_matmul_precision("highest"):
        exported = export.export(jax.jit(jax.vmap(program)), platforms=tuple(platforms))(*inputs)
    return np.frombuffer(exported.serialize(), np.uint8)


def plain_layers(described: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """What an algorithm's `export` gave, as JSON settings of the layers and named arrays."""
    settings: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for i, layer in enumerate(described["layers"]):
        settings.append({name: value for name, value in layer.items() if isinstance(value, int | str)})
        arrays |= {f"layer/{i}/{name}": np.asarray(layer[name]) for name in layer.keys() - settings[-1].keys()}
    statistics = described["statistics"]
    if statistics is not None:
        arrays["normalizer/mean"] = np.asarray(statistics.mean)
        arrays["normalizer/std"] = np.asarray(standard_deviation(statistics))
        # What infinity is clipped to.
        arrays["normalizer/limit"] = np.max(normalize(statistics, jnp.full(statistics.mean.shape, jnp.inf)))
    space = described["action_space"]
    if isinstance(space, Box):
        arrays |= {"action/low": np.asarray(space.low), "action/high": np.asarray(space.high)}
    return settings, arrays


def describe(recorded: Any, space: Space | None) -> dict[str, Any]:
    """JSON about arrays `[T, B, ...]` and the space they lie in, if it is known; infinite bounds are null."""
    facts: dict[str, Any] = {"shape": list(recorded.shape[2:]), "dtype": str(recorded.dtype)}
    if isinstance(space, Discrete):
        facts |= {"kind": "discrete", "num_values": space.num_values}
    elif isinstance(space, MultiDiscrete):
        facts |= {"kind": "multi_discrete", "num_values": list(space.num_values)}
    elif isinstance(space, Box):
        facts["kind"] = "box"
        for name, bound in (("low", space.low), ("high", space.high)):
            values = [value if np.isfinite(value) else None for value in bound.reshape(-1).tolist()]
            facts[name] = values[0] if len(set(values)) == 1 else values
    return facts


def _write_archive(
    path: Path, facts: dict[str, Any], arrays: dict[str, np.ndarray], recorded: dict[str, np.ndarray]
) -> None:
    """Writes the file; ValueError, and no file, where it acts unlike what was recorded."""
    encoded = _json(facts).encode()
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            np.savez(file, metadata=np.frombuffer(encoded, np.uint8), **arrays)  # type: ignore[arg-type]
        _check(load_policy(temporary), recorded, path)


def _write_onnx(
    path: Path,
    facts: dict[str, Any],
    layers: list[dict[str, Any]],
    arrays: dict[str, np.ndarray],
    recorded: dict[str, np.ndarray],
) -> None:
    """Writes the graph of a free batch and the one of a single environment, or neither."""
    _json(facts)
    singles = {name: rows.reshape(-1, 1, *rows.shape[2:]) for name, rows in recorded.items()}
    with replacing(path) as free, replacing(path.with_suffix(".batch1.onnx")) as single:
        for file, batch, rows in ((free, None, recorded), (single, 1, singles)):
            file.write_bytes(onnx.build_model(facts, layers, arrays, batch).SerializeToString())
            _check(onnx.load_onnx(file), rows, path)


def _json(facts: dict[str, Any]) -> str:
    try:
        return json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be JSON values: {error}") from error


def _check(policy: Policy, recorded: dict[str, np.ndarray], path: Path) -> None:
    try:
        policy.verify(recorded)
    except ValueError as error:
        raise ValueError(f"{path} is not written, it would act unlike the live policy: {error}") from error
