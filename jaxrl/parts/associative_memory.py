"""An associative memory of an expert's steps: an autoencoder, the entries it makes, and looking them up.

Each step `(return to go, observation, action)` is encoded part by part, joined and compressed to a latent that a
decoder can undo; the latents are what is stored. An entry is found by its situation, the encoded return and
observation: when it is needed its action is what is not known yet. Source: Zelezetsky et al. 2025, "Re:Frame",
arXiv 2508.19344, for the parts of an entry; every size, loss and rule here is our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from jaxrl.parts.normalize import RunningStatistics, init_statistics, normalize, update_statistics
from jaxrl.types import Array, PyTree

HELD_OUT = 20  # every so manieth row is kept from the autoencoder, to judge it
LEARNING_RATE = 1e-3  # of the autoencoder, by Adam


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """The part of an algorithm's configuration that shapes its memory."""

    size: int = 4096  # M; where the expert has more steps, those that are farthest from each other
    latent_size: int = 32
    encoder_size: int = 64  # E, of each of the three encoders
    key_size: int = 32
    batch_size: int = 1024  # of the autoencoder
    num_updates: int = 20_000  # likewise

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"memory.{field.name} must be at least 1, got {getattr(self, field.name)}")


@struct.dataclass
class Experience:
    """The expert's N steps."""

    observation: Array  # f32 [N, S], standardised as the policy sees them
    action: Array  # f32 [N, A] in [-1, 1]
    return_to_go: Array  # f32 [N], scaled
    episode: Array  # i32 [N]; the row in which the episode begins
    size: Array  # i32 []; rows that count: the first ones


@struct.dataclass
class Memory:
    """M entries, and what made them."""

    situation: Array  # f32 [M, 2 E]; encoded return and observation
    latent: Array  # f32 [M, latent]
    row: Array  # i32 [M]; of the expert's data set
    time: Array  # i32 [M]; steps since the start of the episode
    experience: Experience  # the same entries, not encoded; for pictures and comparisons
    valid: Array  # bool [M]
    encoder: PyTree  # parameters of the `Autoencoder`, frozen
    returns: RunningStatistics  # of the expert's returns to go
    explained: Array  # f32 [2]; share of the variance of held-out observations and actions that is decoded


class Autoencoder(nn.Module):
    """Of one step."""

    config: MemoryConfig
    observation_size: int
    action_size: int

    def setup(self) -> None:
        size = self.config.encoder_size
        self.encode_return = _Encoder(size)
        self.encode_observation = _Encoder(size)
        self.encode_action = _Encoder(size)
        self.compress = nn.Dense(self.config.latent_size)
        self.expand = nn.Dense(3 * size)
        self.heads = [nn.Dense(n) for n in (1, self.observation_size, self.action_size)]

    def situation(self, return_to_go: Array, observation: Array) -> Array:
        """f32 `[2 E]` from the standardised return `[]` and observation `[S]`."""
        return jnp.concatenate([self.encode_return(return_to_go[None]), self.encode_observation(observation)])

    def __call__(self, return_to_go: Array, observation: Array, action: Array) -> tuple[Array, Array, Array]:
        """The situation `[2 E]`, the latent, and return, observation and action decoded from it, `[1 + S + A]`."""
        situation = self.situation(return_to_go, observation)
        latent = self.compress(jnp.concatenate([situation, self.encode_action(action)]))
        hidden = nn.gelu(self.expand(latent), approximate=False)
        return situation, latent, jnp.concatenate([head(hidden) for head in self.heads])


class _Encoder(nn.Module):
    size: int

    @nn.compact
    def __call__(self, values: Array) -> Array:
        return nn.Dense(self.size)(nn.gelu(nn.Dense(self.size)(values), approximate=False))


