"""Fixed blue policies: those of the reference records, also useful as baselines and opponents.

A policy is a pure function `(used, observation, step, key) -> (action, used)`: `used` is an i32 counter, 0 at the
start; `observation` begins with the 52 bits; `step` counts from 0; the action is one of the 145 of CAGE 2.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.security.cyborg.actions import KINDS
from envs_jax.security.cyborg.bits import row

Array = jax.Array
Policy = Callable[[Array, Array, Array, Array], tuple[Array, Array]]

NUM_ACTIONS = 145
_ROUND = np.array([9, 10, 11, 12, 1, 2, 3, 7, 8, 0, 4, 5, 6], np.int32)
_GUARDED = (7, 3, 2, 1, 12, 11, 10, 9)
_INSPECTED = np.array([7, 3, 2, 1, 9, 10, 11, 12], np.int32)


def action_index(kind: str, host: int) -> int:
    """The index of an action of CAGE 2, such as `action_index("Restore", 7)`."""
    return 2 + 13 * KINDS.index(kind) + host


_PLAN = np.array(
    [
        action_index(f"Decoy{decoy}", host)
        for decoy, host in (
            ("HarakaSMPT", 1), ("Tomcat", 1), ("Apache", 1), ("Femitter", 2), ("Femitter", 3), ("HarakaSMPT", 7),
            ("Apache", 7), ("Tomcat", 7), ("Apache", 9), ("Tomcat", 9), ("Smss", 9), ("Svchost", 9), ("Femitter", 10),
            ("Tomcat", 10), ("Apache", 10), ("SSHD", 10), ("SSHD", 11), ("Vsftpd", 11), ("Vsftpd", 12), ("Vsftpd", 1),
        )
    ],
    np.int32,
)  # fmt: skip


def sleep(used: Array, observation: Array, step: Array, key: Array) -> tuple[Array, Array]:
    """Never does anything."""
    del observation, step, key
    return jnp.int32(0), used


def random(used: Array, observation: Array, step: Array, key: Array) -> tuple[Array, Array]:
    """Uniform over the 145 actions."""
    del observation, step
    return jax.random.randint(key, (), 0, NUM_ACTIONS, jnp.int32), used


def script_rra(used: Array, observation: Array, step: Array, key: Array) -> tuple[Array, Array]:
    """Analyse, Remove, Restore on one host after the other, round and round."""
    del observation, key
    kinds = np.array([action_index(kind, 0) for kind in ("Analyse", "Remove", "Restore")], np.int32)
    return row(kinds, step % 3) + row(_ROUND, (step // 3) % 13), used


def decoy_greedy(used: Array, observation: Array, step: Array, key: Array) -> tuple[Array, Array]:
    """Cleans what looks taken, else places decoys by a fixed plan, else inspects."""
    del key
    analyse = action_index("Analyse", 0) + row(_INSPECTED, step % 8)
    plans = used < len(_PLAN)
    action = jnp.where(plans, row(_PLAN, jnp.minimum(used, len(_PLAN) - 1)), analyse)
    taken = jnp.bool_(False)
    for host in reversed(_GUARDED):
        unknown, user = observation[4 * host + 2] > 0, observation[4 * host + 3] > 0
        action = jnp.where(unknown, action_index("Restore", host), action)
        action = jnp.where(user & ~unknown, action_index("Remove", host), action)
        taken = taken | unknown | user
    return action.astype(jnp.int32), used + (plans & ~taken).astype(jnp.int32)


POLICIES: dict[str, Policy] = {
    "sleep": sleep,
    "random": random,
    "script_rra": script_rra,
    "decoy_greedy": decoy_greedy,
}
