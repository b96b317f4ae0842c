"""Systems of several seeds: their rows, worked out apart."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from fiat_jax.errors import UserError
from fiat_jax.evaluation.crossed import holm
from fiat_jax.evaluation.predictions import Prediction
from fiat_jax.evaluation.scores import compare, score_predictions, with_values
from fiat_jax.evaluation.systems import Means, Measured
from fiat_jax.tasks.task import Task

SIZES = {"bn": 40, "fi": 80, "te": 200}
TASK = Task(
    name="attribution",
    fields=("query",),
    language_field="lang",
    labels=("yes", "no"),
    positive_label="yes",
    metrics=("accuracy", "average_precision"),
)
ROWS = [
    {"id": f"{lang}-{n}", "lang": lang, "query": "?", "answer": "yes" if n % 3 == 0 else "no"}
    for lang, size in SIZES.items()
    for n in range(size)
]


def system(strength: float, seed: int) -> list[Prediction]:
    """Predict by noisy log-odds; hard rows are hard for every system."""
    hard = np.random.default_rng(1).normal(size=len(ROWS))
    noise = np.random.default_rng(seed).normal(size=len(ROWS))
    found = []
    for row, common, own in zip(ROWS, hard, noise, strict=True):
        odds = float(strength * (1 if row["answer"] == "yes" else -1) + common + 0.5 * own)
        scores = {"yes": odds, "no": 0.0}
        found.append(Prediction(row["id"], row["lang"], row["answer"], "yes" if odds > 0 else "no", scores))
    return with_values(TASK, found)


SYSTEMS = {
    "fiat": {seed: system(1.2, seed) for seed in (0, 1, 2)},
    "finetune": {seed: system(0.6, 10 + seed) for seed in (0, 1, 2)},
    "icl": {None: system(0.9, 20)},
}


@pytest.fixture(scope="module")
def measured():
    return Measured(TASK, ROWS, SYSTEMS, Means(("bn", "fi")), resamples=1_000)


def only(rows, **wanted):
    (found,) = [row for row in rows if wanted.items() <= row.items()]
    return found


def value(predictions, metric, language):
    of_language = [one for one in predictions if one.language == language]
    if metric == "accuracy":
        return np.mean([one.prediction == one.gold for one in of_language])
    odds = [one.scores["yes"] - one.scores["no"] for one in of_language]
    return average_precision_score([one.gold == "yes" for one in of_language], odds)


def test_scores_are_means_of_seeds_by_language_and_over_them(measured):
    rows = measured.scores("fiat")
    for metric in TASK.metrics:
        by_seed = {lang: np.array([value(one, metric, lang) for one in SYSTEMS["fiat"].values()]) for lang in SIZES}
        macro = np.mean(list(by_seed.values()), axis=0)
        for lang, values in by_seed.items():
            row = only(rows, metric=metric, language=lang)
            assert row["value"] == pytest.approx(100 * values.mean())
            assert row["sd_seeds"] == pytest.approx(100 * values.std(ddof=1))
            assert row["n"] == SIZES[lang]
        assert only(rows, metric=metric, language="all")["value"] == pytest.approx(100 * macro.mean())
        assert only(rows, metric=metric, language="all")["sd_seeds"] == pytest.approx(100 * macro.std(ddof=1))
        few = only(rows, metric=metric, language="underrepresented")
        assert few["value"] == pytest.approx(100 * (by_seed["bn"] + by_seed["fi"]).mean() / 2)
        assert few["n"] == SIZES["bn"] + SIZES["fi"]
    right = [one.prediction == one.gold for seed in SYSTEMS["fiat"].values() for one in seed]
    assert only(rows, metric="accuracy", language="micro")["value"] == pytest.approx(100 * np.mean(right))
    assert not [row for row in rows if (row["metric"], row["language"]) == ("average_precision", "micro")]
    assert all(row["ci95"][0] <= row["value"] <= row["ci95"][1] for row in rows)


def test_one_seed_is_measured_as_a_cell_is(measured):
    ours = measured.scores("icl")
    theirs = score_predictions(TASK, ROWS, SYSTEMS["icl"][None], resamples=10_000)
    for row in theirs:
        if row["metric"] in TASK.metrics:
            found = only(ours, metric=row["metric"], language=row["language"])
            assert found["value"] == pytest.approx(row["value"])
            assert found["ci95"] == pytest.approx(row["ci95"], abs=3 if row["n"] < 100 else 1)
            assert (found["se_seeds"], found["sd_seeds"]) == (None, None)


def test_differences_are_of_the_same_seeds_and_rows(measured):
    rows = measured.differences("fiat", "finetune")
    for metric in TASK.metrics:
        for lang in SIZES:
            apart = [
                value(SYSTEMS["fiat"][s], metric, lang) - value(SYSTEMS["finetune"][s], metric, lang) for s in (0, 1, 2)
            ]
            row = only(rows, metric=metric, language=lang)
            assert row["difference"] == pytest.approx(100 * np.mean(apart))
            assert row["sd_seeds"] == pytest.approx(100 * np.std(apart, ddof=1))
            assert row["test"] == "crossed_bootstrap"
        of_languages = [only(rows, metric=metric, language=lang) for lang in SIZES]
        assert [row["p_holm"] for row in of_languages] == holm([row["p"] for row in of_languages])
        overall = only(rows, metric=metric, language="all")
        assert (overall["p_holm"], overall["ci95"][0] > 0) == (None, True)


def test_what_is_not_trained_is_compared_with_every_seed(measured):
    row = only(measured.differences("fiat", "icl"), metric="accuracy", language="te")
    apart = [value(one, "accuracy", "te") - value(SYSTEMS["icl"][None], "accuracy", "te")
             for one in SYSTEMS["fiat"].values()]  # fmt: skip
    assert row["difference"] == pytest.approx(100 * np.mean(apart))


def test_with_one_seed_a_language_is_tested_by_mcnemar_as_cells_are():
    a, b = SYSTEMS["fiat"][0], SYSTEMS["finetune"][0]
    ours = Measured(TASK, ROWS, {"a": {0: a}, "b": {0: b}}, resamples=200).differences("a", "b")
    for row in compare(TASK, ROWS, a, b, resamples=200):
        found = only(ours, metric=row["metric"], language=row["language"])
        assert found["difference"] == pytest.approx(row["difference"])
        if row["test"] == "mcnemar_exact":
            assert (found["p"], found["test"]) == (row["p"], row["test"])


def test_seeds_that_only_one_has_are_left_out(measured):
    systems = {"a": {0: system(1, 0), 1: system(1, 1)}, "b": {1: system(0, 2), 2: system(0, 3)}}
    found = Measured(TASK, ROWS, systems, resamples=100)
    assert found.pairs("a", "b") == [(1, 0)]
    row = only(found.differences("a", "b"), metric="accuracy", language="te")
    expected = value(systems["a"][1], "accuracy", "te") - value(systems["b"][1], "accuracy", "te")
    assert row["difference"] == pytest.approx(100 * expected)


def test_figures_do_not_depend_on_the_other_systems_or_the_order_of_rows(measured):
    shuffled = {seed: one[::-1] for seed, one in SYSTEMS["fiat"].items()}
    alone = Measured(TASK, ROWS, {"fiat": shuffled}, Means(("bn", "fi")), resamples=1_000)
    assert alone.scores("fiat") == measured.scores("fiat")


def test_a_system_without_label_scores_has_no_ranking():
    told = {None: [dataclasses.replace(one, scores=None) for one in SYSTEMS["icl"][None]]}
    found = Measured(TASK, ROWS, {"fiat": SYSTEMS["fiat"], "icl": told}, resamples=100)
    assert {row["metric"] for row in found.scores("icl")} == {"accuracy"}
    assert {row["metric"] for row in found.differences("fiat", "icl")} == {"accuracy"}


def test_an_unknown_language_is_refused():
    with pytest.raises(UserError, match=r"names 'fo'; task attribution has bn, fi, te"):
        Means(("fo",)).check(TASK, ROWS)
