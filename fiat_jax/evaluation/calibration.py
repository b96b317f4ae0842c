"""Whether a model is right as often as it is sure: expected calibration error, and a reliability plot's bins.

Guo et al., On Calibration of Modern Neural Networks, 2017.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fiat_jax.evaluation.predictions import Prediction

BINS = 15  # of equal width, as Guo et al. have them


@dataclass(frozen=True)
class Bin:
    """Rows whose confidence is above `low` and at most `high`; their mean confidence, and the share that is right."""

    low: float
    high: float
    n: int
    confidence: float
    right: float


@dataclass(frozen=True)
class Calibration:
    """The error in 0..1: the mean distance of confidence and share right over bins, by their rows; empty bins left out.

    It is above 0 for a calibrated model too, by chance, the more the fewer rows there are.
    """

    error: float
    bins: tuple[Bin, ...]


def confidences(predictions: Sequence[Prediction]) -> np.ndarray | None:
    """Return the probability among its candidates of each row's prediction, [n]; None where text was generated."""
    if not predictions or any(not one.scores or one.prediction not in one.scores for one in predictions):
        return None
    found = np.empty(len(predictions))
    for place, one in enumerate(predictions):
        assert one.scores is not None
        scores = np.fromiter(one.scores.values(), np.float64, len(one.scores))
        best = scores.max()
        found[place] = np.exp(one.scores[str(one.prediction)] - best) / np.exp(scores - best).sum()
    return found


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Calibration:
    """Return the expected calibration error of [n] confidences in 0..1 and of [n] rows right (1) or wrong (0)."""
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights=column, minlength=bins) for column in (confidence, right)]
    error = float(np.abs(sums[0] - sums[1]).sum() / len(confidence))
    found = tuple(
        Bin(float(edges[i]), float(edges[i + 1]), int(counts[i]), *(float(s[i] / counts[i]) for s in sums))
        for i in np.flatnonzero(counts)
    )
    return Calibration(error, found)
