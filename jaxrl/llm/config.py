"""`LMConfig`: the shape of a decoder-only language model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from envs_jax.registry import nearest

FAMILIES = ("llama", "qwen2", "qwen3", "gpt2")
ACTIVATIONS = ("silu", "gelu_new", "gelu_pytorch_tanh", "gelu")
DTYPES = ("float32", "bfloat16", "float16")


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """ValueError unless `value` is one of `allowed`; names the nearest."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{nearest(value, allowed)}")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for longer contexts than those of pre-training."""

    kind: str  # "linear": all by `factor`; "llama3": only the long wavelengths
    factor: float
    low_freq_factor: float = 1.0  # llama3: wavelengths above original_max_positions / this are stretched in full
    high_freq_factor: float = 4.0  # llama3: those below original_max_positions / this are left alone
    original_max_positions: int = 8192

    def __post_init__(self) -> None:
        one_of("rope_scaling.kind", self.kind, ("linear", "llama3"))
        if self.factor < 1.0:
            raise ValueError(f"rope_scaling.factor must be at least 1, got {self.factor}")
        if self.kind == "llama3" and not 0.0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                "rope_scaling must have 0 < low_freq_factor < high_freq_factor, "
                f"got {self.low_freq_factor} and {self.high_freq_factor}"
            )


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """The shape of a model: static. `norm`, `mlp` and `position` are implied by `family`, see the properties."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    num_kv_heads: int = 0  # 0: as many as `num_heads`; each is read by num_heads / num_kv_heads query heads
    head_dim: int = 0  # 0: hidden_size / num_heads
    family: str = "qwen3"  # names of tensors, kind of norm, network and positions
    activation: str = "silu"
    norm_epsilon: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    max_positions: int = 2048  # a hard bound with learned positions, else only what the model was trained for
    initial_std: float = 0.02
    dtype: str = "float32"  # of the checkpoint's tensors
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def __post_init__(self) -> None:
        one_of("family", self.family, FAMILIES)
        one_of("activation", self.activation, ACTIVATIONS)
        one_of("dtype", self.dtype, DTYPES)
        object.__setattr__(self, "num_kv_heads", self.num_kv_heads or self.num_heads)
        sizes = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size")
        for name in (*sizes, "max_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads must divide num_heads = {self.num_heads}, got {self.num_kv_heads}")
        if not self.head_dim:
            if self.hidden_size % self.num_heads:
                raise ValueError(f"num_heads must divide hidden_size = {self.hidden_size}, got {self.num_heads}")
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")

    @property
    def norm(self) -> str:
        """ "layer" (mean, variance, bias) or "rms"."""
        return "layer" if self.family == "gpt2" else "rms"

    @property
    def mlp(self) -> str:
        """ "plain" (expand, activate, contract) or "gated" (SwiGLU)."""
        return "plain" if self.family == "gpt2" else "gated"

    @property
    def position(self) -> str:
        """ "learned" (a table added to the embeddings) or "rope" (queries and keys rotated)."""
        return "learned" if self.family == "gpt2" else "rope"

    @property
    def group_size(self) -> int:
        """Query heads that read one key-value head."""
        return self.num_heads // self.num_kv_heads


def _qwen3(hidden_size: int, num_layers: int, num_heads: int, intermediate_size: int, tied: bool) -> LMConfig:
    return LMConfig(
        vocab_size=151_936,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=intermediate_size,
        rope_theta=1e6,
        qk_norm=True,
        tie_embeddings=tied,
        max_positions=40_960,
        dtype="bfloat16",
    )


PRESETS = {
    "nano": LMConfig(64, 64, 2, 4, 128, qk_norm=True, tie_embeddings=True),
    "tiny10m": LMConfig(4096, 256, 8, 8, 1024, num_kv_heads=4, head_dim=32, qk_norm=True),
    "qwen3-0.6b": _qwen3(1024, 28, 16, 3072, tied=True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 6144, tied=True),
    "qwen3-4b": _qwen3(2560, 36, 32, 9728, tied=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 12_288, tied=False),
    "qwen3-14b": _qwen3(5120, 40, 40, 17_408, tied=False),
    "qwen3-32b": _qwen3(5120, 64, 64, 25_600, tied=False),
}


def preset(name: str, **changes: Any) -> LMConfig:
    """A named size, with fields replaced.

    `nano` is for tests and populations, `tiny10m` for timings; the others are the published sizes of Qwen3.
    """
    one_of("preset", name, PRESETS)
    return dataclasses.replace(PRESETS[name], **changes)
