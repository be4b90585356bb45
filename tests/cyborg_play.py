"""Plays CybORG step by step with every choice given, for the tests of its rules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.security.cyborg import Cyborg
from envs_jax.security.cyborg.actions import KINDS
from envs_jax.security.cyborg.bits import unpack
from envs_jax.security.cyborg.catalogue import EXPLOITS, PORTS
from envs_jax.security.cyborg.network import RED_KINDS
from envs_jax.security.cyborg.records import PRIVILEGED, REMOVABLE, STICKY, Sessions, Setup
from envs_jax.security.cyborg.state import Choices

DEFENDER, ENT0, ENT1, ENT2, OP_HOST0, _, _, OP_SERVER, USER0, USER1, USER2, USER3, USER4 = range(13)
NOTHING, SCAN, EXPLOIT = (0, 0), (1, 0), (1, 1)
NO, SUSPECTED, USER, ROOT = (0, 0), (1, 0), (0, 1), (1, 1)
IDLE = 0


def blue(kind, host):
    return 2 + 13 * KINDS.index(kind) + host


def move(kind="Sleep", host=-1, *, subnet=-1, exploit=None, detected=1, pick_removable=0, green=-1):
    """The choices of one step after blue's."""
    exploit = -1 if exploit is None else [entry.name for entry in EXPLOITS].index(exploit)
    numbers = (int(green >= 0), green, RED_KINDS.index(kind), host, subnet, exploit, detected, pick_removable)
    return Choices(*(jnp.int32(number) for number in numbers))


def scan(host, **more):
    return move("DiscoverNetworkServices", host, **more)


def hit(host, exploit="SSHBruteForce", **more):
    return move("ExploitRemoteService", host, exploit=exploit, **more)


def escalate(host, **more):
    return move("PrivilegeEscalate", host, **more)


IMPACT = move("Impact", OP_SERVER)


class World:
    """Plays moves one after the other with one compiled step."""

    def __init__(self, **options):
        self.env = Cyborg(green=True, extension=True, **options)
        self.params = self.env.default_params
        self.step = jax.jit(self.env.step_injected)

    def play(self, *moves, start=None):
        """The states and time steps after each (blue action, red's and green's move)."""
        state = self.env.initial_state(self.params) if start is None else start
        states, shown = [], []
        for action, choices in moves:
            state, time_step = self.step(state, jnp.int32(action), choices, self.params)
            states.append(state)
            shown.append(time_step)
        return states, shown

    def last(self, *moves, start=None):
        states, shown = self.play(*moves, start=start)
        return states[-1], shown[-1]


@functools.cache
def original():
    """The game bug for bug, with the extension's actions."""
    return World()


@functools.cache
def repaired():
    """Every quirk repaired, and the extension's options turned round."""
    return World(fixes="all", patch_steps=3, restore_unpatches=False, allow_isolate_foothold=True)


def activity(time_step, host):
    return tuple(int(bit) for bit in time_step.observation.reshape(13, 4)[host, :2])


def belief(time_step, host):
    return tuple(int(bit) for bit in time_step.observation.reshape(13, 4)[host, 2:])


def sessions(state, host):
    here = Sessions(state.sessions[host])
    return tuple(int(here.count(kind)) for kind in (REMOVABLE, STICKY, PRIVILEGED))


def members(mask):
    return set(np.flatnonzero(unpack(mask, 13)).tolist())


def ports(state, host):
    return {port for index, port in enumerate(PORTS) if int(Setup(state.setup[host]).ports) >> index & 1}
