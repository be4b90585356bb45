"""Losses for language models: formula code on tokens, sequences or pairs; `token_weights` make one number of a batch.

Letters: B sequences, T tokens, V vocabulary. `mask` marks the tokens that count, the agent's own. Per-token functions
are elementwise: they take scalars, `[T]` or `[B, T]`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxrl.llm.config import one_of

Array = jax.Array
AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum", "sequence_sum_norm")
POLICY_LOSSES = ("clip", "gspo", "cispo")
KL_ESTIMATORS = ("k1", "k2", "k3")
PREFERENCE_LOSSES = ("sigmoid", "ipo", "hinge")


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """Which policy loss: static."""

    kind: str = "clip"
    dual_clip: float | None = None  # bounds the loss of a token with negative advantage by this times -advantage

    def __post_init__(self) -> None:
        one_of("kind", self.kind, POLICY_LOSSES)
        if self.dual_clip is not None and self.dual_clip <= 1.0:
            raise ValueError(f"dual_clip must be above 1 or None, got {self.dual_clip}")


def policy_loss(
    settings: PolicyLoss,
    log_probs: Array,
    old_log_probs: Array,
    advantages: Array,
    mask: Array,
    clip_low: Array | float,
    clip_high: Array | float,
) -> Array:
    """The policy term of every token of one sequence, f32 `[T]`, 0 outside the mask.

    What stands outside the mask may be anything, NaN included: neither value nor gradient reads it.

    Args:
        settings: which formula.
        log_probs: f32 `[T]`, of the policy that learns.
        old_log_probs: f32 `[T]`, of the policy that acted.
        advantages: f32 `[T]`.
        mask: bool `[T]`.
        clip_low: the ratio is not rewarded below 1 - this.
        clip_high: nor above 1 + this.
    """
    log_probs, old_log_probs, advantages = (jnp.where(mask, x, 0.0) for x in (log_probs, old_log_probs, advantages))
    if settings.kind == "cispo":
        loss = cispo_loss(log_probs, old_log_probs, advantages, clip_low, clip_high)
    else:
        log_ratio = log_probs - old_log_probs
        if settings.kind == "gspo":
            log_ratio = sequence_log_ratio(log_ratio, mask)
        loss = clipped_policy_loss(log_ratio, advantages, clip_low, clip_high, settings.dual_clip)
    return jnp.where(mask, loss, 0.0)


def clipped_policy_loss(
    log_ratio: Array,
    advantage: Array,
    clip_low: Array | float,
    clip_high: Array | float,
    dual_clip: float | None = None,
) -> Array:
    """`-min(r A, clip(r, 1 - low, 1 + high) A)` with `r = exp(log_ratio)`, per token.

    Schulman et al. 2017, eq. 7; two bounds as in DAPO (Yu et al. 2025, eq. 8); with `dual_clip` c, at most `-c A`
    where A < 0 (Ye et al. 2020, eq. 5).
    """
    ratio = jnp.exp(log_ratio)
    loss = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantage)
    if dual_clip is not None:
        loss = jnp.where(advantage < 0.0, jnp.minimum(loss, -dual_clip * advantage), loss)
    return loss


def sequence_log_ratio(log_ratio: Array, mask: Array) -> Array:
    """The mean log ratio of a sequence, at each of its tokens f32 `[T]`: GSPO-token (Zheng et al. 2025, eq. 14).

    The value is the sequence's; the gradient at a token is that of its own log-probability.
    """
    mean = jnp.sum(jnp.where(mask, log_ratio, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
    return jax.lax.stop_gradient(mean - log_ratio) + log_ratio


def cispo_loss(
    log_prob: Array, old_log_prob: Array, advantage: Array, clip_low: Array | float, clip_high: Array | float
) -> Array:
    """`-sg(clip(r)) A log_prob` per token: CISPO (MiniMax 2025, eq. 4). Clipped tokens keep a gradient."""
    ratio = jnp.clip(jnp.exp(log_prob - old_log_prob), 1.0 - clip_low, 1.0 + clip_high)
    return -jax.lax.stop_gradient(ratio) * advantage * log_prob


def importance_cap(learner_log_prob: Array, sampler_log_prob: Array, cap: Array | float = 2.0) -> Array:
    """`min(exp(learner - sampler), cap)` per token, without gradient: the weight of truncated importance sampling.

    Both are of the parameters that acted, computed by the training pass and by the sampler.
    """
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(learner_log_prob - sampler_log_prob), cap))


def kl_estimate(log_prob: Array, reference_log_prob: Array, kind: str = "k3") -> Array:
    """An estimate of KL(policy || reference) from one token drawn from the policy (Schulman 2020).

    `k1 = d`, unbiased; `k2 = d^2 / 2`; `k3 = exp(-d) - 1 + d`, unbiased and never negative; `d = log_prob - reference`.
    """
    one_of("kind", kind, KL_ESTIMATORS)
    difference = log_prob - reference_log_prob
    if kind == "k1":
        return difference
    return 0.5 * jnp.square(difference) if kind == "k2" else jnp.expm1(-difference) + difference


def full_kl(logits: Array, other_logits: Array) -> Array:
    """KL(softmax(logits) || softmax(other_logits)) over the vocabulary, `[..., V]` to `[...]`.

    With the teacher's logits first this is the loss of distillation, with the student's first its reverse.
    """
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other_logits)
    return jnp.sum(jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * (log_p - log_q), 0.0), axis=-1)


def sparse_distillation_loss(logits: Array, teacher_log_probs: Array, teacher_tokens: Array) -> Array:
    """KL(teacher || student) over the teacher's k most probable tokens, renormalised there for both; `[...]`.

    Args:
        logits: the student's, `[..., V]`.
        teacher_log_probs: `[..., k]`.
        teacher_tokens: i32 `[..., k]`.
    """
    return full_kl(teacher_log_probs, jnp.take_along_axis(logits, teacher_tokens, axis=-1))


def token_loss(logits: Array, token: Array, label_smoothing: Array | float = 0.0, z_cost: Array | float = 0.0) -> Array:
    """Cross-entropy of the next token, `[..., V]` and i32 `[...]` to f32 `[...]`: supervised fine-tuning.

    `label_smoothing` s gives weight 1 - s to the token and s / V to every one; `z_cost` times the squared log of the
    normaliser keeps logits from drifting (Chowdhery et al. 2022, PaLM, section 5).
    """
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    target = (1.0 - label_smoothing) * chosen + label_smoothing * jnp.mean(logits, axis=-1)
    return normaliser - target + z_cost * jnp.square(normaliser)


def preference_loss(
    margin: Array, beta: Array | float, kind: str = "sigmoid", label_smoothing: Array | float = 0.0
) -> Array:
    """The loss of one pair of answers.

    Args:
        margin: `h = (log p(better) - log ref(better)) - (log p(worse) - log ref(worse))`, each summed over tokens.
        beta: how strongly the reference holds.
        kind: "sigmoid" `-log sigmoid(beta h)`: DPO (Rafailov et al. 2023, eq. 7); "ipo" `(h - 1 / (2 beta))^2` (Azar
            et al. 2023, eq. 17); "hinge" `max(0, 1 - beta h)` (Zhao et al. 2023).
        label_smoothing: "sigmoid" only: the share of pairs taken to be labelled the wrong way (Mitchell 2023).
    """
    one_of("kind", kind, PREFERENCE_LOSSES)
    if kind == "ipo":
        return jnp.square(margin - 1.0 / (2.0 * beta))
    if kind == "hinge":
        return jnp.maximum(0.0, 1.0 - beta * margin)
    right, wrong = jax.nn.log_sigmoid(beta * margin), jax.nn.log_sigmoid(-beta * margin)
    return -(1.0 - label_smoothing) * right - label_smoothing * wrong


def ranking_loss(better: Array, worse: Array) -> Array:
    """`-log sigmoid(better - worse)` of two scores: Bradley and Terry's model, as reward models are trained."""
    return -jax.nn.log_sigmoid(better - worse)


