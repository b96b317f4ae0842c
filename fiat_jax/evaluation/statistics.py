"""Intervals and tests: stratified percentile bootstrap, paired differences, McNemar's exact test.

All languages, and for average precision both classes, are strata: rows are redrawn within them, their numbers stay.
A replicate of a mean over languages is the mean of the languages' replicates, as languages are redrawn independently.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 10_000
_CHUNK_ELEMENTS = 1 << 19  # counts drawn at a time: a few MB, which stay in cache


def resampled_means(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return the means of bootstrap resamples of [n] values; [resamples] float64.

    How often each distinct value is drawn in n draws is multinomial, so the counts are drawn instead of the rows: the
    same distribution, and a right-or-wrong metric costs one binomial draw a resample.
    """
    distinct, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    n = int(counts.sum())
    if len(distinct) * 8 > n:  # values that hardly repeat: drawing rows is faster than drawing that many counts
        return np.concatenate([drawn @ values / n for drawn in drawn_counts(n, resamples, rng)])
    return rng.multinomial(n, counts / n, size=resamples) @ distinct / n


def resampled_average_precisions(
    positive: np.ndarray, scores_by_system: Sequence[np.ndarray], resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the average precision of every system on the same resamples, redrawn within class.

    `positive`: [n] bool, both classes present or positives alone; every system's scores: [n]. Returns [systems,
    resamples] float64 in 0..1, where column r of every system is from the same rows.
    """
    # Positives first: one class is then a slice, and each system needs one permutation of the columns.
    class_order = np.argsort(~positive, kind="stable")
    num_positive = int(positive.sum())
    systems = [_ranking(positive[class_order], np.asarray(scores)[class_order]) for scores in scores_by_system]
    chunks = []
    for positive_counts, negative_counts in zip(
        drawn_counts(num_positive, resamples, rng, row_length=len(positive)),
        drawn_counts(len(positive) - num_positive, resamples, rng, row_length=len(positive)),
        strict=True,
    ):
        counts = np.concatenate([positive_counts, negative_counts], axis=1)
        chunks.append([_weighted_average_precision(counts, *system) for system in systems])
    return np.concatenate(chunks, axis=1)


def interval(replicates: np.ndarray) -> tuple[float, float]:
    """Return the 95% percentile interval of bootstrap replicates."""
    low, high = np.quantile(replicates, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_p(differences: np.ndarray) -> float:
    """Return the two-sided p of "no difference" from bootstrap replicates of a difference.

    Twice the smaller tail beyond zero, the observed sample counted as one replicate more, so it is never 0
    (Davison and Hinkley 1997, section 4.4).
    """
    rounded = np.round(differences, 12)  # a mean over languages leaves 1e-17 where the difference is zero
    tail = min(np.count_nonzero(rounded <= 0), np.count_nonzero(rounded >= 0))
    return min(1.0, 2 * (tail + 1) / (len(rounded) + 1))


def mcnemar_p(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """Return the exact two-sided p of McNemar's test that two systems are right equally often on the same rows.

    Only the rows on which they differ count: under the null each is a fair coin. Without any such row p is 1.
    """
    only_a = np.count_nonzero((right_a > 0) & (right_b == 0))
    only_b = np.count_nonzero((right_a == 0) & (right_b > 0))
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def drawn_counts(
    n: int, resamples: int, rng: np.random.Generator, row_length: int | None = None
) -> Iterator[np.ndarray]:
    """Yield chunks [resamples in chunk, n] of how often each of n rows is drawn in n draws with replacement.

    `row_length` sets the chunk's size where several are joined, so that their chunks have equal numbers of resamples.
    """
    chunk = max(1, _CHUNK_ELEMENTS // max(1, row_length or n))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = rng.integers(0, max(n, 1), size=(size, n))
        drawn += np.arange(size)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)


def _ranking(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the order of falling score, which of the ordered rows are positive, and where each run of ties ends."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    return order, positive[order], ends


def _weighted_average_precision(
    counts: np.ndarray, order: np.ndarray, positive: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """Return [resamples] average precisions where row i counts `counts[r, i]` times: Σ precision × rise in recall."""
    ranked = counts[:, order]
    seen = np.cumsum(ranked, axis=1)[:, ends]
    found = np.cumsum(ranked * positive, axis=1)[:, ends]
    rise = np.diff(found, axis=1, prepend=0)
    return (rise * found / np.maximum(seen, 1)).sum(axis=1) / found[:, -1]
