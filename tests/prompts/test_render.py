import numpy as np
import pytest

from fiat_jax.errors import UserError
from fiat_jax.prompts.extract import Reasoning
from fiat_jax.prompts.fields import SourceRow
from fiat_jax.prompts.instructions import load_instructions
from fiat_jax.prompts.render import Renderer

HINT = Reasoning("rain is wet.", "bad")


@pytest.fixture
def make(write, rows, plain):
    def make(*replacements, tokenizer=plain, max_length=300, **settings):
        return Renderer(load_instructions(write(*replacements), rows), tokenizer, max_length, **settings)

    return make


def text_of(rendered):
    return "".join(segment.text for segment in rendered.segments)


def kinds_of(rendered):
    return [segment.kind for segment in rendered.segments]


def test_the_target_is_the_word_for_the_label_and_the_end_token(make, rows, plain):
    rendered = make().answer(rows["w3"], HINT, "bad")
    assert plain.decode(rendered.inputs) == (
        "Say yes or no.\n\nReport: light rain at noon\nHint: rain is wet. So no.\nGood?"
    )
    assert rendered.target.tolist() == [*plain.encode(" no"), plain.eos_id]
    assert rendered.inputs.dtype == rendered.target.dtype == np.int32


def test_without_a_target_the_inputs_are_the_same(make, rows):
    with_target, without = (make().answer(rows["w3"], HINT, target) for target in ("bad", None))
    assert without.inputs.tolist() == with_target.inputs.tolist()
    assert without.target.size == 0


def test_candidates_are_the_targets_of_their_labels(make, rows, plain, joined):
    for tokenizer in (plain, joined):
        renderer = make(tokenizer=tokenizer)
        for label, ids in zip(("good", "bad"), renderer.candidates(("good", "bad")), strict=True):
            assert ids.tolist() == renderer.answer(rows["w3"], None, label).target.tolist()


def test_a_space_goes_to_the_word_that_it_belongs_to(make, rows, joined):
    rendered = make(tokenizer=joined).answer(rows["w3"], HINT, "bad")
    assert rendered.inputs[0] == joined.bos_id
    assert [segment.text for segment in rendered.segments if segment.kind == "answer"] == [" no"]
    assert [segment.text for segment in rendered.segments if segment.kind == "reasoning"] == [" rain is wet."]
    whole = [joined.bos_id, *joined.encode(text_of(rendered)[len("<s>") : -len("</s>")], start=True), joined.eos_id]
    assert [*rendered.inputs, *rendered.target] == whole


def test_what_an_encoder_reads_ends_with_the_end_token_and_the_answer_is_a_text_of_its_own(make, rows, apart):
    rendered = make(tokenizer=apart).answer(rows["w3"], HINT, "bad")
    assert apart.start_id == 7
    assert kinds_of(rendered)[-3:] == ["end", "answer", "eos"]
    read = "Say yes or no. Report: light rain at noon Hint: rain is wet. So no. Good?"
    assert rendered.inputs.tolist() == [*apart.encode(read, start=True), apart.eos_id]  # as one text, "no." uncut
    assert rendered.target.tolist() == [*apart.encode("no", start=True), apart.eos_id]
    assert rendered.target.tolist() == make(tokenizer=apart).candidates(["bad"])[0].tolist()
    assert make(tokenizer=apart).reasoning_prompt(rows["w3"]).own_ids[-1] == apart.eos_id


def test_the_end_of_what_an_encoder_reads_is_never_cut(make, rows, apart):
    whole = make(tokenizer=apart).answer(rows["w3"], HINT, "bad")
    answer = max(map(len, make(tokenizer=apart).candidates(["good", "bad"])))
    cut = make(tokenizer=apart, max_length=len(whole.inputs) + answer - 5).answer(rows["w3"], HINT, "bad")
    assert len(cut.inputs) == len(whole.inputs) - 5
    assert cut.inputs[-1] == apart.eos_id
    assert cut.target.tolist() == whole.target.tolist()


