import dataclasses

import pytest

from fiat_jax.errors import UserError
from fiat_jax.prompts.extract import Reasoning
from fiat_jax.reasoning.join import join
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
    assert join(task, [changed], store, set_key, allow_missing=True).missing == ("train-3",)


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
    from fiat_jax.reasoning.generate import provenance_of

    provenance = provenance_of(task, renderer.instructions, {"name": "big"})
    assert provenance.exemplar_ids == ("train-2",)
    assert provenance.exemplar_rows == (row_key(task, rows[2]),)


def test_an_unknown_set_is_an_error_that_lists_the_known(task, rows, store, fill):
    set_key = fill()
    with pytest.raises(UserError, match=rf"no set 'abc'(.|\n)*{set_key}"):
        join(task, rows, store, "abc")
