"""Runs an exported `policy.npz` with NumPy alone.

A copy of this file lies beside every exported `policy.npz`. It needs no other package, so that the two files can be
carried to a machine without JAX:

    import infer_numpy
    policy = infer_numpy.load("policy.npz")
    carry = policy.start(1)  # one environment; draws the member of a mixture that plays the episode
    action, carry = policy.act(observation[None], carry=carry)

`python infer_numpy.py policy.npz` replays what was recorded at export time and prints how long one action takes.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

FORMAT, FORMAT_VERSION = "jaxrl-policy", 1
TOLERANCE = 1e-4  # of continuous actions, relative to the largest one (at least 1)
# Of discrete actions so many may differ: where two are equally good, rounding decides.
TIES = 0.002


class Policy:
    """An exported policy. In shapes, b is the number of environments, free from call to call.

    Attributes:
        metadata: spaces, versions and what was given to the export, as JSON values.
        examples: recorded `observation` `[T, b, ...]`, `action`, perhaps `legal_actions` and `member` `[b]`.
        weights: of a mixture, f32 `[M]`, how often each of its members plays an episode; else None.
    """

    def __init__(self, metadata: dict[str, Any], arrays: dict[str, np.ndarray]):
        self.metadata = metadata
        self.examples = {name[8:]: array for name, array in arrays.items() if name.startswith("example/")}
        self.weights = arrays.get("mixture/weights")
        self._first_carry = tuple(arrays[f"carry/{i}"] for i in range(metadata["num_carry"]))

    def start(self, batch: int, *, member: Any = None, seed: int | None = None) -> tuple[Any, ...]:
        """The memory of b = `batch` episodes at their start; `()` for policies without memory.

        Args:
            batch: b.
            member: of a mixture, which member plays each episode, integers `[b]`; None draws them by `weights`.
            seed: of that draw; None: another one every time.

        Raises:
            ValueError: there is no such member.
        """
        carry = [np.repeat(leaf[None], batch, axis=0) for leaf in self._first_carry]
        if self.weights is None:
            if member is not None:
                raise ValueError("this policy is no mixture: it has no members to choose from")
            return tuple(carry)
        num_members = len(self.weights)
        if member is None:
            weights = self.weights.astype(np.float64)
            member = np.random.default_rng(seed).choice(num_members, batch, p=weights / weights.sum())
        member = np.asarray(member)
        if member.shape != (batch,) or np.any((member < 0) | (member >= num_members)):
            raise ValueError(f"member must be [{batch}] numbers from 0 to {num_members - 1}, got {member.tolist()}")
        return (member.astype(np.int32), *carry[1:])

    def act(
        self, observation: Any, legal_actions: Any = None, carry: tuple[Any, ...] | None = None
    ) -> tuple[Any, tuple[Any, ...]]:
        """The deterministic actions.

        Args:
            observation: `[b, ...]`.
            legal_actions: bool `[b, N]`; None where all are legal.
            carry: from the call before, or from `start`; None at the start of the episodes.

        Returns:
            Actions `[b, ...]` and the carry for the next call.

        Raises:
            ValueError: a shape or dtype is not that of the policy.
        """
        space, size = self.metadata["observation"], self.metadata["legal_actions"]
        observation = np.asarray(observation)
        if observation.shape[1:] != tuple(space["shape"]) or observation.ndim != len(space["shape"]) + 1:
            raise ValueError(f"observation must have the shape [b, *{space['shape']}], got {list(observation.shape)}")
        if not np.can_cast(observation.dtype, space["dtype"], "same_kind"):
            raise ValueError(f"observation must be {space['dtype']}, got {observation.dtype}")
        batch = observation.shape[0]
        if legal_actions is None:
            legal_actions = None if size is None else np.ones((batch, size), bool)
        elif size is None:
            raise ValueError("this policy takes no legal_actions")
        else:
            legal_actions = np.asarray(legal_actions)
            if legal_actions.dtype != bool or legal_actions.shape != (batch, size):
                given = f"{legal_actions.dtype} {list(legal_actions.shape)}"
                raise ValueError(f"legal_actions must be bool [{batch}, {size}], got {given}")
        carry = self.start(batch) if carry is None else tuple(carry)
        shapes = [(batch, *leaf.shape) for leaf in self._first_carry]
        if [leaf.shape for leaf in carry] != shapes:
            raise ValueError(f"carry must have the shapes {shapes}, got {[leaf.shape for leaf in carry]}")
        return self._run(observation.astype(space["dtype"]), legal_actions, carry)

    def verify(self, examples: dict[str, np.ndarray] | None = None) -> None:
        """Replays recorded observations.

        Args:
            examples: like `self.examples`, which is used if None.

        Raises:
            ValueError: the actions are not those recorded.
        """
        examples = self.examples if examples is None else examples
        wanted, legal, actions = examples["action"], examples.get("legal_actions"), []
        carry = self.start(wanted.shape[1], member=examples.get("member"))
        for t, observation in enumerate(examples["observation"]):
            action, carry = self.act(observation, None if legal is None else legal[t], carry)
            actions.append(np.asarray(action))
        given = np.stack(actions)
        if given.shape != wanted.shape:
            raise ValueError(f"actions have the shape {given.shape[2:]}, recorded were {wanted.shape[2:]}")
        if np.issubdtype(wanted.dtype, np.integer):
            share = np.mean(given != wanted)
            if share > TIES:
                raise ValueError(f"{share:.1%} of the actions differ from the recorded ones")
        else:
            worst, scale = np.max(np.abs(given - wanted)), max(1.0, np.max(np.abs(wanted)))
            if not worst <= TOLERANCE * scale:
                raise ValueError(f"actions differ from the recorded ones by up to {worst:.3g}")

    def latency(self, calls: int = 200) -> float:
        """Seconds that one action for one environment takes: the median of `calls`, after a few to warm up."""
        space = self.metadata["observation"]
        observation, carry = np.zeros((1, *space["shape"]), space["dtype"]), self.start(1)
        seconds = []
        for _ in range(calls + 10):
            begin = time.perf_counter()
            np.asarray(self.act(observation, carry=carry)[0])
            seconds.append(time.perf_counter() - begin)
        return float(np.median(seconds[10:]))

    def _run(self, observation: np.ndarray, legal_actions: np.ndarray | None, carry: tuple[Any, ...]) -> Any:
        raise NotImplementedError


class NumpyPolicy(Policy):
    """A policy as a list of layers; of a mixture, every array of theirs leads with M."""

    def __init__(self, metadata: dict[str, Any], arrays: dict[str, np.ndarray]):
        super().__init__(metadata, arrays)
        self._arrays = arrays
        self._layers = []
        for i, layer in enumerate(metadata["layers"]):
            if layer["kind"] not in LAYERS or layer["activation"] not in ACTIVATIONS:
                raise ValueError(f"layer {i} ({layer['kind']}, {layer['activation']}) is not known to this script")
            prefix = f"layer/{i}/"
            weights = {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}
            self._layers.append((layer, weights))

    def _run(self, observation: np.ndarray, legal_actions: np.ndarray | None, carry: tuple[Any, ...]) -> Any:
        if self.weights is None:
            return self._run_member((), observation, legal_actions, carry)
        member, memories = carry[0], [leaf.copy() for leaf in carry[1:]]
        actions: Any = None
        for m in np.unique(member):
            rows = member == m
            legal = None if legal_actions is None else legal_actions[rows]
            chosen, after = self._run_member(m, observation[rows], legal, tuple(leaf[rows] for leaf in memories))
            actions = np.zeros((len(member), *chosen.shape[1:]), chosen.dtype) if actions is None else actions
            actions[rows] = chosen
            for leaf, new in zip(memories, after):
                leaf[rows] = new
        return actions, (member, *memories)

    def _run_member(
        self, member: Any, observation: np.ndarray, legal_actions: np.ndarray | None, carry: tuple[Any, ...]
    ) -> Any:
        """One network; `member` is its index, `()` for the only one."""
        features, memories = observation.astype(np.float32), []
        if "normalizer/mean" in self._arrays:
            mean, std, limit = (self._arrays[f"normalizer/{name}"][member] for name in ("mean", "std", "limit"))
            features = np.clip((features - mean) / std, -limit, limit)
        for layer, stacked in self._layers:
            weights = {name: array[member] for name, array in stacked.items()}
            if layer["kind"] == "gru":
                features = gru(features, carry[len(memories)], weights)
                memories.append(features)
            else:
                features = LAYERS[layer["kind"]](features, weights, layer)
            features = ACTIVATIONS[layer["activation"]](features)
        return self._choose(features, legal_actions), tuple(memories)

    def _choose(self, outputs: np.ndarray, legal_actions: np.ndarray | None) -> np.ndarray:
        """From the outputs of the network `[b, n]` to actions."""
        space = self.metadata["action"]
        if space["kind"] == "box":
            low, high = self._arrays["action/low"], self._arrays["action/high"]
            if np.all(np.isfinite(low)) and np.all(np.isfinite(high)):
                outputs = outputs * ((high - low) / 2) + (high + low) / 2
            return np.clip(outputs, low, high)
        if legal_actions is not None:
            outputs = np.where(legal_actions, outputs, np.finfo(np.float32).min)
        if space["kind"] == "discrete":
            return np.argmax(outputs, axis=-1).astype(np.int32)
        parts = np.split(outputs, np.cumsum(space["num_values"])[:-1], axis=-1)
        return np.stack([np.argmax(part, axis=-1) for part in parts], axis=-1).astype(np.int32)


def dense(features: np.ndarray, weights: dict[str, np.ndarray], layer: dict[str, Any]) -> np.ndarray:
    """`[b, in]` to `[b, out]`."""
    return features @ weights["kernel"] + weights["bias"]


def flatten(features: np.ndarray, weights: dict[str, np.ndarray], layer: dict[str, Any]) -> np.ndarray:
    """`[b, ...]` to `[b, n]`."""
    return features.reshape(features.shape[0], -1)


def conv(features: np.ndarray, weights: dict[str, np.ndarray], layer: dict[str, Any]) -> np.ndarray:
    """`[b, height, width, in]` to `[b, ceil(height / stride), ceil(width / stride), out]`, zeros around the picture."""
    kernel, stride = weights["kernel"], layer["stride"]
    sizes = [-(-size // stride) for size in features.shape[1:3]]
    padding = [(0, 0)]
    for size, out, width in zip(features.shape[1:3], sizes, kernel.shape[:2]):
        total = max((out - 1) * stride + width - size, 0)
        padding.append((total // 2, total - total // 2))
    features = np.pad(features, [*padding, (0, 0)])
    result = np.zeros((features.shape[0], *sizes, kernel.shape[3]), np.float32)
    for i, j in np.ndindex(*kernel.shape[:2]):
        rows = slice(i, i + (sizes[0] - 1) * stride + 1, stride)
        columns = slice(j, j + (sizes[1] - 1) * stride + 1, stride)
        result += features[:, rows, columns] @ kernel[i, j]
    return result + weights["bias"]


def gru(features: np.ndarray, memory: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """The memory after one step, `[b, size]` (Cho et al. 2014, with the reset gate after the recurrent product)."""

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}_kernel"] + weights.get(f"{name}_bias", np.float32(0))

    reset = sigmoid(linear(features, "ir") + linear(memory, "hr"))
    update = sigmoid(linear(features, "iz") + linear(memory, "hz"))
    candidate = np.tanh(linear(features, "in") + reset * linear(memory, "hn"))
    return (1 - update) * candidate + update * memory


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))  # exp(-x) would overflow


LAYERS: dict[str, Any] = {"dense": dense, "flatten": flatten, "conv": conv, "gru": gru}
ACTIVATIONS: dict[str, Any] = {
    "none": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "swish": lambda x: x * sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + 0.044715 * x**3))),
}


def read_container(path: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and arrays of an exported policy of either kind.

    Raises:
        ValueError: the file is torn, no exported policy, or of another format version.
    """
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
            metadata = json.loads(arrays.pop("metadata").tobytes())
            version = metadata["format_version"] if metadata["format"] == FORMAT else None
        except Exception as error:  # a damaged archive fails in a dozen ways
            raise ValueError(f"{path} is damaged or no exported policy: {error}") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has format version {version}; this reader knows {FORMAT_VERSION}")
    return metadata, arrays


def load(path: Any) -> NumpyPolicy:
    """Reads a `policy.npz`; ValueError if it cannot be used."""
    metadata, arrays = read_container(path)
    if metadata["kind"] != "numpy":
        raise ValueError(f"{path} holds a {metadata['kind']} policy, which needs JAX: use jaxrl.load_policy")
    return NumpyPolicy(metadata, arrays)


def main(path: str = "policy.npz") -> None:
    policy = load(path)
    policy.verify()
    recorded, seconds = policy.examples["action"].shape, policy.latency()
    print(f"{path}: {recorded[0] * recorded[1]} recorded actions reproduced, {seconds * 1e6:.0f} us per action")


if __name__ == "__main__":
    main(*sys.argv[1:2])
