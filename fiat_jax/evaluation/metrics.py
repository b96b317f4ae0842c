"""What a prediction is worth: a value in 0..1 for each row where the metric is a mean over rows, else one number."""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.prompts.extract import last_number

Texts = Sequence[str | None]  # None: nothing could be extracted, which is always wrong

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def accuracy(gold: Sequence[str], predictions: Texts) -> np.ndarray:
    """Return 1.0 for every row whose prediction is the very string of its gold answer, else 0.0; [n] float64."""
    return _per_row(lambda answer, prediction: answer == prediction, gold, predictions)


def exact_match(gold: Sequence[str], predictions: Texts) -> np.ndarray:
    """Return 1.0 for every row whose prediction equals its gold answer after `normalise`; [n] float64."""
    return _per_row(lambda answer, prediction: normalise(answer) == normalise(prediction), gold, predictions)


def xtreme_up_f1(gold: Sequence[str], predictions: Texts) -> np.ndarray:
    """Return every row's F1 of the bags of words after `normalise`; [n] float64 in 0..1.

    As evaluation/qa_utils.py of XTREME-UP (arXiv 2305.11938): two empty answers share no word and score 0.
    """
    return _per_row(_word_f1, gold, predictions)


def last_number_match(gold: Sequence[str], predictions: Texts) -> np.ndarray:
    """Return 1.0 for every row whose prediction ends in the number that its gold answer ends in; [n] float64.

    Numbers are compared by value, so "7.0" is 7 and "1,000" is 1000. A gold answer without a number is an error.
    """
    numbers = [last_number(answer) for answer in gold]
    for index, number in enumerate(numbers):
        if number is None:
            raise UserError(
                f"last_number_match: the gold answer {gold[index]!r} holds no number; use exact_match for such answers"
            )
    found = [None if text is None else last_number(text) for text in predictions]
    return np.array([a == b for a, b in zip(numbers, found, strict=True)], np.float64)


def average_precision(positive: Sequence[bool] | np.ndarray, scores: Sequence[float] | np.ndarray) -> float:
    """Return the area under the precision-recall curve (0..1) of ranking rows by score; ties share one threshold.

    Chance level is the prevalence, the mean of `positive`; report it beside.
    """
    if not np.any(positive):
        raise UserError("average_precision needs at least one row of the positive label")
    from sklearn.metrics import average_precision_score  # 1.5 s that verbs without rankings need not pay

    return float(average_precision_score(np.asarray(positive), np.asarray(scores)))


def positive_score(scores: Mapping[str, float], positive_label: str) -> float:
    """Return the log-odds of one label among the candidates' log-likelihoods.

    It ranks rows as P(label) does, without P(label)'s ties where it rounds to 1.
    """
    others = [score for label, score in scores.items() if label != positive_label]
    if positive_label not in scores or not others:
        raise UserError(
            f"average_precision ranks by the label {positive_label!r} against others; the scores are of {list(scores)}"
        )
    return float(scores[positive_label] - np.logaddexp.reduce(others))


def normalise(text: str) -> str:
    """Lower-case, delete ASCII punctuation, drop a/an/the, and join the words by single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _word_f1(answer: str, prediction: str) -> float:
    gold_words, words = normalise(answer).split(), normalise(prediction).split()
    shared = sum((Counter(gold_words) & Counter(words)).values())
    return 2 * shared / (len(gold_words) + len(words)) if shared else 0.0


def _per_row(score: Callable[[str, str], float], gold: Sequence[str], predictions: Texts) -> np.ndarray:
    pairs = zip(gold, predictions, strict=True)
    return np.array([0.0 if text is None else score(answer, text) for answer, text in pairs], np.float64)


@dataclass(frozen=True)
class Metric:
    """A metric by name: `per_row` where it is a mean over rows, None where it ranks rows by their label scores.

    `binary` says that a row is right or wrong and nothing between, as McNemar's test of two systems needs it.
    """

    name: str
    per_row: Callable[[Sequence[str], Texts], np.ndarray] | None
    binary: bool


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", accuracy, binary=True),
        Metric("exact_match", exact_match, binary=True),
        Metric("xtreme_up_f1", xtreme_up_f1, binary=False),
        Metric("last_number_match", last_number_match, binary=True),
        Metric("average_precision", None, binary=False),
    )
}


def find_metrics(names: Iterable[str]) -> list[Metric]:
    """Return the metrics of these names, in order; an unknown name is an error that lists the known ones."""
    found = []
    for name in names:
        if name not in METRICS:
            raise UserError(
                f"metric {name!r} is unknown; metrics are {', '.join(METRICS)}.{did_you_mean(name, METRICS)}"
            )
        found.append(METRICS[name])
    return found
