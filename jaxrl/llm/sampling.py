"""Drawing a token from logits: temperature, top-k, top-p and min-p, in this order. One distribution, no batch axis."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

Array = jax.Array


@struct.dataclass
class Sampling:
    """How tokens are drawn; made by `make_sampling`. Numbers are leaves: they may be traced or vmapped over."""

    temperature: Array | float = 1.0
    top_p: Array | float | None = None
    min_p: Array | float | None = None
    top_k: int | None = struct.field(pytree_node=False, default=None)
    greedy: bool = struct.field(pytree_node=False, default=False)


def make_sampling(
    temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None
) -> Sampling:
    """Checked settings.

    Args:
        temperature: divides the logits; 0 takes the most probable token.
        top_k: only the k most probable tokens, of equal ones those of smaller number; None: all.
        top_p: only the smallest set of the most probable tokens whose mass reaches p (Holtzman et al. 2020); None: all.
        min_p: only tokens at least this fraction as probable as the most probable one (Nguyen et al. 2024); None: all.
    """
    if temperature < 0.0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1 or None, got {top_k}")
    for name, share in (("top_p", top_p), ("min_p", min_p)):
        if share is not None and not 0.0 <= share <= 1.0:
            raise ValueError(f"{name} must be in [0, 1] or None, got {share}")
    greedy = temperature == 0.0
    return Sampling(1.0 if greedy else temperature, top_p, min_p, top_k, greedy)


def candidates(logits: Array, sampling: Sampling) -> tuple[Array, Array]:
    """What is drawn from.

    Args:
        logits: f32 `[V]`; -inf: forbidden.
        sampling: the filters.

    Returns:
        Logits f32 `[n]` after temperature and filters, -inf where filtered out, and their tokens i32 `[n]`.
    """
    vocab_size = logits.shape[0]
    logits = logits / sampling.temperature
    tokens = jnp.arange(vocab_size, dtype=jnp.int32)
    if sampling.top_k is not None or sampling.top_p is not None:
        # In falling order, equal ones by number.
        logits, tokens = jax.lax.top_k(logits, min(sampling.top_k or vocab_size, vocab_size))
    keep = jnp.ones(logits.shape, bool)
    if sampling.top_p is not None:
        probabilities = jax.nn.softmax(logits)
        keep &= jnp.cumsum(probabilities) - probabilities <= sampling.top_p
        keep = keep.at[0].set(True)  # a sum may round to less than its first term
    if sampling.min_p is not None:
        keep &= jnp.exp(logits - jnp.max(logits)) >= sampling.min_p
    return jnp.where(keep, logits, -jnp.inf), tokens


def sample_token(logits: Array, key: Array, sampling: Sampling) -> tuple[Array, Array]:
    """Draws a token; consumes `key`.

    Returns:
        The token i32 [] and its log-probability f32 [] under what it was drawn from, 0 for a greedy choice.
    """
    if sampling.greedy:
        return jnp.argmax(logits).astype(jnp.int32), jnp.zeros((), jnp.float32)
    kept, tokens = candidates(logits, sampling)
    choice = jax.random.categorical(key, kept)
    return tokens[choice], jax.nn.log_softmax(kept)[choice]
