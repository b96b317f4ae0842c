"""Rows of results.json: a task's metrics per language and as the mean over languages, and two systems compared."""

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fiat_jax.errors import UserError
from fiat_jax.evaluation import statistics
from fiat_jax.evaluation.metrics import Metric, average_precision, find_metrics, positive_score
from fiat_jax.evaluation.predictions import Prediction
from fiat_jax.tasks.task import Row, Task

ALL = "all"  # the language of a mean over languages
MCNEMAR = "mcnemar_exact"
PAIRED_BOOTSTRAP = "paired_bootstrap"

T = TypeVar("T")


def check_metrics(task: Task, rows: Sequence[Row]) -> None:
    """Raise UserError where a row has no answer, or a metric is unknown or undefined on these rows; call it first."""
    for row in rows:
        if row.get(task.answer_field) is None:
            raise UserError(
                f"task {task.name}: row {row[task.id_field]!r} has no answer in field {task.answer_field!r}; "
                "scores need the right answer of every row"
            )
    for metric in find_metrics(task.metrics):
        if metric.per_row is not None:
            continue
        if task.positive_label is None:
            raise UserError(f"task {task.name}: metric {metric.name} needs positive_label, the label to rank by")
        answers = [row[task.answer_field] for row in rows]
        for language, group in by_language([task.language(row) for row in rows], answers).items():
            if task.positive_label not in group:
                raise UserError(
                    f"task {task.name}: {metric.name} is undefined for language {language!r}, none of whose "
                    f"{len(group)} rows is labelled {task.positive_label!r}; add such rows or drop the metric"
                )


