"""Intervals across seeds: closed forms, a plain loop, and coverage on simulated seeds and rows."""

import itertools

import numpy as np
import pytest
from scipy import stats

from fiat_jax.evaluation.crossed import cross, holm, resampled_means_by_seed, seed_draws
from fiat_jax.evaluation.statistics import interval, resampled_means

BASE, SPREAD = 0.7, 0.04


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def simulated(rng, num_seeds, n, sd_seeds, share=BASE):
    """Return right (1) or wrong (0) of [seeds, rows]: hard rows are hard under every seed, seeds differ by `sd_seeds`.

    The expectation over rows and seeds is `share`.
    """
    shares = np.clip(share + sd_seeds * rng.standard_normal(num_seeds), 0.01, 0.99)
    latent = 0.8 * rng.standard_normal(n) + 0.6 * rng.standard_normal((num_seeds, n))
    return (latent < stats.norm.ppf(shares)[:, None]).astype(float)


def crossed_interval(values_SN, resamples, rng):
    draws = seed_draws(len(values_SN), resamples, rng)
    return interval(cross(values_SN.mean(1), resampled_means_by_seed(values_SN, resamples, rng), draws).replicates)


@pytest.mark.parametrize("distinct", [2, None])  # None: no row repeats, so that rows are drawn instead of kinds of rows
def test_seeds_are_measured_on_the_same_redrawn_rows(distinct):
    values = _rng().random((3, 70)) if distinct is None else _rng().integers(0, distinct, (3, 70)).astype(float)
    values[2] = 1 - values[0]
    found = resampled_means_by_seed(values, 20_000, _rng(1))
    np.testing.assert_allclose(found[0] + found[2], 1)
    expected = np.cov(values, bias=True) / 70
    np.testing.assert_allclose(np.cov(found), expected, atol=0.05 * expected.max())


def test_with_one_seed_the_interval_is_that_of_rows():
    values = (_rng().random(200) < 0.6).astype(float)
    one = cross(values[None].mean(1), resampled_means_by_seed(values[None], 5_000, _rng(1)), np.ones((1, 5_000)))
    assert (one.se_seeds, one.sd_seeds) == (None, None)
    assert one.se_rows == pytest.approx(values.std() / 200**0.5, rel=0.03)
    assert interval(one.replicates) == pytest.approx(interval(resampled_means(values, 5_000, _rng(2))), abs=0.006)


def test_seeds_that_answer_alike_add_nothing():
    values = np.tile((_rng().random(200) < 0.6).astype(float), (4, 1))
    found = cross(values.mean(1), resampled_means_by_seed(values, 5_000, _rng(1)), seed_draws(4, 5_000, _rng(2)))
    assert (found.se_seeds, found.sd_seeds) == (0.0, 0.0)
    assert found.replicates.std() == pytest.approx(found.se_rows)


def test_the_spread_of_seeds_is_told_apart_from_that_of_rows():
    values = simulated(_rng(3), 400, 2_000, SPREAD)
    found = cross(values.mean(1), resampled_means_by_seed(values, 300, _rng(1)), seed_draws(400, 300, _rng(2)))
    assert found.sd_seeds == pytest.approx(SPREAD, rel=0.15)
    assert found.se_seeds == pytest.approx(SPREAD / 400**0.5, rel=0.15)
    shared = values.mean(0).var() / 2_000  # rows that are hard for all seeds
    assert found.se_rows == pytest.approx(shared**0.5, rel=0.15)


def test_seeds_that_differ_by_no_more_than_the_noise_of_rows_are_given_no_variance_of_their_own():
    rng, kept = _rng(4), []
    for _ in range(200):
        values = simulated(rng, 5, 300, 0.0)
        draws = seed_draws(5, 300, rng)
        kept.append(cross(values.mean(1), resampled_means_by_seed(values, 300, rng), draws).se_seeds)
    assert np.mean(np.array(kept) ** 2) ** 0.5 < 0.008  # their scores' own noise is 0.02 and more


@pytest.mark.parametrize(("num_seeds", "n", "sd_seeds"), [(3, 300, 0.0), (3, 300, SPREAD), (5, 2_000, SPREAD)])
def test_the_interval_covers_the_truth_in_about_95_of_100_samples(num_seeds, n, sd_seeds):
    rng, covered = _rng(5), 0
    for _ in range(300):
        low, high = crossed_interval(simulated(rng, num_seeds, n, sd_seeds), 400, rng)
        covered += low <= BASE <= high
    assert 0.91 <= covered / 300 <= 0.99


def test_an_interval_of_rows_alone_misses_the_truth_where_seeds_differ():
    rng, covered = _rng(6), 0
    for _ in range(300):
        values = simulated(rng, 3, 2_000, SPREAD)
        low, high = interval(resampled_means(values.mean(0), 400, rng))
        covered += low <= BASE <= high
    assert covered / 300 < 0.7  # so the test above can fail


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("num_seeds", [2, 3, 5, 10])
@pytest.mark.parametrize(("n", "sd_seeds"), [(300, 0.0), (300, 0.01), (300, 0.03), (4_000, 0.02)])
def test_coverage_over_many_samples(num_seeds, n, sd_seeds):
    rng, covered, plain = _rng(7), 0, 0
    for _ in range(1_500):
        values = simulated(rng, num_seeds, n, sd_seeds)
        by_seed = resampled_means_by_seed(values, 600, rng)
        draws = seed_draws(num_seeds, 600, rng)
        low, high = interval(cross(values.mean(1), by_seed, draws).replicates)
        covered += low <= BASE <= high
        low, high = interval((draws * by_seed).sum(0))
        plain += low <= BASE <= high
    print(f"{num_seeds} seeds, {n} rows, sd {sd_seeds}: {covered / 1500:.3f}, redrawn as they are {plain / 1500:.3f}")
    assert {2: 0.87, 3: 0.90}.get(num_seeds, 0.92) <= covered / 1_500 <= 0.98


def test_holm_is_the_closure_of_bonferroni():
    """A hypothesis is rejected where every set of hypotheses with it is, each by its smallest p times its size."""
    for seed in range(20):
        ps = _rng(seed).random(5) ** 3
        for i, adjusted in enumerate(holm(ps)):
            sets = (s for size in range(1, 6) for s in itertools.combinations(range(5), size) if i in s)
            assert adjusted == pytest.approx(min(1.0, max(len(s) * min(ps[j] for j in s) for s in sets)))


def test_holm_of_one_or_none_changes_nothing():
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
