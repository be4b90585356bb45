"""Policies that learned the flip in the plane, played by other physics.

They never learned what the roll joint does, so it is held at 0; with what they happen to say of it they fall sideways.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import envs_jax
from envs_jax.robotics.hopper_params import evaluation_params
from envs_jax.robotics.hopper_sim_to_sim import replay
from jaxrl.parts.roles import take
from jaxrl.results import infer_numpy
from jaxrl.results.export import export_policy
from jaxrl.rollout import episodes
from jaxrl.run.program import load_data, make_algorithm, make_env
from jaxrl.studies.laboratory import Arm, Arrays
from jaxrl.types import PyTree

KNEE = 0
Row = dict[str, float]


def transfer(arm: Arm, num_episodes: int, mjx: bool) -> Arrays:
    """What the policies of an arm are worth in C MuJoCo, as exported, and in MJX.

    Returns:
        f32 `[S, num_episodes]` by "physics/number".
    """
    num_seeds = len(arm.metrics)
    states = [take(arm.states, seed) for seed in range(num_seeds)]
    rows = {
        f"C MuJoCo, 0.5 ms, 100 iterations{what}": [_in_mujoco(arm, state, num_episodes, held) for state in states]
        for what, held in (("", True), (", roll not held", False))
    }
    for physics in ("planar", "mjx") if mjx else ("planar",):
        rows[physics] = _in_jax(arm, states, physics, num_episodes)
    return {
        f"{physics}/{name}": np.array([[episode[name] for episode in seed] for seed in seeds], np.float32)
        for physics, seeds in rows.items()
        for name in seeds[0][0]
    }


def _in_mujoco(arm: Arm, state: PyTree, num_episodes: int, roll_held: bool) -> list[Row]:
    """Episodes of one exported policy, its controller and motors in NumPy."""
    env, params = make_env(arm.run)
    params = evaluation_params(params)
    if not roll_held:
        scale = jnp.asarray(env.unwrapped.hopper.table("joints", "action_scale"), jnp.float32)  # type: ignore[attr-defined]
        params = dataclasses.replace(params, action_scale=scale)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.npz"
        export_policy(make_algorithm(arm.run), state, path, load_data(arm.run))
        policy = infer_numpy.load(path)

    def act(observation: np.ndarray) -> np.ndarray:
        return policy.act(observation[None])[0][0]

    rows = []
    for seed in range(num_episodes):
        played = replay(env.unwrapped, act, params=params, seed=seed, num_frames=env.num_frames)  # type: ignore[arg-type]
        peak = played.contact_load[:, KNEE].max()
        rows.append(_row(played.success, played.turns[-1, 0], played.turns[-1, 1], peak))
    return rows


def _in_jax(arm: Arm, states: list[PyTree], physics: str, num_episodes: int) -> list[list[Row]]:
    """Episodes of every seed's policy in one of the environment's own back ends."""
    agent = make_algorithm(arm.run)
    env, params = envs_jax.make(arm.run.env.name, **{**arm.run.env.options, "physics": physics})
    params = dataclasses.replace(evaluation_params(params), action_scale=make_env(arm.run)[1].action_scale)
    keys = jax.random.split(jax.random.key(1), num_episodes)

    def record(state: Any, before: Any, action: Any, after: Any, extras: Any) -> tuple:
        names = ("success", "turns/base", "turns/centroidal", "load_contact/knee")
        return tuple(after.info[name] for name in names)

    @jax.jit
    def play(weights: PyTree) -> tuple:
        played = episodes(
            env, (agent.start, agent.act), weights, params, keys, jax.random.key(2),  # type: ignore[arg-type]
            env.max_steps, deterministic=True, record=record,  # type: ignore[arg-type]
        )  # fmt: skip
        assert played.record is not None
        assert played.mask is not None
        last = jnp.sum(played.mask, axis=0)[None] - 1
        success, base, whole, load = played.record
        ends = [jnp.take_along_axis(leaf, last, axis=0)[0] for leaf in (success, base, whole)]
        return *ends, jnp.max(jnp.where(played.mask, load, 0.0), axis=0)

    results = [jax.device_get(play(agent.policy(state, None))) for state in states]  # type: ignore[misc]
    return [[_row(*numbers) for numbers in zip(*result)] for result in results]


def _row(success: Any, base: Any, whole: Any, peak: Any) -> Row:
    numbers = {"success": success, "base turns": base, "centroidal turns": whole, "peak knee load N m": peak}
    return {name: float(value) for name, value in numbers.items()}
