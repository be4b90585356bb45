"""What a task requires where nobody knows: the calls that most of several plans agree on."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from envs_jax.text.local_tools.trajectory import Trajectory
from envs_jax.text.requirements import Requirement


def call_shares(plans: Sequence[Trajectory]) -> dict[str, float]:
    """Signature of a call -> the share of plans in which it succeeded."""
    if not plans:
        raise ValueError("a consensus needs at least one plan")
    counts = collections.Counter(name for plan in plans for name in {call.signature for call in plan.events})
    return {name: count / len(plans) for name, count in counts.items()}


def consensus_requirement(plans: Sequence[Trajectory], threshold: float = 0.5) -> Requirement:
    """The formula of the calls that at least a share `threshold` of reference plans for one query hold.

    Weak: plans that agree in an error, or find the same by different calls, make it wrong. Report its agreement with
    the exact formula (`jaxrl.rewards.calibration.compare`) where that is known.
    """
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")
    shares = call_shares(plans)
    return Requirement(tuple((name,) for name in sorted(shares) if shares[name] >= threshold))
