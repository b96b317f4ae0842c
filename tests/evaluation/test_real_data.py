"""Scores of the shared data's own columns against the figures that its README states."""

import dataclasses

import pytest

from fiat_jax.evaluation.predict import answer_predictions, text_predictions
from fiat_jax.evaluation.scores import score_predictions
from fiat_jax.tasks.task import Task, read_rows


def _task(shared_data, name: str, **changes) -> Task:
    return Task(**{"name": name, "splits": {"validation": str(shared_data / name / "validation.jsonl")}, **changes})


def _overall(results, metric: str) -> dict:
    return next(row for row in results if (row["metric"], row["language"]) == (metric, "all"))


@pytest.mark.parametrize(
    ("name", "settings", "accuracy"),
    [
        ("esnli", {"fields": ("premise", "hypothesis"), "labels": ("entailment", "neutral", "contradiction")}, 72.5),
        ("cqa", {"fields": ("question",), "kind": "choice", "choices_field": "choices"}, 74.2),
        ("svamp", {"fields": ("question",), "kind": "number"}, 69.3),
    ],
)
def test_the_large_models_own_answers_score_as_stated(shared_data, name, settings, accuracy):
    task = _task(shared_data, name, language_field="lang", metrics=("accuracy",), **settings)
    rows = read_rows(task, "validation")
    results = score_predictions(task, rows, answer_predictions(task, rows, [row["big_answer"] for row in rows]))
    overall = _overall(results, "accuracy")
    assert overall["value"] == pytest.approx(accuracy, abs=0.05)
    half_width = 196 * (overall["value"] / 100 * (1 - overall["value"] / 100) / len(rows)) ** 0.5
    assert overall["ci95"] == pytest.approx([overall["value"] - half_width, overall["value"] + half_width], abs=1)


def test_numbers_are_found_in_the_large_models_reasoning(shared_data):
    settings = {"fields": ("question",), "kind": "number", "metrics": ("last_number_match",)}
    task = _task(shared_data, "svamp", **settings)
    rows = read_rows(task, "validation")
    results = score_predictions(task, rows, text_predictions(task, rows, [row["reasoning"] for row in rows]))
    assert 60 < _overall(results, "last_number_match")["value"] < 70  # nearly all of the answers that are right


def test_answering_no_everywhere_scores_85_in_attribution_and_ranks_by_chance(shared_data):
    settings = {"fields": ("query", "passage", "prediction"), "answer_field": "ais", "labels": ("true", "false")}
    metrics = ("accuracy", "average_precision")
    task = _task(shared_data, "xor_attriqa", language_field="query_language", metrics=metrics, **settings)
    task = dataclasses.replace(task, positive_label="true")
    rows = read_rows(task, "validation")
    constant = [
        dataclasses.replace(one, scores={"true": -2.0, "false": -0.1})
        for one in answer_predictions(task, rows, ["false"] * len(rows))
    ]
    results = score_predictions(task, rows, constant)
    assert {row["language"] for row in results} == {"bn", "fi", "ja", "ru", "te", "all"}
    assert _overall(results, "accuracy")["value"] == pytest.approx(85, abs=3)
    chance = _overall(results, "prevalence")["value"]
    assert chance == pytest.approx(100 - _overall(results, "accuracy")["value"])
    assert _overall(results, "average_precision")["value"] == pytest.approx(chance)
