"""A small world of tokens that the tests of language learners share."""

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.core import Environment, EnvParams, constant, time_step
from envs_jax.spaces import Discrete, MultiDiscrete
from jaxrl.llm.config import preset

VOCAB = 6
TINY = preset("nano", vocab_size=VOCAB, hidden_size=16, num_layers=1, head_dim=4, intermediate_size=32)


@struct.dataclass
class BanditState:
    word: jax.Array  # i32 []
    said: jax.Array  # i32 []; tokens of the agent
    right: jax.Array  # i32 []; those that were the word


@struct.dataclass
class BanditParams(EnvParams):
    prize: jax.Array = constant(1.0)


class Bandit(Environment[BanditState, BanditParams]):
    """The environment says a word; the agent repeats it, by default once, and is rewarded for the share it gets right.

    Half of the time the teacher says anything. Of two answers the right one is preferred.
    """

    def __init__(self, max_steps=1):
        self.max_steps = max_steps

    @property
    def default_params(self):
        return BanditParams()

    def observation_space(self, params):
        return MultiDiscrete((VOCAB, 2))

    def action_space(self, params):
        return Discrete(VOCAB)

    def reset(self, key, params):
        word = jax.random.randint(key, (), 0, VOCAB, jnp.int32)
        state = BanditState(word, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
        return state, self.shown(state, word, jnp.int32(0), params)

    def step(self, key, state, action, params):
        state = BanditState(state.word, state.said + 1, state.right + (action == state.word))
        return state, self.shown(state, action.astype(jnp.int32), jnp.int32(1), params)

    def shown(self, state, token, role, params):
        ended = state.said == self.max_steps
        reward = jnp.where(ended, params.prize * state.right / self.max_steps, 0.0)
        complete = (state.right == self.max_steps).astype(jnp.float32)
        observation = jnp.stack([token, 1 - ended.astype(jnp.int32)])
        return time_step(observation, reward, ended, info={"role": role, "complete": complete})

    def demonstrate(self, key, state, params):
        key_fault, key_words = jax.random.split(key)
        words = jax.random.randint(key_words, (self.max_steps,), 0, VOCAB, jnp.int32)
        return jnp.where(jax.random.bernoulli(key_fault), words, state.word)

    def prefer(self, key, state, params):
        other = (state.word + jax.random.randint(key, (self.max_steps,), 1, VOCAB)) % VOCAB
        return jnp.full(self.max_steps, state.word, jnp.int32), other
