"""Gains by language: found where they are, and not where chance alone makes them."""

import numpy as np
import pytest

from fiat_jax.errors import UserError
from fiat_jax.evaluation.gains import gains_by_language

LANGUAGES = [f"l{number}" for number in range(10)]


def drawn(rng, shares, rows):
    return {name: (rng.random(rows) < share).astype(float) for name, share in zip(LANGUAGES, shares, strict=True)}


def test_languages_that_score_low_and_gain_most_correlate_negatively():
    rng = np.random.default_rng(0)
    shares = np.linspace(0.1, 0.8, 10)
    found = gains_by_language(drawn(rng, shares, 400), drawn(rng, np.full(10, 0.9), 400))
    assert found.correlation < -0.9
    assert found.ci95[0] <= found.correlation <= found.ci95[1] < -0.5
    assert list(found.baselines) == LANGUAGES
    for name, share in zip(LANGUAGES, shares, strict=True):
        assert found.baselines[name] == pytest.approx(100 * share, abs=8)
        assert found.gains[name] == pytest.approx(100 * (0.9 - share), abs=12)


def test_the_same_gain_everywhere_is_no_correlation_though_the_same_rows_would_show_one():
    """Where languages differ by chance alone, scores and gains of the same rows go apart; those of halves do not."""
    correlations, naive = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        without, with_it = drawn(rng, np.full(10, 0.5), 40), drawn(rng, np.full(10, 0.7), 40)
        correlations.append(gains_by_language(without, with_it, halvings=100).correlation)
        scores = np.array([without[name].mean() for name in LANGUAGES])
        naive.append(
            np.corrcoef(scores, [with_it[name].mean() - s for name, s in zip(LANGUAGES, scores, strict=True)])[0, 1]
        )
    assert np.mean(naive) < -0.5
    assert abs(np.mean(correlations)) < 0.15


def test_one_seed_gives_one_result():
    rng = np.random.default_rng(1)
    without, with_it = drawn(rng, np.full(10, 0.3), 30), drawn(rng, np.full(10, 0.6), 30)
    assert gains_by_language(without, with_it, seed=3) == gains_by_language(without, with_it, seed=3)


def test_where_nothing_differs_there_is_no_correlation():
    same = {name: np.ones(10) for name in LANGUAGES}
    found = gains_by_language(same, same)
    assert (found.correlation, found.ci95) == (0.0, (0.0, 0.0))


@pytest.mark.parametrize("values", [{"a": np.ones(9), "b": np.ones(9)}, {name: np.ones(1) for name in LANGUAGES}])
def test_too_few_languages_or_rows_are_refused(values):
    with pytest.raises(UserError, match="three or more languages of two or more rows"):
        gains_by_language(values, values)
