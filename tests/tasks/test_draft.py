import ast
import json

import pytest

from fiat_jax.errors import UserError
from fiat_jax.prompts.instructions import load_instructions
from fiat_jax.prompts.lint import lint
from fiat_jax.tasks.draft import draft
from fiat_jax.tasks.task import Task, read_rows

REVIEWS = [
    {"id": i, "lang": "en", "review": f"I liked part {i}, mostly.", "stars": i % 5, "label": "good" if i % 3 else "bad"}
    for i in range(12)
]
SUMS = [{"problem": f"What is {i} + {i}?", "answer": 2 * i} for i in range(12)]
QUIZ = [{"qid": f"q{i}", "question": "Which?", "options": [f"a{i}", f"b{i}"], "answer": f"a{i}"} for i in range(12)]
TRUTHS = [{"id": i, "claim": f"{i} is even", "language": "the\nlong", "holds": i % 2 == 0} for i in range(12)]
STORIES = [{"id": i, "prompt": f"Tell {i}", "target": f"Once upon {i} times"} for i in range(12)]


def draft_of(tmp_path, rows, name="reviews.jsonl", **settings):
    path = tmp_path / "data" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    gin, instructions = draft(path, tmp_path / "out", **settings)
    pairs = dict(line.split(" = ", 1) for line in gin.read_text().splitlines() if " = " in line)
    assert ast.literal_eval(pairs.pop("Prompts.file")) == str(instructions)
    task = Task(**{key.removeprefix("Task."): ast.literal_eval(value) for key, value in pairs.items()})
    return task, instructions


@pytest.mark.parametrize(
    ("rows", "kind", "fields", "id_field"),
    [
        (REVIEWS, "label", ("review", "stars"), "id"),
        (SUMS, "number", ("problem",), "line"),
        (QUIZ, "choice", ("question", "options"), "qid"),
        (TRUTHS, "label", ("claim",), "id"),
        (STORIES, "text", ("prompt",), "id"),
    ],
)
def test_a_draft_reads_its_own_rows_and_lints_cleanly(tmp_path, rows, kind, fields, id_field):
    task, path = draft_of(tmp_path, rows)
    assert (task.name, task.kind, task.fields, task.id_field) == ("reviews", kind, fields, id_field)
    report = lint(load_instructions(path, {}), task, {"train": read_rows(task, "train")})
    assert report.findings == ()


def test_truth_values_are_labels_with_words(tmp_path):
    task, path = draft_of(tmp_path, TRUTHS)
    assert (task.labels, task.positive_label) == (("false", "true"), "true")
    assert load_instructions(path, {}).labels == {"true": "yes", "false": "no"}
    assert task.language_field is None


def test_a_file_named_after_a_split_takes_its_folder_s_name_and_the_splits_beside_it(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/test.jsonl").write_text(json.dumps(REVIEWS[0]))
    task, _ = draft_of(tmp_path, REVIEWS, "train.jsonl")
    assert task.name == "data"
    assert set(task.splits) == {"train", "test"}


def test_the_answer_may_be_named(tmp_path):
    rows = [{"id": i, "text": f"row {i}", "mood": "calm" if i % 2 else "wild"} for i in range(8)]
    with pytest.raises(UserError, match="which field is the answer"):
        draft_of(tmp_path, rows)
    task, _ = draft_of(tmp_path, rows, answer="mood")
    assert task.labels == ("calm", "wild")


def test_drafts_never_replace_what_is_there(tmp_path):
    draft_of(tmp_path, REVIEWS)
    with pytest.raises(UserError, match=r"reviews\.gin exists"):
        draft_of(tmp_path, REVIEWS)
