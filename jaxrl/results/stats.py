"""Statistics over seeds: bootstrap intervals, interquartile mean, probability of improvement, performance profiles.

The measures are those of Agarwal et al. 2021 (arXiv 2108.13264), "Deep reinforcement learning at the edge of the
statistical precipice". S is the number of seeds; intervals resample seeds, never the episodes within one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate and its confidence interval: numbers, or arrays of one shape. NaN bounds where there is one seed."""

    estimate: Any
    low: Any
    high: Any


def mean_interval(values: Any, *, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean over seeds and its percentile bootstrap interval (Efron 1979).

    Args:
        values: `[S, ...]`; whole rows are resampled, so a row may be a learning curve.
        confidence: of the interval.
        num_resamples: bootstrap samples.
        seed: of the resampling.

    Returns:
        `Interval` of the trailing shape.

    Raises:
        ValueError: no seeds, a NaN, or a confidence outside (0, 1).

    Example:
        >>> mean_interval([480.0, 500.0, 495.0]).estimate
        491.66...
    """
    array = _checked(values)
    num_seeds = array.shape[0]
    # How often each seed is drawn is all that a mean needs to know of a resample.
    draws = np.random.default_rng(seed).multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_resamples)
    means = (draws / num_seeds @ array.reshape(num_seeds, -1)).reshape(num_resamples, *array.shape[1:])
    return _interval(array.mean(axis=0), means, confidence, num_seeds)


def interquartile_mean(scores: Any) -> float:
    """Mean of the middle half of all scores, `[S]` or `[S, tasks]`: a quarter, rounded down, goes at each end."""
    ordered = np.sort(_checked(scores), axis=None)
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())


def probability_of_improvement(scores: Any, baseline: Any) -> float:
    """Chance that a seed of `scores` beats one of `baseline`, ties counting half, averaged over tasks.

    Args:
        scores: `[S]` or `[S, tasks]`.
        baseline: `[S']` or `[S', tasks]`.
    """
    ours, theirs = _checked(scores)[:, None], _checked(baseline)[None]
    if ours.shape[2:] != theirs.shape[2:]:
        raise ValueError(f"scores and baseline must have the same tasks, got {ours.shape[2:]} and {theirs.shape[2:]}")
    return float(np.mean((ours > theirs) + 0.5 * (ours == theirs)))


def performance_profile(scores: Any, thresholds: Any) -> np.ndarray:
    """Share of runs that score above each threshold: the run-score distribution of Agarwal et al. 2021, section 4.2.

    Args:
        scores: `[S]` or `[S, tasks]`; every run of every task counts the same.
        thresholds: `[n]`.

    Returns:
        f64 `[n]`, falling from 1 to 0.
    """
    ordered = np.sort(_checked(scores), axis=None)
    return 1.0 - np.searchsorted(ordered, np.asarray(thresholds, np.float64), side="right") / ordered.size


def variance_explained(scores: Any, labels: Sequence[Hashable]) -> float:
    """Share of the variance of `scores` that lies between the means of groups with equal labels, in [0, 1].

    The correlation ratio (eta squared, Fisher 1925). It sees no interactions between settings, and chance alone gives
    (groups - 1) / (runs - 1) on average. NaN where all scores are equal.

    Args:
        scores: `[runs]`.
        labels: `[runs]`, such as the learning rate of each run.
    """
    array = _checked(scores)
    if array.ndim != 1 or len(labels) != len(array):
        raise ValueError(f"there must be one label per score, got {len(labels)} for scores of shape {array.shape}")
    total = np.sum((array - array.mean()) ** 2)
    groups = [array[[other == label for other in labels]] for label in dict.fromkeys(labels)]
    between = sum(len(group) * (group.mean() - array.mean()) ** 2 for group in groups)
    return float(between / total) if total > 0 else float("nan")


def stratified_bootstrap(
    statistic: Callable[..., Any],
    *scores: Any,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """A statistic and its percentile bootstrap interval, seeds resampled within each task.

    Args:
        statistic: from arrays shaped like `scores` to a number or an array, such as `interquartile_mean`,
            `probability_of_improvement` or `lambda ours, theirs: ours.mean() / theirs.mean()`.
        *scores: each `[S]` or `[S, tasks]`, resampled independently of the others; S may differ.
        confidence: of the interval.
        num_resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: no seeds, a NaN, or a confidence outside (0, 1).
    """
    arrays = [_checked(array) for array in scores]
    generator = np.random.default_rng(seed)

    def resample(array: np.ndarray) -> np.ndarray:
        return np.take_along_axis(array, generator.integers(len(array), size=array.shape), axis=0)

    values = np.array([statistic(*map(resample, arrays)) for _ in range(num_resamples)])
    return _interval(statistic(*arrays), values, confidence, max(map(len, arrays)))


def _checked(values: Any) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if not array.ndim or not array.size:
        raise ValueError(f"scores must hold at least one seed on their first axis, got shape {array.shape}")
    if np.isnan(array).any():
        raise ValueError("scores must not be NaN")
    return array


def _interval(estimate: Any, resampled: np.ndarray, confidence: float, num_seeds: int) -> Interval:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    if num_seeds == 1:  # nothing to resample: no interval, not one of width 0
        low, high = np.full_like(low, np.nan), np.full_like(high, np.nan)
    return Interval(estimate, low, high)
