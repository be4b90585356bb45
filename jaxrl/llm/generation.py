"""Generation: a batch of prompts continued token by token against the cache, in one compiled program.

Letters: B sequences, P tokens of a prompt, N new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.llm.model import TransformerLM, log_prob_and_entropy
from jaxrl.llm.parameters import Params, unstack_layers
from jaxrl.llm.sampling import Sampling, sample_token

Array = jax.Array
PyTree = Any
DRIVERS = ("scan", "while")


@struct.dataclass
class Generation:
    """New tokens; all but `lengths` are `[B, N]`."""

    tokens: Array  # i32; padding after the end
    log_probs: Array  # f32; under the model itself: temperature 1, nothing filtered or forbidden; 0 where not sampled
    behaviour_log_probs: Array  # f32; under what the token was drawn from
    mask: Array  # bool; the model chose this token: neither forced nor padding
    lengths: Array  # i32 [B]; tokens up to the end, the stop token included


class Constraint(NamedTuple):
    """What a sequence may or must say next, by a state of its own. Functions of one sequence, without batch axis."""

    start: PyTree  # [B]; the states before the first new token
    advance: Callable[[PyTree, Array], PyTree]  # (state, token) -> the state after a token
    allow: Callable[[PyTree], Array] | None = None  # state -> bool [V]: which tokens may be sampled, at least one
    force: Callable[[PyTree], tuple[Array, Array]] | None = None  # state -> (whether a token is forced, which one)


def generate(
    model: TransformerLM,
    params: Params,
    tokens: Array,
    key: Array,
    *,
    max_new: int,
    sampling: Sampling,
    valid: Array | None = None,
    stop_ids: tuple[int, ...] | None = None,
    pad_id: int | None = None,
    constraint: Constraint | None = None,
    driver: str = "scan",
) -> Generation:
    """Continues prompts by up to N = `max_new` tokens.

    Step i of a sequence draws with `fold_in(its key, i)`: its tokens depend neither on the driver nor on what else is
    in the batch.

    Args:
        model: whose continuation.
        params: its parameters.
        tokens: prompts, i32 `[B, P]`, padded on the left.
        key: consumed; one key, from which each sequence's is derived by its number, or keys `[B]`.
        max_new: N.
        sampling: from `make_sampling`.
        valid: bool `[B, P]`, False at padding; None: all real.
        stop_ids: tokens that end a sequence; None: those of the model's configuration.
        pad_id: what follows the end; None: the configuration's, or 0.
        constraint: restricts or forces tokens.
        driver: "scan" takes N steps; "while" stops when every sequence has ended.

    Returns:
        `Generation`; both drivers give the same.
    """
    if driver not in DRIVERS:
        raise ValueError(f"driver must be one of {', '.join(DRIVERS)}, got {driver!r}")
    if max_new < 1:
        raise ValueError(f"max_new must be at least 1, got {max_new}")
    batch_size, prompt_length = tokens.shape
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch_size)) if key.ndim == 0 else key
    pad_id = (model.config.pad_id or 0) if pad_id is None else pad_id
    stops = jnp.array(model.config.eos_ids if stop_ids is None else stop_ids, jnp.int32)
    params = unstack_layers(params)
    valid = jnp.ones(tokens.shape, bool) if valid is None else valid
    cache = model.init_cache(batch_size, prompt_length + max_new)
    if prompt_length > 1:
        # Without the last token: each step feeds the one before it, and the prompt needs no output head.
        _, cache = model.apply(params, tokens[:, :-1], cache=cache, valid=valid[:, :-1], return_hidden=True)

    def step(carry: tuple, i: Array) -> tuple[tuple, dict[str, Array]]:
        cache, last, done, state = carry
        logits, cache = model.apply(params, last[:, None], cache=cache)
        logits = offered = logits[:, 0]
        if constraint is not None and constraint.allow is not None:
            offered = jnp.where(jax.vmap(constraint.allow)(state), logits, -jnp.inf)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        token, behaviour = jax.vmap(sample_token, (0, 0, None))(offered, step_keys, sampling)
        sampled = ~done
        log_prob, _ = log_prob_and_entropy(logits, token)
        if constraint is not None and constraint.force is not None:
            forced, forced_token = jax.vmap(constraint.force)(state)
            token, sampled = jnp.where(forced, forced_token, token), sampled & ~forced
        token = jnp.where(done, pad_id, token).astype(jnp.int32)
        if constraint is not None:
            state = jax.vmap(constraint.advance)(state, token)
        out = {
            "tokens": token,
            "log_probs": jnp.where(sampled, log_prob, 0.0),
            "behaviour_log_probs": jnp.where(sampled, behaviour, 0.0),
            "mask": sampled,
            "alive": ~done,
        }
        done = done | jnp.any(token[:, None] == stops[None], axis=1)
        return (cache, token, done, state), out

    start = () if constraint is None else constraint.start
    carry = (cache, tokens[:, -1], jnp.zeros(batch_size, bool), start)
    steps = _scan(step, carry, max_new) if driver == "scan" else _while(step, carry, max_new, pad_id)
    steps = {name: jnp.swapaxes(leaf, 0, 1) for name, leaf in steps.items()}
    return Generation(lengths=jnp.sum(steps.pop("alive"), axis=1, dtype=jnp.int32), **steps)


def _scan(step: Callable, carry: tuple, length: int) -> dict[str, Array]:
    return jax.lax.scan(step, carry, jnp.arange(length))[1]


def _while(step: Callable, carry: tuple, length: int, pad_id: int) -> dict[str, Array]:
    """As `_scan`, but leaves when all are done; the steps not taken read as they would have been."""
    shapes = jax.eval_shape(step, carry, jnp.zeros((), jnp.int32))[1]
    buffers = {
        name: jnp.full((length, *leaf.shape), pad_id if name == "tokens" else 0, leaf.dtype)
        for name, leaf in shapes.items()
    }

    def body(loop: tuple) -> tuple:
        i, carry, buffers = loop
        carry, out = step(carry, i)
        return i + 1, carry, {name: buffers[name].at[i].set(out[name]) for name in buffers}

    first = (jnp.zeros((), jnp.int32), carry, buffers)
    return jax.lax.while_loop(lambda loop: (loop[0] < length) & ~jnp.all(loop[1][2]), body, first)[2]
