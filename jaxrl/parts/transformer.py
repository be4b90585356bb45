"""A causal transformer, and the Decision Transformer's network on it. Inputs may have leading batch axes `...`.

Pre-norm blocks as in GPT-2, initialised as there; K steps of a trajectory make 3 K tokens. Source: Chen et al. 2021,
"Decision Transformer"; sizes and details as in CORL's implementation of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

Array = jax.Array
_INITIAL_WEIGHTS = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The part of an algorithm's configuration that shapes its transformer."""

    width: int = 128
    num_layers: int = 3
    num_heads: int = 1
    dropout: float = 0.1  # of the embeddings, the attention weights and both branches of a block

    def __post_init__(self) -> None:
        for name in ("width", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"transformer.{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.num_heads:
            raise ValueError(f"transformer.num_heads must divide width = {self.width}, got {self.num_heads}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"transformer.dropout must be in [0, 1), got {self.dropout}")


class Dropout(nn.Module):
    """Zeroes a share of the entries and scales up the others; draws from the stream "dropout"."""

    rate: float

    @nn.compact
    def __call__(self, values: Array, deterministic: bool) -> Array:
        if deterministic or self.rate == 0.0:
            return values
        # 16 bits each: half the cost of floats, and the rate is right to 1e-5.
        draws = jax.random.bits(self.make_rng("dropout"), values.shape, jnp.uint16)
        return jnp.where(draws >= round(self.rate * 2**16), values / (1.0 - self.rate), 0.0)


class Linear(nn.Dense):
    """A dense layer with small normal weights and zero biases.

    All axes but the last make one: with several, the gradient of the weights is half again as slow on a CPU.
    """

    kernel_init: Any = _INITIAL_WEIGHTS

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        return super().__call__(inputs.reshape(-1, inputs.shape[-1])).reshape(*inputs.shape[:-1], self.features)


def layer_norm(name: str | None = None) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, name=name)


class Block(nn.Module):
    """Attention and a two-layer network, each normalised before and added to what it read."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, tokens: Array, attends: Array, deterministic: bool) -> Array:
        """From `tokens` f32 `[..., L, width]`; `attends` bool `[..., L, L]`: which (column) each one (row) may read."""
        config, drop = self.config, Dropout(self.config.dropout)
        mixed = Linear(3 * config.width, name="query_key_value")(layer_norm("norm_attention")(tokens))
        heads = mixed.reshape(*tokens.shape[:-1], 3, config.num_heads, config.width // config.num_heads)
        query, key, value = (heads[..., i, :, :] for i in range(3))
        scores = jnp.einsum("...qhd,...khd->...hqk", query, key) * query.shape[-1] ** -0.5
        weights = nn.softmax(jnp.where(attends[..., None, :, :], scores, jnp.finfo(scores.dtype).min))
        read = jnp.einsum("...hqk,...khd->...qhd", drop(weights, deterministic), value).reshape(tokens.shape)
        tokens = tokens + drop(Linear(config.width, name="output")(read), deterministic)
        hidden = Linear(4 * config.width, name="expand")(layer_norm("norm_network")(tokens))
        hidden = Linear(config.width, name="contract")(nn.gelu(hidden, approximate=False))
        return tokens + drop(hidden, deterministic)


class DecisionTransformer(nn.Module):
    """Actions in [-1, 1] from the last K steps: `(return to go, observation, action)` make three tokens of a step."""

    config: TransformerConfig
    action_size: int
    num_times: int  # rows of the table of time steps

    def setup(self) -> None:
        width = self.config.width
        self.embed_time = nn.Embed(self.num_times, width, embedding_init=_INITIAL_WEIGHTS)
        self.embed_return = Linear(width)
        self.embed_observation = Linear(width)
        self.embed_action = Linear(width)
        self.norm_tokens = layer_norm()
        self.drop_tokens = Dropout(self.config.dropout)
        self.blocks = [Block(self.config) for _ in range(self.config.num_layers)]
        self.norm_features = layer_norm()
        self.head = Linear(self.action_size)

    def __call__(self, *window: Array, deterministic: bool = True) -> Array:
        """f32 `[..., K, A]`; `window` as in `features`."""
        return self.actions(self.features(*window, deterministic=deterministic))

    def features(
        self,
        observation: Array,
        action: Array,
        return_to_go: Array,
        time: Array,
        mask: Array,
        deterministic: bool = True,
        prefix: tuple[Array, Array] | None = None,
    ) -> Array:
        """What each observation's token has become.

        Args:
            observation: f32 `[..., K, S]`, standardised.
            action: f32 `[..., K, A]` in [-1, 1]; that of a step is read from the next step on.
            return_to_go: f32 `[..., K]`, scaled.
            time: i32 `[..., K]`; steps since the start of the episode, below `num_times`.
            mask: bool `[..., K]`; False: padding, which nothing reads.
            deterministic: without dropout; otherwise the stream "dropout" is drawn from.
            prefix: further tokens f32 `[..., P, width]` before those of the window, which all of them read, and which
                of them count, bool `[..., P]`.

        Returns:
            f32 `[..., K, width]`; nothing of a step's action or of later steps is in it.
        """
        batch, num_steps, width = observation.shape[:-2], observation.shape[-2], self.config.width
        embedded = [self.embed_return(return_to_go[..., None]), self.embed_observation(observation)]
        embedded = jnp.stack([*embedded, self.embed_action(action)], axis=-2) + self.embed_time(time)[..., None, :]
        tokens = self.drop_tokens(self.norm_tokens(embedded.reshape(*batch, -1, width)), deterministic)
        readable = jnp.repeat(mask, 3, axis=-1)
        if prefix is not None:
            tokens = jnp.concatenate([prefix[0], tokens], axis=-2)
            readable = jnp.concatenate([prefix[1], readable], axis=-1)
        length = tokens.shape[-2]
        causal = jnp.tri(length, dtype=bool).reshape(*(1 for _ in batch), length, length)
        for block in self.blocks:
            tokens = block(tokens, causal & readable[..., None, :], deterministic)
        of_steps = tokens[..., -3 * num_steps :, :].reshape(*batch, num_steps, 3, width)
        return self.norm_features(of_steps[..., 1, :])

    def actions(self, features: Array) -> Array:
        """f32 `[..., K, A]` from features `[..., K, width]`."""
        return jnp.tanh(self.head(features))


def masked_squared_error(predictions: Array, targets: Array, mask: Array, count_padding: bool = False) -> Array:
    """Mean squared error over the entries `[..., K, A]` of steps whose `mask` `[..., K]` is True.

    With `count_padding` the sum is divided by all entries, padding included, as CORL does.
    """
    errors = jnp.where(mask[..., None], jnp.square(predictions - targets), 0.0)
    entries = mask.size if count_padding else jnp.maximum(jnp.sum(mask), 1)
    return jnp.sum(errors) / (entries * errors.shape[-1])


def warmup_adamw(
    learning_rate: Any, warmup_updates: Any, weight_decay: Any, max_grad_norm: Any, num_updates: Array
) -> optax.GradientTransformation:
    """AdamW on clipped gradients; the learning rate of update `num_updates` (from 0) rises linearly, then stays."""
    factor = jnp.minimum((num_updates + 1) / jnp.maximum(warmup_updates, 1.0), 1.0)
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm),
        optax.scale_by_adam(),
        optax.add_decayed_weights(weight_decay),
        optax.scale(-learning_rate * factor),
    )
