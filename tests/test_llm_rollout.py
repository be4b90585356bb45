"""Conversations with an environment in token space: what is trained on is what was sampled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_jax.core import Environment, EnvParams, time_step
from envs_jax.spaces import Discrete
from envs_jax.text.tool_desk import MAX_LENGTH, PROMPT_LENGTH, ToolDesk
from jaxrl.llm.chat import ROLES
from jaxrl.llm.config import preset
from jaxrl.llm.model import TransformerLM
from jaxrl.llm.rollout import make_policy, make_reader, rollout
from jaxrl.llm.sampling import make_sampling
from jaxrl.rollout import episodes
from llm_models import random_params, tiny
from programs import compiled

MODEL = TransformerLM(tiny())
VOCAB = MODEL.config.vocab_size
LENGTH = 8
PROMPT, AGENT, TOOL, PAD = (ROLES.index(role) for role in ("prompt", "agent", "tool", "pad"))


@struct.dataclass
class EchoState:
    word: jax.Array
    last: jax.Array
    length: jax.Array


class Echo(Environment[EchoState, EnvParams]):
    """0, a word, two tokens of the agent, the second one plus one as a tool's answer, one more of the agent.

    An even first token of the agent ends the conversation at once. The reward is the last token's distance to the word.
    """

    @property
    def default_params(self):
        return EnvParams()

    def action_space(self, params):
        return Discrete(VOCAB)

    def reset(self, key, params):
        zero = jnp.zeros((), jnp.int32)
        state = EchoState(jax.random.randint(key, (), 1, VOCAB, jnp.int32), zero, zero + 1)
        return state, time_step(jnp.array([0, 0], jnp.int32), info={"role": zero + PROMPT})

    def step(self, key, state, action, params):
        agent = (state.length == 2) | (state.length == 3) | (state.length == 5)
        other = jnp.where(state.length == 1, state.word, (state.last + 1) % VOCAB)
        token = jnp.where(agent, action, other)
        role = jnp.where(agent, AGENT, jnp.where(state.length == 1, PROMPT, TOOL)).astype(jnp.int32)
        length = state.length + 1
        ended = (length == 6) | ((length == 3) & (token % 2 == 0))
        speaks = (length == 2) | (length == 3) | (length == 5)
        reward = jnp.where(ended, jnp.abs(token - state.word).astype(jnp.float32), 0.0)
        observation = jnp.stack([token, speaks.astype(jnp.int32)])
        return EchoState(state.word, token, length), time_step(observation, reward, ended, info={"role": role})


def hold(params, reset_keys, key):
    settings = {"max_length": LENGTH, "sampling": make_sampling(temperature=0.9), "pad_id": VOCAB - 1}
    return rollout(MODEL, params, Echo(), EnvParams(), reset_keys, key, **settings)


@functools.cache
def held():
    keys = jnp.repeat(jax.random.split(jax.random.key(1), 4), 4)
    params = random_params(MODEL.config, scale=0.2)
    return params, keys, jax.jit(hold)(params, keys, jax.random.key(2))


def test_roles_masks_and_padding():
    _, _, talk = held()
    short = np.asarray(talk.tokens[:, 2] % 2 == 0)
    assert 0 < short.sum() < len(short)
    for row, ends_early in enumerate(short):
        length = 3 if ends_early else 6
        roles = [PROMPT, PROMPT, AGENT, AGENT, TOOL, AGENT][:length] + [PAD] * (LENGTH - length)
        assert talk.roles[row].tolist() == roles
        assert talk.mask[row].tolist() == [role == AGENT for role in roles]
        assert talk.valid[row].tolist() == [role != PAD for role in roles]
        assert (talk.tokens[row, length:] == VOCAB - 1).all()
        if not ends_early:
            assert talk.tokens[row, 4] == (talk.tokens[row, 3] + 1) % VOCAB
        assert talk.rewards[row, length - 1] == abs(int(talk.tokens[row, length - 1]) - int(talk.tokens[row, 1]))
        assert talk.rewards[row].sum() == talk.rewards[row, length - 1]
    assert talk.terminated.all()
    groups = talk.tokens.reshape(4, 4, LENGTH)
    assert (groups[:, :, 1] == groups[:, :1, 1]).all()
    assert len(np.unique(talk.tokens[:, 2])) > 3


def test_log_probs_are_those_of_the_training_pass():
    params, _, talk = held()
    whole, _ = jax.jit(MODEL.token_log_probs)(params, talk.tokens, talk.valid)
    np.testing.assert_allclose(talk.log_probs, np.where(talk.mask, whole, 0.0), atol=1e-5)
    warm, _ = jax.jit(MODEL.token_log_probs)(params, talk.tokens, talk.valid, 0.9)
    np.testing.assert_allclose(talk.behaviour_log_probs, np.where(talk.mask, warm, 0.0), atol=1e-5)


def test_nothing_leaves_the_device():
    params, keys, _ = held()
    text = str(jax.make_jaxpr(hold)(params, keys, jax.random.key(2)))
    assert "scan" in text
    assert "callback" not in text


DESK, DESK_MODEL = ToolDesk(), TransformerLM(preset("nano", num_layers=1))


class Unannounced:
    """ToolDesk that does not tell how long its prompts are."""

    prompt_length = 1

    def __getattr__(self, name):
        return getattr(DESK, name)


@functools.cache
def planned(env_class):
    env = DESK if env_class is ToolDesk else env_class()

    @compiled
    def hold(params, reset_keys, key):
        settings = {"max_length": MAX_LENGTH, "sampling": make_sampling()}
        return rollout(DESK_MODEL, params, env, DESK.default_params, reset_keys, key, **settings)

    params = random_params(DESK_MODEL.config, scale=0.1)
    return params, hold(params, jax.random.split(jax.random.key(0), 8), jax.random.key(1))


def test_tool_desk_speaks_this_protocol():
    params, talk = planned(ToolDesk)
    assert (talk.roles[:, :PROMPT_LENGTH] == PROMPT).all()
    assert talk.mask[:, PROMPT_LENGTH].all()
    assert not talk.mask[:, :PROMPT_LENGTH].any()
    assert talk.terminated.all()
    assert np.isin(talk.rewards.sum(axis=1), [-1.0, 0.0]).all()
    whole, _ = jax.jit(DESK_MODEL.token_log_probs)(params, talk.tokens, talk.valid)
    np.testing.assert_allclose(talk.log_probs, np.where(talk.mask, whole, 0.0), atol=1e-5)


def test_a_prompt_that_is_read_in_one_pass_changes_nothing():
    assert DESK.prompt_length == PROMPT_LENGTH
    (_, block), (_, single) = planned(ToolDesk), planned(Unannounced)
    for name in ("tokens", "valid", "mask", "roles", "rewards", "terminated"):
        np.testing.assert_array_equal(getattr(block, name), getattr(single, name), err_msg=name)
    np.testing.assert_allclose(block.log_probs, single.log_probs, atol=1e-5)
    np.testing.assert_allclose(block.behaviour_log_probs, single.behaviour_log_probs, atol=1e-5)


def test_an_opening_stands_for_its_steps():
    """Also where nothing is recorded, and where all episodes are cut within it."""

    def play(num_opening, max_steps, params):
        policy = make_policy(MODEL, make_sampling(), LENGTH)
        keys = jax.random.split(jax.random.key(3), 4)
        settings = {"deterministic": False, "opening": (num_opening, make_reader(MODEL))}
        return episodes(Echo(), policy, params, EnvParams(), keys, jax.random.key(4), max_steps, **settings)

    params = random_params(MODEL.config, scale=0.2)
    for max_steps in (LENGTH, 1):
        one, other = (compiled(functools.partial(play, n, max_steps))(params) for n in (0, 1))
        np.testing.assert_array_equal(one.episode_length, other.episode_length)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other)
    assert (one.episode_length == 1).all()
