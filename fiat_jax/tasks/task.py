"""A task: where its rows are, what its fields mean, and the checks that every row passes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.prompts.extract import last_number
from fiat_jax.prompts.fields import Row, SourceRow, label_text
from fiat_jax.tasks.readers import read_source

Kind = Literal["label", "choice", "number", "text"]
KINDS = ("label", "choice", "number", "text")
LINE = "line"
NO_LANGUAGE = "und"  # BCP 47: undetermined


@dataclass(frozen=True)
class Task:
    """A plain specification.

    Args:
        splits: split → source (see `readers.read_source`).
        id_field: the field that names a row; "line" names rows without one after their split and place, "train:17".
        language_field: the field with the language, where there is one.
        fields: the input fields: what θ sees, and what identifies a row's content.
        answer_field: the field with the right answer; read as text (true is "true", 11 is "11").
        answer_after: where that field holds more than the answer, the words that it stands behind ("####" of GSM8K);
            what precedes them is the row's field "rationale" then.
        kind: label (one of `labels`), choice (one of the row's `choices_field`), number, or text.
        positive_label: the label whose probability average precision ranks by.
        metrics: names of metrics, the first one is the one to select by.
    """

    name: str
    splits: Mapping[str, str] = field(default_factory=dict)
    id_field: str = "id"
    language_field: str | None = None
    fields: tuple[str, ...] = ()
    answer_field: str = "answer"
    answer_after: str = ""
    kind: Kind = "label"
    labels: tuple[str, ...] = ()
    choices_field: str | None = None
    positive_label: str | None = None
    metrics: tuple[str, ...] = ("accuracy",)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            hint = did_you_mean(self.kind, KINDS)
            raise UserError(f"task {self.name!r}: kind is {self.kind!r}; kinds are {', '.join(KINDS)}.{hint}")
        if self.kind == "label" and len(set(self.labels)) < 2:
            raise UserError(f"task {self.name!r}: kind 'label' needs `labels`, at least two different ones")
        if self.kind == "choice" and not self.choices_field:
            raise UserError(f"task {self.name!r}: kind 'choice' needs `choices_field`, the field with a row's choices")
        if self.positive_label is not None and self.positive_label not in self.labels:
            hint = did_you_mean(self.positive_label, self.labels)
            raise UserError(
                f"task {self.name!r}: positive_label {self.positive_label!r} is none of {', '.join(self.labels)}.{hint}"
            )
        if not self.fields:
            raise UserError(f"task {self.name!r}: `fields` names no input field")
        if self.answer_field in self.fields:
            raise UserError(
                f"task {self.name!r}: the answer {self.answer_field!r} is among the input `fields`; remove it"
            )

    def language(self, row: Mapping[str, Any]) -> str:
        """Return the language of a row; "und" where the task has no language field."""
        return NO_LANGUAGE if self.language_field is None else str(row[self.language_field])

    def candidates(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what the answer of a row is chosen from; empty for numbers and free text."""
        if self.kind == "choice":
            assert self.choices_field is not None
            return tuple(dict.fromkeys(row[self.choices_field]))  # CommonsenseQA repeats some choices
        return self.labels if self.kind == "label" else ()


def read_rows(task: Task, split: str, *, answers_required: bool = True) -> list[Row]:
    """Read and check the rows of a split; ids, answers and choices are texts afterwards.

    Without `answers_required` (for prediction), rows may lack the answer; one that is there is checked all the same.

    Raises:
        UserError: an unknown split; a row that lacks a field, repeats an id or has an unknown answer (file and line).
    """
    if split not in task.splits:
        hint = did_you_mean(split, task.splits)
        raise UserError(
            f"task {task.name!r} has no split {split!r}; splits are {', '.join(task.splits) or 'none'}.{hint}"
        )
    rows: list[Row] = []
    places: dict[str, str] = {}
    for number, row in enumerate(read_source(task.splits[split])):
        if task.id_field == LINE:
            row[LINE] = f"{split}:{number}"
        _check_row(task, row, answers_required)
        row_id = row[task.id_field]
        if row_id in places:
            raise UserError(f"{row.where}: the id {row_id!r} is also that of {places[row_id]}; ids must differ")
        places[row_id] = row.where
        rows.append(row)
    return rows


def input_row(task: Task, given: Mapping[str, Any]) -> Row:
    """Check a row that comes from no file and needs neither an id nor a language nor an answer.

    Raises:
        UserError: a field of the task is missing, or its choices are none.
    """
    und = {task.language_field: "und"} if task.language_field else {}  # BCP 47: undetermined
    row = SourceRow({task.id_field: "row", **und, **given}, "the row")
    _check_row(task, row, answers_required=False)
    return row


def row_key(task: Task, row: Mapping[str, Any]) -> str:
    """Return sha256 (hex) of the row's input fields as canonical JSON: the same content is the same row."""
    names = {*task.fields, *([task.choices_field] if task.choices_field else [])}
    content = {name: row[name] for name in names}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _check_row(task: Task, row: SourceRow, answers_required: bool) -> None:
    needed = [task.id_field, *task.fields]
    needed += [name for name in (task.language_field, task.choices_field) if name]
    needed += [task.answer_field] if answers_required else []
    for name in needed:
        if row.get(name) is None:
            hint = did_you_mean(name, [key for key in row if key not in needed])
            raise UserError(
                f"{row.where}: field {name!r} is missing; task {task.name!r} needs {', '.join(needed)}.{hint}"
            )
    row[task.id_field] = label_text(row[task.id_field])
    if task.choices_field:
        row[task.choices_field] = _check_choices(row, task.choices_field)
    if row.get(task.answer_field) is not None:
        if task.answer_after:
            _part_answer(task, row)
        row[task.answer_field] = _check_answer(task, row)


def _check_choices(row: SourceRow, name: str) -> list[str]:
    choices = row[name]
    if not isinstance(choices, Sequence) or isinstance(choices, str) or len(choices) < 2:
        raise UserError(f"{row.where}: field {name!r} must be a list of two or more choices, not {choices!r}")
    return [label_text(choice) for choice in choices]


def _part_answer(task: Task, row: SourceRow) -> None:
    before, found, answer = str(row[task.answer_field]).rpartition(task.answer_after)
    if not found:
        raise UserError(
            f"{row.where}: field {task.answer_field!r} lacks {task.answer_after!r}, behind which its answer stands "
            "(Task.answer_after)"
        )
    row[task.answer_field] = answer.strip()
    row.setdefault("rationale", before.strip())


def _check_answer(task: Task, row: SourceRow) -> str:
    value = row[task.answer_field]
    if isinstance(value, list | dict):
        raise UserError(f"{row.where}: field {task.answer_field!r} must be one answer, not {value!r}")
    answer = label_text(value)
    known = task.candidates(row)
    if known and answer not in known:
        what = "label" if task.kind == "label" else "choice"
        hint = did_you_mean(answer, known)
        raise UserError(
            f"{row.where}: unknown {what} {answer!r} in field {task.answer_field!r}; "
            f"{what}s are {', '.join(known)}.{hint}"
        )
    if task.kind == "number" and last_number(answer) is None:
        raise UserError(f"{row.where}: field {task.answer_field!r} is {answer!r}, which is no number")
    return answer