def test_a_space_stays_with_the_word_before_where_the_vocabulary_ends_words_with_it(make, rows, joined):
    joined.spaces_lead = False
    rendered = make(tokenizer=joined).answer(rows["w3"], HINT, "bad")
    texts = {segment.kind: segment.text for segment in rendered.segments}
    assert texts["reasoning"] == "rain is wet. "
    assert texts["answer"] == "no"
    assert texts["literal"] == ".\nGood? "


@pytest.mark.parametrize(
    ("use", "reasoning", "middle"),
    [
        ("full", HINT, "Hint: rain is wet. So no.\n"),
        ("answer", HINT, "Hint: no.\n"),
        ("rationale", HINT, "Hint: rain is wet.\n"),
        ("none", HINT, ""),
        ("full", None, ""),
        ("full", Reasoning("rain is wet.", None), "Hint: rain is wet.\n"),
        ("full", Reasoning("", "bad"), "Hint: no.\n"),
        ("answer", Reasoning("rain is wet.", ""), ""),
        ("full", Reasoning("a", "perhaps"), "Hint: a So perhaps.\n"),
    ],
)
def test_a_row_shows_the_part_of_the_reasoning_that_is_wanted_and_there(make, rows, use, reasoning, middle):
    rendered = make(reasoning_use=use, use_instructions=False).answer(rows["w3"], reasoning, None)
    assert text_of(rendered) == f"Report: light rain at noon\n{middle}Good?"


def test_the_words_of_the_file_may_stand_for_a_missing_reasoning(make, rows):
    renderer = make(("    answer: ", '    none: "No hint."\n    answer: '), use_instructions=False)
    assert text_of(renderer.answer(rows["w3"], None, None)) == "Report: light rain at noon\nNo hint.\nGood?"


def test_reasoning_that_the_template_cannot_show_is_refused(write, rows, plain):
    text = write().read_text().replace("    {reasoning}\n", "")
    start, end = text.index("  reasoning:\n    full"), text.index("  truncate")
    path = write()
    path.write_text(text[:start] + text[end:].replace("[reasoning, report]", "[report]"))
    renderer = Renderer(load_instructions(path, rows), plain, 300)
    assert kinds_of(renderer.answer(rows["w3"], None, None))[-1] == "literal"
    with pytest.raises(UserError, match=r"has no slot \{reasoning\}.*set reasoning_use to 'none'"):
        renderer.answer(rows["w3"], HINT, None)


def test_the_reasoning_is_cut_first_then_the_field_and_never_the_target(make, rows, plain):
    full = make().answer(rows["w3"], HINT, "good")
    total = len(full.inputs) + len(full.target)
    assert full.dropped == {}
    cut = make(max_length=total - 5).answer(rows["w3"], HINT, "good")
    assert cut.dropped == {"reasoning": 5}
    assert "Hint: rain is So no." in text_of(cut)
    rationale, report = len(" rain is wet."), len(" light rain at noon")
    deep = make(max_length=total - rationale - 4).answer(rows["w3"], HINT, "good")
    assert deep.dropped == {"reasoning": rationale, "field:report": 4}
    assert "Report: light rain at \n" in text_of(deep)
    for rendered, length in ((cut, total - 5), (deep, total - rationale - 4)):
        assert len(rendered.inputs) + len(rendered.target) == length
        assert rendered.target.tolist() == full.target.tolist()
    with pytest.raises(UserError, match=r"row 'w3': .* tokens do not fit max_length .* reasoning, report cut"):
        make(max_length=total - rationale - report - 1).answer(rows["w3"], HINT, "good")


def test_the_cut_does_not_betray_the_label(make, rows):
    renderer = make(max_length=70)
    cut = [renderer.answer(rows["w3"], HINT, target) for target in ("good", "bad", None)]
    assert cut[0].dropped
    assert cut[0].inputs.tolist() == cut[1].inputs.tolist() == cut[2].inputs.tolist()