def with_values(task: Task, predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return the predictions with each row's value of every metric of the task that is a mean over rows.

    Rows that came without an answer have none.
    """
    per_row = {metric.name: metric.per_row for metric in find_metrics(task.metrics) if metric.per_row is not None}

    def values(gold: str, prediction: str | None) -> dict[str, float]:
        return {name: float(score([gold], [prediction])[0]) for name, score in per_row.items()}

    return [
        one if one.gold is None else dataclasses.replace(one, values=values(one.gold, one.prediction))
        for one in predictions
    ]


def score_predictions(
    task: Task,
    rows: Sequence[Row],
    predictions: Sequence[Prediction],
    *,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> list[dict[str, object]]:
    """Return {metric, language, value, ci95: [low, high], n} for each metric and language, and for language "all".

    Values are per cent; "all" is the mean of the languages' values, n its number of rows. Average precision is followed
    by its chance level, the prevalence. Deterministic in (predictions, resamples, seed). Predictions that lack a row,
    or were made for other rows, are an error.
    """
    results = []
    for metric, measured in _measure_all(task, rows, [predictions], resamples, seed):
        results += _result_rows(metric.name, measured)
        if metric.per_row is None:
            results += _prevalence_rows(task, rows, resamples, seed)
    return results


def compare(
    task: Task,
    rows: Sequence[Row],
    predictions_a: Sequence[Prediction],
    predictions_b: Sequence[Prediction],
    *,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> list[dict[str, object]]:
    """Return {metric, language, difference, ci95, p, test, n} of a minus b on the same rows, per cent points.

    The interval is the paired bootstrap's. p is McNemar's exact test's where a row is right or wrong and one
    language is concerned, else the paired bootstrap's.
    """
    results = []
    for metric, measured in _measure_all(task, rows, [predictions_a, predictions_b], resamples, seed):
        results += _comparison_rows(metric.name, measured)
    return results


@dataclass(frozen=True)
class _Measured:
    """A value, or a difference of two, in 0..1, its bootstrap replicates, and McNemar's p where it applies."""

    value: float
    replicates: np.ndarray
    n: int
    mcnemar_p: float | None = None


def _measure_all(
    task: Task, rows: Sequence[Row], systems: list[Sequence[Prediction]], resamples: int, seed: int
) -> Iterator[tuple[Metric, dict[str, _Measured]]]:
    """Yield each metric with what it measures in each language, of one system or of the first minus the second."""
    check_metrics(task, rows)
    languages = [task.language(row) for row in rows]
    groups = by_language(languages, list(zip(*(aligned(task, rows, system) for system in systems), strict=True)))
    for metric in find_metrics(task.metrics):
        measured = {}
        for language, group in groups.items():
            rng = generator(seed, metric.name, language)
            measured[language] = _measure(metric, task, list(zip(*group, strict=True)), resamples, rng)
        yield metric, measured


def _measure(
    metric: Metric, task: Task, systems: Sequence[Sequence[Prediction]], resamples: int, rng: np.random.Generator
) -> _Measured:
    """Measure one system, or the first minus the second, on the rows of one language."""
    if metric.per_row is None:
        return _measure_ranking(task, systems, resamples, rng)
    gold = [str(one.gold) for one in systems[0]]
    columns = [metric.per_row(gold, [one.prediction for one in system]) for system in systems]
    column = columns[0] if len(columns) == 1 else columns[0] - columns[1]
    p = statistics.mcnemar_p(*columns) if metric.binary and len(columns) == 2 else None
    return _Measured(float(column.mean()), statistics.resampled_means(column, resamples, rng), len(column), p)


def _measure_ranking(
    task: Task, systems: Sequence[Sequence[Prediction]], resamples: int, rng: np.random.Generator
) -> _Measured:
    positive = np.array([one.gold == task.positive_label for one in systems[0]])
    scores = [np.array([ranked_by(task, one) for one in system]) for system in systems]
    values = [average_precision(positive, column) for column in scores]
    replicates = statistics.resampled_average_precisions(positive, scores, resamples, rng)
    if len(systems) == 1:
        return _Measured(values[0], replicates[0], len(positive))
    return _Measured(values[0] - values[1], replicates[0] - replicates[1], len(positive))


def _macro(measured: dict[str, _Measured]) -> _Measured:
    """Return the mean over languages; with one language it is that language's, its test included."""
    languages = list(measured.values())
    if len(languages) == 1:
        return languages[0]
    return _Measured(
        float(np.mean([one.value for one in languages])),
        np.mean([one.replicates for one in languages], axis=0),
        sum(one.n for one in languages),
    )


def _result_rows(metric: str, measured: dict[str, _Measured]) -> list[dict[str, object]]:
    return [
        {
            "metric": metric,
            "language": language,
            "value": 100 * one.value,
            "ci95": [100 * bound for bound in statistics.interval(one.replicates)],
            "n": one.n,
        }
        for language, one in [*measured.items(), (ALL, _macro(measured))]
    ]


def _comparison_rows(metric: str, measured: dict[str, _Measured]) -> list[dict[str, object]]:
    results = []
    for language, one in [*measured.items(), (ALL, _macro(measured))]:
        exact = one.mcnemar_p is not None
        results.append(
            {
                "metric": metric,
                "language": language,
                "difference": 100 * one.value,
                "ci95": [100 * bound for bound in statistics.interval(one.replicates)],
                "p": one.mcnemar_p if exact else statistics.bootstrap_p(one.replicates),
                "test": MCNEMAR if exact else PAIRED_BOOTSTRAP,
                "n": one.n,
            }
        )
    return results


def _prevalence_rows(task: Task, rows: Sequence[Row], resamples: int, seed: int) -> list[dict[str, object]]:
    measured = {}
    for language, group in by_language([task.language(row) for row in rows], rows).items():
        positive = np.array([row[task.answer_field] == task.positive_label for row in group], np.float64)
        replicates = statistics.resampled_means(positive, resamples, generator(seed, "prevalence", language))
        measured[language] = _Measured(float(positive.mean()), replicates, len(group))
    return _result_rows("prevalence", measured)


def ranked_by(task: Task, prediction: Prediction) -> float:
    if prediction.scores is None:
        raise UserError(
            f"task {task.name}: row {prediction.id!r} has no label scores, which average_precision ranks by; "
            "predict by ranking the labels instead of generating"
        )
    return positive_score(prediction.scores, str(task.positive_label))


def aligned(task: Task, rows: Sequence[Row], predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return the predictions in the order of the rows, each checked to be of its row."""
    by_id = {one.id: one for one in predictions}
    wanted = {row[task.id_field]: row for row in rows}
    if len(by_id) != len(predictions) or by_id.keys() != wanted.keys():
        missing, extra = wanted.keys() - by_id.keys(), by_id.keys() - wanted.keys()
        raise UserError(
            f"task {task.name}: {len(predictions)} predictions for {len(rows)} rows: {len(missing)} rows have none"
            f"{_some(missing)}, {len(extra)} predictions have no row{_some(extra)}; predict these rows again"
        )
    for name, row in wanted.items():
        one = by_id[name]
        if one.gold != row[task.answer_field] or one.language != task.language(row):
            raise UserError(
                f"task {task.name}: row {name!r} has answer {row[task.answer_field]!r} and language "
                f"{task.language(row)!r}, its prediction is for {one.gold!r} and {one.language!r}; predict again"
            )
    return [by_id[name] for name in wanted]


def _some(names: set[str]) -> str:
    return f" ({', '.join(sorted(names)[:3])}{', …' if len(names) > 3 else ''})" if names else ""


def by_language(languages: Sequence[str], items: Sequence[T]) -> dict[str, list[T]]:
    """Group items by language, languages sorted so that results do not depend on the order of rows."""
    groups: dict[str, list[T]] = {language: [] for language in sorted(set(languages))}
    for language, item in zip(languages, items, strict=True):
        groups[language].append(item)
    return groups


def generator(seed: int, metric: str, language: str) -> np.random.Generator:
    """Return a generator of its own for each metric and language, so that asking for fewer changes no figure."""
    return np.random.default_rng([seed, zlib.crc32(f"{metric}/{language}".encode())])
