"""Networks: MLP, CNN and GRU torsos, the actor-critic and the Q-network made from them. Inputs have no batch axis."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Array = jax.Array

ACTIVATIONS = {"tanh": jnp.tanh, "relu": nn.relu, "elu": nn.elu, "swish": nn.swish, "gelu": nn.gelu}
TORSOS = ("mlp", "cnn", "gru")


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The part of an algorithm's configuration that shapes its networks."""

    torso: str = "mlp"  # "mlp", "cnn" (before the dense layers) or "gru" (after them)
    hidden_sizes: tuple[int, ...] = (64, 64)  # dense layers
    activation: str = "tanh"
    cnn_channels: tuple[int, ...] = (16, 32)  # 3x3 convolutions with stride 2
    gru_size: int = 64
    shared_torso: bool = False  # one torso for policy and value

    def __post_init__(self) -> None:
        from envs_jax.registry import nearest

        for name, allowed in (("torso", TORSOS), ("activation", tuple(ACTIVATIONS))):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"network.{name} must be one of {', '.join(allowed)}, got {value!r}{nearest(value, allowed)}"
                )
        for name in ("hidden_sizes", "cnn_channels"):
            if any(size < 1 for size in getattr(self, name)):
                raise ValueError(f"network.{name} must be positive integers, got {getattr(self, name)}")
        if self.gru_size < 1:
            raise ValueError(f"network.gru_size must be positive, got {self.gru_size}")

    @property
    def recurrent(self) -> bool:
        return self.torso == "gru"


def dense(size: int, scale: float, name: str | None = None) -> nn.Dense:
    """A dense layer with orthogonal weights and zero biases."""
    return nn.Dense(size, kernel_init=orthogonal(scale), name=name)


def orthogonal(scale: float) -> Any:
    """Orthogonal weights; under `vmap` one matrix after the other.

    On a CPU a batched decomposition asks for threads of the pool in which the devices run: with as many devices as
    cores each waits for the others, for ever.
    """
    draw = nn.initializers.orthogonal(scale)

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.custom_batching.sequential_vmap(lambda key: draw(key, shape, dtype))(key)

    return init


class Torso(nn.Module):
    """From an observation and a memory to features and a new memory (`()` unless recurrent)."""

    config: NetworkConfig

    @nn.compact
    def __call__(self, carry: Any, observation: Array) -> tuple[Any, Array]:
        config, activation = self.config, ACTIVATIONS[self.config.activation]
        features = observation.astype(jnp.float32)
        if config.torso == "cnn":
            for i, channels in enumerate(config.cnn_channels):
                features = nn.relu(nn.Conv(channels, (3, 3), (2, 2), name=f"conv_{i}")(features))
        features = features.reshape(-1)
        for i, size in enumerate(config.hidden_sizes):
            features = activation(dense(size, math.sqrt(2.0), f"dense_{i}")(features))
        if config.recurrent:
            carry, features = nn.GRUCell(config.gru_size, name="gru")(carry, features)
        return carry, features


class ActorCritic(nn.Module):
    """Policy outputs, log standard deviations (continuous actions) and a value, from separate or shared torsos."""

    config: NetworkConfig
    num_outputs: int
    continuous: bool

    @nn.compact
    def __call__(
        self, carry: Any, observation: Array, critic_observation: Array
    ) -> tuple[Any, tuple[Array, Any, Array]]:
        actor_carry, critic_carry = carry
        actor_carry, features = Torso(self.config, name="actor")(actor_carry, observation)
        outputs = dense(self.num_outputs, 0.01, "actor_head")(features)
        log_std = None
        if self.continuous:
            log_std = self.param("log_std", nn.initializers.constant(-0.5), (self.num_outputs,))
        if not self.config.shared_torso:
            critic_carry, features = Torso(self.config, name="critic")(critic_carry, critic_observation)
        value = dense(1, 1.0, "critic_head")(features)[0]
        return (actor_carry, critic_carry), (outputs, log_std, value)

    def start(self) -> tuple[Any, Any]:
        """The memory at the start of an episode."""
        if not self.config.recurrent:
            return (), ()
        memory = jnp.zeros(self.config.gru_size)
        return memory, () if self.config.shared_torso else memory


class Actor(nn.Module):
    """A policy without a value: f32 `[num_outputs]`."""

    config: NetworkConfig
    num_outputs: int

    @nn.compact
    def __call__(self, observation: Array) -> Array:
        _, features = Torso(self.config, name="torso")((), observation)
        return dense(self.num_outputs, 0.01, "head")(features)


class QNetwork(nn.Module):
    """Action values f32 `[N]`; with `dueling`, a value plus centred advantages (Wang et al. 2016, eq. 9)."""

    config: NetworkConfig
    num_actions: int
    dueling: bool = False

    @nn.compact
    def __call__(self, observation: Array) -> Array:
        _, features = Torso(self.config, name="torso")((), observation)
        advantages = dense(self.num_actions, 1.0, "head")(features)
        if not self.dueling:
            return advantages
        value = dense(1, 1.0, "value_head")(features)
        return value + advantages - jnp.mean(advantages, keepdims=True)


def describe_layers(config: NetworkConfig, torso: dict[str, Any], head: dict[str, Any]) -> list[dict[str, Any]]:
    """A torso and its head as a list of plain layers, for exports that run without JAX.

    Args:
        config: of the network.
        torso: parameters of a `Torso`.
        head: parameters of the dense layer after it.

    Returns:
        Dictionaries with `kind` ("conv", "flatten", "dense", "gru"), `activation` and arrays.
    """
    layers: list[dict[str, Any]] = []
    if config.torso == "cnn":
        for i in range(len(config.cnn_channels)):
            layers.append({"kind": "conv", "activation": "relu", "stride": 2, **torso[f"conv_{i}"]})
    layers.append({"kind": "flatten", "activation": "none"})
    for i in range(len(config.hidden_sizes)):
        layers.append({"kind": "dense", "activation": config.activation, **torso[f"dense_{i}"]})
    if config.recurrent:
        gates: dict[str, Any] = {}
        for gate, values in torso["gru"].items():
            gates |= {f"{gate}_{name}": value for name, value in values.items()}
        layers.append({"kind": "gru", "activation": "none", **gates})
    layers.append({"kind": "dense", "activation": "none", **head})
    return layers
