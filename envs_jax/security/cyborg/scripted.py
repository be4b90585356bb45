"""A scripted defender of CAGE 2 that knows B_line's script: what a careful operator could reach against it.

B_line never leaves its path: its user host, that host's Enterprise server, Enterprise2, Op_Server0. Its user host is
let go (0.1 per step, while a Restore costs 1); the servers are filled with decoys before it scans them and restored as
soon as it gets in. It plays the full action set with its mask (not `all_legal`), with or without the extension, on any
observation that begins with the 52 bits. Against B_line it returns -13.6 in 100 steps; another red agent fools it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.core import TimeStep
from envs_jax.security.cyborg.policies import action_index

Array = jax.Array

_ENTERPRISE0, _ENTERPRISE1, _ENTERPRISE2, _OP_SERVER = 1, 2, 3, 7
_USERS = np.array([9, 10, 11, 12])  # the first two lead to Enterprise1, the others to Enterprise0
_SERVERS = np.array([_ENTERPRISE0, _ENTERPRISE1, _ENTERPRISE2, _OP_SERVER], np.int32)
_RESTORE = action_index("Restore", 0)  # and the next twelve


def _decoys(host: int, *names: str) -> list[int]:
    return [action_index(f"Decoy{name}", host) for name in names]


_LINUX = ("HarakaSMPT", "Tomcat", "Apache")  # the more ports are open beside ssh, the rarer is ssh attacked
_OPENING = np.array(_decoys(10, "Femitter") + _decoys(_ENTERPRISE1, "Femitter"), np.int32)
_BEHIND = _decoys(_ENTERPRISE2, "Femitter") + _decoys(_OP_SERVER, *_LINUX)
_PLANS = np.array(  # in order of urgency, for each Enterprise server that red may enter by
    [_decoys(_ENTERPRISE0, *_LINUX) + _BEHIND, _decoys(_ENTERPRISE1, "Femitter") * len(_LINUX) + _BEHIND], np.int32
)


def start(policy_params: Any, key: Array) -> tuple[Array, Array, Array]:
    """Step, last action, and the Enterprise server that red goes for (-1: unknown), i32 []; reads neither argument."""
    del policy_params, key
    return jnp.int32(0), jnp.int32(0), jnp.int32(-1)


def act(
    policy_params: Any, carry: tuple[Array, Array, Array], time_step: TimeStep, key: Array, deterministic: bool
) -> tuple[Array, tuple[Array, Array, Array], dict[str, Array]]:
    """One action, as `jaxrl.types.Algorithm.act`; deterministic, `policy_params` and `key` are not read."""
    del policy_params, key, deterministic
    assert time_step.legal_actions is not None
    step, last, target = carry
    scanned, exploited = time_step.observation[0:52:4] > 0, time_step.observation[1:52:4] > 0
    touched = scanned[_USERS]
    found = jnp.where(jnp.argmax(touched) < 2, _ENTERPRISE1, _ENTERPRISE0).astype(jnp.int32)
    target = jnp.where((target < 0) & touched.any(), found, target)

    # The next decoy that is still missing, by the mask. Not right after a Restore: red tries the host again then, and
    # a decoy that is hit in the step in which another is placed looks like an exploit.
    cleaned = last >= _RESTORE
    plan = jnp.asarray(_PLANS)[(target == _ENTERPRISE1).astype(jnp.int32)]
    missing = time_step.legal_actions[plan]
    decoy = jnp.where(missing.any() & ~cleaned, plan[jnp.argmax(missing)], 0)
    action = jnp.where(step < len(_OPENING), jnp.asarray(_OPENING)[jnp.minimum(step, len(_OPENING) - 1)], decoy)

    # Red moves on only from a server that it holds: activity at the next one gives an unseen session away.
    lost = jnp.where(scanned[_OP_SERVER], _ENTERPRISE2, jnp.where(scanned[_ENTERPRISE2], target, -1))
    action = jnp.where((lost >= 0) & ~cleaned, _RESTORE + lost, action)
    entered = exploited[_SERVERS]
    action = jnp.where(entered.any(), _RESTORE + jnp.asarray(_SERVERS)[jnp.argmax(entered)], action)
    return action.astype(jnp.int32), (step + 1, action.astype(jnp.int32), target), {}
