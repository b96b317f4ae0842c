"""`fiat evaluate`: which split is scored, and that of a file given with --data."""

import json

import pytest

from fiat_jax.errors import UserError
from fiat_jax.evaluation.predictions import read_predictions
from fiat_jax.experiments.answers import choose_split, read_splits


@pytest.mark.parametrize(
    ("named", "splits", "chosen"),
    [
        (None, {}, "validation"),
        (None, {"test": "a.jsonl"}, "test"),
        ("dev", {}, "dev"),
        ("dev", {"test": "a.jsonl"}, "dev"),
        ("test", {"test": "a.jsonl", "other": "b.jsonl"}, "test"),
    ],
)
def test_the_split_is_the_one_named_else_the_only_one_given_else_validation(named, splits, chosen):
    assert choose_split(named, splits) == chosen


def test_several_given_splits_need_a_name():
    with pytest.raises(UserError, match=r"--data gives a, b: which one is to be scored\? Say so with --split NAME"):
        choose_split(None, {"a": "a.jsonl", "b": "b.jsonl"})


def test_a_split_is_given_as_name_and_source():
    assert read_splits(["test=data/a=b.jsonl"]) == {"test": "data/a=b.jsonl"}
    with pytest.raises(UserError, match=r"--data data.jsonl: expected NAME=FILE"):
        read_splits(["data.jsonl"])


def test_a_file_given_with_data_is_scored_as_the_split_of_its_name(trained):
    rows = (trained.root / "weather/test.jsonl").read_text().splitlines()
    (trained.root / "held.jsonl").write_text("\n".join(rows[:5]))
    trained.fiat("evaluate", "run", "--data=held=held.jsonl", "--workdir=held-out")
    held = json.loads((trained.root / "held-out/results.json").read_text())
    (overall,) = (row for row in held["rows"] if row["language"] == "all")
    assert (overall["split"], overall["n"], overall["selected_on"]) == ("held", 5, None)
    assert held["inputs"]["data"]["held"]["path"] == "held.jsonl"
    predictions = read_predictions(trained.root / "held-out/predictions/fiat-held.jsonl")
    assert [one.id for one in predictions] == [json.loads(row)["id"] for row in rows[:5]]
