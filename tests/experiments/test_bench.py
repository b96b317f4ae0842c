"""What the cells of an experiment are given: nested rows, the same for every paradigm, and the ŷ_β that a name says."""

import pytest
from support.world import weather_rows, write_rows

from fiat_jax.errors import UserError
from fiat_jax.experiments.bench import Cell
from fiat_jax.experiments.paradigms import PARADIGMS

NOTHING_CUT = ("--gin.Prompts.max_length=200",)
TRAINED = [name for name, paradigm in PARADIGMS.items() if paradigm.trained]


def ids(rows) -> set[str]:
    return {row["id"] for row in rows}


def read_by(bench, name: str, row, seed: int = 0) -> dict[str, str]:
    """Return kind of segment → text of what θ_τ reads of a row, under one paradigm."""
    cell = Cell(PARADIGMS[name], 0, seed)
    rendered = bench.feed(cell).render(row, bench.reasons_for(cell, bench.train_rows), with_target=False)
    return {segment.kind: segment.text.strip() for segment in rendered.segments}


@pytest.fixture
def large_bench(bench, tmp_path):
    rows = write_rows(tmp_path / "weather.jsonl", weather_rows(1200))
    splits = {"train": str(rows), "validation": "weather/validation.jsonl"}
    return bench("finetune", settings=[f"--gin.Task.splits={splits}"])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_200_rows_are_among_the_1000_and_selection_reads_a_tenth_of_them(large_bench, seed):
    parts = {size: large_bench.split(Cell(PARADIGMS["fiat"], size, seed)) for size in (200, 1000, 1200)}
    assert {size: (len(kept), len(held)) for size, (kept, held) in parts.items()} == {
        200: (180, 20),
        1000: (900, 100),
        1200: (1080, 120),
    }
    whole = {size: ids(kept) | ids(held) for size, (kept, held) in parts.items()}
    assert whole[200] < whole[1000] < whole[1200]
    assert {size: len(found) for size, found in whole.items()} == {200: 200, 1000: 1000, 1200: 1200}


def test_another_seed_takes_other_rows(large_bench):
    kept = [ids(large_bench.split(Cell(PARADIGMS["fiat"], 200, seed))[0]) for seed in (0, 1)]
    assert kept[0] != kept[1]


def test_every_trained_paradigm_trains_on_and_is_selected_by_the_same_rows(bench):
    made = bench(*TRAINED)
    parts = [made.split(Cell(PARADIGMS[name], 48, 0)) for name in TRAINED]
    assert all(part == parts[0] for part in parts)


def test_each_paradigm_reads_the_parts_of_the_large_model_s_words_that_its_name_says(bench):
    made = bench(*TRAINED, settings=NOTHING_CUT)
    row = made.train_rows[7]
    rationale, answer = ("reasoning", row["reasoning"]), ("large_answer", row["large_answer"])
    expected = {
        "finetune": {},
        "finetune-lora": {},
        "fiat-no-reasoning": {},
        "fiat": dict([rationale, answer]),
        "fiat-full": dict([rationale, answer]),
        "fiat-answer-only": dict([answer]),
        "fiat-rationale-only": dict([rationale]),
    }
    for name, wanted in expected.items():
        found = read_by(made, name, row)
        assert {kind: text for kind, text in found.items() if kind in ("reasoning", "large_answer")} == wanted, name
        assert found["field:report"] == row["report"]
        assert ("instructions" in found) == name.startswith("fiat")


def test_the_shuffled_control_reads_another_row_s_reasoning_and_every_row_s_is_read_once(bench):
    made = bench("fiat-shuffled", settings=NOTHING_CUT)
    own = {row["reasoning"]: row["id"] for row in made.train_rows}
    for seed in (0, 1):
        read = {row["id"]: read_by(made, "fiat-shuffled", row, seed) for row in made.train_rows}
        given = {row_id: own[found["reasoning"]] for row_id, found in read.items()}
        assert all(row_id != other for row_id, other in given.items())
        assert set(given.values()) == set(given)
        large = {row["id"]: row["large_answer"] for row in made.train_rows}
        assert all(found["large_answer"] == large[given[row_id]] for row_id, found in read.items())


def test_more_rows_than_there_are_is_refused(bench):
    with pytest.raises(UserError, match=r"sizes \[97\] exceed the 96 training rows there are; 0 means all"):
        bench("finetune", sizes=(48, 97))
