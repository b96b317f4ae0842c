"""Metrics against hand-worked values and independent definitions."""

import math
import re
import string

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from fiat_jax.errors import UserError
from fiat_jax.evaluation import metrics


def test_accuracy_is_equality_of_strings():
    assert metrics.accuracy(["yes", "no", "no", "no"], ["yes", "yes", "No", None]).tolist() == [1, 0, 0, 0]


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="zip"):
        metrics.accuracy(["yes", "no"], ["yes"])


def test_exact_match_ignores_case_punctuation_articles_and_spaces():
    gold = ["The  Eiffel Tower", "U.S.A.", "theatre", "x"]
    assert metrics.exact_match(gold, ["eiffel tower!", "usa", "atre", ""]).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("gold", "prediction", "expected"),
    [
        ("the cat sat", "a cat", 2 / 3),  # 1 of 1 word right, 1 of 2 found
        ("one two two", "two two two", 2 / 3),  # a word counts as often as both have it
        ("Tower, of London", "london tower", 0.8),
        ("চাঁদ", "চাঁদ।", 0.0),  # only ASCII punctuation is deleted
        ("paris", "rome", 0.0),
        ("", "", 0.0),  # SQuAD v2 would score 1
        ("The", "a", 0.0),
    ],
)
def test_f1_follows_the_rules_of_xtreme_up(gold, prediction, expected):
    assert metrics.xtreme_up_f1([gold], [prediction])[0] == pytest.approx(expected)


def test_f1_agrees_with_precision_and_recall_written_out():
    rng = np.random.default_rng(0)
    words = ["A", "the", "cat,", "Dog", "dog!", "an", "x-y", "(z)"]
    texts = [" ".join(rng.choice(words, size=rng.integers(0, 7))) for _ in range(200)]
    gold, predictions = texts[:100], texts[100:]
    expected = [_f1_by_precision_and_recall(*pair) for pair in zip(gold, predictions, strict=True)]
    np.testing.assert_allclose(metrics.xtreme_up_f1(gold, predictions), expected)
    assert 0 < np.mean(expected) < 1


def _f1_by_precision_and_recall(gold: str, prediction: str) -> float:
    def words(text):
        kept = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()

    expected, found = words(gold), words(prediction)
    left = list(expected)
    same = 0
    for word in found:
        if word in left:
            left.remove(word)
            same += 1
    if same == 0:
        return 0.0
    precision, recall = same / len(found), same / len(expected)
    return 2 * precision * recall / (precision + recall)


def test_numbers_match_by_value():
    gold = ["20", "20.0", "1000", "12", "-7", "3", "7", "7", "7"]
    predictions = ["so 20.", "20", "$1,000", "উত্তর হল ১২", "it is -7", "10-3", "70", "", None]
    assert metrics.last_number_match(gold, predictions).tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 0]


def test_a_gold_answer_without_a_number_is_an_error():
    with pytest.raises(UserError, match="'twenty' holds no number"):
        metrics.last_number_match(["20", "twenty"], ["20", "20"])


@pytest.mark.parametrize(
    ("positive", "scores", "expected"),
    [
        ([True, False, True, False], [4, 3, 2, 1], (1 + 2 / 3) / 2),
        ([True, True, False], [3, 2, 1], 1.0),
        ([True, False, False, False], [1, 1, 1, 1], 0.25),  # one threshold for all ties: the prevalence
    ],
)
def test_average_precision_of_small_rankings(positive, scores, expected):
    assert metrics.average_precision(positive, scores) == pytest.approx(expected)


def test_average_precision_of_random_scores_is_about_the_prevalence():
    rng = np.random.default_rng(0)
    positive = rng.random(20_000) < 0.15
    assert metrics.average_precision(positive, rng.normal(size=20_000)) == pytest.approx(0.15, abs=0.01)


def test_average_precision_without_a_positive_row_is_an_error():
    with pytest.raises(UserError, match="at least one row of the positive label"):
        metrics.average_precision([False, False], [1, 2])


def test_log_odds_rank_rows_as_the_probability_does():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 3))
    rows = [dict(zip(("yes", "no", "maybe"), row, strict=True)) for row in logits]
    positive = rng.random(500) < 0.3
    probability = np.exp(logits[:, 0]) / np.exp(logits).sum(axis=1)
    expected = average_precision_score(positive, probability)
    assert metrics.average_precision(positive, [metrics.positive_score(row, "yes") for row in rows]) == expected


def test_log_odds_tell_apart_rows_whose_probabilities_round_to_one():
    a, b = ({"yes": 0.0, "no": -margin} for margin in (60.0, 80.0))
    assert math.exp(0) / (math.exp(0) + math.exp(-60)) == 1.0
    assert metrics.positive_score(a, "yes") < metrics.positive_score(b, "yes")


@pytest.mark.parametrize("scores", [{"no": 0.0, "maybe": 1.0}, {"yes": 0.0}])
def test_a_positive_label_without_a_rival_score_is_an_error(scores):
    with pytest.raises(UserError, match="ranks by the label 'yes'"):
        metrics.positive_score(scores, "yes")


def test_an_unknown_metric_names_the_near_one():
    with pytest.raises(UserError, match=r"metric 'acuracy' is unknown.*Did you mean 'accuracy'"):
        metrics.find_metrics(["acuracy"])
