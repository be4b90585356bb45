"""The main job: a PoolFlip defender that beats the best fixed heuristic, on fresh episodes."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import envs_jax
import jaxrl
from jaxrl.results.stats import mean_interval
from jaxrl.rollout import episodes
from jaxrl.run.program import evaluation_keys


@pytest.mark.slow
def test_the_trained_defender_beats_guard():
    run = jaxrl.load_config("ppo_poolflip", ["evaluation.every=0", "checkpoint.every=0"])
    state, _ = jaxrl.fit(run, progress=False)
    fresh = jaxrl.load_config("ppo_poolflip", ["evaluation.seed=777", "evaluation.num_episodes=1024"])
    learned = jaxrl.evaluate(jaxrl.make_algorithm(fresh), state, fresh, jaxrl.load_data(fresh))

    env, params = envs_jax.make("poolflip-r3", **run.env.options)
    start, act, guard = env.env.heuristics(("guard(2)",))
    played = episodes(
        env, (start, act), jax.tree.map(lambda leaf: leaf[0], guard), params, *evaluation_keys(fresh), env.max_steps
    )
    # Returns are sums over the ticks of an episode; u_b - u_r is their mean per tick.
    margin = mean_interval(learned.returns / env.max_steps)
    best = mean_interval(np.asarray(played.episode_return) / env.max_steps)
    assert abs(best.estimate - 0.46) < 0.05
    assert margin.low > best.high
