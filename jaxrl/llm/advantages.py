"""Advantages for language models: formula code on one group, one sequence, or one batch where the source says so.

Letters: G answers to one prompt, T tokens of a sequence, B sequences. `mask` marks the agent's own tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.parts.returns import generalized_advantages

Array = jax.Array


def group_advantages(rewards: Array, *, scale: bool = True, epsilon: float = 1e-6, ddof: int = 0) -> Array:
    """Rewards f32 `[G]` less their mean, over their standard deviation: f32 `[G]`.

    GRPO (Shao et al. 2024, DeepSeekMath, section 4.1); with `scale` False that of Dr. GRPO (Liu et al. 2025).
    """
    centred = rewards - jnp.mean(rewards)
    return centred / (jnp.std(rewards, ddof=ddof) + epsilon) if scale else centred


def leave_one_out_advantages(rewards: Array) -> Array:
    """Each reward less the mean of the others, f32 `[G]`: RLOO (Ahmadian et al. 2024, eq. 6)."""
    num_answers = rewards.shape[0]
    if num_answers < 2:
        raise ValueError(f"leave-one-out needs at least 2 answers in a group, got {num_answers}")
    return (rewards - jnp.mean(rewards)) * (num_answers / (num_answers - 1))


def penalised_returns(reward: Array, penalties: Array, mask: Array) -> Array:
    """Return to go of each token, f32 `[T]`: the penalties from it on, and the reward at the end.

    With the penalty `-beta k1` per token this is the return of REINFORCE++ (Hu 2025), before whitening.

    Args:
        reward: f32 [], of the whole sequence.
        penalties: f32 `[T]`, added to the rewards; read at the agent's tokens only.
        mask: bool `[T]`.
    """
    own = jnp.where(mask, penalties, 0.0)
    return jnp.where(mask, reward + jnp.cumsum(own[::-1])[::-1], 0.0)


def whiten(values: Array, mask: Array, epsilon: float = 1e-8) -> Array:
    """`values` `[B, T]` with mean 0 and variance 1 over all tokens of the mask, 0 elsewhere."""
    values = jnp.where(mask, values, 0.0)
    count = jnp.maximum(jnp.sum(mask), 1)
    centred = jnp.where(mask, values - jnp.sum(values) / count, 0.0)
    return centred * jax.lax.rsqrt(jnp.sum(jnp.square(centred)) / count + epsilon)


def token_advantages(
    rewards: Array, values: Array, mask: Array, discount: Array | float, gae_lambda: Array | float
) -> Array:
    """Generalised advantages over the agent's tokens alone, f32 `[T]`, 0 elsewhere.

    What follows an agent's token is the agent's next token, however many tokens of others lie between; their rewards
    count to it. After the last one the sequence has ended.

    Args:
        rewards: f32 `[T]`; those at tokens before the agent's first are lost.
        values: f32 `[T]`; read at the agent's tokens only.
        mask: bool `[T]`.
        discount: f32 [], per token of the agent.
        gae_lambda: f32 [].
    """
    length = mask.shape[0]
    # The agent's tokens move to the front, in order; the others' rewards move along to the one before them.
    turn = jnp.cumsum(mask) - 1
    order = jnp.argsort(~mask, stable=True)
    ours = jnp.arange(length) < jnp.sum(mask)
    gathered = jnp.zeros(length).at[jnp.where(turn < 0, length, turn)].add(rewards, mode="drop")
    own_values = jnp.where(ours, values[order], 0.0)
    next_values = jnp.concatenate([own_values[1:], jnp.zeros(1)])
    ended = jnp.arange(length) >= jnp.sum(mask) - 1
    advantages = generalized_advantages(gathered, own_values, next_values, ended, ended, discount, gae_lambda)
    return jnp.where(mask, advantages[jnp.maximum(turn, 0)], 0.0)
