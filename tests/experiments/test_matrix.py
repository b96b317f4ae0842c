"""`fiat experiment`: its cells, its figures computed again by other means, and what happens to finished cells."""

import json
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, average_precision_score

from fiat_jax.evaluation.predictions import read_predictions
from fiat_jax.experiments.results import file_hash

SIZES = (48, 96)
TRAINED = tuple(f"{paradigm}-{size}-seed0" for paradigm in ("fiat", "fiat-shuffled") for size in SIZES)


def predictions(ran, cell):
    return read_predictions(ran.workdir / "predictions" / f"{cell}.jsonl")


def measured(found) -> dict[str, float]:
    """Return each metric of predictions of one language in per cent, as scikit-learn and NumPy compute it."""
    gold = np.array([one.gold for one in found])
    values = {"accuracy": accuracy_score(gold, [one.prediction for one in found])}
    if found[0].scores is not None:
        margins = [one.scores["good"] - one.scores["bad"] for one in found]
        values["average_precision"] = average_precision_score(gold == "good", margins)
        values["prevalence"] = np.mean(gold == "good")
    return {metric: 100 * value for metric, value in values.items()}


def by_language(found) -> dict[str, dict[str, float]]:
    """Return language → metric → value, "all" being the plain mean of the languages."""
    values = {lang: measured([one for one in found if one.language == lang]) for lang in ("en", "de")}
    return values | {"all": {metric: np.mean([values[lang][metric] for lang in values]) for metric in values["en"]}}


