"""Systems of several seeds: their scores and differences, by language and as means over languages.

A system is a way of training, measured once a seed on the same rows; `crossed` says what its intervals cover.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.evaluation import statistics
from fiat_jax.evaluation.crossed import Crossed, cross, holm, resampled_means_by_seed, seed_draws
from fiat_jax.evaluation.metrics import Metric, average_precision, find_metrics
from fiat_jax.evaluation.predictions import Prediction
from fiat_jax.evaluation.scores import ALL, MCNEMAR, aligned, by_language, check_metrics, generator, ranked_by
from fiat_jax.tasks.task import Row, Task

MICRO = "micro"  # the mean over rows
UNDERREPRESENTED = "underrepresented"  # the mean over the languages that are named so
CROSSED = "crossed_bootstrap"
MANY_ELEMENTS = 100_000_000  # rows × resamples of a ranking, beyond which there are fewer resamples
FEWEST = 2_000

# seed → predictions of the same rows; None is the seed of what is not trained, and the same to all seeds of others
Seeds = Mapping[int | None, Sequence[Prediction]]
Key = Any  # whatever names a system, and can be looked up by


@dataclass(frozen=True)
class Means:
    """Which means over languages there are: the languages that are under-represented, none by default."""

    underrepresented: tuple[str, ...] = ()

    def check(self, task: Task, rows: Sequence[Row]) -> None:
        """Raise UserError where a language has no rows."""
        known = sorted({task.language(row) for row in rows})
        for name in self.underrepresented:
            if name not in known:
                hint = did_you_mean(name, known)
                raise UserError(
                    f"Experiment.underrepresented names {name!r}; task {task.name} has {', '.join(known)}.{hint}"
                )

    def weights(self, metric: Metric, counts: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Return each mean's weights over the languages.

        Rankings of several languages are not put together, so average precision has no mean over rows.
        """
        names, total = list(counts), sum(counts.values())
        found = {ALL: np.full(len(names), 1 / len(names))}
        if metric.per_row is not None:
            found[MICRO] = np.array([counts[name] / total for name in names])
        if self.underrepresented:
            chosen = np.array([name in self.underrepresented for name in names], float)
            found[UNDERREPRESENTED] = chosen / chosen.sum()
        return found