def build_memory(key: Array, config: MemoryConfig, expert: Experience) -> Memory:
    """Trains the autoencoder, encodes the expert's steps and selects M of them; consumes `key`."""
    key_params, key_train = jax.random.split(key)
    returns = update_statistics(init_statistics(()), expert.return_to_go)
    steps = (normalize(returns, expert.return_to_go, limit=jnp.inf), expert.observation, expert.action)
    network = Autoencoder(config, expert.observation.shape[-1], expert.action.shape[-1])
    forward: Callable[..., Any] = jax.vmap(network.apply, (None, 0, 0, 0))
    targets = jnp.concatenate([steps[0][:, None], *steps[1:]], axis=-1)  # [N, 1 + S + A]
    # Return, observation and action count alike, however many numbers they have.
    sizes = (1, steps[1].shape[-1], steps[2].shape[-1])
    share = jnp.concatenate([jnp.full(size, 1.0 / size) for size in sizes])
    adam = optax.adam(LEARNING_RATE)

    def update(carry: tuple, key: Array) -> tuple[tuple, None]:
        params, opt_state = carry
        rows = training_rows(key, expert.size, config.batch_size)

        def loss(params: PyTree) -> Array:
            decoded = forward(params, *(leaf[rows] for leaf in steps))[2]
            return jnp.mean(jnp.sum(jnp.square(decoded - targets[rows]) * share[None], axis=-1))

        change, opt_state = adam.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, change), opt_state), None

    params = network.init(key_params, *(leaf[0] for leaf in steps))
    keys = jax.random.split(key_train, config.num_updates)
    (params, _), _ = jax.lax.scan(update, (params, adam.init(params)), keys)

    situation, latent, decoded = forward(params, *steps)
    rows = jnp.arange(targets.shape[0], dtype=jnp.int32)
    held_out = (rows % HELD_OUT == 0) & (rows < expert.size)
    edge = 1 + sizes[1]
    explained = [
        explained_variance(targets[:, c], decoded[:, c], held_out) for c in (slice(1, edge), slice(edge, None))
    ]
    if rows.shape[0] > config.size:
        chosen = farthest_points(latent, expert.size, config.size)
    else:
        chosen = jnp.minimum(jnp.arange(config.size, dtype=jnp.int32), rows.shape[0] - 1)
    entries = jax.tree.map(lambda leaf: leaf[chosen], dataclasses.replace(expert, size=rows))
    return Memory(
        situation=situation[chosen],
        latent=latent[chosen],
        row=chosen,
        time=chosen - entries.episode,
        experience=dataclasses.replace(entries, size=expert.size),
        valid=jnp.arange(config.size) < expert.size,
        encoder=params,
        returns=returns,
        explained=jnp.stack(explained),
    )


def training_rows(key: Array, size: Array, count: int) -> Array:
    """i32 [count]: rows drawn uniformly from those below `size` that are not held out; consumes `key`."""
    free = jnp.maximum(size - (size + HELD_OUT - 1) // HELD_OUT, 1)
    drawn = jax.random.randint(key, (count,), 0, free, jnp.int32)
    return drawn + drawn // (HELD_OUT - 1) + 1  # each block of rows begins with the one that is held out


def explained_variance(targets: Array, decoded: Array, mask: Array) -> Array:
    """f32 []: one less the squared errors over the squared deviations, of the rows `[N, n]` in `mask` `[N]`."""
    weight = mask[:, None] / jnp.maximum(jnp.sum(mask), 1)
    mean = jnp.sum(targets * weight, axis=0, keepdims=True)
    errors, deviations = (jnp.sum(jnp.square(targets - other) * weight) for other in (decoded, mean))
    return 1.0 - errors / jnp.maximum(deviations, 1e-6)


def farthest_points(points: Array, size: Array, count: int) -> Array:
    """i32 [count]: the first of `points` `[N, n]`, then ever again the one farthest from all chosen so far.

    Of the rows below `size` alone. Source: Gonzalez 1985, "Clustering to minimize the maximum intercluster distance".
    """

    def pick(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        distance, row = carry
        distance = jnp.minimum(distance, jnp.sum(jnp.square(points - points[row][None]), axis=-1))
        return (distance, jnp.argmax(distance).astype(jnp.int32)), row

    allowed = jnp.where(jnp.arange(points.shape[0]) < size, jnp.inf, -jnp.inf)
    return jax.lax.scan(pick, (allowed, jnp.zeros((), jnp.int32)), None, count)[1]


class Reading(NamedTuple):
    """What was looked up for one query; P entries, the most similar first."""

    latent: Array  # f32 [latent]; the weighted mean
    rows: Array  # i32 [P], of the memory
    similarity: Array  # f32 [P], cosines
    weights: Array  # f32 [P]; 0 beyond the number that is asked for


def retrieve(
    query: Array,
    keys: Array,
    memory: Memory,
    num_retrieved: Array,
    temperature: Array,
    max_retrieved: int,
    key: Array | None = None,
) -> Reading:
    """The entries whose keys are most similar to a query, and their mean weighted by `softmax(cosine / temperature)`.

    Gradients go through cosines, none through the choice.

    Args:
        query: f32 `[d]`, of length 1.
        keys: f32 `[M, d]`, of length 1.
        memory: what the keys belong to.
        num_retrieved: how many count, at most P; a float, that may be traced.
        temperature: of the softmax.
        max_retrieved: P.
        key: a control: instead, entries drawn at random, weighted equally.
    """
    if key is None:
        cosines = jax.lax.stop_gradient(jnp.where(memory.valid, keys @ query, -jnp.inf))
        rows = jax.lax.top_k(cosines, max_retrieved)[1]
    else:
        count = jnp.sum(memory.valid, dtype=jnp.int32)
        rows = jax.random.randint(key, (max_retrieved,), 0, count, jnp.int32)
    similarity = keys[rows] @ query
    kept = (jnp.arange(max_retrieved) < num_retrieved) & memory.valid[rows]
    scores = similarity / temperature if key is None else jnp.zeros(max_retrieved)
    weights = jax.nn.softmax(jnp.where(kept, scores, -jnp.inf))
    return Reading(weights @ memory.latent[rows], rows, similarity, weights)


def unit(vectors: Array) -> Array:
    """`[..., d]`, each of length 1; zeros stay."""
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True), 1e-12))
