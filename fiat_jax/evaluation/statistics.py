"""Intervals and tests: stratified percentile bootstrap, paired differences, McNemar's exact test.

All languages, and for average precision both classes, are strata: rows are redrawn within them, their numbers stay.
A replicate of a mean over languages is the mean of the languages' replicates, as languages are redrawn independently.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
_CHUNK_ELEMENTS = 1 << 19  # counts drawn at a time: a few MB, which stay in cache
_BLOCK = 64  # resamples of a ranking at a time: a row's counts fill a line of the cache


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
    # Positives first: one class is then a slice, and each system needs one order of the rows.
    class_order = np.argsort(~positive, kind="stable")
    num_positive = int(positive.sum())
    systems = [_ranking(positive[class_order], np.asarray(scores)[class_order]) for scores in scores_by_system]
    found = np.empty((len(systems), resamples))
    for start in range(0, resamples, _BLOCK):
        size = min(_BLOCK, resamples - start)
        classes = num_positive, len(positive) - num_positive
        counts_NR = np.concatenate([_counts_of_draws(n, size, rng) for n in classes])
        for place, ranking in enumerate(systems):
            found[place, start : start + size] = _weighted_average_precision(counts_NR, ranking)
    return found


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
    from scipy.stats import binomtest  # a second that finished work need not pay

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def drawn_counts(n: int, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield chunks [resamples in chunk, n] of how often each of n rows is drawn in n draws with replacement."""
    chunk = max(1, _CHUNK_ELEMENTS // max(1, n))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = rng.integers(0, max(n, 1), size=(size, n))
        drawn += np.arange(size)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)


def _counts_of_draws(n: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return the same as bytes, [n, resamples], a row's counts side by side; none is drawn 256 times in a lifetime."""
    drawn = rng.integers(0, max(n, 1), size=(n, resamples))
    drawn *= resamples
    drawn += np.arange(resamples)
    return np.bincount(drawn.ravel(), minlength=n * resamples).astype(np.uint8).reshape(n, resamples)


@dataclass(frozen=True)
class _Ranking:
    """Rows in the order of falling score; the rest of a ranking, after its last positive row, is left out.

    Precision is wanted where recall rises: at the end of each run of ties that has positives. A stretch goes from
    behind one such end to the next. `starts` are where stretches begin in `order`, `positive_starts` in `positives`,
    which are the positive rows of `order`.
    """

    order: np.ndarray
    starts: np.ndarray
    positives: np.ndarray
    positive_starts: np.ndarray


def _ranking(positive: np.ndarray, scores: np.ndarray) -> _Ranking:
    order = np.argsort(-scores, kind="stable")
    ranked = positive[order]
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    found = np.cumsum(ranked)[ends]  # positives up to the end of each run
    rises = np.diff(found, prepend=0) > 0
    ends, found = ends[rises], found[rises]
    return _Ranking(
        order[: ends[-1] + 1], np.append(0, ends[:-1] + 1), order[ranked], np.append(0, found[:-1]).astype(np.intp)
    )


def _weighted_average_precision(counts_NR: np.ndarray, ranking: _Ranking) -> np.ndarray:
    """Return [R] average precisions where row n counts `counts_NR[n, r]` times: Σ precision × rise in recall."""
    stretches_NR = np.add.reduceat(counts_NR[ranking.order], ranking.starts, axis=0, dtype=np.int32)
    rises_NR = counts_NR[ranking.positives]
    if len(ranking.positive_starts) < len(ranking.positives):  # some positive rows tie
        rises_NR = np.add.reduceat(rises_NR, ranking.positive_starts, axis=0, dtype=np.int32)
    seen_NR, found_NR = np.cumsum(stretches_NR, axis=0), np.cumsum(rises_NR, axis=0, dtype=np.int32)
    return np.einsum("nr,nr->r", found_NR / np.maximum(seen_NR, 1), rises_NR) / found_NR[-1]
