"""R11: one update of GRPO as one program, and as a Python loop over tokens around the same compiled parts."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.llm.model import TransformerLM
from jaxrl.llm.parameters import Params, unstack_layers
from jaxrl.llm.rollout import Conversations, make_policy
from jaxrl.llm.sampling import Sampling
from jaxrl.run.config import RunConfig
from jaxrl.run.program import load_data, make_algorithm, make_env
from jaxrl.types import PyTree


def measure_speed(run: RunConfig, params: Params, num_updates: int) -> dict[str, Any]:
    """Updates per second of both, and what the program of one update is made of.

    Args:
        run: of GRPO.
        params: of the planner: how long conversations are depends on it.
        num_updates: that are timed, after one that is not.

    Returns:
        "compiled" and "loop", updates per second; "callbacks" to the host in the program; "compilations" of it.
    """
    agent, data = make_algorithm(run), load_data(run)
    loop = TokenLoop(run, agent)

    traces = []

    def update(state: PyTree) -> PyTree:
        traces.append(state)
        return agent.update(state, run.hparams, data)[0]

    compiled = jax.jit(update)
    first = jax.jit(lambda key: agent.init(key, run.hparams, data))(jax.random.key(run.seed))
    first = dataclasses.replace(first, params=params)
    rates = {"compiled": _rate(compiled, first, num_updates), "loop": _rate(loop.update, first, num_updates)}
    compilations = len(traces)
    callbacks = str(jax.make_jaxpr(update)(first)).count("callback")
    return {**rates, "callbacks": callbacks, "compilations": compilations}


class TokenLoop:
    """The update of GRPO with generation driven from Python: per token one compiled step of all conversations.

    It stops when the last conversation has ended, keeps what it needs in NumPy arrays, and learns by the same compiled
    `learn`.
    """

    def __init__(self, run: RunConfig, agent: Any):
        (self.env, params), config = make_env(run), run.config
        self.num_groups, self.group_size = config.num_groups, config.group_size
        self.length = (self.env.max_steps or 0) + 1
        start, act = make_policy(TransformerLM(config.model), Sampling(run.hparams.temperature), self.length)
        data = load_data(run)
        batch = self.num_groups * self.group_size

        def begin(policy: PyTree, keys: Any) -> tuple:
            state, shown = jax.vmap(self.env.reset, (0, None))(keys, params)
            return state, shown, jax.vmap(start, (None, 0))(policy, keys)

        def step(policy: PyTree, state: PyTree, shown: PyTree, carry: PyTree, key: Any) -> tuple:
            key_act, key_step = jax.random.split(key)
            token, carry, extras = jax.vmap(act, (None, 0, 0, 0, None))(
                policy, carry, shown, jax.random.split(key_act, batch), False
            )
            state, after = jax.vmap(self.env.step, (0, 0, 0, None))(
                jax.random.split(key_step, batch), state, token, params
            )
            return state, after, carry, extras

        self._begin, self._step = jax.jit(begin), jax.jit(step)
        self._learn = jax.jit(lambda state, talk: agent.learn(state, run.hparams, talk, data)[0])

    def update(self, state: PyTree) -> PyTree:
        key_reset, key_play = jax.random.split(jax.random.fold_in(state.key, 0))
        keys = jnp.repeat(jax.random.split(key_reset, self.num_groups), self.group_size)
        policy = unstack_layers(state.params)
        env_state, shown, carry = self._begin(policy, keys)
        batch, length = len(keys), self.length
        kinds = {"tokens": np.int32, "roles": np.int32, "valid": bool, "mask": bool}
        floats = ("log_probs", "behaviour_log_probs", "rewards")
        talk: dict[str, Any] = {name: np.zeros((batch, length), kind) for name, kind in kinds.items()}
        talk |= {name: np.zeros((batch, length), np.float32) for name in floats}
        observation = np.asarray(shown.observation)
        talk["tokens"][:, 0], talk["valid"][:, 0] = observation[:, 0], True
        alive, terminated = np.ones(batch, bool), np.zeros(batch, bool)
        for t in range(1, length):
            speaks = alive & (observation[:, 1] != 0)
            env_state, shown, carry, extras = self._step(
                policy, env_state, shown, carry, jax.random.fold_in(key_play, t)
            )
            observation, role, reward, ended, log_prob, behaviour = jax.device_get(
                (shown.observation, shown.info["role"], shown.reward, shown.terminated, extras["log_prob"],
                 extras["behaviour_log_prob"])
            )  # fmt: skip
            talk["tokens"][alive, t], talk["roles"][alive, t] = observation[alive, 0], role[alive]
            talk["valid"][:, t], talk["mask"][:, t] = alive, speaks
            talk["rewards"][alive, t] = reward[alive]
            talk["log_probs"][speaks, t] = log_prob[speaks]
            talk["behaviour_log_probs"][speaks, t] = behaviour[speaks]
            terminated |= alive & ended
            alive &= ~ended
            if not alive.any():
                break
        return self._learn(state, Conversations(terminated=jnp.asarray(terminated), **talk))


def _rate(update: Any, state: PyTree, num_updates: int) -> float:
    state = jax.block_until_ready(update(state))
    begin = time.perf_counter()
    for _ in range(num_updates):
        state = update(state)
    jax.block_until_ready(state.params)
    return num_updates / (time.perf_counter() - begin)
