"""Heuristic players of FlipIt and PoolFlip as policies given as data: a kind and two numbers each.

A policy is a pair `(start, act)`; all rules are computed and one is selected, so that a bank of them can be stacked,
drawn from and vmapped. They read the agent's own knowledge in `TimeStep.info` and suit either role.

    name                 rule at tick t (one action per tick)
    sleep                nothing
    random(rho)          with probability rho: flip a random resource
    periodic(d)          flip the next resource in turn every d ticks, random phase
    exponential(lam)     with probability 1 - exp(-lam): flip a random resource
    uniform(d,h)         as periodic, with gaps drawn uniformly from d - h .. d + h
    guard(m)             flip the first resource believed lost; else, every m ticks, check the one known of longest ago
    burst(L,G)           flip in turn for L ticks, rest for G ticks, random phase
    greedy_exp(lam[,k])  flip each resource every Z ticks, the greedy (here optimal) wait against exponential flips of
                         rate lam per resource at flip cost k (4 if not given); nothing where no wait pays
    shadow(m,w)          every m ticks check the resource known of longest ago; w ticks after a check that shows a flip
                         of the opponent newer than the own, flip that resource

periodic, exponential and uniform are renewal strategies of FlipIt (van Dijk et al. 2013) and QFlip (Oakley and Oprea
2019), greedy_exp is the greedy strategy of the former; random, guard, burst and shadow are choices of this project.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_jax.core import Array, TimeStep
from envs_jax.games.flipit_theory import last_move_best_response
from envs_jax.registry import nearest

UNSET = 2**30  # a tick that never comes
TINY = 1e-30  # keeps 0 / 0 out of branches that are not selected
LONGEST = 2**20  # ticks; exact in f32, and sums of ticks stay far from UNSET


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a heuristic's name."""

    name: str
    low: float
    high: float
    integer: bool = True
    default: float | None = None

    def check(self, heuristic: str, value: float) -> float:
        if not self.low <= value <= self.high or (self.integer and value != int(value)):
            kind = "an integer" if self.integer else "a number"
            raise ValueError(f"{self.name} in {heuristic!r} must be {kind} from {self.low:g} to {self.high:g}")
        return value


ARGUMENTS: dict[str, tuple[Argument, ...]] = {
    "sleep": (),
    "random": (Argument("rho", 0, 1, integer=False),),
    "periodic": (Argument("d", 1, LONGEST),),
    "exponential": (Argument("lam", 0, 1000, integer=False),),
    "uniform": (Argument("d", 1, LONGEST), Argument("h", 0, LONGEST)),
    "guard": (Argument("m", 1, LONGEST),),
    "burst": (Argument("L", 1, LONGEST), Argument("G", 0, LONGEST)),
    "greedy_exp": (
        Argument("lam", 1e-4, 1000, integer=False),
        Argument("k", 1e-4, 1000, integer=False, default=4.0),
    ),
    "shadow": (Argument("m", 1, LONGEST), Argument("w", 1, LONGEST)),
}
KINDS = tuple(ARGUMENTS)
CHECKING = ("guard", "shadow")  # these need a game with checks


@struct.dataclass
class HeuristicParams:
    """One heuristic, or M of them with leaves [M, ...]. Made by `parse` and `stack`."""

    kind: Array  # i32 []; index into KINDS
    # f32 [2]; the arguments of the name, unused ones 0, except where the rule needs less: exponential holds the
    # probability of a flip per tick, greedy_exp the wait Z in ticks (0: never).
    values: Array


@struct.dataclass
class HeuristicCarry:
    """What a heuristic remembers; its knowledge of the game is in the time step."""

    next_time: Array  # i32 []; tick of the next flip or check; the phase of burst
    turn: Array  # i32 []; the resource whose turn it is
    due: Array  # i32 [R]; tick at which each resource is to be flipped (greedy_exp, shadow), or UNSET


