import json

import pytest

from fiat_jax.errors import UserError
from fiat_jax.tasks.task import Task, read_rows, row_key

ROWS = [
    {"id": 1, "lang": "en", "text": "warm and sunny", "answer": "good"},
    {"id": 2, "lang": "fi", "text": "räntää\u2028ja tuulta", "answer": "bad"},
]


def make_task(tmp_path, content, name="data.jsonl", **changes):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else "\n".join(map(json.dumps, content)).encode())
    settings = {"fields": ("text",), "labels": ("good", "bad"), "language_field": "lang"} | changes
    return Task(name="weather", splits={"train": str(path)}, **settings)


def refuse(task, match, **options):
    with pytest.raises(UserError, match=match):
        read_rows(task, "train", **options)


def test_rows_keep_their_order_fields_and_place(tmp_path):
    rows = read_rows(make_task(tmp_path, ROWS), "train")
    assert [row["text"] for row in rows] == [row["text"] for row in ROWS]
    assert [row["id"] for row in rows] == ["1", "2"]
    assert rows[1].where.endswith("data.jsonl line 2")


def test_a_byte_order_mark_and_blank_lines_and_windows_line_ends_change_nothing(tmp_path):
    plain = read_rows(make_task(tmp_path, ROWS), "train")
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    windows = b"\xef\xbb\xbf" + "\r\n\r\n".join([*lines, ""]).encode()
    assert read_rows(make_task(tmp_path, windows), "train") == plain


def test_a_missing_field_is_named_with_its_line_and_a_near_name(tmp_path):
    task = make_task(tmp_path, [ROWS[0], {"id": 3, "lang": "en", "txt": "?", "answer": "bad"}])
    refuse(task, r"data\.jsonl line 2: field 'text' is missing; task 'weather' needs .*Did you mean 'txt'\?")


def test_an_unknown_label_is_named_with_its_line(tmp_path):
    task = make_task(tmp_path, [ROWS[0] | {"answer": "godo"}])
    refuse(task, r"line 1: unknown label 'godo' .*Did you mean 'good'\?")
    refuse(task, "unknown label", answers_required=False)


def test_answers_may_be_absent_for_prediction(tmp_path):
    task = make_task(tmp_path, [{"id": 1, "lang": "en", "text": "fog"}])
    refuse(task, "field 'answer' is missing")
    assert read_rows(task, "train", answers_required=False)[0]["text"] == "fog"


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_refused(tmp_path, content):
    refuse(make_task(tmp_path, content), "holds no rows")


def test_invalid_utf8_is_named_with_its_line_and_byte(tmp_path):
    content = json.dumps(ROWS[0]).encode() + b'\n{"id": "\xff"}'
    refuse(make_task(tmp_path, content), r"line 2: byte 9 is not UTF-8")


def test_half_a_surrogate_pair_is_refused(tmp_path):
    refuse(make_task(tmp_path, [ROWS[0] | {"text": "\ud83d"}]), "line 1: half a surrogate pair")


def test_a_duplicated_id_names_both_lines(tmp_path):
    task = make_task(tmp_path, [ROWS[0], ROWS[1] | {"id": "1"}])
    refuse(task, r"line 2: the id '1' is also that of .*line 1")


@pytest.mark.parametrize(("line", "match"), [(b'{"id": 1', "line 1: not valid JSON"), (b"[1]", "not list")])
def test_a_line_that_is_no_json_object_is_refused(tmp_path, line, match):
    refuse(make_task(tmp_path, line), match)


def test_an_absent_file_an_unknown_suffix_and_an_unknown_split_are_refused(tmp_path):
    refuse(Task("t", {"train": str(tmp_path / "no.jsonl")}, fields=("a",), kind="text"), "no such file")
    refuse(Task("t", {"train": "rows.xlsx"}, fields=("a",), kind="text"), r"known are \.jsonl")
    with pytest.raises(UserError, match=r"no split 'trian'.*Did you mean 'train'\?"):
        read_rows(make_task(tmp_path, ROWS), "trian")


def test_rows_without_ids_may_be_named_by_their_place(tmp_path):
    content = [{key: value for key, value in row.items() if key != "id"} for row in ROWS]
    rows = read_rows(make_task(tmp_path, content, id_field="line"), "train")
    assert [row["line"] for row in rows] == ["train:0", "train:1"]


def test_the_answer_of_a_choice_is_among_the_row_s_choices(tmp_path):
    settings = {"kind": "choice", "labels": (), "choices_field": "options"}
    row = ROWS[0] | {"options": [1, 2.0, True], "answer": 2}
    task = make_task(tmp_path, [row], **settings)
    (read,) = read_rows(task, "train")
    assert task.candidates(read) == ("1", "2", "true")
    assert read["answer"] == "2"
    refuse(make_task(tmp_path, [row | {"answer": "3"}], **settings), "unknown choice '3'")
    refuse(make_task(tmp_path, [row | {"options": "abc"}], **settings), "must be a list")
    refuse(make_task(tmp_path, [row | {"options": ["2"]}], **settings), "two or more choices")


def test_a_choice_that_a_row_repeats_is_one_candidate(tmp_path):
    settings = {"kind": "choice", "labels": (), "choices_field": "options"}
    task = make_task(tmp_path, [ROWS[0] | {"options": ["b", "a", "b"], "answer": "b"}], **settings)
    (row,) = read_rows(task, "train")
    assert row["options"] == ["b", "a", "b"]
    assert task.candidates(row) == ("b", "a")


def test_true_and_false_are_labels(tmp_path):
    task = make_task(tmp_path, [ROWS[0] | {"answer": True}], labels=("true", "false"), positive_label="true")
    assert read_rows(task, "train")[0]["answer"] == "true"


def test_a_number_task_wants_numbers(tmp_path):
    settings = {"kind": "number", "labels": ()}
    assert read_rows(make_task(tmp_path, [ROWS[0] | {"answer": 11.0}], **settings), "train")[0]["answer"] == "11"
    refuse(make_task(tmp_path, [ROWS[0] | {"answer": "many"}], **settings), "is no number")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"kind": "lable"}, "Did you mean 'label'"),
        ({"labels": ("one",)}, "at least two"),
        ({"kind": "choice"}, "choices_field"),
        ({"positive_label": "god"}, "Did you mean 'good'"),
        ({"fields": ()}, "names no input field"),
        ({"fields": ("text", "answer")}, "among the input"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(settings, match):
    with pytest.raises(UserError, match=match):
        Task(**({"name": "t", "fields": ("text",), "labels": ("good", "bad")} | settings))


def test_the_key_of_a_row_follows_its_input_and_nothing_else(tmp_path):
    task = make_task(tmp_path, ROWS)
    first, second = read_rows(task, "train")
    assert row_key(task, first) == row_key(task, {"answer": "bad", "text": "warm and sunny", "id": "9", "lang": "de"})
    assert row_key(task, first) != row_key(task, second)
    assert row_key(task, first) != row_key(task, first | {"text": "warm and sunny "})
