"""Statistics over seeds, on numbers worked out by hand or by another implementation."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from jaxrl.results.stats import (
    interquartile_mean,
    mean_interval,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
    variance_explained,
)

generator = np.random.default_rng(3)
SCORES = generator.normal(1.0, 2.0, (10, 3))
BASELINE = generator.normal(0.0, 2.0, (7, 3))


def test_interquartile_mean():
    assert interquartile_mean([0.0, 1.0, 2.0, 1000.0]) == 1.5
    assert interquartile_mean([5.0]) == 5.0
    assert interquartile_mean([3.0, 1.0, 2.0]) == 2.0  # a quarter of three is none
    assert interquartile_mean(SCORES) == pytest.approx(scipy_stats.trim_mean(SCORES, 0.25, axis=None), rel=1e-12)


def test_probability_of_improvement():
    assert probability_of_improvement([2.0, 3.0], [0.0, 1.0]) == 1.0
    assert probability_of_improvement([1.0, 1.0], [1.0]) == 0.5
    assert probability_of_improvement([0.0, 2.0], [1.0, 2.0]) == pytest.approx((0 + 0 + 1 + 0.5) / 4)
    expected = np.mean([scipy_stats.mannwhitneyu(x, y).statistic / 70 for x, y in zip(SCORES.T, BASELINE.T)])
    assert probability_of_improvement(SCORES, BASELINE) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="the same tasks"):
        probability_of_improvement(SCORES, BASELINE[:, :2])


def test_performance_profile():
    """Worked out by hand, and by the definition: a double sum of indicators over runs and tasks."""
    assert performance_profile([1.0, 2.0, 2.0, 4.0], [0.0, 1.0, 2.0, 3.9, 4.0]).tolist() == [1.0, 0.75, 0.25, 0.25, 0.0]
    thresholds = [-1.0, 0.0, 0.5, 1.5, 3.0]
    expected = [sum(score > tau for row in SCORES for score in row) / SCORES.size for tau in thresholds]
    np.testing.assert_allclose(performance_profile(SCORES, thresholds), expected, rtol=1e-12)
    band = stratified_bootstrap(lambda scores: performance_profile(scores, thresholds), SCORES, num_resamples=200)
    assert band.low.shape == (5,)
    assert np.all((band.low <= band.estimate) & (band.estimate <= band.high))


def test_variance_explained():
    # Means 1, 4 and 7 around 4, each group 1 apart: between 2 * (9 + 0 + 9) = 36, within 6 * 0.25 = 1.5.
    scores, labels = [0.5, 1.5, 3.5, 4.5, 6.5, 7.5], ["a", "a", "b", "b", "c", "c"]
    assert variance_explained(scores, labels) == pytest.approx(36.0 / 37.5, rel=1e-12)
    assert variance_explained(scores, ["a"] * 6) == 0.0
    assert variance_explained(scores, range(6)) == pytest.approx(1.0)
    assert np.isnan(variance_explained([2.0, 2.0], ["a", "b"]))
    within = sum(((column - column.mean()) ** 2).sum() for column in SCORES.T)
    share = variance_explained(SCORES.ravel(), [0, 1, 2] * 10)
    assert share == pytest.approx(1.0 - within / ((SCORES - SCORES.mean()) ** 2).sum(), rel=1e-12)
    with pytest.raises(ValueError, match="one label per score, got 2"):
        variance_explained(scores, ["a", "b"])


def test_mean_interval_is_the_bootstrap_distribution():
    values = np.array([0.0, 1.0, 5.0])
    means = np.array([np.mean(draw) for draw in itertools.product(values, repeat=3)])  # all 27 resamples
    interval = mean_interval(values, confidence=0.8, num_resamples=20_000)
    assert interval.estimate == 2.0
    assert interval.low == pytest.approx(np.quantile(means, 0.1))
    assert interval.high == pytest.approx(np.quantile(means, 0.9))


def test_mean_interval_resamples_whole_rows():
    base = generator.normal(size=8)
    values = np.stack([base, 2.0 * base, base + 1.0], axis=1)
    interval = mean_interval(values)
    np.testing.assert_allclose(interval.estimate, values.mean(axis=0))
    np.testing.assert_allclose(interval.low[1], 2.0 * interval.low[0])
    np.testing.assert_allclose(interval.high[2], interval.high[0] + 1.0)
    np.testing.assert_array_equal(interval.low, mean_interval(values).low)  # seeded
    assert np.any(interval.low != mean_interval(values, seed=1).low)


def test_intervals_cover():
    """The 90 % interval of a mean of 30 holds the truth in about 90 % of experiments (the bootstrap is a bit short)."""
    experiments = np.random.default_rng(0).exponential(1.0, (30, 400))
    interval = mean_interval(experiments, confidence=0.9)
    covered = np.mean((interval.low <= 1.0) & (interval.high >= 1.0))
    assert 0.83 < covered < 0.93


def test_stratified_bootstrap():
    mean = stratified_bootstrap(np.mean, SCORES[:, 0], num_resamples=4000)
    reference = scipy_stats.bootstrap((SCORES[:, 0],), np.mean, method="percentile", n_resamples=4000)
    spread = reference.confidence_interval.high - reference.confidence_interval.low
    assert mean.estimate == SCORES[:, 0].mean()
    assert abs(mean.low - reference.confidence_interval.low) < 0.1 * spread
    assert abs(mean.high - reference.confidence_interval.high) < 0.1 * spread
    # Within tasks: where seeds agree there is nothing to resample, however far the tasks lie apart.
    apart = np.tile([0.0, 100.0], (5, 1))
    assert stratified_bootstrap(np.mean, apart, num_resamples=50) == (50.0, 50.0, 50.0)
    better = stratified_bootstrap(probability_of_improvement, SCORES, BASELINE, num_resamples=500)
    assert better.low < better.estimate < better.high
    assert better.estimate == probability_of_improvement(SCORES, BASELINE)
    again = stratified_bootstrap(probability_of_improvement, SCORES, BASELINE, num_resamples=500)
    assert better == again


def test_one_seed_has_no_interval():
    assert mean_interval([4.0]).estimate == 4.0
    for interval in (mean_interval([4.0]), stratified_bootstrap(np.median, [4.0], num_resamples=10)):
        assert np.isnan([interval.low, interval.high]).all()


def test_refused():
    with pytest.raises(ValueError, match="must not be NaN"):
        interquartile_mean([1.0, np.nan])
    with pytest.raises(ValueError, match=r"at least one seed on their first axis, got shape \(0,\)"):
        mean_interval([])
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, got 95"):
        mean_interval([1.0, 2.0], confidence=95)
