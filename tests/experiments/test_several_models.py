"""Experiments of several θ_τ: their cells, what sets them apart, and how a report names them."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from support.report_run import Plan, write_run
from support.world import SETTINGS

from fiat_jax.evaluation.predictions import read_predictions
from fiat_jax.experiments import measured
from fiat_jax.experiments.report.assemble import write_report
from fiat_jax.experiments.report.training import Rates

ARGUMENTS = (
    "--gin_file=weather.gin",
    *SETTINGS,
    "--gin.Train.epochs=1",
    "--gin.Experiment.theta_taus={'one': 'model', 'two': 'same-model'}",
    "--gin.Experiment.sizes=48",
    "--gin.Experiment.seeds=(0,1)",
    "--gin.Experiment.ranks=(2,4)",
    "--gin.Experiment.paradigms=('icl','zero-shot','finetune','fiat')",
    "--workdir=several",
)
PAIRS = {
    *((f"fiat@{tau}", b) for tau in ("one", "two") for b in ("icl", f"zero-shot@{tau}", f"finetune@{tau}")),
    *((f"{name}@one", f"{name}@two") for name in ("zero-shot", "finetune", "fiat")),
}


@pytest.fixture(scope="module")
def ran(project):
    """Two names of one model: all that is done with one is done with the other."""
    shutil.copytree(project.root / "model", project.root / "same-model")
    done = project.fiat("experiment", *ARGUMENTS)
    workdir = project.root / "several"
    return SimpleNamespace(
        workdir=workdir, told=done.stdout, results=json.loads((workdir / "results.json").read_text())
    )


def test_each_model_has_all_cells_and_theta_beta_one(ran):
    trained = {
        f"{name}@{tau}-48-seed{seed}" for name in ("finetune", "fiat") for tau in ("one", "two") for seed in (0, 1)
    }
    assert {row["cell"] for row in ran.results["rows"]} == {*trained, "zero-shot@one", "zero-shot@two", "icl"}
    assert ran.results["inputs"]["theta_taus"].keys() == {"model", "same-model"}


def test_what_is_done_with_one_is_done_with_the_other(ran):
    for name in ("fiat", "finetune"):
        one, two = (
            read_predictions(ran.workdir / "predictions" / f"{name}@{tau}-48-seed1.jsonl") for tau in ("one", "two")
        )
        assert one == two


def test_ranks_are_searched_where_there_is_an_adapter(ran):
    cells = ran.results["details"]["cells"]
    assert {point["rank"] for point in cells["fiat@two-48-seed0"]["search"]} == {2, 4}
    assert len(cells["finetune@two-48-seed0"]["search"]) == 1


def test_pairs_are_of_one_model_or_of_one_paradigm(ran):
    found = ran.results["statistics"]["differences"]
    assert {(row["a"], row["b"]) for row in found} == PAIRS
    assert {(row["a"], row["b"]) for row in ran.results["comparisons"]} == PAIRS
    apart = [row for row in found if row["theta_tau"] is None]
    assert {(row["a"].split("@")[0], row["difference"]) for row in apart} == {
        ("zero-shot", 0.0), ("finetune", 0.0), ("fiat", 0.0)
    }  # fmt: skip


def test_the_table_has_the_means_of_the_seeds(ran):
    assert "means of 2 seeds" in ran.told
    row = next(r for r in ran.results["statistics"]["systems"] if (r["paradigm"], r["language"]) == ("fiat@one", "all"))
    low, high = row["ci95"]
    assert f"{row['value']:.1f} [{low:.1f}, {high:.1f}]" in ran.told


def test_figures_of_the_same_predictions_are_not_worked_out_again(ran, project, monkeypatch):
    def worked_out(*_):
        raise AssertionError

    monkeypatch.setattr(measured, "compare", worked_out)
    assert project.main("experiment", *ARGUMENTS) == 0
    again = json.loads((ran.workdir / "results.json").read_text())
    for part in ("rows", "comparisons", "statistics"):
        assert again[part] == ran.results[part]
    with pytest.raises(AssertionError):
        project.main("experiment", *ARGUMENTS, "--gin.Experiment.against=finetune")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of two simulated θ_τ, as JSON has it: section → title of a table → table."""
    workdir = tmp_path_factory.mktemp("runs") / "two"
    paradigms = ("icl", "finetune-lora", "fiat-no-reasoning", "fiat")
    write_run(workdir, Plan(48, (200, 1000), metrics=("accuracy",), paradigms=paradigms, theta_taus=("large", "base")))
    write_report([workdir], [workdir / "r.json"], Rates())
    held = json.loads((workdir / "r.json").read_text())
    tables = {one["name"]: {table["title"]: table for table in one["tables"]} for one in held["sections"]}
    return SimpleNamespace(workdir=workdir, tables=tables)


def test_a_report_names_each_system_once(report):
    names = [row[0] for row in report.tables["scores"]["accuracy, %, of 48 rows of test"]["rows"]]
    assert names == [
        "icl", "finetune-lora@large", "fiat-no-reasoning@large", "fiat@large",
        "finetune-lora@base", "fiat-no-reasoning@base", "fiat@base",
    ]  # fmt: skip


def test_reasoning_and_instructions_are_told_of_each_model(report):
    kinds = report.tables["rows"]["Rows, by size and seed"]
    assert {row[0] for row in kinds["rows"]} == {
        f"{size} rows, {tau}" for size in ("200", "1,000") for tau in ("large", "base")
    }
    assert "1,000 rows, large, seed 0" in report.tables["rows"]
    assert {row[0] for row in report.tables["instructions"]["Instructions by base model"]["rows"]} == {"large", "base"}


def test_costs_are_measured_against_the_same_model(report):
    (table,) = report.tables["cost"].values()
    bases = {(one["system"], one["baseline"]) for one in table["records"] if one["paradigm"].startswith("fiat@")}
    assert bases == {("fiat@large", "finetune-lora@large"), ("fiat@base", "finetune-lora@base")}


def test_each_rung_of_the_ladder_is_set_against_the_one_above(report):
    table = report.tables["ladder"]["accuracy, %"]
    assert [row[:2] for row in table["rows"]] == [
        ["large", "fiat"], ["without reasoning", "fiat-no-reasoning"],
        ["without instructions too", "finetune-lora"], ["base instead of large too", "finetune-lora"],
    ]  # fmt: skip
    last = next(one for one in table["records"] if (one["theta_tau"], one["size"]) == ("models/base", 1000))
    right = [
        np.mean([
            one.prediction == one.gold
            for seed in range(3)
            for one in read_predictions(report.workdir / "predictions" / f"finetune-lora@{tau}-1000-seed{seed}.jsonl")
        ])
        for tau in ("base", "large")
    ]  # fmt: skip
    assert last["minus_above"]["difference"] == pytest.approx(100 * (right[0] - right[1]))
