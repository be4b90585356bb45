"""Strings of symbols to repeat, reverse or sort, token by token: what a language model can be taught in minutes.

With strings of one symbol to be repeated this is a bandit of words: the agent says the token that the prompt names.
"""

from __future__ import annotations

import difflib

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.core import Array, Environment, EnvParams, TimeStep, constant, time_step
from envs_jax.spaces import Discrete, MultiDiscrete

PAD, BEGIN, SEPARATOR, FIRST_SYMBOL = range(4)
ROLE_PROMPT, ROLE_AGENT = 0, 1
TASKS = ("copy", "reverse", "sort")


@struct.dataclass
class SymbolsState:
    string: Array  # i32 [N]; tokens of the prompt
    answer: Array  # i32 [N]; the right ones
    length: Array  # i32 []; tokens so far
    num_right: Array  # i32 []; right tokens of the agent, each at its place


@struct.dataclass
class SymbolsParams(EnvParams):
    fault_probability: Array = constant(0.0)  # of a demonstration to answer with another string


class Symbols(Environment[SymbolsState, SymbolsParams]):
    """Answer a string of N symbols with the string itself, backwards or sorted.

    - Observation: i32 `[2]`: the last token (0 to M + 2) and whether the agent says the next one.
    - Action: Discrete(M + 3), the agent's next token; ignored in the prompt.
    - Prompt: BEGIN, N symbols (tokens 3 to M + 2), SEPARATOR.
    - Reward: 1 with the last token if all N tokens of the agent are right, else 0.
    - Ending: terminated after N tokens of the agent.
    - Info: role of the last token; right, the share of right tokens; exact, 1 where all are.
    """

    def __init__(self, task: str = "copy", length: int = 8, num_symbols: int = 13):
        """`task`: "copy", "reverse" or "sort"; `length`: N; `num_symbols`: M, how many symbols there are."""
        if task not in TASKS:
            close = difflib.get_close_matches(task, TASKS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}{hint}")
        for name, value, low in (("length", length, 1), ("num_symbols", num_symbols, 2)):
            if value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        self.task, self.length, self.vocab_size = task, length, FIRST_SYMBOL + num_symbols
        self.prompt_length = length + 2
        self.max_steps = self.prompt_length + length - 1

    @property
    def default_params(self) -> SymbolsParams:
        return SymbolsParams()

    def observation_space(self, params: SymbolsParams) -> MultiDiscrete:
        return MultiDiscrete((self.vocab_size, 2))

    def action_space(self, params: SymbolsParams) -> Discrete:
        return Discrete(self.vocab_size)

    def reset(self, key: Array, params: SymbolsParams) -> tuple[SymbolsState, TimeStep]:
        string = self._draw(key)
        zero = jnp.zeros((), jnp.int32)
        state = SymbolsState(string, self._answer(string), zero + 1, zero)
        return state, self._show(state, zero + BEGIN, zero + ROLE_PROMPT)

    def step(
        self, key: Array, state: SymbolsState, action: Array, params: SymbolsParams
    ) -> tuple[SymbolsState, TimeStep]:
        """Appends one token; ignores `key`."""
        del key, params
        in_string, in_prompt = state.length <= self.length, state.length < self.prompt_length
        said = jnp.where(in_string, state.string[jnp.minimum(state.length, self.length) - 1], SEPARATOR)
        token = jnp.where(in_prompt, said, action).astype(jnp.int32)
        place = jnp.clip(state.length - self.prompt_length, 0, self.length - 1)
        right = ~in_prompt & (token == state.answer[place])
        state = SymbolsState(state.string, state.answer, state.length + 1, state.num_right + right)
        return state, self._show(state, token, jnp.where(in_prompt, ROLE_PROMPT, ROLE_AGENT).astype(jnp.int32))

    def demonstrate(self, key: Array, state: SymbolsState, params: SymbolsParams) -> Array:
        """The agent's tokens i32 `[N]`: the right ones, or, by chance, those of another string; consumes `key`."""
        key_fault, key_string = jax.random.split(key)
        faulty = jax.random.bernoulli(key_fault, params.fault_probability)
        return jnp.where(faulty, self._answer(self._draw(key_string)), state.answer)

    def prefer(self, key: Array, state: SymbolsState, params: SymbolsParams) -> tuple[Array, Array]:
        """The right answer and a worse one, i32 `[N]` each: the same symbols in random order; consumes `key`.

        Where that is the right order again, the last symbol becomes another one.
        """
        del params
        other = jax.random.permutation(key, state.answer)
        changed = other.at[-1].set(FIRST_SYMBOL + (other[-1] + 1 - FIRST_SYMBOL) % (self.vocab_size - FIRST_SYMBOL))
        return state.answer, jnp.where(jnp.all(other == state.answer), changed, other)

    def _draw(self, key: Array) -> Array:
        return jax.random.randint(key, (self.length,), FIRST_SYMBOL, self.vocab_size, jnp.int32)

    def _answer(self, string: Array) -> Array:
        return {"copy": lambda s: s, "reverse": lambda s: s[::-1], "sort": jnp.sort}[self.task](string)

    def _show(self, state: SymbolsState, token: Array, role: Array) -> TimeStep:
        ended = state.length == self.prompt_length + self.length
        speaks = (state.length >= self.prompt_length) & ~ended
        exact = (state.num_right == self.length).astype(jnp.float32)
        return time_step(
            jnp.stack([token, speaks.astype(jnp.int32)]),
            jnp.where(ended, exact, 0.0),
            ended,
            info={"role": role, "right": state.num_right / self.length, "exact": exact},
        )
