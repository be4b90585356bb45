"""Data sets for the Re:Frame study: by teachers trained here, or on the pendulum by a scripted one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from envs_jax.core import TimeStep
from jaxrl.data.files import WRITERS
from jaxrl.data.recording import new_path
from jaxrl.run import record
from jaxrl.run.config import ConfigError, load_config
from jaxrl.run.production import produce
from jaxrl.run.runner import fit
from jaxrl.studies.laboratory import Laboratory
from jaxrl.studies.reframe_arms import Scale
from jaxrl.types import Array, PyTree, no_carry

MEDIUM_SKILL = 0.4  # of the scripted teacher: how often it does what it knows, and not anything


def make_sets(laboratory: Laboratory, scale: Scale, task: str) -> dict[str, Path]:
    """The files of a task's sets by name: expert, medium, medium-replay (not of the pendulum) and random.

    Raises:
        ConfigError: `scale.data` names a folder that lacks one of them.
    """
    folder = (Path(scale.data) if scale.data else laboratory.out / "data") / task
    names = ("expert", "medium", "random") if task == "pendulum" else ("expert", "medium", "medium-replay", "random")
    paths = {name: folder / f"{name}.hdf5" for name in names}
    missing = [str(path) for path in paths.values() if not path.exists()]
    if missing and scale.data:
        raise ConfigError(f"the folder of data sets lacks {', '.join(missing)}")
    if missing:
        # The folder gets its name when all of it is there.
        with laboratory.timed(f"data of {task}"), new_path(folder) as temporary:
            if task == "pendulum":
                pendulum_sets(scale, temporary)
            else:
                brax_sets(scale, task, laboratory.out / "teachers" / task, temporary)
    return paths


def brax_sets(scale: Scale, task: str, teacher: Path, folder: Path) -> None:
    """Trains PPO in the run folder `teacher`, or goes on with it, and lets its checkpoints play."""
    fit(load_config(f"ppo_brax_{task}"), teacher, resume=(teacher / "config.json").exists(), progress=False)
    produce(teacher, folder, num_steps=scale.data_steps, expert_episodes=scale.stored_episodes)


def pendulum_sets(scale: Scale, folder: Path) -> None:
    """Episodes of the scripted teacher, of one that often forgets what it knows, and of nobody."""
    task = "pendulum"
    here = "jaxrl.studies.reframe_data"
    players = {name: record.scripted_player(task, {}, f"{here}:{name}_teacher") for name in ("expert", "medium")}
    players["random"] = record.scripted_player(task, {}, "random")
    references = record.reference_scores(players["expert"], 0, 0)
    for name, player in players.items():
        number, steps = (scale.stored_episodes, 0) if name == "expert" else (1, scale.data_steps)
        recording = record.record(player, number, num_steps=steps)
        facts = recording.header.facts | references | {"set": name}
        header = dataclasses.replace(recording.header, facts=facts)
        WRITERS["d4rl"](dataclasses.replace(recording, header=header), folder / f"{name}.hdf5")


def expert_teacher(env: Any, env_params: Any) -> tuple[Any, Any, PyTree]:
    """`(start, act, policy_params)` of the scripted teacher."""
    del env, env_params
    return no_carry, teach, jnp.float32(1.0)


def medium_teacher(env: Any, env_params: Any) -> tuple[Any, Any, PyTree]:
    """The teacher with `MEDIUM_SKILL`."""
    del env, env_params
    return no_carry, teach, jnp.float32(MEDIUM_SKILL)


def teach(skill: Array, carry: tuple[()], time_step: TimeStep, key: Array, deterministic: bool) -> tuple:
    """Pumps energy into the pendulum until it stands, then holds it (Astrom and Furuta 2000).

    With probability `1 - skill` the torque is uniform instead.
    """
    del deterministic
    key_forget, key_torque = jax.random.split(key)
    cosine, sine, speed = time_step.observation
    # Of a rod of 1 kg and 1 m that hangs in 10 m/s^2: the energy is 5 J where it stands.
    missing = 5.0 - (speed**2 / 6.0 + 5.0 * cosine)
    pump = 2.0 * missing * jnp.where(speed >= 0, 1.0, -1.0)
    hold = -(10.0 * jnp.arctan2(sine, cosine) + 2.5 * speed)
    torque = jnp.where(cosine > math.cos(0.5), hold, pump)
    forgotten = jax.random.uniform(key_torque, (), minval=-2.0, maxval=2.0)
    torque = jnp.where(jax.random.uniform(key_forget) < skill, jnp.clip(torque, -2.0, 2.0), forgotten)
    return torque[None], carry, {}
