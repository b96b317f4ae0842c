"""Answers are found in what a tuned model writes, and None where there is none."""

import pytest

from fiat_jax.errors import UserError
from fiat_jax.evaluation.extract import find_extractor

LABELS = {"yes": "entailment", "maybe": "neutral", "no": "contradiction", "no way": "absurd"}


@pytest.mark.parametrize(
    ("kind", "completion", "answer"),
    [
        ("strip", "  two\nlines \n", "two\nlines"),
        ("strip", " \n", None),
        ("text", "\n Paris \nQuestion: next", "Paris"),
        ("text", "", None),
        ("number", "5 times 4 is 20.0.", "20"),
        ("number", "none", None),
        ("label", " Yes.\nPremise: no", "entailment"),
        ("choice", "no way", "absurd"),
        ("label", "nothing", None),  # "no" within a word is not the label
        ("label", "", None),
    ],
)
def test_the_answer_of_each_kind_of_task(kind, completion, answer):
    assert find_extractor(kind)(completion, LABELS) == answer


def test_an_unknown_extractor_names_the_near_one():
    with pytest.raises(UserError, match=r"extractor 'firstline' is unknown.*Did you mean 'first_line'"):
        find_extractor("firstline")
