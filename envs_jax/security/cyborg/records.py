"""The two words that hold what changes on a host, and how to read and write them.

Packed, a host is read by one gather and written by one select per word; the step spends most of its time on those.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

Array = jax.Array

COUNT_BITS = 10
COUNT_LIMIT = (1 << COUNT_BITS) - 1
# Kinds of red sessions by the place of their count: blue can kill it; blue cannot; root or SYSTEM.
REMOVABLE, STICKY, PRIVILEGED = 0, COUNT_BITS, 2 * COUNT_BITS
ONE_PRIVILEGED = 1 << PRIVILEGED
ALL_REMOVABLE = COUNT_LIMIT << REMOVABLE


@dataclasses.dataclass(frozen=True)
class Sessions:
    """Red's sessions on a host: three counts of 10 bits, exact up to 1,023 sessions of a kind on one host."""

    word: Array  # u32, any shape

    def count(self, kind: int) -> Array:
        return ((self.word >> kind) & COUNT_LIMIT).astype(jnp.int32)

    @property
    def any(self) -> Array:
        return self.word != 0

    @property
    def privileged(self) -> Array:
        return self.word >> PRIVILEGED != 0

    @property
    def killable(self) -> Array:
        return self.word & ALL_REMOVABLE != 0

    def added(self, kind: Array) -> Array:
        """The word with one session more of a kind (u32, the place of its count)."""
        full = (self.word >> kind) & COUNT_LIMIT == COUNT_LIMIT
        return self.word + jnp.where(full, jnp.uint32(0), jnp.uint32(1) << kind)


@dataclasses.dataclass(frozen=True)
class Setup:
    """A host as both sides have set it up: red's record of its ports, the decoys on it, what it is patched against."""

    word: Array  # u32, any shape

    @property
    def ports(self) -> Array:
        """Modelled ports red recorded at its last scan; bit order of `catalogue.EXPLOITS`."""
        return self.word & 0xFF

    @property
    def decoys(self) -> Array:
        """Bit order of `catalogue.DECOYS`."""
        return (self.word >> 8) & 0xFF

    @property
    def patched(self) -> Array:
        """Exploits the host is immune to."""
        return (self.word >> 16) & 0xFF

    def with_ports(self, ports: Array) -> Array:
        return (self.word & ~jnp.uint32(0xFF)) | ports

    def with_more(self, decoys: Array, patches: Array) -> Array:
        return self.word | decoys << 8 | patches << 16

    def restored(self, keep_ports: bool, keep_patches: bool) -> Array:
        """Without decoys, and without what else a Restore undoes."""
        return self.word & ((0xFF if keep_ports else 0) | (0xFF0000 if keep_patches else 0))
