"""The predictions file comes back as it was written, or says which line is wrong."""

import hashlib

import pytest

from fiat_jax.errors import UserError
from fiat_jax.evaluation.predictions import Prediction, read_predictions, write_predictions

PREDICTIONS = [
    Prediction("1", "bn", "হ্যাঁ", "yes", {"yes": -0.125, "no": -1e-9}, None, {"accuracy": 1.0}),
    Prediction("2", "und", None, None, None, "a line\u2028separator\nand another"),
]


def test_a_predictions_file_reads_back_as_written(tmp_path):
    path = tmp_path / "predictions" / "fiat-200-0.jsonl"
    digest = write_predictions(path, PREDICTIONS)
    assert read_predictions(path) == PREDICTIONS
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_score_that_is_not_finite_is_not_written(tmp_path):
    path = tmp_path / "cell.jsonl"
    write_predictions(path, PREDICTIONS)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_predictions(path, [Prediction("1", "en", "a", "a", {"a": float("nan")})])
    assert read_predictions(path) == PREDICTIONS


@pytest.mark.parametrize("damage", [b'{"id": "3", "lang', b'{"id": "3"}\n', b"[1]\n", b'{"id": "\xff"}\n'])
def test_a_damaged_line_is_named(tmp_path, damage):
    path = tmp_path / "cell.jsonl"
    write_predictions(path, PREDICTIONS)
    path.write_bytes(path.read_bytes() + damage)
    with pytest.raises(UserError, match=r"cell\.jsonl line 3: "):
        read_predictions(path)


def test_an_absent_file_is_an_error_that_says_so(tmp_path):
    with pytest.raises(UserError, match=r"cell\.jsonl: no such predictions file"):
        read_predictions(tmp_path / "cell.jsonl")
