"""Predictions of a model that comes in as callables: candidates ranked by likelihood, or generated texts."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from fiat_jax.data.batches import ScoringBatches
from fiat_jax.data.examples import Examples
from fiat_jax.data.layout import Batch
from fiat_jax.errors import UserError
from fiat_jax.evaluation.extract import find_extractor
from fiat_jax.evaluation.predictions import Prediction
from fiat_jax.evaluation.scores import with_values
from fiat_jax.tasks.task import Row, Task

# log P of each target of a batch, float32 [rows, M]; a device array that is still being computed is welcome
ScoreFn = Callable[[Batch], np.ndarray]
Progress = Callable[[int, int], None]  # how much is done, of how much


def _silent(done: int, total: int) -> None:
    pass


def rank_classification(
    score_fn: ScoreFn,
    examples: Examples,
    candidates: Sequence[Sequence[np.ndarray]],
    batches: ScoringBatches,
    *,
    length_normalise: bool = False,
    progress: Progress = _silent,
) -> list[np.ndarray]:
    """Return each example's log-likelihood of each of its candidates (float64), all of which `batches` hold.

    With `length_normalise` it is the mean over a candidate's tokens instead of the sum. Scores that are not finite are
    an error.
    """
    computed = (score_fn(batch) for batch in batches)
    scores = batches.gather(_reported(_one_ahead(computed), len(batches), progress))
    for row_id, row_scores in zip(examples.row_ids, scores, strict=True):
        if not np.isfinite(row_scores).all():
            raise UserError(
                f"row {row_id!r}: the model's log-likelihoods {row_scores.tolist()} are not all finite; "
                "its weights are damaged or its training diverged (lower the learning rate)"
            )
    if not length_normalise:
        return scores
    return [total / [len(ids) for ids in answers] for total, answers in zip(scores, candidates, strict=True)]


def label_predictions(task: Task, rows: Sequence[Row], scores: Sequence[np.ndarray]) -> list[Prediction]:
    """Return each row's best candidate with all their scores, which are in the order of `task.candidates(row)`.

    Of equal scores the candidate named first wins.
    """
    found = []
    for row, row_scores in zip(rows, scores, strict=True):
        by_label = dict(zip(task.candidates(row), row_scores.tolist(), strict=True))
        found.append(_prediction(task, row, max(by_label, key=lambda label: by_label[label]), scores=by_label))
    return with_values(task, found)


def answer_predictions(task: Task, rows: Sequence[Row], answers: Sequence[str | None]) -> list[Prediction]:
    """Return answers that need no extraction as predictions, say the large model's own."""
    return with_values(task, [_prediction(task, row, answer) for row, answer in zip(rows, answers, strict=True)])


def text_predictions(
    task: Task,
    rows: Sequence[Row],
    completions: Sequence[str],
    *,
    extractor: str | None = None,
    verbalise: Callable[[str], str] = str,
    answer_in: Callable[[str], str] = str,
) -> list[Prediction]:
    """Return the answer found in each completion, by the extractor named or the one of the task's kind.

    `verbalise` gives the words that the model says for a label of the task, `answer_in` the part of a completion that
    is read, where its reasoning stands before it.
    """
    find = find_extractor(extractor or task.kind)
    found = []
    for row, completion in zip(rows, completions, strict=True):
        labels = {verbalise(label): label for label in task.candidates(row)}
        found.append(_prediction(task, row, find(answer_in(completion), labels), completion=completion))
    return with_values(task, found)


def _prediction(
    task: Task,
    row: Row,
    answer: str | None,
    *,
    scores: Mapping[str, float] | None = None,
    completion: str | None = None,
) -> Prediction:
    return Prediction(
        row[task.id_field], task.language(row), row.get(task.answer_field), answer, scores=scores, completion=completion
    )


def _reported(results: Iterable[np.ndarray], total: int, progress: Progress) -> Iterator[np.ndarray]:
    for done, result in enumerate(results, start=1):
        yield result
        progress(done, total)


def _one_ahead(results: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield every result one late: the device computes the next batch while the host reads this one."""
    waiting = next(results)
    for result in results:
        yield np.asarray(waiting)
        waiting = result
    yield np.asarray(waiting)
