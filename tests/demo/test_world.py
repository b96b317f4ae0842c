"""The generated world: the same every time, nothing shared between splits, a large model as good as intended."""

import re
from collections import Counter

import pytest

from fiat_jax.demo.world import HOMES, KINDS, LABELS, SLIPS, SPLITS, STORY, WEATHERS, World, WorldConfig

LARGE = WorldConfig(seed=7, train=6000, test=3000)


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\b[A-Z][a-z]{3}\b", text)) - {"What", "This", "When"}


def test_one_seed_makes_one_world_and_another_seed_another(world):
    again, other = World(WorldConfig()), World(WorldConfig(seed=1))
    for split in SPLITS:
        assert world.rows(split) == again.rows(split)
        assert world.rows(split) != other.rows(split)
    assert list(world.stories()) == list(again.stories())


def test_more_rows_of_one_split_change_no_other_split(world):
    assert World(WorldConfig(train=100, pages=10)).rows("test") == world.rows("test")


def test_no_creature_is_met_in_two_splits_or_in_the_stories(world):
    met = {split: names_in(" ".join(row["context"] for row in world.rows(split))) for split in SPLITS}
    met[STORY] = names_in(" ".join(world.stories()))
    assert all(len(names) > 100 for names in met.values())
    assert all(met[split] <= set(world.creatures[split]) for split in met)
    assert sum(map(len, met.values())) == len(set.union(*met.values()))


def test_no_row_is_in_two_splits(world):
    seen = Counter((row["context"], row["question"]) for split in SPLITS for row in world.rows(split))
    assert max(seen.values()) == 1


def test_the_answer_follows_from_the_home_in_the_context_and_the_weather_in_the_question(world):
    for row in world.rows("test"):
        words = world.words[row["lang"]]
        (weather,) = (weather for weather in WEATHERS if words[weather] in row["question"])
        (name,) = names_in(row["question"])
        (statement,) = (part for part in row["context"].split(".") if name in part)
        (home,) = (home for home in HOMES if words[home] in statement)
        assert row["answer"] == world.laws[home, weather]


def test_languages_share_no_word(world):
    words = [word for kind in KINDS for word in world.words[kind.code].values()]
    assert len(words) == len(set(words))


def test_training_rows_are_mostly_of_the_common_language_and_test_rows_of_all_alike(world):
    train, test = (Counter(row["lang"] for row in world.rows(split)) for split in ("train", "test"))
    assert {kind.code: train[kind.code] / train.total() for kind in KINDS} == pytest.approx(
        {kind.code: kind.share for kind in KINDS}, abs=0.01
    )
    assert set(test.values()) == {200}


def test_no_label_is_much_more_frequent_than_another(world):
    counts = Counter(row["answer"] for row in world.rows("train"))
    assert all(0.28 < counts[label] / counts.total() < 0.39 for label in LABELS)


def test_the_large_model_is_right_in_three_quarters_of_the_rows_and_worst_at_the_rare_language():
    rows = World(LARGE).rows("test")
    right = {
        kind.code: sum(row["answer"] == row["large_answer"] for row in rows if row["lang"] == kind.code) / 1000
        for kind in KINDS
    }
    assert 0.70 < sum(right.values()) / len(right) < 0.80
    assert right["oshi"] < right["bren"] - 0.04
    assert right["bren"] < right["talu"]


def test_where_the_large_model_is_wrong_its_reasoning_mostly_has_the_right_home():
    world = World(LARGE)
    wrong = [row for row in world.rows("test") if row["answer"] != row["large_answer"]]
    follows = [row["answer"] == world.laws[fact(row, HOMES), fact(row, WEATHERS)] for row in wrong]
    assert 0.6 < sum(follows) / len(wrong) < 0.9


def test_the_large_model_slips_as_often_as_it_was_meant_to():
    world = World(LARGE)
    rows = world.rows("train")
    slipped = sum(row["large_answer"] != world.laws[fact(row, HOMES), fact(row, WEATHERS)] for row in rows)
    assert slipped / len(rows) == pytest.approx(SLIPS, abs=0.02)


def fact(row, known: tuple[str, ...]) -> str:
    """Return which of the known words the reasoning names."""
    (found,) = (word for word in known if word in row["reasoning"])
    return found
