"""Intervals across training seeds: rows and seeds redrawn, crossed, and how much of the spread is of which.

A score varies with the rows it is measured on and with the seed of the training. Every seed is measured on the same
rows, so the two are crossed. With V the value of a row under a seed, rows have an effect, seeds have one, and the rest
is of the pair: the usual two-way layout of random effects.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fiat_jax.evaluation.statistics import drawn_counts

_LEVEL = 0.975  # of a two-sided interval of 95%


@dataclass(frozen=True)
class Crossed:
    """A mean over seeds in 0..1, its bootstrap replicates, and what they are made of.

    `se_rows` is the standard error that the choice of rows gives to the mean of these seeds, `se_seeds` what the choice
    of seeds adds, and `sd_seeds` the standard deviation of single seeds' scores as they are seen, on these rows. The
    last two are None with one seed, whose replicates are about rows alone.
    """

    value: float
    replicates: np.ndarray
    se_rows: float
    se_seeds: float | None
    sd_seeds: float | None


def resampled_means_by_seed(values_SN: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return the mean of every seed on the same bootstrap resamples of rows; [S, resamples] float64.

    Rows with the same values under all seeds are drawn together, as `resampled_means` does: five seeds that are right
    or wrong make 32 kinds of rows.
    """
    values_SN = np.asarray(values_SN, np.float64)
    n = values_SN.shape[1]
    kinds_SN, counts = np.unique(values_SN, axis=1, return_counts=True)
    if kinds_SN.shape[1] * 8 > n:  # values that hardly repeat: drawing rows is faster than drawing that many counts
        return np.concatenate([drawn @ values_SN.T / n for drawn in drawn_counts(n, resamples, rng)]).T
    return kinds_SN @ rng.multinomial(n, counts / n, size=resamples).T / n


def seed_draws(num_seeds: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return how much each seed weighs in each resample of the seeds; [S, resamples], columns sum to 1."""
    return rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=resamples).T / num_seeds


def cross(values_S: np.ndarray, by_seed_SR: np.ndarray, weights_SR: np.ndarray) -> Crossed:
    """Cross resamples of rows with resamples of seeds.

    A replicate is the mean of the seeds on redrawn rows, plus the effect of redrawn seeds. Redrawing S seeds as they
    are would have two faults. Their scores differ by the rows' noise too, which the first part has already: seeds'
    effects are shrunk to the variance they have beyond it, max(0, s² − e²), with e² the spread between seeds of what
    redrawn rows do to each. And few seeds are redrawn too near to their mean: a factor √(S/(S−1)), and all replicates
    are spread by Student's t over the normal quantile, at Satterthwaite's degrees of freedom. docs/evaluation.md has
    the coverage this gives.

    Args:
        values_S: the score of each seed.
        by_seed_SR: the scores of the seeds on the same resamples of rows.
        weights_SR: from `seed_draws`; the same for all that is to be compared or averaged.
    """
    values_S, value, num_seeds = np.asarray(values_S, np.float64), float(np.mean(values_S)), len(values_S)
    of_rows_R = by_seed_SR.mean(0)
    rows_variance = float(of_rows_R.var())
    if num_seeds == 1:
        return Crossed(value, of_rows_R, rows_variance**0.5, None, None)
    seen = float(values_S.var(ddof=1))
    apart_SR = (by_seed_SR - values_S[:, None]) - (of_rows_R - value)
    noise = float(apart_SR.var(1).sum() / (num_seeds - 1))
    seeds_variance = max(0.0, seen - noise) / num_seeds
    scale = (seeds_variance * num_seeds / seen * num_seeds / (num_seeds - 1)) ** 0.5 if seeds_variance else 0.0
    effect_R = scale * ((values_S - value) @ weights_SR)
    widen = _widening(rows_variance + seeds_variance, seen / num_seeds, num_seeds)
    replicates = value + widen * (of_rows_R - value + effect_R)
    return Crossed(value, replicates, rows_variance**0.5, seeds_variance**0.5, seen**0.5)


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number: below α where any true null is rejected in α of cases at most.

    Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    order = np.argsort(ps)
    stepped = np.asarray(ps, np.float64)[order] * np.arange(len(ps), 0, -1)
    adjusted = np.empty(len(ps))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return adjusted.tolist()


def _widening(variance: float, of_seeds: float, num_seeds: int) -> float:
    """Return Student's t over the normal quantile, where `of_seeds` of the variance is known from S − 1 degrees."""
    if not variance or not of_seeds:
        return 1.0
    degrees = max(num_seeds - 1.0, variance**2 / (of_seeds**2 / (num_seeds - 1)))
    from scipy.stats import norm, t  # a second that finished work need not pay

    return float(t.ppf(_LEVEL, degrees) / norm.ppf(_LEVEL))
