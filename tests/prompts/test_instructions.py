from pathlib import Path

import pytest

from fiat_jax.errors import UserError
from fiat_jax.prompts.instructions import load_instructions

SHIPPED = Path(__file__).parents[2] / "prompts"


def refuse(path, match, rows=None):
    with pytest.raises(UserError, match=match):
        load_instructions(path, rows)


def test_exemplars_named_by_id_become_the_text_of_their_rows(write, rows):
    instructions = load_instructions(write(), lambda split: rows if split == "train" else {})
    assert instructions.reasoning_prefix("default") == (
        "Is the weather good?\n\n"
        "Report: sun all day\nReasoning: sun is good. So: yes.\n\n"
        "Report: hail\nReasoning: hail hurts. So: no.\n\n"
    )
    assert instructions.exemplar_ids == {"w1", "w2"}


def test_unresolved_exemplars_leave_the_answer_side_usable(write, rows):
    instructions = load_instructions(write())
    assert instructions.exemplar_ids == {"w1", "w2"}
    assert instructions.answer_hash == load_instructions(write(), rows).answer_hash
    with pytest.raises(UserError, match="give the task whose train split"):
        _ = instructions.reasoning_hash


def test_an_unknown_exemplar_is_named_with_a_near_id(write, rows):
    refuse(write(("[w1, w2]", "[w1, w22]")), r"no row with id 'w22'.*Did you mean 'w2'\?", rows)


def test_an_exemplar_without_a_rationale_says_which_field_was_read(write, rows):
    refuse(write(("[w1, w2]", "[w3]")), "'w3' has no field 'why'", rows)


def test_the_reasoning_hash_follows_the_resolved_text_and_the_settings(write, rows):
    first = load_instructions(write(), rows).reasoning_hash
    written = "{split: train, rationale: why, ids: [w1, {id: w2, report: hail, rationale: hail hurts., answer: bad}]}"
    same = write(
        ("{split: train, rationale: why, ids: [w1, w2]}", written),
        ("max_tokens: 32", "max_tokens:   32"),
        ("name: weather", "name: hail # x"),
    )
    assert load_instructions(same, rows).reasoning_hash == first
    changed = rows | {"w1": rows["w1"] | {"report": "sun all night"}}
    assert load_instructions(write(), changed).reasoning_hash != first
    for old, new in [("[w1, w2]", "[w2, w1]"), ("max_tokens: 32", "max_tokens: 33"), ("Is the", "Was the")]:
        assert load_instructions(write((old, new)), rows).reasoning_hash != first
    assert load_instructions(write(("Say yes", "Write yes")), rows).reasoning_hash == first


def test_the_answer_hash_follows_the_answer_side_alone(write, rows):
    first = load_instructions(write(), rows).answer_hash
    assert load_instructions(write(("Is the weather", "Was the weather")), rows).answer_hash == first
    for old, new in [("Say yes", "Write yes"), ("[reasoning, report]", "[report]"), ("good: yes", "good: ja")]:
        assert load_instructions(write((old, new)), rows).answer_hash != first


def test_exemplars_may_differ_by_the_value_of_a_field(write, rows):
    sets = "{split: train, rationale: why, by: lang, sets: {fi: [w2], default: [w1]}}"
    instructions = load_instructions(write(("{split: train, rationale: why, ids: [w1, w2]}", sets)), rows)
    chosen = {lang: instructions.exemplars_for({"lang": lang})[0].id for lang in ("fi", "sw")}
    assert chosen == {"fi": "w2", "sw": "w1"}
    assert instructions.exemplars_for({})[0].id == "w1"


def test_a_value_without_a_set_and_without_a_fallback_is_refused(write, rows):
    sets = "{split: train, rationale: why, by: lang, sets: {fi: [w2]}}"
    instructions = load_instructions(write(("{split: train, rationale: why, ids: [w1, w2]}", sets)), rows)
    with pytest.raises(UserError, match="no exemplars for lang 'sw'; sets exist for fi"):
        instructions.exemplars_for({"id": "1", "lang": "sw"})