class Measured:
    """Systems of the same rows, each of one seed or several, by a key.

    Deterministic in (predictions, resamples, seed), whichever other systems there are.
    """

    def __init__(
        self,
        task: Task,
        rows: Sequence[Row],
        systems: Mapping[Key, Seeds],
        means: Means = Means(),  # noqa: B008  frozen
        *,
        resamples: int = statistics.RESAMPLES,
        seed: int = 0,
    ):
        check_metrics(task, rows)
        means.check(task, rows)
        self._resamples, self._seed, self._means = resamples, seed, means
        self._seeds = {key: tuple(seeds) for key, seeds in systems.items()}
        groups = by_language([task.language(row) for row in rows], range(len(rows)))
        self._counts = {name: len(places) for name, places in groups.items()}
        ordered = {key: [aligned(task, rows, seeds[s]) for s in self._seeds[key]] for key, seeds in systems.items()}
        self._columns: dict[tuple[str, str], _Means | _Rankings] = {}
        self._metrics: dict[Key, list[Metric]] = {key: [] for key in systems}
        for metric in find_metrics(task.metrics):
            having = {key: found for key, found in ordered.items() if _has(metric, found)}
            for key in having:
                self._metrics[key].append(metric)
            draws = resamples if metric.per_row else min(resamples, max(FEWEST, MANY_ELEMENTS // len(rows)))
            for language, places in groups.items():
                of_language = {key: [[one[i] for i in places] for one in seeds] for key, seeds in having.items()}
                rng = self._generator(metric.name, language)
                kind = _Rankings if metric.per_row is None else _Means
                self._columns[metric.name, language] = kind(metric, task, of_language, draws, rng)

    def scores(self, key: Key) -> list[dict[str, Any]]:
        """Return {metric, language, value, ci95, se_rows, se_seeds, sd_seeds, n} of a system, per cent."""
        found = []
        for metric in self._metrics[key]:
            for name, one, n, _ in self._crossed(metric, lambda columns: columns.of(key), len(self._seeds[key])):
                low, high = statistics.interval(np.clip(one.replicates, 0, 1))
                found.append(
                    {"metric": metric.name, "language": name, "value": 100 * one.value}
                    | {"ci95": [100 * low, 100 * high], **_errors(one), "n": n}
                )
        return found

    def differences(self, a: Key, b: Key) -> list[dict[str, Any]]:
        """Return {metric, language, difference, ci95, se_rows, se_seeds, sd_seeds, p, p_holm, test, n} of a minus b.

        Seed by seed, over those that both have. `p_holm` is corrected for the number of languages, and None for their
        means.
        """
        pairs = self.pairs(a, b)
        found = []
        for metric in [one for one in self._metrics[a] if one in self._metrics[b]]:
            rows = []
            for name, one, n, columns in self._crossed(metric, lambda c: c.difference(a, b, pairs), len(pairs)):
                p, test = statistics.bootstrap_p(one.replicates), CROSSED
                if isinstance(columns, _Means) and metric.binary and len(pairs) == 1:
                    p, test = columns.mcnemar(a, b, pairs[0]), MCNEMAR
                low, high = statistics.interval(one.replicates)
                rows.append(
                    {"metric": metric.name, "language": name, "difference": 100 * one.value}
                    | {"ci95": [100 * low, 100 * high], **_errors(one), "p": p, "p_holm": None, "test": test, "n": n}
                )
            of_languages = [row for row in rows if row["language"] in self._counts]
            for row, corrected in zip(of_languages, holm([row["p"] for row in of_languages]), strict=True):
                row["p_holm"] = corrected
            found += rows
        return found

    def pairs(self, a: Key, b: Key) -> list[tuple[int, int]]:
        """Return the places of the seeds that are compared; none where the two share none."""
        ours, theirs = self._seeds[a], self._seeds[b]
        every = enumerate(ours), enumerate(theirs)
        return [(i, j) for (i, s), (j, z) in itertools.product(*every) if s == z or s is None or z is None]

    def _crossed(self, metric: Metric, read: Callable[[Any], tuple[np.ndarray, np.ndarray]], num_seeds: int):
        """Yield (language or mean, what is measured, its rows, its columns) over languages, then over their means."""
        draws = seed_draws(num_seeds, self._resamples, self._generator(metric.name, "of seeds"))
        of_languages = {name: read(self._columns[metric.name, name]) for name in self._counts}
        for name, (values, replicates) in of_languages.items():
            crossed = cross(values, replicates, draws[:, : replicates.shape[1]])
            yield name, crossed, self._counts[name], self._columns[metric.name, name]
        resamples = min(replicates.shape[1] for _, replicates in of_languages.values())
        values_LS = np.stack([values for values, _ in of_languages.values()])
        only = next(iter(self._columns[metric.name, name] for name in self._counts)) if len(self._counts) == 1 else None
        for name, weights in self._means.weights(metric, self._counts).items():
            by_seed = sum(w * r[:, :resamples] for w, (_, r) in zip(weights, of_languages.values(), strict=True) if w)
            n = sum(count for count, weight in zip(self._counts.values(), weights, strict=True) if weight)
            yield name, cross(weights @ values_LS, np.asarray(by_seed), draws[:, :resamples]), n, only

    def _generator(self, metric: str, language: str) -> np.random.Generator:
        return generator(self._seed, metric, language)


class _Means:
    """A metric that is a mean over rows, in one language."""

    def __init__(
        self, metric: Metric, task: Task, systems: Mapping[Key, list[list[Prediction]]], resamples: int,
        rng: np.random.Generator,
    ):  # fmt: skip
        self._values = {
            key: np.array([[one.values[metric.name] for one in seed] for seed in seeds])
            for key, seeds in systems.items()
        }
        self._resamples, self._state = resamples, rng.bit_generator.state

    def of(self, key: Key) -> tuple[np.ndarray, np.ndarray]:
        return self._resampled(self._values[key])

    def difference(self, a: Key, b: Key, pairs: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
        return self._resampled(self._values[a][ours] - self._values[b][theirs])

    def mcnemar(self, a: Key, b: Key, pair: tuple[int, int]) -> float:
        return statistics.mcnemar_p(self._values[a][pair[0]], self._values[b][pair[1]])

    def _resampled(self, values_SN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng()
        rng.bit_generator.state = self._state  # the same draws whatever was asked before
        return values_SN.mean(1), resampled_means_by_seed(values_SN, self._resamples, rng)


class _Rankings:
    """Average precision in one language: all systems and seeds on the same redrawn rows."""

    def __init__(
        self, metric: Metric, task: Task, systems: Mapping[Key, list[list[Prediction]]], resamples: int,
        rng: np.random.Generator,
    ):  # fmt: skip
        keys = [(key, place) for key, seeds in systems.items() for place in range(len(seeds))]
        if not keys:
            return
        first = systems[keys[0][0]][0]
        positive = np.array([one.gold == task.positive_label for one in first])
        columns = [np.array([ranked_by(task, one) for one in systems[key][place]]) for key, place in keys]
        replicates = statistics.resampled_average_precisions(positive, columns, resamples, rng)
        values = np.array([average_precision(positive, column) for column in columns])
        places = {key: [keys.index((key, i)) for i in range(len(seeds))] for key, seeds in systems.items()}
        self._of = {key: (values[of], replicates[of]) for key, of in places.items()}

    def of(self, key: Key) -> tuple[np.ndarray, np.ndarray]:
        return self._of[key]

    def difference(self, a: Key, b: Key, pairs: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
        (values_a, of_a), (values_b, of_b) = self._of[a], self._of[b]
        return values_a[ours] - values_b[theirs], of_a[ours] - of_b[theirs]


def _has(metric: Metric, seeds: Sequence[Sequence[Prediction]]) -> bool:
    """Return whether a system can be measured so: a ranking needs label scores."""
    return metric.per_row is not None or all(one.scores is not None for seed in seeds for one in seed)


def _errors(one: Crossed) -> dict[str, float | None]:
    parts = {"se_rows": one.se_rows, "se_seeds": one.se_seeds, "sd_seeds": one.sd_seeds}
    return {name: None if part is None else 100 * part for name, part in parts.items()}
