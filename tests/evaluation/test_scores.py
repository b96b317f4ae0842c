"""Rows of results.json against figures worked out apart, and what is refused."""

import dataclasses

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score

from fiat_jax.errors import UserError
from fiat_jax.evaluation.predictions import Prediction
from fiat_jax.evaluation.scores import check_metrics, compare, score_predictions, with_values
from fiat_jax.tasks.task import Task

SIZES = {"bn": 40, "fi": 80, "te": 200}
TASK = Task(
    name="attribution",
    splits={},
    fields=("query",),
    language_field="lang",
    answer_field="answer",
    labels=("yes", "no"),
    kind="label",
    positive_label="yes",
    metrics=("accuracy", "average_precision"),
)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [
        {"id": f"{lang}-{n}", "lang": lang, "query": "?", "answer": "yes" if rng.random() < 0.3 or n == 0 else "no"}
        for lang, size in SIZES.items()
        for n in range(size)
    ]


def _system(rows, strength: float, seed: int) -> list[Prediction]:
    """Predict by noisy log-odds; hard rows are hard for every system."""
    hard, noise = np.random.default_rng(1).normal(size=len(rows)), np.random.default_rng(seed).normal(size=len(rows))
    found = []
    for row, common, own in zip(rows, hard, noise, strict=True):
        odds = strength * (1 if row["answer"] == "yes" else -1) + common + 0.5 * own
        scores = {"yes": float(odds), "no": 0.0}
        found.append(Prediction(row["id"], row["lang"], row["answer"], "yes" if odds > 0 else "no", scores))
    return with_values(TASK, found)


def _only(results, **wanted):
    (found,) = [row for row in results if all(row[name] == value for name, value in wanted.items())]
    return found


def test_every_metric_has_a_row_for_every_language_and_for_all(rows):
    results = score_predictions(TASK, rows, _system(rows, 0.8, 2), resamples=100)
    named = [(row["metric"], row["language"], row["n"]) for row in results]
    languages = [*SIZES.items(), ("all", sum(SIZES.values()))]
    assert named == [
        (metric, *language) for metric in ("accuracy", "average_precision", "prevalence") for language in languages
    ]
    assert all(set(row) == {"metric", "language", "value", "ci95", "n"} for row in results)
    assert all(row["ci95"][0] <= row["value"] <= row["ci95"][1] for row in results)


def test_all_is_the_plain_mean_of_the_languages(rows):
    results = score_predictions(TASK, rows, _system(rows, 0.8, 2), resamples=100)
    for metric in ("accuracy", "average_precision", "prevalence"):
        values = [_only(results, metric=metric, language=language)["value"] for language in SIZES]
        assert _only(results, metric=metric, language="all")["value"] == pytest.approx(np.mean(values))


def test_values_are_those_of_scikit_learn(rows):
    system = _system(rows, 0.8, 2)
    results = score_predictions(TASK, rows, system, resamples=100)
    for language in SIZES:
        of_language = [one for one in system if one.language == language]
        gold, answers = [one.gold for one in of_language], [one.prediction for one in of_language]
        assert _only(results, metric="accuracy", language=language)["value"] == pytest.approx(
            100 * f1_score(gold, answers, average="micro")  # with one label a row, micro F1 is accuracy
        )
        positive = [answer == "yes" for answer in gold]
        odds = [one.scores["yes"] - one.scores["no"] for one in of_language]
        expected = 100 * average_precision_score(positive, odds)
        assert _only(results, metric="average_precision", language=language)["value"] == pytest.approx(expected)


def test_the_interval_of_all_is_that_of_languages_redrawn_apart(rows):
    system = _system(rows, 0.8, 2)
    found = _only(score_predictions(TASK, rows, system, resamples=20_000), metric="accuracy", language="all")["ci95"]
    columns = [np.array([one.values["accuracy"] for one in system if one.language == lang]) for lang in SIZES]
    variance = np.mean([column.var() / len(column) for column in columns]) / len(columns)
    expected = 100 * (
        np.mean([column.mean() for column in columns]) + np.sqrt(variance) * stats.norm.ppf([0.025, 0.975])
    )
    assert found == pytest.approx(expected.tolist(), abs=0.5)


def test_figures_repeat_and_do_not_depend_on_the_order_of_predictions_or_on_other_metrics(rows):
    system = _system(rows, 0.8, 2)
    once = score_predictions(TASK, rows, system, resamples=200)
    assert score_predictions(TASK, rows, system[::-1], resamples=200) == once
    fewer = score_predictions(dataclasses.replace(TASK, metrics=("average_precision",)), rows, system, resamples=200)
    assert fewer == [row for row in once if row["metric"] != "accuracy"]
    assert score_predictions(TASK, rows, system, resamples=200, seed=1) != once