def parse(name: str) -> HeuristicParams:
    """The heuristic of a name such as `"sleep"`, `"periodic(4)"` or `"uniform(4,2)"`.

    Raises:
        ValueError: the name is unknown (with the nearest one), or its arguments are too few, too many or refused.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", name)
    if match is None:
        raise ValueError(f"a heuristic is written like 'sleep' or 'uniform(4,2)', got {name!r}")
    kind, text = match[1], match[2] or ""
    if kind not in ARGUMENTS:
        raise ValueError(f"unknown heuristic {name!r}{nearest(kind, KINDS)} Known: {', '.join(KINDS)}")
    given, arguments = text.split(",") if text.strip() else [], ARGUMENTS[kind]
    num_required = sum(argument.default is None for argument in arguments)
    if not num_required <= len(given) <= len(arguments):
        usage = f"{kind}({','.join(argument.name for argument in arguments)})" if arguments else kind
        raise ValueError(f"{name!r} has {len(given)} arguments, it must read {usage!r}")
    try:
        numbers = [float(word) for word in given]
    except ValueError:
        raise ValueError(f"the arguments in {name!r} must be numbers") from None
    numbers += [argument.default for argument in arguments[len(numbers) :] if argument.default is not None]
    values = [argument.check(name, number) for argument, number in zip(arguments, numbers, strict=True)]

    if kind == "uniform" and values[1] >= values[0]:
        raise ValueError(f"h in {name!r} must be below d, or a gap could be empty")
    if kind == "exponential":
        values = [-math.expm1(-values[0])]
    if kind == "greedy_exp":
        response = last_move_best_response(*values)
        values = [0.0 if response is None else max(1.0, float(round(response.z)))]
    padded = (values + [0.0, 0.0])[:2]
    return HeuristicParams(jnp.asarray(KINDS.index(kind), jnp.int32), jnp.asarray(padded, jnp.float32))


def stack(policies: Sequence[HeuristicParams]) -> HeuristicParams:
    """M heuristics as one, leaves [M, ...]."""
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *policies)


def make_heuristics(num_resources: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The pair `(start, act)` for R = `num_resources`.

    `start(policy_params, key) -> HeuristicCarry` and
    `act(policy_params, carry, time_step, key, deterministic) -> (action i32 [], carry, {})` play one agent, without a
    batch axis; `time_step` is that agent's view. Both consume `key`; `act` draws one number of it. `deterministic` is
    ignored: chance is part of the rules.
    """

    def start(policy_params: HeuristicParams, key: Array) -> HeuristicCarry:
        kind, (first, second) = policy_params.kind, policy_params.values
        # How many ticks the first flip or check, or the phase, is spread over.
        num_phases = first + jnp.where(_any_of(kind, "burst"), second, 0.0)
        num_phases += jnp.where(_any_of(kind, "uniform"), second + 1.0, 0.0)
        draws = jax.random.uniform(key, (2 + num_resources,))
        due = (draws[2:] * first).astype(jnp.int32)
        return HeuristicCarry(
            next_time=(draws[0] * num_phases).astype(jnp.int32),
            turn=(draws[1] * num_resources).astype(jnp.int32),
            due=jnp.where(_any_of(kind, "greedy_exp") & (first > 0), due, UNSET),
        )

    def act(
        policy_params: HeuristicParams, carry: HeuristicCarry, time_step: TimeStep, key: Array, deterministic: bool
    ) -> tuple[Array, HeuristicCarry, dict[str, Array]]:
        del deterministic
        kind, (rate, spread) = policy_params.kind, policy_params.values
        first, second = policy_params.values.astype(jnp.int32)
        info, draw = time_step.info, jax.random.uniform(key)
        now, believed_own = info["time"], info["believed_own"]

        # What the check of the last tick has shown to a shadow.
        shown = (info["knowledge_time"] == now - 1) & (info["opponent_flip"] > info["own_flip"])
        shown &= _any_of(kind, "shadow") & (info["num_checks"] > 0)
        due = jnp.where(shown, now - 1 + second, carry.due)

        # At most one of these is true: which rule flips now.
        at_random = _any_of(kind, "random", "exponential") & (draw < rate)
        on_time = _any_of(kind, "periodic", "uniform") & (now >= carry.next_time)
        in_burst = _any_of(kind, "burst") & ((now + carry.next_time) % jnp.maximum(first + second, 1) < first)
        is_lost = _any_of(kind, "guard") & ~jnp.all(believed_own)
        is_due = jnp.any(due <= now)
        in_turn = on_time | in_burst
        flips = at_random | in_turn | is_lost | is_due
        checks = _any_of(kind, *CHECKING) & (now >= carry.next_time) & ~flips

        # Given that it is below the rate, draw / rate is uniform again.
        anyone = jnp.minimum(draw / jnp.maximum(rate, TINY) * num_resources, num_resources - 1)
        target = jnp.where(at_random, anyone.astype(jnp.int32), jnp.argmin(due))
        target = jnp.where(in_turn, carry.turn, target)
        target = jnp.where(is_lost, jnp.argmin(believed_own), target)
        stalest = jnp.argmin(info["knowledge_time"])
        action = jnp.where(flips, 1 + 2 * target, jnp.where(checks, 2 + 2 * stalest, 0)).astype(jnp.int32)

        jitter = jnp.where(_any_of(kind, "uniform"), jnp.floor(draw * (2.0 * spread + 1.0)) - spread, 0.0)
        served = is_due & (jnp.arange(num_resources) == target)
        carry = HeuristicCarry(
            next_time=jnp.where(on_time | checks, now + first + jitter.astype(jnp.int32), carry.next_time),
            turn=jnp.where(in_turn, (carry.turn + 1) % num_resources, carry.turn),
            due=jnp.where(served, jnp.where(_any_of(kind, "greedy_exp"), now + first, UNSET), due),
        )
        return action, carry, {}

    return start, act


def _any_of(kind: Array, *names: str) -> Array:
    """bool []: whether `kind` is one of these."""
    is_kind = kind == KINDS.index(names[0])
    for name in names[1:]:
        is_kind |= kind == KINDS.index(name)
    return is_kind
