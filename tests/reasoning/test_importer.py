import json

import pytest

from fiat_jax.errors import UserError
from fiat_jax.prompts.extract import Reasoning
from fiat_jax.reasoning.importer import import_reasoning
from fiat_jax.reasoning.join import join
from fiat_jax.tasks.task import Task, read_rows

MAPPING = {"rationale": "reasoning", "answer": "big_answer"}


@pytest.fixture
def bring(task, rows, store, tmp_path):
    """Writes entries to a file and imports it for all rows."""

    def make(entries, mapping=MAPPING, **changes):
        path = tmp_path / "reasoning.jsonl"
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return import_reasoning(
            task, changes.pop("rows", rows), path, store, mapping=mapping, model="PaLM 540B", **changes
        )

    return make


def entry(number, **changes):
    return {"id": f"train-{number}", "reasoning": f"why {number}", "big_answer": "even"} | changes


def test_imported_reasoning_is_joined_to_its_rows(task, rows, store, bring):
    imported = bring([entry(n) for n in range(20)])
    assert (imported.written, imported.before, imported.without_reasoning, imported.unknown) == (20, 0, (), 0)
    assert join(task, rows, store, imported.set_key).reasoning["train-4"] == Reasoning("why 4", "even")
    provenance = store.provenance(imported.set_key)
    assert (provenance.source, provenance.mapping) == ("imported", MAPPING)
    assert provenance.model == {"name": "PaLM 540B", "revision": ""}


def test_what_the_file_lacks_is_reported_and_not_invented(store, bring):
    entries = [entry(0), entry(1, reasoning=""), entry(2, reasoning=None), entry(3, big_answer=""), entry(99)]
    imported = bring(entries)
    assert (imported.written, imported.without_answer, imported.unknown) == (2, 1, 1)
    assert imported.without_reasoning == ("train-1", "train-2", *(f"train-{n}" for n in range(4, 20)))
    assert {record.answer for record in store.lookup(imported.set_key).values()} == {"even", None}


def test_importing_again_changes_nothing(store, bring):
    first = bring([entry(n) for n in range(20)])
    again = bring([entry(n) for n in range(20)])
    assert (again.set_key, again.written, again.before) == (first.set_key, 0, 20)
    assert store.verify() == []


def test_other_reasoning_for_a_stored_row_needs_another_revision(bring):
    first = bring([entry(0)])
    with pytest.raises(UserError, match=r"'train-0' is stored in set .* import it under another revision"):
        bring([entry(0, reasoning="on second thought")])
    second = bring([entry(0, reasoning="on second thought")], revision="2")
    assert second.set_key != first.set_key


def test_entries_of_other_rows_with_the_same_ids_are_refused(store, bring):
    with pytest.raises(
        UserError, match=r"reasoning.jsonl line 2: 'question' is '77', but '1' in .*parity.jsonl line 2"
    ):
        bring([entry(0, question="0"), entry(1, question="77")])
    assert store.sets() == {}


def test_two_entries_for_one_row_that_differ_are_named_with_their_lines(bring):
    assert bring([entry(0), entry(0)]).written == 1
    with pytest.raises(UserError, match=r"line 3: the id 'train-0' is also that of .*line 1, with other reasoning"):
        bring([entry(0), entry(1), entry(0, reasoning="else")])


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"rationale": "reasonning"}, r"line 1: field 'reasonning' is missing.* Did you mean 'reasoning'\?"),
        ({"rationale": "reasoning", "id": "key"}, "field 'key' is missing"),
        ({"rational": "reasoning"}, r"names 'rational'; it maps rationale, answer, id\. Did you mean 'rationale'\?"),
        ({"answer": "big_answer"}, "does not say which field is the rationale"),
        ({"rationale": "steps"}, r"'steps' is \['a'\]; reasoning is text"),
    ],
)
def test_a_wrong_mapping_is_named(bring, mapping, message):
    with pytest.raises(UserError, match=message):
        bring([entry(0, steps=["a"])], mapping)


def test_the_palm_reasoning_of_real_data_enters(shared_data, store):
    path = str(shared_data / "esnli" / "validation.jsonl")
    task = Task(
        name="esnli",
        splits={"validation": path},
        fields=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
    )
    rows = read_rows(task, "validation")
    imported = import_reasoning(task, rows, path, store, mapping=MAPPING, model="PaLM 540B")
    assert (imported.written, imported.without_reasoning, imported.without_answer) == (1202, (), 2)
    joined = join(task, rows, store, imported.set_key)
    right = sum(joined.reasoning[row["id"]].answer == row["answer"] for row in rows)
    assert round(100 * right / len(rows), 1) == 72.5