def aggregate(values: Array, mask: Array, kind: str = "token_mean", length: float = 1.0) -> Array:
    """One number of the tokens of a batch, f32 []; arguments as for `token_weights`, `values` f32 `[B, T]`."""
    return weighted_sum(values, token_weights(mask, kind, length))


def token_weights(mask: Array, kind: str = "token_mean", length: float = 1.0) -> Array:
    """What each token adds to the one number of a batch, f32 `[B, T]`, 0 outside the mask.

    They are made of the whole batch, so that what micro-batches or devices compute of it is summed and not averaged.

    Args:
        mask: bool `[B, T]`. Sequences without a token in it are padding: they do not count.
        kind: "token_mean": over all tokens; "sequence_mean": the mean over sequences of their means; "sequence_sum":
            of their sums; "sequence_sum_norm": of their sums over the constant `length` (Dr. GRPO).
        length: for "sequence_sum_norm".
    """
    one_of("kind", kind, AGGREGATIONS)
    weights = mask.astype(jnp.float32)
    if kind == "token_mean":
        return weights / jnp.maximum(jnp.sum(weights), 1.0)
    tokens = jnp.sum(weights, axis=1, keepdims=True)
    if kind == "sequence_mean":
        weights = weights / jnp.maximum(tokens, 1.0)
    elif kind == "sequence_sum_norm":
        weights = weights / length
    return weights / jnp.maximum(jnp.sum(tokens > 0, dtype=jnp.float32), 1.0)


def weighted_sum(values: Array, weights: Array) -> Array:
    """Sum of `values` times `weights`, f32 []; where a weight is 0 the value may be anything, NaN included."""
    return jnp.sum(jnp.where(weights > 0.0, values, 0.0) * weights)