def evaluation(ran, cell, run) -> float:
    """Return the best accuracy on the selection rows after the first step of one run, as its log has it."""
    log = (ran.workdir / "cells" / cell / run / "train_log.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in log]
    return max(line["evaluation"]["accuracy"] for line in lines if "evaluation" in line and line["step"] > 0)


def test_every_paradigm_has_a_cell_at_every_size(experiment):
    cells = {(row["paradigm"], row["size"]) for row in experiment.results["rows"]}
    assert cells == {("icl", 0), *((paradigm, size) for paradigm in ("fiat", "fiat-shuffled") for size in SIZES)}
    pairs = {(row["a"], row["b"], row["size"]) for row in experiment.results["comparisons"]}
    assert pairs == {("fiat", other, size) for other in ("icl", "fiat-shuffled") for size in SIZES}


@pytest.mark.parametrize("cell", ["icl", *TRAINED])
def test_every_value_is_that_of_the_predictions(experiment, cell):
    assert (
        file_hash(experiment.workdir / f"predictions/{cell}.jsonl") == experiment.results["inputs"]["predictions"][cell]
    )
    stated = {(row["language"], row["metric"]): row for row in experiment.rows(cell=cell)}
    again = by_language(predictions(experiment, cell))
    assert {key: row["value"] for key, row in stated.items()} == pytest.approx(
        {(lang, metric): value for lang, values in again.items() for metric, value in values.items()}
    )
    assert {lang: stated[lang, "accuracy"]["n"] for lang in again} == {"en": 6, "de": 6, "all": 12}
    assert all(row["ci95"][0] <= row["value"] <= row["ci95"][1] for row in stated.values())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("other", ["icl", "fiat-shuffled"])
def test_every_difference_is_that_of_the_predictions(experiment, other, size):
    a = predictions(experiment, f"fiat-{size}-seed0")
    b = predictions(experiment, other if other == "icl" else f"{other}-{size}-seed0")
    stated = [row for row in experiment.results["comparisons"] if (row["b"], row["size"]) == (other, size)]
    ours, theirs = by_language(a), by_language(b)
    assert {(row["language"], row["metric"]) for row in stated} == {
        (lang, metric) for lang, values in theirs.items() for metric in values if metric != "prevalence"
    }
    for row in stated:
        lang, metric = row["language"], row["metric"]
        assert row["difference"] == pytest.approx(ours[lang][metric] - theirs[lang][metric])
        assert row["ci95"][0] <= row["difference"] + 1e-9
        assert row["difference"] - 1e-9 <= row["ci95"][1]
        if (metric, lang) in {("accuracy", "en"), ("accuracy", "de")}:
            pairs = [
                (x.prediction == x.gold, y.prediction == y.gold)
                for x, y in zip(a, b, strict=True)
                if x.language == lang
            ]
            won, lost = pairs.count((True, False)), pairs.count((False, True))
            assert row["test"] == "mcnemar_exact"
            assert row["p"] == pytest.approx(binomtest(won, won + lost).pvalue if won + lost else 1.0)


def test_icl_is_the_stored_answer_of_the_large_model(experiment):
    rows = [json.loads(line) for line in (experiment.world.root / "weather/validation.jsonl").read_text().splitlines()]
    assert [one.prediction for one in predictions(experiment, "icl")] == [row["large_answer"] for row in rows]


def test_every_trained_cell_had_the_same_search_over_the_same_rows(experiment):
    facts = experiment.results["details"]["cells"]
    for size in SIZES:
        cells = [facts[cell] for cell in TRAINED if f"-{size}-" in cell]
        assert len({(one["rows_trained_on"], one["rows_selected_on"]) for one in cells}) == 1
        assert len({tuple(step for step, _ in one["evaluations"]) for one in cells}) == 1
    for cell in TRAINED:
        runs = {path.name for path in (experiment.workdir / "cells" / cell).glob("lr-*")}
        assert runs == {"lr-0.001", "lr-0.01"}
        best = max(evaluation(experiment, cell, run) for run in runs)
        assert facts[cell]["selection"]["accuracy"] == best


def test_an_experiment_killed_between_cells_goes_on_and_keeps_those_that_are_done(experiment):
    world, more = experiment.world, ("fiat-no-reasoning", "finetune-lora")
    given = (
        *experiment.arguments,
        f"--gin.Experiment.paradigms=('icl','fiat',{str(more)[1:]}",
        "--gin.Experiment.sizes=48",
    )
    command = [sys.executable, "-m", "fiat_jax", "experiment", *given, "--workdir=experiment"]
    first = experiment.workdir / f"cells/{more[0]}-48-seed0.json"
    process = subprocess.Popen(command, cwd=world.root, env=world.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while process.poll() is None and not first.exists():
        time.sleep(0.01)
    process.kill()
    told = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, told
    done = {path: path.read_bytes() for path in experiment.workdir.glob("cells/*.json")}
    assert f"{more[1]}-48-seed0.json" not in {path.name for path in done}
    lines = world.fiat("experiment", *given, "--workdir=experiment").stdout.splitlines()
    assert {line.split("-48-")[0] for line in lines if "after step" in line} == {more[1]}
    assert {path: path.read_bytes() for path in done} == done
    held = json.loads((experiment.workdir / "results.json").read_text())["rows"]
    assert {row["paradigm"] for row in held} == {"icl", "fiat", *more}
    assert [row for row in held if row["paradigm"] == "fiat"] == experiment.rows(paradigm="fiat", size=48)


@pytest.fixture
def copied(experiment, tmp_path):
    """A function that runs the command on a copy of the finished experiment."""
    shutil.copytree(experiment.workdir, tmp_path / "copy", symlinks=True)

    def run(*arguments):
        done = experiment.world.fiat("experiment", *experiment.arguments, *arguments, f"--workdir={tmp_path / 'copy'}")
        return SimpleNamespace(path=tmp_path / "copy", told=done.stdout + done.stderr)

    return run


def test_a_changed_cell_alone_is_made_anew_and_the_old_one_kept_and_taken_back(experiment, copied):
    fewer = ("--gin.Experiment.paradigms=('icl','fiat')", "--gin.Experiment.sizes=48", "--gin.Lora.rank=4")
    other = (*fewer, "--gin.Experiment.learning_rates=(1e-2,)")
    changed = copied(*other)
    assert "fiat-48-seed0: Lora differ from what it was made with; the old cell is in" in changed.told
    lines = changed.told.splitlines()
    assert {line.split(" ")[0] for line in lines if "after step" in line} == {"fiat-48-seed0"}
    kept = next(changed.path.glob("superseded/fiat-48-seed0.*"))
    assert (kept / "predictions/fiat-48-seed0.jsonl").read_bytes() == (
        experiment.workdir / "predictions/fiat-48-seed0.jsonl"
    ).read_bytes()
    assert (changed.path / "predictions/icl.jsonl").exists()
    again = copied()
    assert "after step" not in again.told
    held = json.loads((again.path / "results.json").read_text())
    assert held["rows"] == experiment.results["rows"]
    assert [path.name.split(".")[0] for path in again.path.glob("superseded/*")] == ["fiat-48-seed0"]


def test_shards_make_their_own_cells_and_the_last_one_writes_the_results_of_all(experiment, copied, tmp_path):
    unmade = ("fiat-48-seed0", "fiat-shuffled-48-seed0")
    for name in unmade:
        (tmp_path / "copy" / "cells" / f"{name}.json").unlink()
    (tmp_path / "copy" / "results.json").unlink()
    first = copied("--shard=0/2")
    assert f"of all 5, 1 are not ({unmade[0]})" in first.told
    assert (first.path / "cells" / f"{unmade[1]}.json").exists()
    assert not (first.path / "results.json").exists()
    last = copied("--shard=1/2")
    assert json.loads((last.path / "results.json").read_text())["rows"] == experiment.results["rows"]


def test_what_is_done_is_told_again_without_tensorflow(experiment):
    arguments = ["experiment", *experiment.arguments, "--workdir=experiment"]
    heavy = "[name for name in sys.modules if name in ('tensorflow', 'seqio', 'torch')]"
    program = f"import sys; from fiat_jax.cli import main; main({arguments!r}); print({heavy})"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=experiment.world.root, env=experiment.world.env, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "results:" in done.stdout
