"""Simple readers of the demo's task: better than nothing, far from right."""

import pytest

from fiat_jax.demo.sanity import READERS, simple_answers
from fiat_jax.demo.task import TaskConfig, rows


@pytest.fixture(scope="module")
def right():
    config = TaskConfig(train=400, test=300)
    train, test = rows(config, "train"), rows(config, "test")
    answers = {reader: simple_answers(train, test, reader) for reader in READERS}
    return {
        reader: sum(a == row["answer"] for a, row in zip(found, test, strict=True)) / len(test)
        for reader, found in answers.items()
    }


def test_no_simple_reader_comes_far(right):
    assert all(0.02 < share < 0.5 for share in right.values())


def test_who_sees_both_is_better_than_who_is_blind_to_one(right):
    assert right["bag of words"] > max(right["question-blind"], right["passage-blind"])
