"""What the cells of an experiment are given: nested rows, the same for every paradigm, and the ŷ_β that a name says."""

import dataclasses

import pytest
from support.world import IMPORT, weather_rows, write_rows

from fiat_jax.config import Config
from fiat_jax.errors import UserError
from fiat_jax.experiments.bench import Cell
from fiat_jax.experiments.cells import check_cells
from fiat_jax.experiments.paradigms import PARADIGMS
from fiat_jax.experiments.sections import SECTIONS
from fiat_jax.tasks.task import Task, read_rows

NOTHING_CUT = ("--gin.Prompts.max_length=200",)
TRAINED = [name for name, paradigm in PARADIGMS.items() if paradigm.trained]


def task_of(world) -> Task:
    task = Config(SECTIONS, [str(world.root / "weather.gin")]).build(Task)
    return dataclasses.replace(task, splits={k: str(world.root / v) for k, v in task.splits.items()})


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
    parts = {name: made.split(Cell(PARADIGMS[name], 48, 0)) for name in TRAINED}
    kept, held = parts["fiat"]
    agreeing = [row for row in kept if row["large_answer"] == row["answer"]]
    assert len(agreeing) < len(kept)
    for name, part in parts.items():
        assert part == (agreeing if PARADIGMS[name].agreeing else kept, held), name


def test_each_paradigm_reads_the_parts_of_the_large_model_s_words_that_its_name_says(bench):
    made = bench(*TRAINED, settings=NOTHING_CUT)
    row = made.train_rows[7]
    rationale, answer = ("reasoning", row["reasoning"]), ("large_answer", row["large_answer"])
    expected = {
        "finetune": {},
        "finetune-lora": {},
        "finetune-cot": {},
        "distilled": {},
        "fiat-no-reasoning": {},
        "fiat-no-instructions": dict([rationale, answer]),
        "fiat-dropout": dict([rationale, answer]),
        "fiat": dict([rationale, answer]),
        "fiat-full": dict([rationale, answer]),
        "fiat-answer-only": dict([answer]),
        "fiat-rationale-only": dict([rationale]),
    }
    for name, wanted in expected.items():
        found = read_by(made, name, row)
        assert {kind: text for kind, text in found.items() if kind in ("reasoning", "large_answer")} == wanted, name
        assert found["field:report"] == row["report"]
        assert ("instructions" in found) == (name.startswith("fiat") and name != "fiat-no-instructions")


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


def test_filtering_by_the_label_touches_training_rows_alone(bench):
    plain, filtered = bench("fiat"), bench("fiat", settings=["--gin.Reasoning.only_agreeing=True"])
    cell = Cell(PARADIGMS["fiat"], len(plain.train_rows), 0)
    (kept, held), (fewer, held_all) = plain.split(cell), filtered.split(cell)
    assert ids(fewer) == {row["id"] for row in kept if row["large_answer"] == row["answer"]} < ids(kept)
    assert ids(held_all) == ids(held)
    assert any(row["large_answer"] != row["answer"] for row in held_all)
    assert filtered.report_rows == plain.report_rows
    assert any(row["large_answer"] != row["answer"] for row in filtered.report_rows)
    assert filtered.identity(cell) != plain.identity(cell)


def test_other_texts_under_the_name_of_a_set_are_another_cell(bench):
    made, other = bench("fiat", "finetune"), bench("fiat", "finetune")
    by_id = dict(made.reasons.by_id)
    by_id["w0"] = dataclasses.replace(by_id["w0"], rationale="It was mended, and imported again.")
    other.reasons = dataclasses.replace(made.reasons, by_id=by_id)
    read, unread = Cell(PARADIGMS["fiat"], 96, 0), Cell(PARADIGMS["finetune"], 96, 0)
    assert made.identity(read) == bench("fiat", "finetune").identity(read) != other.identity(read)
    assert made.identity(unread) == other.identity(unread)


def test_rows_that_would_not_fit_when_they_are_scored_are_named_before_any_training(bench):
    made = bench("fiat")
    cells = [(made, Cell(PARADIGMS["fiat"], 96, 0))]
    check_cells(cells)
    kept, (row, *_) = made.report_rows, made.split(cells[0][1])[1]
    for rows, place in ((made.report_rows, 3), (made.train_rows, made.train_rows.index(row))):
        good = rows[place]
        rows[place] = {name: value for name, value in good.items() if name != "report"}
        with pytest.raises(UserError, match=good["id"]):
            check_cells(cells)
        rows[place] = good
    assert made.report_rows is kept


@pytest.fixture
def half_asked(project, tmp_path):
    """A store with the reasoning of half of the training rows and of `splits` whole, by name of split."""

    def make(*splits):
        rows = {name: read_rows(task_of(project), name) for name in ("train", "validation")}
        asked = [*rows["train"][::2], *(row for name in splits for row in rows[name])]
        file, store = write_rows(tmp_path / "half.jsonl", [dict(row) for row in asked]), tmp_path / "half"
        arguments = (f"--gin.Reasoning.store={store}", f"--gin.Import.splits={('train', *splits)}")
        done = project.main("reason", f"--import={file}", "--gin_file=weather.gin", *IMPORT, *arguments)
        assert done == 0
        return f"--gin.Reasoning.store={store}"

    return make


def test_training_may_begin_on_the_rows_that_have_reasoning_and_says_how_many_lack_it(bench, half_asked, caplog):
    store = half_asked("validation")
    with pytest.raises(UserError, match="no reasoning for 48 of 108 rows"):
        bench("fiat", settings=[store])
    made = bench("fiat", settings=[store, "--gin.Reasoning.partial=True"])
    assert (len(made.train_rows), len(made.report_rows)) == (48, 12)
    assert "48 of 96 rows of train have no reasoning by now, and are not trained on" in caplog.text


def test_rows_that_are_reported_must_have_reasoning_also_where_training_rows_need_not(bench, half_asked):
    settings = [half_asked(), "--gin.Reasoning.partial=True"]
    with pytest.raises(UserError, match="no reasoning for 12 of 108 rows"):
        bench("fiat", settings=settings)
    with pytest.raises(UserError, match="no reasoning for 48 of 96 rows"):
        bench("fiat", settings=[*settings, "--gin.Data.report_split=train"])
