"""How the policies of the hopper study are measured: the same episodes for all, deterministic, three ways.

"nominal" is the robot as built, "randomised" draws it and the noise of its senses with their full spread, both under
the full actuator model; "as trained" is the nominal robot under the actuator model that the policy was trained with.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.robotics.hopper_flip import HopperFlip
from envs_jax.robotics.hopper_params import Params, evaluation_params
from jaxrl.rollout import episodes
from jaxrl.run.program import load_data, make_algorithm, make_env
from jaxrl.studies.laboratory import Arm, Arrays, over_seeds
from jaxrl.types import PyTree

WAYS = ("nominal", "randomised", "as trained")
BINS = np.linspace(0.0, 320.0, 65)  # N m, of the histograms of gear load
NO_FLIGHT = 0.1  # s; an episode with less flight never took off
FAILURES = ("no take-off", "body on the floor", "gear broken", "under-rotated", "over-rotated", "unsettled")


def measure(arms: dict[str, Arm], num_episodes: int) -> Arrays:
    """Plays every policy three ways.

    Returns:
        f32 `[arms, S, ways, ...]` by name: means over episodes, see `_summary`.
    """
    run = next(iter(arms.values())).run
    env = make_env(run)[0]
    agent = make_algorithm(run)
    params = [load_data(arm.run).env_params for arm in arms.values()]
    num_seeds = len(next(iter(arms.values())).metrics)
    states = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *[arm.states for arm in arms.values()])
    members = jax.tree.map(lambda *leaves: jnp.repeat(jnp.stack(leaves), num_seeds, axis=0), *params)
    policies = jax.jit(jax.vmap(lambda state: agent.policy(state, None)))(states)  # type: ignore[misc]
    play = partial(_play_all_ways, env, (agent.start, agent.act), num_episodes)
    measured = over_seeds(play, (0, 0), policies, members)
    return {name: leaf.reshape(len(arms), num_seeds, *leaf.shape[1:]) for name, leaf in measured.items()}


def ways(params: Params) -> list[Params]:
    """Parameters of each of `WAYS`."""
    nominal, one = evaluation_params(params), jnp.ones(())
    randomised = dataclasses.replace(nominal, randomisation=one, noise=one)
    return [nominal, randomised, dataclasses.replace(nominal, actuator=params.actuator)]


def _play_all_ways(env: Any, policy: Any, num_episodes: int, weights: PyTree, params: Params) -> dict[str, jax.Array]:
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ways(params))
    return jax.lax.map(lambda chosen: _play(env, policy, num_episodes, weights, chosen), stacked)


def _play(env: Any, policy: Any, num_episodes: int, weights: PyTree, params: Params) -> dict[str, jax.Array]:
    key_reset, key_noise = jax.random.split(jax.random.key(0))

    def record(state: Any, before: Any, action: Any, after: Any, extras: Any) -> dict[str, jax.Array]:
        return after.info | {"start_height": before.info["height"]}

    played = episodes(
        env, policy, weights, params, jax.random.split(key_reset, num_episodes), key_noise, env.max_steps,
        deterministic=True, record=record,
    )  # fmt: skip
    assert played.record is not None
    assert played.mask is not None
    return _summary(env.unwrapped, params, played.record, played.mask)


def _summary(env: HopperFlip, params: Params, info: dict[str, jax.Array], alive: jax.Array) -> dict[str, jax.Array]:
    """Numbers of one policy from what its B episodes of T steps reported, `[T, B]` each.

    Means over episodes, f32 [], unless a shape is given. Loads and impulses `[M]` in N m and N m s, energies in J.
    """
    step = env.clock.control_step
    last = jnp.sum(alive, axis=0) - 1
    final = {name: jnp.take_along_axis(values, last[None], axis=0)[0] for name, values in info.items()}
    flying = alive & (info["foot_contact"] == 0)
    rotation = info["turns/centroidal"] - jnp.concatenate(
        [jnp.zeros_like(info["turns/centroidal"][:1]), info["turns/centroidal"][:-1]]
    )
    # An episode that starts in flight starts with what it has turned.
    rotation = rotation.at[0].set(0.0)
    landing = jnp.arange(len(alive))[:, None] * step >= env.clock.aerial_end
    motors = list(env.hopper.motors)

    def loads(kind: str) -> jax.Array:
        return jnp.where(alive[..., None], jnp.stack([info[f"{kind}/{name}"] for name in motors], axis=-1), 0.0)

    contact, gear, impulse = loads("load_contact"), loads("load_gear"), loads("impulse")
    over = {
        f"{kind} above {limit}": jnp.mean(jnp.any(load > getattr(params, f"{limit}_load")[None, None], axis=(0, 2)))
        for kind, load in (("contact load", contact), ("gear load", gear))
        for limit in ("rated", "destructive")
    }
    bins = jnp.asarray(BINS, jnp.float32)
    index = jnp.clip(jnp.searchsorted(bins, gear[..., 0]) - 1, 0, len(BINS) - 2)
    counts = jnp.zeros(len(BINS) - 1).at[index].add(alive.astype(jnp.float32))
    flight_time = jnp.sum(flying, axis=0) * step

    def over_time(name: str) -> jax.Array:
        """Mean over episodes `[T]`, each staying where it ended."""
        held = jnp.where(alive, info[name], final[name][None])
        return jnp.mean(held, axis=1)

    def total(name: str) -> jax.Array:
        return jnp.mean(jnp.sum(jnp.where(alive, info[name], 0.0), axis=0))

    def per_step(name: str) -> jax.Array:
        return jnp.sum(jnp.where(alive, info[name], 0.0)) / jnp.sum(alive)

    return over | {
        "success": jnp.mean(final["success"]),
        "base turns": jnp.mean(final["turns/base"]),
        "centroidal turns": jnp.mean(final["turns/centroidal"]),
        "turns in flight": jnp.mean(jnp.sum(jnp.where(flying, rotation, 0.0), axis=0)),
        "outside region": per_step("outside_region"),
        "clipped": per_step("clipped"),
        "peak contact load": jnp.mean(jnp.max(contact, axis=0), axis=0),  # [M]
        "peak gear load": jnp.mean(jnp.max(gear, axis=0), axis=0),  # [M]
        "contact load, 99 %": _percentile(contact, alive),  # [M]
        "gear load, 99 %": _percentile(gear, alive),  # [M]
        "landing impulse": jnp.mean(jnp.sum(jnp.where(landing[..., None], impulse, 0.0), axis=0), axis=0),  # [M]
        "knee load histogram": counts / jnp.sum(counts),  # [bins]; of definition B
        "flight time": jnp.mean(flight_time),
        "apex rise": jnp.mean(jnp.max(jnp.where(alive, info["height"], 0.0), axis=0) - info["start_height"][0]),
        "peak rate": jnp.mean(jnp.max(jnp.where(alive, rotation, 0.0), axis=0)) * 2 * jnp.pi / step,
        "landing error": jnp.mean(jnp.abs(final["turns/base"] - 1.0)) * 2 * jnp.pi,
        "mechanical energy": total("energy/mechanical"),
        "electrical energy": total("energy/electrical"),
        "rotation reward": total("reward/rotation"),
        "failures": _failures(final, flight_time),  # [FAILURES]
        "base over time": over_time("turns/base"),  # [T]
        "centroidal over time": over_time("turns/centroidal"),  # [T]
    }


def _percentile(load: jax.Array, alive: jax.Array) -> jax.Array:
    """The 99th percentile over all steps played, `[M]` of `[T, B, M]`."""
    return jnp.nanpercentile(jnp.where(alive[..., None], load, jnp.nan), 99.0, axis=(0, 1))


def _failures(final: dict[str, jax.Array], flight_time: jax.Array) -> jax.Array:
    """Shares of episodes `[FAILURES]`; each that fails counts where it fits first."""
    turns = final["turns/centroidal"]
    fits = [
        flight_time < NO_FLIGHT,
        final["failure/body"] > 0,
        final["failure/overload"] > 0,
        turns < 0.9,
        turns > 1.1,
        jnp.ones_like(turns, bool),
    ]
    left = final["success"] == 0
    shares = []
    for fit in fits:
        shares.append(jnp.mean(left & fit))
        left &= ~fit
    return jnp.stack(shares)
