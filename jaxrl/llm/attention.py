"""Attention with grouped queries, rotary positions, and the cache of keys and values.

Letters: B sequences, T tokens of a block, S slots of the cache, H query heads, K key-value heads, d head size,
L layers. Sources: Ainslie et al. 2023 (grouped queries), Su et al. 2021 (rotary positions).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.llm.config import RopeScaling

Array = jax.Array


@struct.dataclass
class Cache:
    """Keys and values of the tokens so far, in a fixed number S of slots; one array per layer, never copied whole.

    With one `index` for all sequences (aligned), a block fills the same slots everywhere and its padding leaves
    slots that nothing reads. With an index per sequence (ragged), only a block's valid tokens are written, each
    sequence goes on where it stood, and one without valid tokens stays as it is. Writing past S is not noticed.
    """

    keys: tuple[Array, ...]  # L of [B, K, S, d], after rotation
    values: tuple[Array, ...]  # L of [B, K, S, d]
    valid: Array  # bool [B, S]
    index: Array  # i32 [] or [B]; the next slot


def rotations(positions: Array, head_dim: int, theta: float, scaling: RopeScaling | None) -> tuple[Array, Array]:
    """Cosines and sines f32 `[B, T, d/2]` of the angle `position * theta^(-2j/d)`, after scaling."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is not None and scaling.kind == "linear":
        frequency = frequency / scaling.factor
    elif scaling is not None:
        # Llama 3: long waves are stretched, short ones kept, those between interpolated.
        turns = scaling.original_max_positions * frequency / (2.0 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
        frequency = (1.0 - keep) * frequency / scaling.factor + keep * frequency
    angles = positions.astype(jnp.float32)[..., None] * frequency[None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(heads: Array, rotation: tuple[Array, Array]) -> Array:
    """Rotary positions in halves: `(a, b) -> (a cos - b sin, b cos + a sin)` for heads `[B, T, H, d]`."""
    cos, sin = (part[:, :, None] for part in rotation)
    a, b = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(heads.dtype)


def attention(query: Array, key: Array, value: Array, mask: Array) -> Array:
    """Attention with grouped queries as two batched products; `[B, H, T, d]`.

    Args:
        query: `[B, H, T, d]`.
        key: `[B, K, S, d]`; query head h reads head h K // H, never repeated in memory.
        value: `[B, K, S, d]`.
        mask: bool `[B or 1, T, S]`.
    """
    batch_size, num_heads, length, head_dim = query.shape
    num_kv_heads, num_slots = key.shape[1:3]
    rows = query.reshape(batch_size, num_kv_heads, -1, head_dim)
    scores = jnp.einsum("bkqd,bksd->bkqs", rows, key, preferred_element_type=jnp.float32) * head_dim**-0.5
    scores = scores.reshape(batch_size, num_kv_heads, -1, length, num_slots)
    # The smallest number, not -inf: a token that may read nothing (padding) gets a mean, not NaN.
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    weights = weights.reshape(batch_size, num_kv_heads, -1, num_slots)
    return jnp.einsum("bkqs,bksd->bkqd", weights, value).reshape(batch_size, num_heads, length, head_dim)


def dot_product_attention(query: Array, key: Array, value: Array, mask: Array) -> Array:
    """The same by `jax.nn.dot_product_attention`."""
    query, key, value = (jnp.swapaxes(heads, 1, 2) for heads in (query, key, value))
    return jnp.swapaxes(jax.nn.dot_product_attention(query, key, value, mask=mask[:, None]), 1, 2)


def causal_mask(tokens: Array, valid: Array | None) -> Array:
    """bool `[B or 1, T, T]`: which token (column) each one (row) reads."""
    mask = jnp.tri(tokens.shape[1], dtype=bool)[None]
    return mask if valid is None else mask & (valid[:, :, None] == valid[:, None, :])


def count_valid(tokens: Array, valid: Array | None) -> Array:
    """i32 `[B, T]`: each token's number among the valid ones of the block, or of its packed sequence."""
    if valid is None:
        return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    if valid.dtype == jnp.bool_:
        return jnp.maximum(jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1, 0)
    index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    begins = jnp.pad(valid[:, 1:] != valid[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)


def enter_block(cache: Cache, valid: Array) -> tuple[Cache, Array, Array]:
    """Makes room for a block in which `valid` bool `[B, T]` marks the real tokens.

    Returns:
        The cache with `valid` and `index` as after the block; where it goes: the first slot, i32 [] (aligned), or
        each token's slot, i32 `[B, T]`, S for invalid ones; which slot each token reads, bool `[B, T, S]`.
    """
    length, num_slots = valid.shape[1], cache.valid.shape[1]
    if cache.index.ndim == 0:
        slots = cache.index
        own = (slots + jnp.arange(length, dtype=jnp.int32))[None]
        index = slots + length
    else:
        slots = own = jnp.where(valid, cache.index[:, None] + count_valid(valid, valid), num_slots)
        index = cache.index + jnp.sum(valid, axis=1, dtype=jnp.int32)
    written = write_block(cache.valid[:, None, :, None], valid[:, None, :, None], slots)[:, 0, :, 0]
    mask = written[:, None] & (jnp.arange(num_slots, dtype=jnp.int32)[None, None] <= own[:, :, None])
    return Cache(cache.keys, cache.values, written, index), slots, mask


def write_block(buffer: Array, block: Array, slots: Array) -> Array:
    """`buffer` `[B, K, S, d]` with `block` `[B, K, T, d]` at `slots`."""
    block = block.astype(buffer.dtype)
    if slots.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(buffer, block, slots, axis=2)
    rows = jnp.arange(buffer.shape[0])[:, None]
    return buffer.at[rows, :, slots].set(jnp.swapaxes(block, 1, 2), mode="drop")
