"""A first task and instruction file for data that nobody has described yet."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fiat_jax.errors import UserError
from fiat_jax.prompts.extract import last_number
from fiat_jax.prompts.fields import label_text
from fiat_jax.tasks.readers import read_source
from fiat_jax.tasks.task import LINE

ID_NAMES = ("id", "row_id", "example_id", "uid", "guid", "qid", "key", "idx", "index")
LANGUAGE_NAMES = ("lang", "language", "query_language", "locale")
ANSWER_NAMES = ("answer", "label", "target", "gold", "output", "gold_label", "class")
CHOICES_NAMES = ("choices", "options", "candidates", "endings")
RATIONALE_NAMES = ("reasoning", "rationale", "explanation", "cot", "chain_of_thought")
NOT_INPUT = {"big", "large", "score", "vote", "meta", "metadata", "split", "url", "equation", "id", "lang", "language"}
SPLITS = ("train", "validation", "dev", "test")
MOST_LABELS = 20
LANGUAGE_TAG = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]{2,8})*")


@dataclass(frozen=True)
class Guess:
    """What the rows look like; None where there is no such field."""

    id: str | None
    language: str | None
    answer: str
    choices: str | None
    rationale: str | None
    fields: Mapping[str, str]
    kind: str
    labels: tuple[str, ...]


def draft(source: str | Path, directory: str | Path, *, answer: str | None = None) -> tuple[Path, Path]:
    """Write NAME.gin (the task) and NAME.yaml (its instruction file) beside each other and return their paths.

    NAME is that of the data file, or of its folder where the file is called after a split. They are drafts: the words
    are for a person to improve. `answer` names the field with the right answer where its name does not tell. Files that
    exist are not touched.

    Raises:
        UserError: no field looks like an answer or like an input, or a draft exists already.
    """
    path = Path(source)
    rows: list[Mapping[str, Any]] = list(read_source(str(source)))
    guess = guess_task(rows, str(source), answer)
    splits = {path.stem if path.stem in SPLITS else "train": str(source)}
    name = path.stem
    if name in SPLITS:
        name = path.resolve().parent.name
        splits |= {split: str(path.with_stem(split)) for split in SPLITS if path.with_stem(split).exists()}
    name = re.sub(r"\W+", "_", name).strip("_") or "task"
    root = Path(directory)
    texts = {
        root / f"{name}.gin": _gin(name, guess, splits, root / f"{name}.yaml"),
        root / f"{name}.yaml": _yaml(name, guess),
    }
    for target in texts:
        if target.exists():
            raise UserError(f"{target} exists; remove it, or draft into another folder")
    root.mkdir(parents=True, exist_ok=True)
    for target, text in texts.items():
        temporary = target.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(text, "utf-8")
        os.replace(temporary, target)
    gin, instructions = texts
    return gin, instructions


def guess_task(rows: Sequence[Mapping[str, Any]], source: str, answer: str | None = None) -> Guess:
    """Guess from names and values what each field is."""
    common = [name for name in rows[0] if all(row.get(name) is not None for row in rows)]
    truths = [name for name in common if all(isinstance(row[name], bool) for row in rows)]
    answer = answer or _named(ANSWER_NAMES, common) or (truths[0] if len(truths) == 1 else None)
    if answer not in common:
        known = ", ".join(common)
        raise UserError(
            f"{source}: which field is the answer? Not {answer or ', '.join(ANSWER_NAMES)}; all rows have {known}. "
            "Name the one that holds it: --answer=FIELD"
        )
    row_id = next((n for n in ID_NAMES if n in common and len({str(row[n]) for row in rows}) == len(rows)), None)
    language = _named(LANGUAGE_NAMES, common)
    if language and not all(LANGUAGE_TAG.fullmatch(str(row[language])) for row in rows):
        language = None
    choices = next((n for n in CHOICES_NAMES if n in common and isinstance(rows[0][n], list)), None)
    kind, labels = _guess_kind(rows, answer, choices)
    if kind != "choice" and choices and {tuple(map(label_text, row[choices])) for row in rows} != {labels}:
        choices = None
    taken = {row_id, language, answer, choices, *ID_NAMES, *LANGUAGE_NAMES, *ANSWER_NAMES, *RATIONALE_NAMES}
    inputs = [n for n in common if n not in taken and NOT_INPUT.isdisjoint(n.lower().split("_"))]
    fields = {n: _field_kind(rows, n) for n in inputs}
    fields = {n: field_kind for n, field_kind in fields.items() if field_kind and n.isidentifier()}
    if not fields:
        raise UserError(f"{source}: no field looks like an input; fields of all rows are {', '.join(common)}")
    if kind == "choice" and choices:
        fields[choices] = "list"
    return Guess(row_id, language, answer, choices, _named(RATIONALE_NAMES, common), fields, kind, labels)


def _named(names: Sequence[str], present: Sequence[str]) -> str | None:
    return next((name for name in names if name in present), None)


def _guess_kind(rows: Sequence[Mapping[str, Any]], answer: str, choices: str | None) -> tuple[str, tuple[str, ...]]:
    counts = Counter(label_text(row[answer]) for row in rows)
    if choices and all(label_text(row[answer]) in map(label_text, row[choices]) for row in rows):
        sets = {tuple(map(label_text, row[choices])) for row in rows}
        return ("choice", ()) if len(sets) > 1 else ("label", sets.pop())
    numeric = all(last_number(text) == text.replace(",", "") for text in counts)
    few = 2 <= len(counts) <= min(MOST_LABELS, len(rows) // 2)
    if few and (not numeric or len(counts) <= 3):
        return "label", tuple(sorted(counts))
    return ("number" if numeric else "text"), ()


def _field_kind(rows: Sequence[Mapping[str, Any]], name: str) -> str | None:
    values = [row[name] for row in rows]
    if all(isinstance(value, str) for value in values):
        return "text"
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return "number"
    return "list" if all(isinstance(value, list) and value for value in values) else None


def _gin(name: str, guess: Guess, splits: Mapping[str, str], instructions: Path) -> str:
    metrics = {"label": "accuracy", "choice": "accuracy", "number": "last_number_match", "text": "xtreme_up_f1"}
    settings: dict[str, Any] = {"name": name, "splits": dict(splits), "id_field": guess.id or LINE}
    settings |= {"language_field": guess.language, "fields": tuple(guess.fields), "answer_field": guess.answer}
    settings |= {"kind": guess.kind, "labels": guess.labels, "metrics": (metrics[guess.kind],)}
    if guess.kind == "choice":
        settings["choices_field"] = guess.choices
    if set(guess.labels) == {"true", "false"}:
        settings |= {"positive_label": "true", "metrics": ("accuracy", "average_precision")}
    lines = [f"Task.{key} = {value!r}" for key, value in settings.items() if value not in (None, ())]
    lines.append(f"Prompts.file = {str(instructions)!r}")
    return f"# The task {name}, drafted from its rows: check what each field is.\n" + "\n".join(lines) + "\n"


def _yaml(name: str, guess: Guess) -> str:
    shown = "\n".join(f"    {_title(field)}: {{{field}}}" for field in guess.fields)
    labels = {label: label.replace("_", " ") for label in guess.labels}
    if set(labels) == {"true", "false"}:
        labels = {"true": "yes", "false": "no"}
    what = f"one of: {', '.join(labels.values())}" if labels else "the answer alone"
    if guess.kind == "choice":
        what = "one of the choices"
    header = {"version": 1, "name": name, "fields": dict(guess.fields)} | ({"labels": labels} if labels else {})
    extract = "{kind: last_number}" if guess.kind == "number" else '{kind: after, text: "So the answer is"}'
    exemplars = f"{{split: train, rationale: {guess.rationale or 'rationale'}, answer: {guess.answer}, ids: []}}"
    return f"""\
