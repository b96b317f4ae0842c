"""Ranking and generating with a model that is a table: log P(next token | last token)."""

from itertools import pairwise

import numpy as np
import pytest

from fiat_jax.data.batches import ScoringBatches
from fiat_jax.data.examples import Example, Examples
from fiat_jax.errors import UserError
from fiat_jax.evaluation.predict import (
    answer_predictions,
    label_predictions,
    rank_classification,
    text_predictions,
)
from fiat_jax.tasks.task import Task

EOS, V = 0, 12
LOG_PROBS_VV = np.log(np.random.default_rng(0).dirichlet(np.ones(V), size=V))


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(1)
    inputs = [rng.integers(1, V, size=rng.integers(1, 20)).astype(np.int32) for _ in range(50)]
    return Examples.of(Example(f"row-{n}", "en", ids, np.zeros(0, np.int32)) for n, ids in enumerate(inputs))


@pytest.fixture(scope="module")
def candidates():
    rng = np.random.default_rng(2)
    return [
        [
            np.append(rng.integers(1, V, size=rng.integers(1, 4)), EOS).astype(np.int32)
            for _ in range(rng.integers(2, 5))
        ]
        for _ in range(50)
    ]


def _score(batch):
    last_token = np.take_along_axis(batch["tokens"], batch["target_positions"], axis=1)
    return LOG_PROBS_VV[last_token, batch["targets"]].astype(np.float32)


def _by_hand(ids, answer) -> float:
    sequence = [ids[-1], *answer]
    return sum(LOG_PROBS_VV[a, b] for a, b in pairwise(sequence))


def test_a_candidates_score_is_the_sum_of_its_tokens_log_likelihoods(examples, candidates):
    batches = ScoringBatches(examples, candidates, row_length=64, batch_rows=2)
    assert len(batches) > 2
    for score, example, answers in zip(
        rank_classification(_score, examples, candidates, batches), examples, candidates, strict=True
    ):
        np.testing.assert_allclose(score, [_by_hand(example.inputs, answer) for answer in answers], rtol=1e-5)


def test_normalised_scores_are_means_over_tokens(examples, candidates):
    batches = ScoringBatches(examples, candidates, row_length=64, batch_rows=2)
    plain = rank_classification(_score, examples, candidates, batches)
    normalised = rank_classification(_score, examples, candidates, batches, length_normalise=True)
    for total, mean, answers in zip(plain, normalised, candidates, strict=True):
        np.testing.assert_allclose(mean * [len(answer) for answer in answers], total)


def test_ranking_reports_each_batch(examples, candidates):
    batches = ScoringBatches(examples, candidates, row_length=64, batch_rows=2)
    seen = []
    rank_classification(_score, examples, candidates, batches, progress=lambda *done: seen.append(done))
    assert seen == [(done, len(batches)) for done in range(1, len(batches) + 1)]


def test_a_diverged_model_is_an_error_naming_the_row(examples, candidates):
    batches = ScoringBatches(examples, candidates, row_length=64, batch_rows=2)
    with pytest.raises(UserError, match=r"row 'row-0': .*training diverged"):
        rank_classification(lambda batch: np.full_like(_score(batch), np.nan), examples, candidates, batches)


def _task(**changes) -> Task:
    settings = {"name": "t", "fields": ("q",), "kind": "label", "labels": ("yes", "no"), "metrics": ("accuracy",)}
    return Task(**{**settings, **changes})


ROWS = [{"id": "a", "q": "?", "answer": "no"}, {"id": "b", "q": "?", "answer": "yes"}]


def test_the_best_label_is_the_prediction_and_ties_go_to_the_first():
    found = label_predictions(_task(), ROWS, [np.array([-2.0, -1]), np.array([-3.0, -3])])
    assert [(one.id, one.prediction, one.values) for one in found] == [
        ("a", "no", {"accuracy": 1.0}),
        ("b", "yes", {"accuracy": 1.0}),
    ]
    assert found[0].scores == {"yes": -2.0, "no": -1.0}
    assert {one.language for one in found} == {"und"}


def test_each_row_is_ranked_among_its_own_choices():
    task = _task(kind="choice", labels=(), choices_field="of")
    choices = {"a": ["x", "y"], "b": ["p", "q", "r"]}
    rows = [{"id": name, "q": "?", "of": of, "answer": of[1]} for name, of in choices.items()]
    found = label_predictions(task, rows, [np.array([-2.0, -1]), np.array([-3.0, -2, -1])])
    assert [(one.prediction, one.values["accuracy"]) for one in found] == [("y", 1.0), ("r", 0.0)]


def test_completions_keep_their_text_beside_the_answer_found_in_them():
    words = {"yes": "Yes indeed", "no": "No"}
    found = text_predictions(_task(), ROWS, ["no.", "yes"], verbalise=words.__getitem__)
    assert [(one.prediction, one.completion, one.values["accuracy"]) for one in found] == [
        ("no", "no.", 1.0),
        (None, "yes", 0.0),
    ]


def test_numbers_are_found_by_the_kind_of_task():
    rows = [{"id": "a", "q": "?", "answer": "20"}]
    task = _task(kind="number", labels=(), metrics=("last_number_match",))
    (one,) = text_predictions(task, rows, ["5 times 4 is 20."])
    assert (one.gold, one.prediction, one.values) == ("20", "20", {"last_number_match": 1.0})


def test_rows_without_an_answer_are_predicted_and_not_scored():
    (one,) = answer_predictions(_task(), [{"id": "a", "q": "?"}], ["yes"])
    assert (one.gold, one.prediction, one.values) == (None, "yes", {})