def test_yes_and_no_are_words_and_true_is_a_label(write, rows):
    instructions = load_instructions(write(("{good: yes, bad: no}", "{true: yes, false: no}")))
    assert instructions.labels == {"true": "yes", "false": "no"}
    assert instructions.verbalise(True) == "yes"


def test_words_and_labels_translate_both_ways(write, rows):
    instructions = load_instructions(write(), rows)
    assert instructions.label_of("YES") == "good"
    assert instructions.label_of("perhaps") == "perhaps"
    assert instructions.verbalise("perhaps", strict=False) == "perhaps"
    with pytest.raises(UserError, match=r"no word for the label 'goood'.*Did you mean 'good'\?"):
        instructions.verbalise("goood")
    found = instructions.extract(" hail hurts. So: no.\n\nReport")
    assert (found.rationale, found.answer) == ("hail hurts.", "bad")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("version: 1", "version: 2", "version is 2"),
        ("name: weather", "nmae: weather", r"'name' is missing; add it\. Did you mean 'nmae'"),
        ("  truncate:", "  trunkate:", r"unknown key 'trunkate'.*Did you mean 'truncate'\?"),
        ("  stop: [", "  stop: [7, ", "must be a list of texts"),
        ("name: weather", "name: weather\nname: w", "line 3: the key 'name' appears twice"),
        ("fields: {report", "fields: {report: [", "line 3: .*not valid YAML"),
        ("report: text", "report: txt", "unknown kind 'txt'; kinds are text, number, list, letters"),
        ("report: text", "answer: text", "cannot be called 'answer'"),
        ("    Report: {report}\n    Reasoning", "    {reprot}\n    Reasoning", r"unknown slot \{reprot\}.*'report'"),
        ("Good? {answer}", "{answer} Good?", r"must end with \{answer\}"),
        ("Good? {answer}", "Good? {report}{answer}", "put a space"),
        ("Good? {answer}", "Good} {answer}", "for braces that are text"),
        ("Hint: {rationale} So {answer}.", "Hint: {rationale}", r"full must show \{answer\}"),
        ("    {reasoning}\n", "", r"shows \{reasoning\} exactly where"),
        ("[reasoning, report]", "[options]", "what can be cut is report, reasoning"),
        ("{rationale} So: {answer}", "{answer} {rationale}", r"shows \{answer\} before"),
        ("good: yes", "good: no", "words of its own"),
        ("max_tokens: 32", "max_token: 32", r"unknown setting 'max_token'.*'max_tokens'"),
        ("max_tokens: 32", "max_tokens: 0.5", "must be a number of kind int"),
        ("kind: after", "kind: behind", "known are after, last_number, label, regex"),
        ('{kind: after, text: "So:"}', "{kind: regex, pattern: '('}", "is no regular expression"),
        ('{kind: after, text: "So:"}', "{kind: regex, pattern: 'a'}", "needs a group named answer"),
    ],
)
def test_a_mistake_in_the_file_is_named_by_its_place(write, rows, old, new, match):
    refuse(write((old, new)), match, rows)


def test_an_absent_file_and_a_file_that_is_not_utf8_are_refused(tmp_path):
    refuse(tmp_path / "no.yaml", "there is no instruction file")
    (tmp_path / "latin.yaml").write_bytes("name: räntä".encode("latin-1"))
    refuse(tmp_path / "latin.yaml", "is not UTF-8")


def test_braces_in_instructions_are_text_and_doubled_ones_in_templates_too(write, rows):
    path = write(("Say yes or no.", 'Say {"a": 1}.'), ("Good? {answer}", "{{Good}}? {answer}"))
    side = load_instructions(path, rows).answer_side
    assert side.instructions == 'Say {"a": 1}.'
    assert side.template.parts[-1].text == "\n{Good}? "


@pytest.mark.parametrize("name", ["esnli", "cqa", "svamp"])
def test_shipped_files_load_and_hold_no_row(name):
    instructions = load_instructions(SHIPPED / f"{name}.yaml")
    assert instructions.name == name
    assert instructions.reasoning_side is not None
    exemplars = instructions.reasoning_side.exemplars
    assert all(e.row is None for exemplar_set in exemplars.sets.values() for e in exemplar_set)
    assert len(instructions.exemplar_ids) >= 4
