"""How far a judge can be trusted: its verdicts against the rules' on trajectories where those are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from envs_jax.text.local_tools.trajectory import Trajectory
from jaxrl.rewards.judges import Judge
from jaxrl.rewards.tool_use import rule_completeness

MIN_TRAJECTORIES = 100
MIN_KAPPA = 0.6


class Calibration(NamedTuple):
    """A judge's verdicts "complete" against the true ones."""

    judged: int  # trajectories with a verdict
    abstained: int  # those without
    accuracy: float
    kappa: float  # Cohen 1960: agreement beyond chance
    false_positive_rate: float  # of the incomplete ones; 0 where there are none


def compare(verdicts: Sequence[bool | None], truth: Sequence[bool]) -> Calibration:
    """Agreement of verdicts (None: no verdict) with the truth.

    Kappa is 0 where one side never differs, as then chance alone agrees as much; 1 only where both are the same and
    both kinds occur.
    """
    if len(verdicts) != len(truth):
        raise ValueError(f"{len(verdicts)} verdicts for {len(truth)} cases")
    pairs = [(verdict, label) for verdict, label in zip(verdicts, truth) if verdict is not None]
    count = len(pairs)
    if not count:
        return Calibration(0, len(truth), 0.0, 0.0, 0.0)
    agree = sum(verdict == label for verdict, label in pairs) / count
    yes, true = (sum(column) / count for column in zip(*pairs))
    chance = yes * true + (1.0 - yes) * (1.0 - true)
    wrong = [verdict for verdict, label in pairs if not label]
    return Calibration(
        count,
        len(truth) - count,
        agree,
        (agree - chance) / (1.0 - chance) if chance < 1.0 else 0.0,
        sum(wrong) / max(len(wrong), 1),
    )


def calibrate(judge: Judge, trajectories: Sequence[Trajectory], threshold: float = 0.5) -> Calibration:
    """A judge against the rules.

    Args:
        judge: whose score above `threshold` means complete.
        trajectories: at least 100 with known requirements; complete is what fulfils all of one.
        threshold: of the score. A judge that scores shares of what is needed takes 0.99.

    Raises:
        ValueError: too few trajectories.
    """
    if len(trajectories) < MIN_TRAJECTORIES:
        raise ValueError(f"calibration needs at least {MIN_TRAJECTORIES} trajectories, got {len(trajectories)}")
    verdicts = [None if score is None else score > threshold for score in judge(trajectories)]
    return compare(verdicts, [rule_completeness(trajectory) >= 1.0 for trajectory in trajectories])


def require_trust(calibration: Calibration, force: bool = False) -> None:
    """ValueError where a judge agrees too little with the rules to be trained on, unless forced."""
    if calibration.kappa < MIN_KAPPA and not force:
        raise ValueError(
            f"the judge's kappa is {calibration.kappa:.2f}, below {MIN_KAPPA} "
            f"(accuracy {calibration.accuracy:.2f}, false positives {calibration.false_positive_rate:.2f}): "
            "training on it would learn its errors; force it if you must"
        )
