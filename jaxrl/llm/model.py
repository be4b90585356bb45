"""A decoder-only transformer: Llama, Qwen2, Qwen3 and GPT-2 by configuration.

One forward pass serves training (whole sequences) and generation (blocks of any length against a cache). Letters:
B sequences, T tokens of a block, S slots of the cache, D hidden size, H query heads, K key-value heads, G = H / K,
d head size, V vocabulary, L layers. Sources: Touvron et al. 2023 (Llama), Yang et al. 2024 and 2025 (Qwen2.5, Qwen3),
Radford et al. 2019 (GPT-2), Su et al. 2021 (rotary positions), Ainslie et al. 2023 (grouped queries).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.llm.attention import (
    Cache,
    attention,
    causal_mask,
    count_valid,
    dot_product_attention,
    enter_block,
    rotate,
    rotations,
    write_block,
)
from jaxrl.llm.config import LMConfig
from jaxrl.llm.parameters import Params, init_params

Array = jax.Array
_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu_new": jax.nn.gelu,  # the tanh approximation
    "gelu_pytorch_tanh": jax.nn.gelu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}
_REMAT = {
    "block": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
_ALLOWED = {
    "param_dtype": ("float32", "bfloat16"),
    "compute_dtype": ("float32", "bfloat16"),
    "remat": ("none", *_REMAT),
    "attention": ("auto", "xla", "dot_product"),
}


@dataclasses.dataclass(frozen=True)
class TransformerLM:
    """A model's shape and how it is computed: static. Norms, rotations, softmax and logits are always float32."""

    config: LMConfig
    param_dtype: str = "float32"
    compute_dtype: str = "float32"
    scan_layers: bool = True  # one compiled layer for all; False: as many as there are. Never used with a cache
    remat: str = "none"  # what the backward pass computes anew: nothing, a "block" (layer), all but its "dots"
    attention: str = "auto"  # "xla": batched products; "dot_product": jax.nn's; "auto": the former on CPU
    log_prob_chunk: int = 256  # positions whose logits are alive at once in `token_log_probs`
    sharding: jax.sharding.NamedSharding | None = None  # of hidden states, see `jaxrl.llm.sharding.hidden_sharding`

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.log_prob_chunk < 1:
            raise ValueError(f"log_prob_chunk must be at least 1, got {self.log_prob_chunk}")

    def init(self, key: Array) -> Params:
        """Fresh parameters; consumes `key`."""
        return init_params(self.config, key, self.param_dtype)

    def init_cache(self, batch_size: int, num_slots: int, *, ragged: bool = False) -> Cache:
        """An empty cache for B = `batch_size` sequences of at most S = `num_slots` tokens."""
        config = self.config
        if config.position == "learned" and num_slots > config.max_positions:
            raise ValueError(f"a cache of {num_slots} slots exceeds max_positions = {config.max_positions}")
        shape = (batch_size, config.num_kv_heads, num_slots, config.head_dim)
        # Two buffers per layer, each its own: a donated cache may not hold one array twice.
        keys, values = (tuple(jnp.zeros(shape, self.compute_dtype) for _ in range(config.num_layers)) for _ in "kv")
        index = jnp.zeros(batch_size if ragged else (), jnp.int32)
        return Cache(keys, values, jnp.zeros((batch_size, num_slots), bool), index)

    def apply(
        self,
        params: Params,
        tokens: Array,
        positions: Array | None = None,
        cache: Cache | None = None,
        valid: Array | None = None,
        *,
        return_hidden: bool = False,
    ) -> tuple[Array, Cache | None]:
        """Runs the model over a block of tokens.

        Args:
            params: as from `init`; "layers" stacked, or a tuple as from `unstack_layers`.
            tokens: i32 `[B, T]`.
            positions: i32 `[B, T]`; by default each token's number among the valid ones of its sequence.
            cache: what came before the block, None at the start; the block's valid tokens are added.
            valid: bool `[B, T]`, which tokens are real (default: all); without a cache also i32 `[B, T]`: packed
                sequences by number, 0 padding, where tokens read only their own sequence.
            return_hidden: leave out the output head.

        Returns:
            Logits f32 `[B, T, V]` (or hidden states `[B, T, D]` after the last norm) and the cache. What stands at
            invalid tokens means nothing.
        """
        config = self.config
        if tokens.ndim != 2:
            raise ValueError(f"tokens must be [B, T], got shape {tokens.shape}")
        if cache is not None and cache.valid.shape[1] < tokens.shape[1]:
            raise ValueError(f"a block of {tokens.shape[1]} tokens exceeds the cache's {cache.valid.shape[1]} slots")
        if cache is None:
            slots, mask = None, causal_mask(tokens, valid)
            positions = count_valid(tokens, valid) if positions is None else positions
        else:
            valid = jnp.ones(tokens.shape, bool) if valid is None else valid
            before = jnp.sum(cache.valid, axis=1, dtype=jnp.int32)[:, None]
            positions = before + count_valid(tokens, valid) if positions is None else positions
            cache, slots, mask = enter_block(cache, valid)

        embed = params["embed"]
        if self.sharding is not None:
            # Gathered from whole rows: where they are split the compiler would rather copy the result to all devices.
            rows = jax.sharding.PartitionSpec(jax.sharding.PartitionSpec.UNCONSTRAINED, None)
            embed = jax.lax.with_sharding_constraint(embed, jax.sharding.NamedSharding(self.sharding.mesh, rows))
        hidden, rotation = self._place(embed[tokens].astype(self.compute_dtype)), None
        if config.position == "learned":
            hidden += params["positions"][positions].astype(self.compute_dtype)
        else:
            rotation = rotations(positions, config.head_dim, config.rope_theta, config.rope_scaling)
        layers = params["layers"]
        if cache is not None:
            keys, values = [], []
            for i in range(config.num_layers):
                past = (cache.keys[i], cache.values[i], slots)
                hidden, (key, value) = self._layer(_pick(layers, i), hidden, rotation, mask, past)
                keys.append(key)
                values.append(value)
            cache = dataclasses.replace(cache, keys=tuple(keys), values=tuple(values))
        elif self.scan_layers and not isinstance(layers, tuple):
            step = self._remat(lambda hidden, layer: (self._layer(layer, hidden, rotation, mask)[0], None))
            hidden, _ = jax.lax.scan(step, hidden, layers)
        else:
            step = self._remat(lambda hidden, layer: self._layer(layer, hidden, rotation, mask)[0])
            for i in range(config.num_layers):
                hidden = step(hidden, _pick(layers, i))
        hidden = self._norm(hidden, params, "norm_final")
        return (hidden if return_hidden else self.logits(params, hidden)), cache

    def logits(self, params: Params, hidden: Array) -> Array:
        """f32 `[..., V]` from hidden states `[..., D]`: the output head."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        head, axis = (params["embed"], 1) if self.config.tie_embeddings else (params["lm_head"], 0)
        contracted = (((1,), (axis,)), ((), ()))
        out = jax.lax.dot_general(rows, head.astype(rows.dtype), contracted, preferred_element_type=jnp.float32)
        return out.reshape(*hidden.shape[:-1], self.config.vocab_size)

    def token_log_probs(
        self, params: Params, tokens: Array, valid: Array | None = None, temperature: Array | float = 1.0
    ) -> tuple[Array, Array]:
        """Log-probability of each token given those before it, and the entropy of the distribution it came from.

        The logits of `log_prob_chunk` positions are alive at a time, in the backward pass too.

        Args:
            params: as for `apply`.
            tokens: i32 `[B, T]`.
            valid: as for `apply`.
            temperature: divides the logits.

        Returns:
            Log-probabilities and entropies, f32 `[B, T]`; 0 for the first token of a row, before which is nothing. Of
            padding, and of the first token after it, they mean nothing.
        """
        hidden, _ = self.apply(params, tokens, valid=valid, return_hidden=True)
        return self.log_probs_of_hidden(params, hidden, tokens, temperature)

    def log_probs_of_hidden(
        self, params: Params, hidden: Array, tokens: Array, temperature: Array | float = 1.0
    ) -> tuple[Array, Array]:
        """`token_log_probs` from hidden states `[B, T, D]` that are already known."""

        def chunk(operands: tuple[Array, Array]) -> tuple[Array, Array]:
            logits = self.logits(params, operands[0]) / temperature
            return log_prob_and_entropy(logits, operands[1])

        hidden, targets = hidden[:, :-1], tokens[:, 1:]
        batch_size, length = targets.shape
        size = self.log_prob_chunk
        if length <= size:
            results = chunk((hidden, targets))
        else:
            padding = -length % size
            hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0))).reshape(batch_size, -1, size, hidden.shape[-1])
            targets = jnp.pad(targets, ((0, 0), (0, padding))).reshape(batch_size, -1, size)
            results = jax.lax.map(jax.checkpoint(chunk), (jnp.moveaxis(hidden, 1, 0), jnp.moveaxis(targets, 1, 0)))
            results = tuple(jnp.moveaxis(leaf, 0, 1).reshape(batch_size, -1)[:, :length] for leaf in results)
        log_probs, entropies = (jnp.pad(leaf, ((0, 0), (1, 0))) for leaf in results)
        return log_probs, entropies

    def _place(self, hidden: Array) -> Array:
        return hidden if self.sharding is None else jax.lax.with_sharding_constraint(hidden, self.sharding)

    def _remat(self, step: Any) -> Any:
        return step if self.remat == "none" else jax.checkpoint(step, policy=_REMAT[self.remat])

    def _layer(self, layer: Params, hidden: Array, rotation: Any, mask: Array, past: Any = None) -> tuple[Array, Any]:
        """One block: attention and network, each normalised before and added to what it read."""
        read, present = self._attend(layer, self._norm(hidden, layer, "norm_attn"), rotation, mask, past)
        hidden = hidden + read
        rows = self._norm(hidden, layer, "norm_mlp").reshape(-1, self.config.hidden_size)
        activation = _ACTIVATIONS[self.config.activation]
        if self.config.mlp == "gated":
            inner = activation(_project(layer, "mlp.gate", rows)) * _project(layer, "mlp.up", rows)
        else:
            inner = activation(_project(layer, "mlp.up", rows))
        return self._place(hidden + _project(layer, "mlp.down", inner).reshape(hidden.shape)), present

    def _attend(self, layer: Params, hidden: Array, rotation: Any, mask: Array, past: Any) -> tuple[Array, Any]:
        batch_size, length, size = hidden.shape
        rows = hidden.reshape(-1, size)  # products of rows are several times faster on CPU than those of 3-D arrays
        query, key, value = (
            _project(layer, f"attn.{name}", rows).reshape(batch_size, length, -1, self.config.head_dim)
            for name in "qkv"
        )
        if self.config.qk_norm:
            query, key = self._norm(query, layer["attn"], "q_norm"), self._norm(key, layer["attn"], "k_norm")
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        query, key, value = (jnp.swapaxes(heads, 1, 2) for heads in (query, key, value))
        present = None
        if past is not None:
            past_keys, past_values, slots = past
            present = key, value = write_block(past_keys, key, slots), write_block(past_values, value, slots)
        direct = self.attention == "xla" or (self.attention == "auto" and jax.default_backend() == "cpu")
        read = (attention if direct else dot_product_attention)(query, key, value, mask)
        read = jnp.swapaxes(read, 1, 2).reshape(batch_size * length, -1)
        return _project(layer, "attn.o", read).reshape(hidden.shape), present

    def _norm(self, values: Array, params: Params, name: str) -> Array:
        """RMS or layer norm over the last axis; statistics in float32."""
        shape = (1,) * (values.ndim - 1) + (-1,)
        scale, wide = params[name].reshape(shape), values.astype(jnp.float32)
        if self.config.norm == "rms":
            normal = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + self.config.norm_epsilon)
            return normal.astype(values.dtype) * scale.astype(values.dtype)
        wide = wide - jnp.mean(wide, -1, keepdims=True)
        normal = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + self.config.norm_epsilon)
        return (normal * scale + params[f"{name}_bias"].reshape(shape)).astype(values.dtype)


def log_prob_and_entropy(logits: Array, tokens: Array) -> tuple[Array, Array]:
    """Log-probability of `tokens` `[...]` under `logits` `[..., V]`, and the entropy, both f32 `[...]`."""
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    probabilities = jnp.exp(logits - normaliser[..., None])
    # A forbidden token's logit is -inf and its probability 0: it adds nothing, to the gradient neither.
    mean = jnp.sum(probabilities * jnp.where(probabilities > 0.0, logits, 0.0), axis=-1)
    return chosen - normaliser, normaliser - mean


def _project(layer: Params, path: str, rows: Array) -> Array:
    """`rows` `[N, in]` times the matrix at `path` of a layer, plus its bias and its adapter where it has them."""
    group, name = path.split(".")
    weight = layer[group][name].astype(rows.dtype)
    out = rows @ weight.reshape(rows.shape[-1], -1)
    bias = layer[group].get(f"{name}_bias")
    if bias is not None:
        out = out + bias.astype(rows.dtype).reshape(1, -1)
    adapter = layer.get("lora", {}).get(path)
    if adapter is not None:
        out = out + rows @ adapter["a"].astype(rows.dtype) @ adapter["b"].astype(rows.dtype)
    return out


def _pick(layers: Any, i: int) -> Params:
    return layers[i] if isinstance(layers, tuple) else jax.tree.map(lambda leaf: leaf[i], layers)