def test_a_better_system_is_seen_to_be_better(rows):
    a, b = _system(rows, 1.5, 2), _system(rows, 0.5, 3)
    results = compare(TASK, rows, a, b, resamples=2_000)
    assert all(set(row) == {"metric", "language", "difference", "ci95", "p", "test", "n"} for row in results)
    scored = [score_predictions(TASK, rows, system, resamples=100) for system in (a, b)]
    for row in results:
        values = [_only(of, metric=row["metric"], language=row["language"])["value"] for of in scored]
        assert row["difference"] == pytest.approx(values[0] - values[1])
    for metric in ("accuracy", "average_precision"):
        overall = _only(results, metric=metric, language="all")
        assert overall["ci95"][0] > 0
        assert overall["p"] == pytest.approx(2 / 2_001)
        assert overall["test"] == "paired_bootstrap"


def test_one_language_of_right_or_wrong_rows_is_tested_by_mcnemar(rows):
    a, b = _system(rows, 1.0, 2), _system(rows, 0.7, 3)
    row = _only(compare(TASK, rows, a, b, resamples=500), metric="accuracy", language="te")
    right = [np.array([one.values["accuracy"] for one in system if one.language == "te"]) for system in (a, b)]
    only_a, only_b = np.sum(right[0] > right[1]), np.sum(right[0] < right[1])
    assert row["test"] == "mcnemar_exact"
    assert row["p"] == pytest.approx(stats.binomtest(int(only_b), int(only_a + only_b)).pvalue)


def test_with_one_language_all_is_that_language(rows):
    rows = [row for row in rows if row["lang"] == "te"]
    for results in (
        score_predictions(TASK, rows, _system(rows, 1.0, 2), resamples=200),
        compare(TASK, rows, _system(rows, 1.0, 2), _system(rows, 0.7, 3), resamples=200),
    ):
        of_language, of_all = ([row for row in results if row["language"] == name] for name in ("te", "all"))
        assert of_all == [{**row, "language": "all"} for row in of_language]


def test_a_system_does_not_differ_from_itself(rows):
    system = _system(rows, 0.8, 2)
    for row in compare(TASK, rows, system, system, resamples=100):
        assert (row["difference"], row["ci95"], row["p"]) == (0, [0, 0], 1)


def test_rows_without_a_language_are_of_language_und(rows):
    task = dataclasses.replace(TASK, language_field=None, metrics=("accuracy",))
    system = [dataclasses.replace(one, language="und") for one in _system(rows, 0.8, 2)]
    results = score_predictions(task, rows, system, resamples=100)
    assert [row["language"] for row in results] == ["und", "all"]


def test_an_answer_that_could_not_be_extracted_is_wrong(rows):
    system = with_values(TASK, [dataclasses.replace(one, prediction=None) for one in _system(rows, 9.0, 2)])
    assert {one.values["accuracy"] for one in system} == {0.0}
    assert _only(score_predictions(TASK, rows, system, resamples=10), metric="accuracy", language="all")["value"] == 0


def test_a_row_without_an_answer_has_no_values():
    (one,) = with_values(TASK, [Prediction("1", "bn", None, "yes", {"yes": 0.0, "no": -1.0})])
    assert one.values == {}


def test_predictions_that_lack_rows_are_refused(rows):
    system = _system(rows, 0.8, 2)
    with pytest.raises(
        UserError, match=r"318 predictions for 320 rows: 2 rows have none \(te-198, te-199\), 0 predict"
    ):
        score_predictions(TASK, rows, system[:-2])
    with pytest.raises(UserError, match=r"321 predictions for 320 rows"):
        score_predictions(TASK, rows, [*system, system[0]])
    with pytest.raises(UserError, match=r"1 predictions have no row \(bn-0\)"):
        compare(TASK, rows[1:], system[1:], system)


def test_predictions_made_for_another_answer_are_refused(rows):
    changed = [{**rows[0], "answer": "no" if rows[0]["answer"] == "yes" else "yes"}, *rows[1:]]
    with pytest.raises(UserError, match=r"row 'bn-0' has answer .* predict again"):
        score_predictions(dataclasses.replace(TASK, metrics=("accuracy",)), changed, _system(rows, 0.8, 2))


def test_average_precision_without_label_scores_is_an_error(rows):
    system = [dataclasses.replace(one, scores=None) for one in _system(rows, 0.8, 2)]
    with pytest.raises(UserError, match="row 'bn-0' has no label scores"):
        score_predictions(TASK, rows, system)


def test_what_a_metric_needs_is_checked_before_anything_runs(rows):
    with pytest.raises(UserError, match="needs positive_label"):
        check_metrics(dataclasses.replace(TASK, positive_label=None), rows)
    with pytest.raises(UserError, match=r"undefined for language 'fi', none of whose 80 rows is labelled 'yes'"):
        check_metrics(TASK, [{**row, "answer": "no"} if row["lang"] == "fi" else row for row in rows])
    with pytest.raises(UserError, match="Did you mean 'accuracy'"):
        check_metrics(dataclasses.replace(TASK, metrics=("accurcy",)), rows)


def test_rows_without_an_answer_cannot_be_scored(rows):
    unlabelled = [{name: value for name, value in row.items() if name != "answer"} for row in rows]
    with pytest.raises(UserError, match="row 'bn-0' has no answer in field 'answer'"):
        check_metrics(TASK, unlabelled)
