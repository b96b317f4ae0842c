import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from fiat_jax.prompts.extract import Reasoning
from fiat_jax.prompts.instructions import load_instructions
from fiat_jax.prompts.lint import lint
from fiat_jax.prompts.render import Renderer
from fiat_jax.prompts.tokenizer import Tokenizer

SHIPPED = Path(__file__).parents[2] / "prompts"


@dataclass(frozen=True)
class SmallTask:
    name: str = "weather"
    id_field: str = "id"
    fields: tuple[str, ...] = ("report", "options")
    answer_field: str = "answer"
    labels: tuple[str, ...] = ("good", "bad")
    choices: str | None = None

    def language(self, row):
        return row.get("lang", "und")

    def candidates(self, row):
        return tuple(row[self.choices]) if self.choices else self.labels


WEATHER = SmallTask()
SHOW_OPTIONS = ("Report: {report}\n", "Report: {report} {options}\n")


@pytest.fixture
def check(write, rows):
    def check(*replacements, splits=None, task=WEATHER, tokenizer=None, max_length=300, reasoning=None):
        instructions = load_instructions(write(*replacements), rows)
        renderer = Renderer(instructions, tokenizer, max_length) if tokenizer else None
        splits = splits or {"train": list(rows.values())}
        return lint(instructions, task, splits, renderer=renderer, reasoning=reasoning)

    return check


def errors(report):
    return [finding.message for finding in report.findings if finding.severity == "error"]


def warnings(report):
    return [finding.message for finding in report.findings if finding.severity == "warning"]


def test_a_good_file_has_no_findings(check, plain):
    report = check(SHOW_OPTIONS, tokenizer=plain)
    assert report.findings == ()
    assert report.clean


def test_rows_with_characters_that_become_unknown_are_counted_by_language(check, rows, plain):
    spec = json.loads(plain._whole.to_str())
    spec["model"]["vocab"]["<unk>"], spec["model"]["unk_token"] = 900, "<unk>"
    tokenizer = Tokenizer(spec, bos=None, eos="<end>", pad=None, begin=None)
    assert check(SHOW_OPTIONS, tokenizer=tokenizer).findings == ()
    rows["w2"]["report"] = "h\u00e4gel"
    (message,) = warnings(check(SHOW_OPTIONS, tokenizer=tokenizer, splits={"train": list(rows.values())}))
    assert "1 rows of language" in message
    assert "reads as '<unk>', such as row 'w2'" in message


def test_a_missing_slot_is_a_warning(check):
    report = check()
    assert warnings(report) == ["answer.template has no slot {options}", "reasoning.example has no slot {options}"]
    assert report.clean


def test_an_unknown_field_is_an_error_that_names_a_near_one(check, rows):
    renamed = [{("reports" if key == "report" else key): value for key, value in row.items()} for row in rows.values()]
    (message,) = errors(check(SHOW_OPTIONS, splits={"test": renamed}))
    assert "unknown field 'report'" in message
    assert message.endswith("Did you mean 'reports'?")


def test_an_exemplar_in_an_evaluation_split_is_an_error_by_id_and_by_content(check, rows):
    copy = rows["w2"] | {"id": "other"}
    report = check(SHOW_OPTIONS, splits={"train": [rows["w3"]], "test": [rows["w1"], copy, rows["w3"]]})
    assert errors(report) == [
        "the exemplar 'w1' is a row of the evaluation split 'test'; choose another",
        "the exemplar 'w2' has the content of row 'other' of the evaluation split 'test'",
    ]
    assert not report.clean


def test_labels_of_task_and_file_must_be_the_same(check):
    report = check(SHOW_OPTIONS, task=SmallTask(labels=("good", "bad", "so-so")))
    assert errors(report) == ["labels has no words for 'so-so'."]
    assert "labels has 'bad', which is no label" in errors(check(SHOW_OPTIONS, task=SmallTask(labels=("good", "x"))))[1]


def test_an_extractor_that_misses_the_answers_of_the_exemplars_is_an_error(check):
    (first, _) = errors(check(SHOW_OPTIONS, ('text: "So:"', 'text: "Thus:"')))
    assert first == "reasoning.extract finds None in the completion of the exemplar 'w1', whose answer is 'good'"


def test_a_stop_string_within_a_completion_is_an_error(check):
    assert "the stop string 'So' occurs" in errors(check(SHOW_OPTIONS, ("stop: [", "stop: [So, ")))[0]


def test_labels_with_the_same_tokens_are_an_error(check, plain):
    report = check(SHOW_OPTIONS, ("good: yes, bad: no", "good: ö, bad: ä"), tokenizer=plain)
    assert any("no tokens" in message or "same tokens" in message for message in errors(report))


def test_text_that_the_tokenizer_cannot_spell_is_a_warning(check, plain):
    assert "cannot spell 'Sää yes or no.'" in warnings(check(SHOW_OPTIONS, ("Say yes", "Sää yes"), tokenizer=plain))[0]


def test_tokens_and_cuts_are_counted_by_language(check, rows, plain):
    split = [row | {"lang": lang} for row, lang in zip(rows.values(), ("en", "fi", "fi"), strict=True)]
    reasoning = {"w3": Reasoning("x" * 90, "bad")}
    report = check(SHOW_OPTIONS, splits={"train": split}, tokenizer=plain, max_length=120, reasoning=reasoning)
    english, finnish = report.lengths
    assert (english.language, english.rows, english.cut) == ("en", 1, 0)
    assert (finnish.rows, finnish.cut, finnish.longest, finnish.unfit) == (2, 1, 120, 0)
    assert 0 < finnish.cut_tokens < 90


def test_rows_that_do_not_fit_are_an_error(check, rows, plain):
    report = check(SHOW_OPTIONS, tokenizer=plain, max_length=30)
    assert report.lengths[0].unfit == 3
    assert errors(report)[0].startswith("3 rows of language 'und': row 'w1'")


@pytest.mark.parametrize(
    ("name", "labels", "choices"),
    [("esnli", ("entailment", "neutral", "contradiction"), None), ("cqa", (), "choices"), ("svamp", (), None)],
)
def test_shipped_files_lint_cleanly_on_the_data_they_are_for(shared_data, name, labels, choices):
    from fiat_jax.tasks.task import Task, read_rows

    fields = tuple(load_instructions(SHIPPED / f"{name}.yaml").fields)
    splits = {split: str(shared_data / name / f"{split}.jsonl") for split in ("train", "validation")}
    kind = "label" if labels else "choice" if choices else "number"
    task = Task(name, splits, "id", "lang", fields, kind=kind, labels=labels, choices_field=choices)
    rows = {split: read_rows(task, split)[-300:] for split in splits}
    by_id = {row["id"]: row for row in read_rows(task, "train")}
    instructions = load_instructions(SHIPPED / f"{name}.yaml", by_id)
    tokenizer = Tokenizer.from_directory(shared_data / "weights/tinystories-656k")
    report = lint(instructions, task, rows, renderer=Renderer(instructions, tokenizer, 512))
    assert [finding.message for finding in report.findings] == []
    assert report.lengths[0].rows == sum(map(len, rows.values()))
