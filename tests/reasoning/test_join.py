import dataclasses

import pytest

from fiat_jax.errors import UserError
from fiat_jax.prompts.extract import Reasoning
from fiat_jax.reasoning.join import join, majority
from fiat_jax.store import Provenance, Record
from fiat_jax.tasks.task import row_key


@pytest.fixture
def fill(task, rows, store):
    """Stores "why N" for the given rows; returns the key of the set."""

    def make(chosen=None, **changes):
        provenance = dataclasses.replace(Provenance(model={"name": "big"}), **changes)
        with store.open_set(provenance) as writer:
            for row in rows if chosen is None else chosen:
                why = f"why {row['question']}"
                key = provenance.set_key
                writer.append(Record(key, row_key(task, row), 0, row["id"], why, why, "even", "stop"))
        return provenance.set_key

    return make


def test_each_row_gets_the_reasoning_of_its_content(task, rows, store, fill):
    joined = join(task, rows[::-1], store, fill())
    assert joined.reasoning == {row["id"]: Reasoning(f"why {row['question']}", "even") for row in rows}
    assert (joined.excluded, joined.missing) == ((), ())


def test_reasoning_follows_the_content_of_a_row_and_not_its_id(task, rows, store, fill):
    set_key = fill()
    renamed = {**rows[3], "id": "another name"}
    assert join(task, [renamed], store, set_key).reasoning == {"another name": Reasoning("why 3", "even")}
    changed = {**rows[3], "question": "33"}
    assert join(task, [changed], store, set_key, optional={"train-3"}).missing == ("train-3",)


def test_rows_without_reasoning_are_counted_and_the_command_that_makes_them_is_named(task, rows, store, fill):
    set_key = fill(rows[:8])
    with pytest.raises(
        UserError, match=r"12 of 20 rows of task parity \(train-8, train-9, train-10, …\).*`fiat reason"
    ):
        join(task, rows, store, set_key)
    with pytest.raises(UserError, match=r"`fiat reason --gin_file=x\.gin`"):
        join(task, rows, store, set_key, command="fiat reason --gin_file=x.gin")
    imported = fill(rows[:8], source="imported", mapping={"rationale": "why"})
    with pytest.raises(UserError, match="`fiat reason --import FILE`"):
        join(task, rows, store, imported)


def test_a_row_whose_answer_the_prompt_shows_is_excluded(task, rows, store, fill):
    by_id = fill(exemplar_ids=("train-2",))
    by_content = fill(exemplar_rows=(row_key(task, rows[5]),))
    assert join(task, rows, store, by_id).excluded == ("train-2",)
    assert join(task, rows, store, by_content).excluded == ("train-5",)
    joined = join(task, rows, store, by_id, {"train-7"})
    assert joined.excluded == ("train-2", "train-7")
    assert not {"train-2", "train-7"} & joined.reasoning.keys()
    assert len(joined.reasoning) == 18


def test_a_copy_of_an_exemplar_under_another_id_is_excluded_too(task, rows, store, fill):
    copy = {**rows[2], "id": "copy"}
    assert join(task, [*rows, copy], store, fill(exemplar_ids=("train-2",))).excluded == ("train-2", "copy")


def test_what_generate_stores_excludes_its_own_exemplars(task, rows, renderer, store):
    from fiat_jax.reasoning.wanted import provenance_of

    provenance = provenance_of(task, renderer.instructions, {"name": "big"})
    assert provenance.exemplar_ids == ("train-2",)
    assert provenance.exemplar_rows == (row_key(task, rows[2]),)


def test_an_unknown_set_is_an_error_that_lists_the_known(task, rows, store, fill):
    set_key = fill()
    with pytest.raises(UserError, match=rf"no set 'abc'(.|\n)*{set_key}"):
        join(task, rows, store, "abc")


def test_only_rows_that_are_said_to_be_optional_may_lack_reasoning(task, rows, store, fill):
    set_key = fill(rows[:8])
    some = {row["id"] for row in rows[6:]}
    assert join(task, rows, store, set_key, optional=some).missing == tuple(row["id"] for row in rows[8:])
    with pytest.raises(UserError, match=r"no reasoning for 1 of 20 rows of task parity \(train-19\)"):
        join(task, rows, store, set_key, optional=some - {"train-19"})


def test_two_rows_of_one_id_that_differ_are_an_error_and_copies_are_not(task, rows, store, fill):
    set_key = fill()
    assert len(join(task, [*rows, rows[3]], store, set_key).reasoning) == 20
    with pytest.raises(
        UserError, match=r"another row of task parity has the id 'train-3'.*make ids differ between splits"
    ):
        join(task, [*rows, {**rows[3], "question": "4"}], store, set_key)


def samples_of(*answers):
    return [Reasoning(f"why {number}", answer) for number, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [
        (["even", "odd", "odd"], 1),
        (["even", "odd"], 0),
        (["odd", "even", "even", "odd"], 0),
        ([None, None, "odd"], 2),
        ([None, None], 0),
    ],
)
def test_the_vote_goes_to_the_answer_of_most_samples_and_of_ties_to_the_first(answers, chosen):
    samples = samples_of(*answers)
    assert majority(samples) == samples[chosen]


def test_a_vote_is_asked_for_and_counts_samples_in_their_order(task, rows, store, provenance_of_samples):
    set_key = provenance_of_samples(["even", "odd", "odd"])
    assert join(task, rows[:1], store, set_key).reasoning == {"train-0": Reasoning("why 0", "even")}
    assert join(task, rows[:1], store, set_key, vote=True).reasoning == {"train-0": Reasoning("why 1", "odd")}


@pytest.fixture
def provenance_of_samples(task, rows, store):
    """Stores samples of the first row with these answers, the last one first; returns the key of the set."""

    def make(answers):
        provenance = Provenance(model={"name": "big"}, decoding={"temperature": 1.0})
        with store.open_set(provenance) as writer:
            for number, one in reversed(list(enumerate(samples_of(*answers)))):
                key, text = row_key(task, rows[0]), one.rationale
                record = Record(provenance.set_key, key, number, rows[0]["id"], text, text, one.answer, "stop")
                writer.append(record)
        return provenance.set_key

    return make
