"""Decision Transformer (Chen et al. 2021): actions predicted from returns to go, observations and actions so far.

An update draws windows of K steps, each row of the data set being as likely a first step as any other, and takes one
AdamW step on the squared error of the predicted actions. Acting starts from a target return and lowers it by what was
earned. Sizes and schedule as in CORL (`dt.py`); windows are padded on the right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import struct

from envs_jax.core import TimeStep
from jaxrl.parts.sequences import (
    Context,
    SequenceConfig,
    SequenceHParams,
    SequencePolicy,
    SequenceState,
    first_state,
    improve,
    make_sequences,
)
from jaxrl.parts.transformer import DecisionTransformer, masked_squared_error
from jaxrl.types import Algorithm, Array, Data, Metrics, PyTree, Recipe


class DTConfig(SequenceConfig):
    """What shapes the program."""


@struct.dataclass
class DTHParams(SequenceHParams):
    """What may be traced and swept."""


def make_decision_transformer(config: SequenceConfig, env: Any) -> Algorithm:
    """Decision Transformer for continuous actions with bounds.

    Args:
        config: static settings.
        env: an `Environment`, or the `EnvSpec` of a data set.

    Returns:
        An `Algorithm` that learns from `data.dataset` alone.

    Raises:
        ValueError: the spaces are not vectors of floats, actions have no bounds, or episodes are longer than the table.
    """
    sequences = make_sequences(config, env, "a Decision Transformer")
    network = DecisionTransformer(config.transformer, sequences.action_size, sequences.num_times)
    forward: Callable[..., Any] = network.apply

    def init(key: Array, hparams: SequenceHParams, data: Data) -> SequenceState:
        key_params, key_state = jax.random.split(key)
        params = network.init(key_params, *sequences.window)
        return first_state(SequenceState, params, key_state, hparams, data, sequences.spec)

    def policy(state: SequenceState, data: Data) -> SequencePolicy:
        del data
        return SequencePolicy(state.params, state.statistics, state.reward_scale, state.target_return)

    def act(
        policy_params: SequencePolicy, carry: Context, time_step: TimeStep, key: Array, deterministic: bool
    ) -> tuple:
        del key, deterministic
        window, index, carry = sequences.see(policy_params, carry, time_step)
        chosen = forward(policy_params.params, *window)[index]
        return *sequences.choose(carry, index, chosen), {}

    def update(state: SequenceState, hparams: SequenceHParams, data: Data) -> tuple[SequenceState, Metrics]:
        key, key_sample, key_dropout = jax.random.split(state.key, 3)
        windows = sequences.draw(state, hparams, data, key_sample)

        def loss(params: PyTree) -> tuple[Array, Metrics]:
            _, action, _, _, mask = windows
            predicted = forward(params, *windows, deterministic=False, rngs={"dropout": key_dropout})
            value = masked_squared_error(predicted, action, mask, config.corl_loss)
            return value, {"loss/action": value}

        return improve(state, hparams, key, loss)

    return Algorithm(init=init, update=update, policy=policy, start=sequences.start, act=act)


DECISION_TRANSFORMER = Recipe(make_decision_transformer, DTConfig, DTHParams, offline=True)
