"""Calibration against scikit-learn, and cases whose error is known."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from fiat_jax.evaluation.calibration import calibration, confidences
from fiat_jax.evaluation.predictions import Prediction


def test_bins_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    sure = rng.random(500)
    right = (rng.random(500) < sure**2).astype(float)
    found = calibration(sure, right, bins=10)
    shares, means = calibration_curve(right, sure, n_bins=10)
    assert [one.right for one in found.bins] == pytest.approx(shares.tolist())
    assert [one.confidence for one in found.bins] == pytest.approx(means.tolist())
    expected = sum(one.n * abs(r - m) for one, r, m in zip(found.bins, shares, means, strict=True)) / 500
    assert found.error == pytest.approx(expected)


def test_one_who_is_always_sure_errs_by_the_share_that_is_wrong():
    found = calibration(np.ones(10), np.array([1.0] * 7 + [0.0] * 3))
    assert found.error == pytest.approx(0.3)
    assert [(one.n, one.low < 1 == one.high) for one in found.bins] == [(10, True)]


def test_a_calibrated_model_errs_less_the_more_rows_there_are():
    rng, errors = np.random.default_rng(1), []
    for n in (200, 20_000):
        sure = rng.random(n)
        errors.append(calibration(sure, rng.random(n) < sure).error)
    assert errors[1] < 0.015 < errors[0]


def test_confidence_is_the_share_of_the_prediction_among_its_candidates():
    scores = {"a": -1000.0 + np.log(3.0), "b": -1000.0}
    one = Prediction("1", "en", "a", "a", scores)
    other = Prediction("2", "en", "a", "b", scores)
    assert confidences([one, other]) == pytest.approx([0.75, 0.25])


def test_generated_text_has_no_confidence():
    assert confidences([Prediction("1", "en", "a", "a", None, "a")]) is None
