"""Learning the flip: the first updates help, and every condition trains in the same program."""

import jax
import numpy as np
import pytest

import envs_jax
import jaxrl
from envs_jax.robotics.hopper_params import CONDITIONS


@pytest.mark.slow
def test_the_first_updates_help_and_conditions_share_their_program():
    run = jaxrl.load_config("ppo_hopper_flip", ["num_updates=20", "evaluation.every=0", "checkpoint.every=0"])
    agent, data = jaxrl.make_algorithm(run), jaxrl.load_data(run)
    traces = []

    def updates(state, data):
        traces.append(1)
        return jaxrl.scan_updates(agent, state, run.hparams, 10, data)

    train, state = jax.jit(updates), jax.jit(agent.init)(jax.random.key(0), run.hparams, data)
    start = state
    returns = []
    for _ in range(2):
        state, metrics = train(state, data)
        returns.append(np.asarray(metrics["episode/return"]))
    assert np.mean(returns[1][-3:]) > np.mean(returns[0][:3]) + 2.0
    for name in ("E1m", "E3", "E7-base"):
        _, params = envs_jax.make("hopper-flip", frame_stack=3, **CONDITIONS[name])
        _, metrics = train(start, data.replace(env_params=params))
        assert np.isfinite(metrics["loss/policy"]).all(), name
    assert len(traces) == 1
