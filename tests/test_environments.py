"""Every registered environment keeps the protocol, and the check notices those that do not."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import struct

import envs_jax
from envs_jax.control.toy import ActionChoice, Discounting, State
from envs_jax.core import EnvParams, time_step
from envs_jax.spaces import Box, Discrete
from envs_jax.testing import check_environment

# Variants of an environment whose first one stays in the fast set.
VARIANTS = ("flipit", "poolflip-r1", "poolflip-r10", "cyborg-cage2-extended", "cyborg-network", "cyborg-duel")
# Physics, and what its own tests hold to the protocol too.
SLOW = (*VARIANTS, "hopper-flip", "brax-hopper", "brax-walker2d", "brax-halfcheetah", "tool-desk")
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in envs_jax.names()]


@pytest.mark.parametrize("name", NAMES)
def test_every_registered_environment_keeps_the_protocol(name):
    check_environment(*envs_jax.make(name))


@pytest.mark.parametrize("name", [name for name in envs_jax.names() if name.startswith("toy-")])
def test_continuous_toys_keep_the_protocol(name):
    check_environment(*envs_jax.make(name, continuous=True))


class Emits(ActionChoice):
    """A correct environment in which one thing is then broken: `change(step [], time_step)` edits every time step."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def reset(self, key, params):
        state, first = super().reset(key, params)
        return state, self.change(state.step, first)

    def step(self, key, state, action, params):
        state, after = super().step(key, state, action, params)
        return state, self.change(state.step, after)


def replacing(**changes):
    """Edits the named fields by functions of (step, old value)."""

    def change(step, time_step):
        new = {name: edit(step, getattr(time_step, name)) for name, edit in changes.items()}
        return dataclasses.replace(time_step, **new)

    return Emits(change)


class WeakState(ActionChoice):
    def reset(self, key, params):
        return State(jnp.zeros(1), 0), time_step(jnp.zeros(1))


class ChangedByStep(ActionChoice):
    def step(self, key, state, action, params):
        state, after = super().step(key, state, action, params)
        return state, dataclasses.replace(after, info={"late": jnp.zeros(())})


class LostParams(ActionChoice):
    def sample_params(self, key, params):
        return {"something": jnp.zeros(())}


@struct.dataclass
class FloatParams(EnvParams):
    gravity: float = 9.8


class PythonParams(ActionChoice):
    default_params = property(lambda self: FloatParams())


class Endless(Discounting):
    def time_is_up(self, step):
        return step >= 5


class Forgetful(ActionChoice):
    """Counts in Python how often it was called: each trace gives another program."""

    calls = 0

    def step(self, key, state, action, params):
        self.calls += 1
        state, after = super().step(key, state, action, params)
        return state, dataclasses.replace(after, reward=after.reward + self.calls)


class OtherwiseEager(ActionChoice):
    def step(self, key, state, action, params):
        state, after = super().step(key, state, action, params)
        traced = isinstance(action, jax.core.Tracer)
        return state, after if traced else dataclasses.replace(after, reward=after.reward + 1)


class TwoRoles(ActionChoice):
    """Has two agents and emits as one."""

    num_agents = 2


class Masked(ActionChoice):
    def __init__(self, space):
        super().__init__()
        self.space = space

    def action_space(self, params):
        return self.space

    def reset(self, key, params):
        state, first = super().reset(key, params)
        return state, dataclasses.replace(first, legal_actions=jnp.ones(2, bool))

    def step(self, key, state, action, params):
        state, after = super().step(key, state, jnp.zeros((), jnp.int32), params)
        return state, dataclasses.replace(after, legal_actions=jnp.zeros(2, bool))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (WeakState(), "state.step must be an array with an explicit dtype"),
        (ChangedByStep(), "step returns .* unlike reset"),
        (LostParams(), "sample_params returns"),
        (PythonParams(), "params.gravity must be an array with an explicit dtype"),
        (TwoRoles(), "reward must be float32"),
        (replacing(observation=lambda step, old: old[0]), "observation must be float32"),
        (replacing(terminated=lambda step, old: old[None]), "terminated must be bool"),
        (replacing(reward=lambda step, old: old.astype(jnp.int32)), "reward must be float32"),
        (replacing(legal_actions=lambda step, old: jnp.ones(3, bool)), "legal_actions must be bool"),
        (replacing(critic_observation=lambda step, old: jnp.ones(3)), "needs a critic_observation_space"),
        (Masked(Box(-1.0, 1.0)), "must be None where actions are continuous"),
        (Masked(Discrete(2)), "step 1: no action is legal"),
        (replacing(observation=lambda step, old: old + 2), "reset: observation .* is not in Box"),
        (replacing(reward=lambda step, old: old / step), "reset: time_step.reward is not finite"),
        (replacing(reward=lambda step, old: old + 1), "the reward of a reset must be 0"),
        (replacing(truncated=lambda step, old: step == 0), "ended at its reset"),
        (Endless(), "an episode outlives max_steps = 2"),
        (Forgetful(), "step 1 under vmap differs from a loop"),
        (OtherwiseEager(), "step under jit differs from step without jit"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value[:30],
)
def test_the_check_names_what_is_violated(env, message):
    with pytest.raises(AssertionError, match=message) as violation:
        check_environment(env)
    assert str(violation.value).startswith(type(env).__name__)
