"""A sum-tree: draws an index in proportion to its value, and changes values, in time that grows with their logarithm.

Its nodes have 32 children rather than two, so that a million values take four levels: few steps, each of them wide.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
RADIX = 32
SumTree = tuple[Array, ...]  # f32 [groups, RADIX] each: the leaves, then the sums of their groups, up to one group


def init_tree(num_leaves: int) -> SumTree:
    """A tree over `num_leaves` zeros."""
    levels, size = [], num_leaves
    while size > 1 or not levels:
        size = -(-size // RADIX)
        levels.append(jnp.zeros((size, RADIX), jnp.float32))
    return tuple(levels)


def set_leaves(tree: SumTree, index: Array, values: Array) -> SumTree:
    """Sets leaves `index` `[n]` to `values` `[n]` >= 0; of equal indices the largest value counts, in any order."""
    group, child = index // RADIX, index % RADIX
    levels = [tree[0].at[group, child].set(0.0).at[group, child].max(values)]
    for level in tree[1:]:
        sums = jnp.sum(levels[-1][group], axis=-1)  # sums anew, not differences: rounding does not pile up
        group, child = group // RADIX, group % RADIX
        levels.append(level.at[group, child].set(sums))
    return tuple(levels)


def sample_leaves(tree: SumTree, key: Array, num_samples: int) -> tuple[Array, Array]:
    """Draws leaves in proportion to their values; their indices i32 `[n]` and values f32 `[n]`; consumes `key`.

    A leaf of value 0 is never drawn, unless all are 0.
    """
    earlier = np.triu(np.ones((RADIX, RADIX), np.float32))

    def descend(threshold: Array) -> tuple[Array, Array]:
        group, value = jnp.zeros((), jnp.int32), jnp.zeros(())
        for level in reversed(tree):
            values = level[group]
            # A product adds up every prefix in the same order: they ascend, and are equal where a value is 0.
            prefix = jnp.dot(values, earlier, precision=jax.lax.Precision.HIGHEST)
            # Rounding on the level above must lead neither before the first value nor past the last one.
            threshold = jnp.clip(threshold, 0.0, prefix[-1] * (1.0 - 2.0**-23))
            child = jnp.minimum(jnp.sum(prefix <= threshold, dtype=jnp.int32), RADIX - 1)
            value = values[child]
            threshold -= prefix[child] - value
            group = group * RADIX + child
        return group, value

    return jax.vmap(descend)(jax.random.uniform(key, (num_samples,)) * jnp.sum(tree[-1]))