# Instructions for {name}, drafted from its rows: improve the words, then run `fiat prompt lint`.
{yaml.safe_dump(header, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110).rstrip()}

reasoning: # what the large model is asked
  instructions: |
    Reason step by step, then answer with {what}.
  example: |
{shown}
    Reasoning: {{rationale}} So the answer is {{answer}}.
  # 2 to 8 rows with a good rationale, by id; or written here: {{FIELD: ..., rationale: ..., answer: ...}}
  exemplars: {exemplars}
  stop: ["\\n\\n"]
  decoding: {{temperature: 0.0, max_tokens: 256}}
  extract: {extract}

answer: # what the tuned model reads
  instructions: |
    Read the reasoning, then answer with {what}.
  template: |
{shown}
    {{reasoning}}
    Answer: {{answer}}
  reasoning:
    full: "Reasoning: {{rationale}} So the answer is {{answer}}."
    rationale: "Reasoning: {{rationale}}"
    answer: "Reasoning: So the answer is {{answer}}."
    none: ""
  truncate: [reasoning, {", ".join(_longest_first(guess.fields))}] # cut first to last where a row is too long
"""


def _title(field: str) -> str:
    return field.replace("_", " ").capitalize()


def _longest_first(fields: Mapping[str, str]) -> list[str]:
    return sorted(fields, key=lambda name: fields[name] != "text")
