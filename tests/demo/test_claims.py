"""The claims, measured on predictions whose truth is known."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from fiat_jax.demo.claims import RIVALS, RUNGS, Finished, claims, print_claims, read_measured
from fiat_jax.errors import UserError
from fiat_jax.evaluation.predictions import Prediction, write_predictions

LANGUAGES = ("aa", "bb", "cc", "dd")
ROWS = 60
RIGHT = {"icl": 0.6, "fiat": 0.9, "fiat-no-reasoning": 0.5, "finetune-lora": 0.4, "finetune": 0.3, "fiat-shuffled": 0.2}


def predictions(share: float, seed: int) -> list[Prediction]:
    """Rows that are right with a probability."""
    rng = np.random.default_rng(seed)
    return [
        Prediction(f"{language}-{row}", language, "x", "x", values={"f1": float(rng.random() < share)})
        for language in LANGUAGES
        for row in range(ROWS)
    ]


def write_run(workdir, shares, seeds=(0, 1), sizes=(100, 400)) -> list[dict[str, object]]:
    """Write the predictions of an experiment, and return its result rows."""
    rows = []
    for number, (paradigm, share) in enumerate(shares.items()):
        cells = [(paradigm, 0, 0)] if paradigm == "icl" else [(paradigm, n, s) for n in sizes for s in seeds]
        for name, size, seed in cells:
            cell = f"{name}-{size}-seed{seed}"
            made = predictions(share, hash((number, size, seed)) % 2**31)
            write_predictions(workdir / "predictions" / f"{cell}.jsonl", made)
            rows.append({"cell": cell, "paradigm": name, "size": size, "seed": seed, "metric": "f1"})
    return rows


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    tuned, base = tmp_path_factory.mktemp("tuned"), tmp_path_factory.mktemp("base")
    runs = [
        Finished("", tuned, write_run(tuned, RIGHT)),
        Finished("base: ", base, write_run(base, {"finetune": 0.1})),
    ]
    first = read_measured(runs, lambda one: int(one.id.split("-")[1]) < ROWS // 2)
    return claims(read_measured(runs), first, {"bare": predictions(0.2, 5), "instructed": predictions(0.5, 6)})


def test_every_rung_is_there_at_every_size_and_each_loses_something(found):
    shares = [*(RIGHT[name] for _, name in RUNGS[:-1]), 0.1]
    for size in (100, 400):
        rungs = [row for row in found["ladder"] if row["size"] == size]
        assert [row["rung"] for row in rungs] == [rung for rung, _ in RUNGS]
        for rung, share in zip(rungs, shares, strict=True):
            assert rung["value"] == pytest.approx(100 * share, abs=8)
            assert rung["ci95"][0] < rung["value"] < rung["ci95"][1]
        assert rungs[0]["step"] is None
        assert all(rung["step"]["difference"] < 0 for rung in rungs[1:])


def test_fiat_is_compared_with_each_rival_at_each_size_and_seed(found):
    assert [(row["rival"], row["size"]) for row in found["fiat_against"]] == [
        (r, n) for r in RIVALS for n in (100, 400)
    ]
    for row in found["fiat_against"]:
        assert row["difference"] == pytest.approx(100 * (0.9 - RIGHT[row["rival"]]), abs=9)
        assert row["ci95"][0] > 0
        assert len(row["of_seeds"]) == 2
        assert np.mean([one["difference"] for one in row["of_seeds"]]) == pytest.approx(row["difference"])


def test_the_same_is_told_of_the_rows_that_are_wanted(found):
    of_all, of_some = found["fiat_against"], found["fiat_against_where_marked_whole"]
    for a, b in zip(of_all, of_some, strict=True):
        assert (a["rival"], a["size"]) == (b["rival"], b["size"])
        assert a["difference"] != b["difference"] == pytest.approx(a["difference"], abs=15)


def test_instructions_and_controls_are_told(found):
    start = found["instructions_at_step_0"]
    assert start["gain"]["difference"] == pytest.approx(start["instructed"]["value"] - start["bare"]["value"])
    assert [row["system"] for row in found["controls"]] == ["fiat-shuffled"] * 2


def test_gains_are_told_for_every_size_and_language(found):
    assert list(found["gain_of_reasoning"]) == [100, 400]
    for gains in found["gain_of_reasoning"].values():
        assert list(gains["gains"]) == list(LANGUAGES)
        assert -1 <= gains["ci95"][0] <= gains["ci95"][1] <= 1


def test_they_can_be_read(found):
    console = Console(file=io.StringIO(), record=True, width=200)
    print_claims(found, console)
    text = console.export_text()
    for rung, _ in RUNGS:
        assert rung in text
    assert "rank correlation" in text
    assert f"{found['ladder'][0]['value']:.1f}" in text


def test_predictions_of_other_rows_are_refused(tmp_path):
    rows = write_run(tmp_path, {"fiat": 0.5, "icl": 0.5})
    other = [replace(one, id=one.id + "x") for one in predictions(0.5, 1)]
    write_predictions(tmp_path / "predictions" / "icl-0-seed0.jsonl", other)
    with pytest.raises(UserError, match="of other rows"):
        read_measured([Finished("", tmp_path, rows)])
