"""What a report works out of predictions: two systems on the same rows, and what reasoning changes."""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fiat_jax.evaluation.crossed import cross, resampled_means_by_seed, seed_draws
from fiat_jax.evaluation.metrics import find_metrics
from fiat_jax.evaluation.predictions import Prediction
from fiat_jax.evaluation.statistics import RESAMPLES, bootstrap_p, interval
from fiat_jax.experiments.report.read import Finished

RIGHT = 0.5  # a row's value from which on it counts as right, where there is something between right and wrong
WITH = ("fiat", "fiat-full")
WITHOUT = ("fiat-no-reasoning", "finetune-lora", "finetune")  # the first differs in the reasoning alone


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """Two systems of one size and θ_τ on the same rows: seed → cell of each, over the seeds that both have."""

    run: Finished
    size: int
    a: str
    b: str
    cells_a: Mapping[int, str]
    cells_b: Mapping[int, str]
    theta_tau: str | None

    def values(self, metric: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return language → [seeds, rows] of both, rows in one order."""
        return tuple(values_of(self.run, cells, metric) for cells in (self.cells_a, self.cells_b))  # pyright: ignore


def main_metric(run: Finished) -> str | None:
    """Return the first metric that is a mean over rows."""
    known = [name for name in run.metrics if name not in ("average_precision", "prevalence")]
    some = next(iter(run.cells))
    having = run.predictions(some)[0].values if known else {}
    return next((name for name in known if name in having), None)


def is_binary(metric: str) -> bool:
    """Return whether a row is right or wrong by this metric, and nothing between."""
    return find_metrics([metric])[0].binary


def reasoning_pairs(run: Finished) -> list[Pair]:
    """Return the system with reasoning and that without it, for every θ_τ and size."""
    found = (pairs_of(run, a, b) for a in WITH for b in WITHOUT)
    return next((pairs for pairs in found if pairs), [])


def pairs_of(run: Finished, a: str, b: str) -> list[Pair]:
    """Return the pairs of two paradigms, for every θ_τ and size where both were trained with a seed in common."""
    found = []
    for theta_tau in dict.fromkeys(cell["theta_tau"] for cell in run.cells.values() if cell["size"]):
        for size in run.sizes:
            ours, theirs = (run.seeds_of(name, size, theta_tau) for name in (a, b))
            both = sorted(ours.keys() & theirs.keys())
            if both:
                of_a, of_b = ({seed: side[seed] for seed in both} for side in (ours, theirs))
                found.append(Pair(run, size, a, b, of_a, of_b, theta_tau))
    return found


def largest(pairs: Sequence[Pair]) -> Pair:
    """Return the pair of the first θ_τ that was trained on the most rows."""
    return max((pair for pair in pairs if pair.theta_tau == pairs[0].theta_tau), key=lambda pair: pair.size)


def values_of(run: Finished, cells: Mapping[int, str], metric: str) -> dict[str, np.ndarray]:
    """Return language → [seeds, rows] of a metric that is a mean over rows, rows sorted by id."""
    by_seed = [sorted(run.predictions(cell), key=lambda one: one.id) for cell in cells.values()]
    languages = sorted({one.language for one in by_seed[0]})
    return {
        language: np.array([[one.values[metric] for one in seed if one.language == language] for seed in by_seed])
        for language in languages
    }


def difference(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return a minus b in points over language → [seeds, rows] of the same rows, the mean of languages."""
    by_language = [a[name] - b[name] for name in a]
    num_seeds = len(by_language[0])
    replicates = [
        resampled_means_by_seed(v, RESAMPLES, _generator(name)) for name, v in zip(a, by_language, strict=True)
    ]
    values = np.mean([one.mean(1) for one in by_language], axis=0)
    found = cross(values, np.mean(replicates, axis=0), seed_draws(num_seeds, RESAMPLES, _generator("seeds of these")))
    low, high = interval(found.replicates)
    return {
        "difference": 100 * found.value,
        "ci95": [100 * low, 100 * high],
        "p": bootstrap_p(found.replicates),
        "seeds": num_seeds,
        "n": sum(one.shape[1] for one in by_language),
    }


def same_rows(a: Sequence[Prediction], b: Sequence[Prediction]) -> bool:
    """Return whether two systems answered the same questions."""
    return {(one.id, one.language, one.gold) for one in a} == {(one.id, one.language, one.gold) for one in b}


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))
