"""Intervals and tests against scipy, closed forms, and coverage on simulated data."""

import time

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score

from fiat_jax.evaluation import statistics


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("distinct", [2, 5, None])  # None: no value repeats, so that rows are drawn instead of counts
def test_resampled_means_have_the_bootstrap_moments(distinct):
    values = _rng().random(60) if distinct is None else _rng().integers(0, distinct, 60) / (distinct - 1)
    means = statistics.resampled_means(values, 20_000, _rng(1))
    assert means.mean() == pytest.approx(values.mean(), abs=4 * values.std() / np.sqrt(60 * 20_000))
    assert means.std() == pytest.approx(values.std() / np.sqrt(60), rel=0.02)


@pytest.mark.parametrize("distinct", [2, 5, None])
def test_the_interval_of_a_mean_agrees_with_scipy(distinct):
    values = _rng().random(80) if distinct is None else _rng().integers(0, distinct, 80) / (distinct - 1)
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=_rng(2))
    found = statistics.interval(statistics.resampled_means(values, 20_000, _rng(1)))
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=0.0126)  # one step of a mean of 80 is 0.0125


def test_the_interval_of_a_mean_over_languages_agrees_with_scipy():
    languages = [_rng(seed).random(size) ** seed for seed, size in ((1, 20), (2, 50), (3, 200))]
    expected = stats.bootstrap(
        languages,
        lambda *samples, axis: np.mean([sample.mean(axis=axis) for sample in samples], axis=0),
        method="percentile",
        n_resamples=20_000,
        rng=_rng(4),
    ).confidence_interval
    replicates = [statistics.resampled_means(values, 20_000, _rng(5 + i)) for i, values in enumerate(languages)]
    assert statistics.interval(np.mean(replicates, axis=0)) == pytest.approx(tuple(expected), abs=0.003)


def test_the_interval_of_equal_values_is_that_value():
    assert statistics.interval(statistics.resampled_means(np.ones(50), 100, _rng())) == (1.0, 1.0)


def test_resampled_average_precisions_equal_those_of_the_redrawn_rows():
    positive = np.array([True, False, False, True, True, False, False, False])
    scores = [np.array([3.0, 3, 1, 2, 0, 2, -1, 5]), np.array([1.0, 2, 3, 4, 5, 6, 7, 8])]
    counts = np.array([[1, 0, 2, 2, 0, 1, 1, 1], [0, 1, 1, 0, 3, 1, 2, 0]])
    for column in scores:
        found = statistics._weighted_average_precision(counts.T, statistics._ranking(positive, column))
        for value, count in zip(found, counts, strict=True):
            rows = np.repeat(np.arange(8), count)
            assert value == pytest.approx(average_precision_score(positive[rows], column[rows]))


def test_average_precision_replicates_agree_with_a_plain_loop_over_resamples():
    rng = _rng()
    positive = rng.random(120) < 0.3
    scores = np.round(rng.normal(size=120) + positive, 1)  # with ties
    found = statistics.resampled_average_precisions(positive, [scores], 4_000, _rng(1))[0]
    looped = []
    for _ in range(2_000):
        drawn = [rng.choice(np.flatnonzero(positive == side), np.sum(positive == side)) for side in (True, False)]
        rows = np.concatenate(drawn)
        looped.append(average_precision_score(positive[rows], scores[rows]))
    assert found.mean() == pytest.approx(np.mean(looped), abs=0.006)
    assert statistics.interval(found) == pytest.approx(statistics.interval(np.array(looped)), abs=0.015)


def test_two_systems_are_resampled_together():
    rng = _rng()
    positive = rng.random(100) < 0.4
    scores = rng.normal(size=100) + positive
    a, b = statistics.resampled_average_precisions(positive, [scores, 2 * scores + 1], 300, _rng(1))
    assert a.std() > 0
    np.testing.assert_array_equal(a, b)  # the same ranking on the same rows, whatever was redrawn


