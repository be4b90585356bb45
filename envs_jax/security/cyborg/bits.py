"""Sets of hosts as bit masks in 32-bit words: host h is bit `h % 32` of word `h // 32`.

A set of the 13 hosts of CAGE 2 is one word, so under vmap every set operation is one vectorised instruction per
eight environments; 1,000 hosts are 32 words. Shapes: W = `num_words(num_hosts)`, N hosts.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

WORD = 32


def once(tree: Any) -> Any:
    """The tree itself, computed once for all its readers.

    XLA's CPU back end fuses an elementwise value into every reader and computes it anew in each, which made a step
    five times slower to run and to compile. It does not look through a reduction, so the value passes through one
    that changes nothing. Other back ends get the value as it is.
    """
    if jax.default_backend() != "cpu":
        return tree

    def through_reduction(leaf: Array) -> Array:
        twice = jnp.broadcast_to(leaf[None], (2, *leaf.shape))
        return jnp.any(twice, axis=0) if leaf.dtype == bool else jnp.max(twice, axis=0)

    return jax.tree.map(through_reduction, tree)


def num_words(num_hosts: int) -> int:
    return -(-num_hosts // WORD)


def row(table: Array | np.ndarray, index: Array) -> Array:
    """`table[index]` for an index known to lie inside: one plain gather."""
    return jnp.asarray(table).at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def put(table: Array, index: Array, value: Array) -> Array:
    """`table` with row `index` replaced, as a select: a scatter runs serially on a CPU."""
    here = jnp.arange(table.shape[0], dtype=jnp.int32) == index
    here = here.reshape(here.shape + (1,) * (table.ndim - 1))
    return jnp.where(here, jnp.expand_dims(value.astype(table.dtype), 0), table)


def bit(index: Array, words: int, when: Array | bool = True) -> Array:
    """u32 `[W]`: the set of one host, empty unless `when`. `index` must not be negative."""
    index = index.astype(jnp.uint32)
    value = jnp.where(when, jnp.uint32(1), jnp.uint32(0)) << (index % WORD)
    if words == 1:
        return value[None]
    return jnp.where(jnp.arange(words, dtype=jnp.uint32) == index // WORD, value, jnp.uint32(0))


def has(mask: Array, index: Array) -> Array:
    """bool []: whether a set holds a host. `index` must not be negative."""
    index = index.astype(jnp.uint32)
    word = mask[0] if mask.shape[0] == 1 else row(mask, (index // WORD).astype(jnp.int32))
    return (word >> (index % WORD)) & 1 == 1


def keep(mask: Array, when: Array) -> Array:
    """The set itself where `when` holds, else the empty set."""
    return jnp.where(when, mask, jnp.uint32(0))


def some(mask: Array) -> Array:
    """bool [...]: whether sets `[..., W]` are not empty."""
    if mask.shape[-1] == 1:
        return mask[..., 0] != 0
    return jnp.any(mask != 0, axis=-1)


def count(mask: Array) -> Array:
    """i32 []: how many hosts a set holds."""
    ones = jax.lax.population_count(mask).astype(jnp.int32)
    return ones[0] if ones.shape[0] == 1 else jnp.sum(ones, dtype=jnp.int32)


def select(mask: Array, rank: Array) -> Array:
    """i32 []: the host with `rank` smaller members before it; meaningless unless `0 <= rank < count(mask)`."""
    base = jnp.int32(0)
    word = mask[0]
    if mask.shape[0] > 1:
        ones = jax.lax.population_count(mask).astype(jnp.int32)
        upto = jnp.cumsum(ones, dtype=jnp.int32)
        index = jnp.minimum(jnp.sum(upto <= rank, dtype=jnp.int32), mask.shape[0] - 1)
        rank = rank - (row(upto, index) - row(ones, index))
        word, base = row(mask, index), index * WORD
    for width in (16, 8, 4, 2, 1):  # halve the word that still holds the wanted bit
        below = jax.lax.population_count(word & jnp.uint32((1 << width) - 1)).astype(jnp.int32)
        beyond = rank >= below
        rank = jnp.where(beyond, rank - below, rank)
        word = jnp.where(beyond, word >> width, word)
        base = jnp.where(beyond, base + width, base)
    return base


def unpack(mask: Array, num_hosts: int) -> Array:
    """bool `[..., N]` from `[..., W]`."""
    hosts = np.arange(num_hosts)
    words = mask[..., hosts // WORD] if mask.shape[-1] > 1 else mask
    return (words >> jnp.asarray(hosts % WORD, jnp.uint32).reshape((1,) * (mask.ndim - 1) + (-1,))) & 1 == 1


def pack(members: Array) -> Array:
    """u32 `[..., W]` from bool `[..., N]`."""
    num_hosts, words = members.shape[-1], num_words(members.shape[-1])
    lead = members.shape[:-1]
    padded = jnp.pad(members.astype(jnp.uint32), [(0, 0)] * len(lead) + [(0, words * WORD - num_hosts)])
    shifts = jnp.arange(WORD, dtype=jnp.uint32).reshape((1,) * (len(lead) + 1) + (WORD,))
    return jnp.sum(padded.reshape(*lead, words, WORD) << shifts, axis=-1, dtype=jnp.uint32)


def uniform(word: Array) -> Array:
    """f32 in [0, 1) from a random u32 word."""
    return (word >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


def draw(mask: Array, word: Array) -> Array:
    """i32 []: a uniformly drawn member, from one random u32 word; 0 for the empty set."""
    members = count(mask)
    rank = jnp.minimum((uniform(word) * members.astype(jnp.float32)).astype(jnp.int32), members - 1)
    return jnp.where(members > 0, select(mask, rank), 0)
