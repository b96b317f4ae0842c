"""Every paradigm run by the command on the tiny world, and what its cells say of themselves."""

import json
import shutil
from types import SimpleNamespace

import pytest
from support.world import LARGE_MODEL, SETTINGS, weather_rows, write_rows

from fiat_jax.config import Config
from fiat_jax.evaluation.predictions import read_predictions
from fiat_jax.experiments.sections import SECTIONS
from fiat_jax.store import Provenance, ReasoningStore, Record
from fiat_jax.tasks.task import Task, row_key

pytestmark = pytest.mark.slow

ARGUMENTS = (
    "--gin_file=weather.gin",
    *SETTINGS,
    "--gin.Train.epochs=1",
    "--gin.Train.row_length=256",
    "--gin.Prompts.max_length=200",
    "--gin.Prompts.max_reasoning_tokens=40",
    "--gin.Prompts.max_new_tokens=12",
    "--gin.Task.metrics=('accuracy','average_precision')",
    "--gin.Task.positive_label=good",
    "--gin.Experiment.sizes=40",
    "--gin.Experiment.epochs=(1,2)",
    "--gin.Experiment.paradigms=('icl','icl-vote','icl-scores','zero-shot','finetune-cot','distilled','fiat-dropout')",
    "--gin.Experiment.against=fiat-dropout",
    "--gin.Native.path=model",
    "--gin.Native.dtype=float32",
)


OTHER = {"good": "bad", "bad": "good"}


@pytest.fixture(scope="module")
def ran(project):
    """The experiment; θ_β was asked three times about every row for the vote, and was wrong the first time alone."""
    shutil.copytree(project.root / "reasoning_store", project.root / "every-store")
    store = ReasoningStore(project.root / "every-store")
    (first,) = store.sets()
    task = Config(SECTIONS, [str(project.root / "weather.gin")]).build(Task)
    provenance = Provenance({"name": LARGE_MODEL}, decoding={"temperature": 1.0})
    with store.open_set(provenance) as writer:
        for row in weather_rows(120):
            for sample, answer in enumerate((OTHER[row["answer"]], row["answer"], row["answer"])):
                told = {"rationale": row["reasoning"], "answer": answer}
                key = row_key(task, row)
                writer.append(Record(provenance.set_key, key, sample, row["id"], "text", **told, finish_reason="stop"))
    sets = (f"--gin.Reasoning.set={first}", f"--gin.Reasoning.sets={{'samples': '{provenance.set_key}'}}")
    done = project.fiat("experiment", *ARGUMENTS, *sets, "--gin.Reasoning.store=every-store", "--workdir=every")
    workdir = project.root / "every"
    return SimpleNamespace(
        workdir=workdir, told=done.stdout, results=json.loads((workdir / "results.json").read_text())
    )


def predictions(ran, cell):
    return read_predictions(ran.workdir / "predictions" / f"{cell}.jsonl")


def test_a_vote_is_right_where_most_samples_are(ran):
    assert all(one.prediction == one.gold for one in predictions(ran, "icl-vote"))
    assert not all(one.prediction == one.gold for one in predictions(ran, "icl"))


def test_average_precision_is_there_for_all_that_rank_labels_and_for_no_other(ran):
    ranked = {row["paradigm"] for row in ran.results["rows"] if row["metric"] == "average_precision"}
    assert ranked == {"icl-scores", "zero-shot", "distilled", "fiat-dropout", "fiat-dropout-bare"}
    everyone = {row["paradigm"] for row in ran.results["rows"]}
    assert everyone - ranked == {"icl", "icl-vote", "finetune-cot"}


def test_fine_tune_cot_writes_its_answer_behind_its_reasoning(ran):
    found = predictions(ran, "finetune-cot-40-seed0")
    assert all(one.scores is None and one.completion is not None for one in found)


def test_dropout_is_reported_with_reasoning_and_without(ran):
    cell = "fiat-dropout-40-seed0"
    with_it, without = predictions(ran, cell), predictions(ran, f"{cell}-bare")
    assert [one.id for one in with_it] == [one.id for one in without]
    assert any(a.scores != b.scores for a, b in zip(with_it, without, strict=True))
    assert {f"{cell}-bare", cell} <= set(ran.results["inputs"]["predictions"])
    assert "fiat-dropout-bare" in {row["b"] for row in ran.results["comparisons"] if row["a"] == "fiat-dropout"}


def test_every_trained_cell_has_searched_all_of_the_declared_points(ran):
    declared = {(point["learning_rate"], point["rank"], point["epochs"]) for point in ran.results["details"]["search"]}
    assert declared == {(1e-2, 8, 1), (1e-2, 8, 2)}
    cells = ran.results["details"]["cells"]
    for paradigm in ("finetune-cot", "distilled", "fiat-dropout"):
        facts = cells[f"{paradigm}-40-seed0"]
        assert {(one["learning_rate"], one["rank"], one["epochs"]) for one in facts["search"]} == declared
        best = max(one["accuracy"] for one in facts["search"])
        assert facts["selection"]["accuracy"] == best
        row = next(row for row in ran.results["rows"] if row["paradigm"] == paradigm)
        assert row["selected_on"] == "10% of train"
    assert all(row["selected_on"] is None for row in ran.results["rows"] if row["paradigm"].startswith(("icl", "zero")))


def test_results_say_which_parts_of_fiat_a_paradigm_lacks(ran):
    assert ran.results["details"]["paradigms"]["zero-shot"] == {"removed": ["tuning", "reasoning"], "groups": []}
    assert ran.results["details"]["paradigms"]["fiat-dropout"] == {"removed": [], "groups": []}
    assert ran.results["details"]["paradigms"]["distilled"]["removed"] == []


def test_a_model_trained_with_dropout_answers_rows_that_have_no_reasoning(ran, project):
    rows = [{"id": "new", "lang": "en", "report": "It is sunny on town 999!", "answer": "good"}]
    write_rows(project.root / "unasked.jsonl", rows)
    bundles = {name: f"every/cells/{name}-40-seed0/bundle" for name in ("fiat-dropout", "distilled")}
    done = project.fiat("predict", bundles["fiat-dropout"], "unasked.jsonl", "--out=bare.jsonl")
    assert "1 of 1 rows have no reasoning, and are answered without it" in done.stderr
    project.fiat("predict", bundles["distilled"], "unasked.jsonl", "--out=distilled.jsonl")
