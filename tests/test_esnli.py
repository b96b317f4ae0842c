"""The shipped e-SNLI experiment in small, on the real rows with PaLM 540B's reasoning, through the command line."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from support.world import World

from fiat_jax.evaluation.predictions import read_predictions

PARADIGMS = ("icl", "fiat", "fiat-shuffled")


@pytest.fixture(scope="module")
def ran(shared_data, tmp_path_factory):
    """The folder of the small experiment, and what it printed last."""
    root = tmp_path_factory.mktemp("esnli")
    files = {"train": root / "train.jsonl", "validation": shared_data / "esnli/validation.jsonl"}
    with (shared_data / "esnli/train.jsonl").open("rb") as lines:
        files["train"].write_bytes(b"".join(itertools.islice(lines, 400)))
    given = (
        *(f"--gin.{split.upper()}_FILE={file}" for split, file in files.items()),
        f"--gin.Reasoning.store={root / 'store'}",
    )
    project = World(Path(__file__).resolve().parents[1])
    project.fiat(
        "reason", "--gin_file=configs/tasks/esnli.gin", *(f"--import={file}" for file in files.values()),
        "--gin.Import.answer=big_answer", "--gin.Import.model=PaLM 540B", *given,
    )  # fmt: skip
    done = project.fiat(
        "experiment", "--gin_file=configs/experiments/esnli.gin", f"--workdir={root}",
        f"--gin.Model.path={shared_data / 'weights/tinystories-656k'}", "--gin.Experiment.sizes=200",
        f"--gin.Experiment.paradigms={PARADIGMS}", "--gin.Experiment.learning_rates=3e-3", "--gin.Train.epochs=1",
        "--gin.Train.min_steps=30", *given,
        env={"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},  # 1,202 rows are read
    )  # fmt: skip
    return root, files, done.stdout


def test_the_large_model_alone_answers_725_in_1000_rows_rightly(ran):
    root, files, _ = ran
    rows = [json.loads(line) for line in files["validation"].read_text().splitlines()]
    right = 100 * np.mean([row["big_answer"] == row["answer"] for row in rows])
    assert right == pytest.approx(72.5, abs=0.05)
    held = json.loads((root / "results.json").read_text())
    (icl,) = (row for row in held["rows"] if row["paradigm"] == "icl" and row["language"] == "all")
    assert (icl["value"], icl["n"], icl["theta_beta"]) == (pytest.approx(right), 1202, "PaLM 540B")


def test_every_paradigm_has_its_line_with_an_interval_and_its_row_of_results(ran):
    root, _, printed = ran
    held = json.loads((root / "results.json").read_text())
    for paradigm in PARADIGMS:
        (row,) = (row for row in held["rows"] if row["paradigm"] == paradigm and row["language"] == "all")
        low, high = row["ci95"]
        assert low < row["value"] < high
        found = read_predictions(root / f"predictions/{row['cell']}.jsonl")
        assert row["value"] == pytest.approx(100 * np.mean([one.prediction == one.gold for one in found]))
        shown = f"{row['value']:.1f} [{low:.1f}, {high:.1f}]"
        assert any(paradigm in line.split() and shown in line for line in printed.splitlines())
    assert all(f"fiat − {other}" in printed for other in PARADIGMS if other != "fiat")