@pytest.mark.parametrize(("rate", "n"), [(0.7, 100), (0.5, 40), (0.9, 400)])
def test_the_interval_of_an_accuracy_covers_the_truth_in_about_95_of_100_samples(rate, n):
    rng = _rng(7)
    covered = 0
    for _ in range(600):
        low, high = statistics.interval(statistics.resampled_means(rng.random(n) < rate, 600, rng))
        covered += low <= rate <= high
    assert 0.91 <= covered / 600 <= 0.98


def test_the_interval_of_a_difference_covers_the_truth_and_is_narrower_than_unpaired():
    rng = _rng(8)
    covered, paired_width, unpaired_width = 0, 0.0, 0.0
    for _ in range(400):
        hard = rng.random(200)  # how hard a row is, the same for both systems
        a, b = (hard < 0.70).astype(float), (hard + 0.05 * rng.normal(size=200) < 0.60).astype(float)
        low, high = statistics.interval(statistics.resampled_means(a - b, 600, rng))
        covered += low <= 0.10 <= high
        paired_width += high - low
        apart = statistics.resampled_means(a, 600, rng) - statistics.resampled_means(b, 600, rng)
        unpaired_width += np.subtract(*statistics.interval(apart)[::-1])
    assert 0.91 <= covered / 400 <= 0.98
    assert paired_width < 0.6 * unpaired_width


def test_the_interval_of_average_precision_covers_the_truth_in_about_95_of_100_samples():
    rng = _rng(9)
    truth_positive = np.arange(200_000) < 60_000
    truth = average_precision_score(truth_positive, rng.normal(size=200_000) + truth_positive)
    positive = np.arange(300) < 90
    covered = 0
    for _ in range(300):
        scores = rng.normal(size=300) + positive
        low, high = statistics.interval(statistics.resampled_average_precisions(positive, [scores], 400, rng)[0])
        covered += low <= truth <= high
    assert 0.90 <= covered / 300 <= 0.985


def test_bootstrap_p_is_about_uniform_without_a_difference_and_small_with_one():
    rng = _rng(10)
    small = 0
    for _ in range(500):
        difference = rng.choice([-1.0, 0.0, 1.0], size=200, p=[0.1, 0.8, 0.1])
        small += statistics.bootstrap_p(statistics.resampled_means(difference, 400, rng)) < 0.05
    assert 0.02 <= small / 500 <= 0.085
    clear = rng.choice([-1.0, 0.0, 1.0], size=200, p=[0.02, 0.78, 0.2])
    assert statistics.bootstrap_p(statistics.resampled_means(clear, 999, rng)) == pytest.approx(2 / 1000)


def test_bootstrap_p_of_no_difference_at_all_is_one():
    assert statistics.bootstrap_p(np.full(1000, 1e-17)) == 1.0


def test_mcnemar_is_a_coin_toss_over_the_rows_that_differ():
    a = np.array([1] * 10 + [1] * 7 + [0] * 1 + [0] * 5, float)
    b = np.array([1] * 10 + [0] * 7 + [1] * 1 + [0] * 5, float)
    assert statistics.mcnemar_p(a, b) == pytest.approx(2 * (1 + 8) / 2**8)  # at most 1 head in 8
    assert statistics.mcnemar_p(a, b) == statistics.mcnemar_p(b, a)


def test_mcnemar_of_systems_right_on_the_same_rows_is_one():
    assert statistics.mcnemar_p(np.array([1.0, 0]), np.array([1.0, 0])) == 1.0


def test_ten_thousand_resamples_of_ten_thousand_rows_take_seconds():
    rng = _rng()
    positive = rng.random(10_000) < 0.15
    started = time.process_time()
    statistics.resampled_means(rng.random(10_000), 10_000, rng)
    statistics.resampled_average_precisions(positive, [rng.normal(size=10_000)], 10_000, rng)
    assert time.process_time() - started < 30  # 4 s on a quiet core; drawing and scoring in a loop takes minutes
