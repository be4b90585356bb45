"""Two policies play PoolFlip many times: what the statistical tests of the games share."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.core import Environment
from envs_jax.versus import agent_view

Side = tuple[Any, Any, Any]  # (start, act, policy_params with leaves [P, ...])


class Result(NamedTuple):
    """Means over the ticks that count, f64 [P, E, A]: P pairs of policies, E episodes each."""

    own: np.ndarray
    cost: np.ndarray
    num_flips: np.ndarray
    num_checks: np.ndarray

    @property
    def benefit(self) -> np.ndarray:
        return self.own - self.cost


def play(
    env: Environment, blue: Side, red: Side, num_episodes: int, skip: int = 0, seed: int = 0, params=None
) -> Result:
    """Pair p plays `num_episodes` whole episodes; the first `skip` ticks of each do not count."""
    params = env.default_params if params is None else params
    sides = [jax.tree.map(lambda leaf: jnp.repeat(leaf, num_episodes, axis=0), side[2]) for side in (blue, red)]
    num_pairs = jax.tree.leaves(blue[2])[0].shape[0]
    num_envs = num_pairs * num_episodes

    @jax.jit
    def run(key):
        def tick(loop, inputs):
            state, time_step, carries, totals = loop
            key, counts = inputs
            keys = jax.random.split(key, (3, num_envs))
            actions, new_carries = [], []
            for agent, (_, act, _) in enumerate((blue, red)):
                view = jax.vmap(agent_view, (0, None))(time_step, jnp.int32(agent))
                action, carry, _ = jax.vmap(act, (0, 0, 0, 0, None))(
                    sides[agent], carries[agent], view, keys[agent], False
                )
                actions.append(action)
                new_carries.append(carry)
            state, time_step = jax.vmap(env.step, (0, 0, 0, None))(keys[2], state, jnp.stack(actions, 1), params)
            totals = {name: total + counts * time_step.info[name] for name, total in totals.items()}
            return (state, time_step, new_carries, totals), None

        key_play, *key_start = jax.random.split(key, 3)
        state, time_step = jax.vmap(env.reset, (0, None))(jax.random.split(key, num_envs), params)
        carries = [
            jax.vmap(side[0])(values, jax.random.split(key, num_envs))
            for side, values, key in zip((blue, red), sides, key_start, strict=True)
        ]
        totals = {name: jnp.zeros((num_envs, 2)) for name in Result._fields}
        inputs = (jax.random.split(key_play, env.max_steps), (jnp.arange(env.max_steps) >= skip).astype(jnp.float32))
        (*_, totals), _ = jax.lax.scan(tick, (state, time_step, carries, totals), inputs)
        return totals

    totals = jax.device_get(run(jax.random.key(seed)))
    shape, ticks = (num_pairs, num_episodes, 2), env.max_steps - skip
    return Result(**{name: total.astype(float).reshape(shape) / ticks for name, total in totals.items()})


def assert_within(values: np.ndarray, expected: float, reference_error: float = 0.0, what: str = "") -> None:
    """The mean of `values` `[E]` lies within 4 standard errors of `expected`, itself known to `reference_error`."""
    error = np.hypot(values.std(ddof=1) / np.sqrt(len(values)), reference_error)
    gap = abs(values.mean() - expected)
    assert gap <= 4 * error + 1e-6, f"{what}: {values.mean():.4f} is {gap / error:.1f} s.e. from {expected:.4f}"