def test_room_is_kept_for_answers_that_are_not_shown(make, rows):
    renderer = make(max_length=90)
    assert len(renderer.answer(rows["w3"], HINT, None, reserve=20).inputs) == 70


def test_an_answer_without_tokens_is_refused(make, rows):
    renderer = make(("labels: {good: yes, bad: no}\n", ""))
    with pytest.raises(UserError, match="row 'w3': the answer '' has no tokens"):
        renderer.answer(rows["w3"], HINT, "")


def test_a_missing_field_names_the_line_and_what_the_file_needs(make, rows):
    row = SourceRow({"id": "w9", "options": ["a"]}, "weather/train.jsonl line 17")
    match = r"weather/train\.jsonl line 17: field 'report' is missing; .*weather\.yaml needs report, options"
    with pytest.raises(UserError, match=match):
        make().answer(row, None, None)
    with pytest.raises(UserError, match=r"field 'report' is 7, but .* declares it as text"):
        make().answer(row | {"report": 7}, None, None)


def test_a_list_may_be_shown_with_letters(make, rows):
    renderer = make(("    Report: {report}\n    {reasoning}", "    {options} {report}\n    {reasoning}"))
    assert "(a) 1 (b) true light" in text_of(renderer.answer(rows["w3"] | {"options": [1.0, True]}, None, None))


def test_a_field_of_the_row_may_be_called_like_a_part_of_ours(make, rows):
    rows["w3"]["large_answer"] = "maybe"
    renderer = make(
        ("fields: {report: text", "fields: {large_answer: text, report: text"), ("Good?", "{large_answer}?")
    )
    rendered = renderer.answer(rows["w3"], HINT, None)
    assert text_of(rendered).endswith("So no.\nmaybe?")
    assert kinds_of(rendered)[-4:-1] == ["large_answer", "literal", "field:large_answer"]


def test_special_tokens_in_a_row_never_become_control_tokens(make, rows, joined):
    rendered = make(tokenizer=joined).answer(rows["w3"] | {"report": "a</s>b<s>"}, Reasoning("</s>", "bad"), "good")
    assert [*rendered.inputs, *rendered.target].count(joined.eos_id) == 1
    assert [*rendered.inputs].count(joined.bos_id) == 1


def test_every_request_of_an_exemplar_set_begins_with_the_same_ids(make, rows, joined):
    renderer = make(tokenizer=joined)
    first, second = (renderer.reasoning_prompt(rows[row_id]) for row_id in ("w2", "w3"))
    assert first.prefix_ids == second.prefix_ids
    assert first.prefix_text == second.prefix_text
    assert second.prefix_ids[0] == joined.bos_id
    assert second.own_text == "Report: light rain at noon\nReasoning:"
    assert joined.decode(second.own_ids) == second.own_text
    assert second.stop == ("\n\n",)
    assert second.decoding == {"temperature": 0.0, "max_tokens": 32}


def test_a_request_needs_no_instructions_and_no_exemplars(make, rows, joined):
    prompt = make(
        ("  instructions: |\n    Is the weather good?\n", ""),
        ("  exemplars: {split: train, rationale: why, ids: [w1, w2]}\n", ""),
        tokenizer=joined,
    ).reasoning_prompt(rows["w3"])
    assert prompt.prefix_text == ""
    assert [*prompt.prefix_ids, *prompt.own_ids] == [joined.bos_id, *joined.encode(prompt.own_text, start=True)]


def test_the_fingerprint_follows_all_that_determines_an_answer(make, joined):
    first = make()
    others = [make(("Say", "Write")), make(tokenizer=joined), make(max_length=99), make(reasoning_use="none")]
    assert make().fingerprint == first.fingerprint
    assert len({renderer.fingerprint for renderer in [first, *others, make(use_instructions=False)]}) == 6


def test_an_unknown_use_of_the_reasoning_is_refused(make):
    with pytest.raises(UserError, match=r"known are full, answer, rationale, none\. Did you mean 'rationale'\?"):
        make(reasoning_use="rational")
