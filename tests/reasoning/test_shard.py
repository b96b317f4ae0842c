import pytest

from fiat_jax.errors import UserError
from fiat_jax.reasoning.shard import EVERYTHING, Shard


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_every_row_is_in_one_shard_whatever_the_order(task, rows, of):
    parts = [Shard(index, of).rows(task, rows) for index in range(of)]
    assert sorted(row["id"] for part in parts for row in part) == sorted(row["id"] for row in rows)
    assert [sorted(Shard(0, of).rows(task, rows[::-1]), key=rows.index)] == [parts[0]]


def test_rows_of_equal_content_are_in_the_same_shard(task, rows):
    twin = {**rows[3], "id": "twin"}
    for index in range(3):
        held = {row["id"] for row in Shard(index, 3).rows(task, [*rows, twin])}
        assert ("twin" in held) == ("train-3" in held)


def test_a_shard_is_named_by_its_place_from_0():
    assert [Shard.parse(f"{index}/3") for index in range(3)] == [Shard(0, 3), Shard(1, 3), Shard(2, 3)]
    assert Shard(1, 3).file("quarantine.jsonl") == "quarantine-1-of-3.jsonl"
    assert EVERYTHING.file("quarantine.jsonl") == "quarantine.jsonl"


@pytest.mark.parametrize("wrong", ["3/3", "1", "-1/3", "0/0", "a/b", "1/3/5"])
def test_what_is_no_shard_is_an_error_that_shows_some(wrong):
    with pytest.raises(UserError, match="expected i/n with i from 0"):
        Shard.parse(wrong)
