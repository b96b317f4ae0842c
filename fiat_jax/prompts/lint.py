"""What is wrong or doubtful in an instruction file, seen with a task's rows, a tokenizer and a length budget."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.prompts.extract import Reasoning
from fiat_jax.prompts.fields import Row
from fiat_jax.prompts.instructions import Instructions
from fiat_jax.prompts.render import Renderer
from fiat_jax.prompts.tokenizer import Tokenizer


class TaskLike(Protocol):
    """What lint needs to know of a task."""

    @property
    def name(self) -> str: ...
    @property
    def id_field(self) -> str: ...
    @property
    def fields(self) -> Sequence[str]: ...
    @property
    def answer_field(self) -> str: ...
    @property
    def labels(self) -> Sequence[str]: ...

    def language(self, row: Mapping[str, Any]) -> str: ...
    def candidates(self, row: Mapping[str, Any]) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Finding:
    """Something to mend (error: the file cannot serve its task as it is) or to look at (warning)."""

    severity: Literal["error", "warning"]
    message: str


@dataclass(frozen=True)
class Lengths:
    """Tokens of inputs and target, as rendered; `cut` rows lost `cut_tokens` together, `unfit` rows do not fit."""

    language: str
    rows: int
    mean: float
    longest: int
    cut: int
    cut_tokens: int
    unfit: int


@dataclass(frozen=True)
class LintReport:
    findings: tuple[Finding, ...]
    lengths: tuple[Lengths, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing needs mending; warnings may remain."""
        return all(finding.severity == "warning" for finding in self.findings)


def lint(
    instructions: Instructions,
    task: TaskLike,
    splits: Mapping[str, Sequence[Row]],
    *,
    renderer: Renderer | None = None,
    reasoning: Mapping[str, Reasoning] | None = None,
    training_splits: Collection[str] = ("train",),
) -> LintReport:
    """Look at an instruction file with the rows it is for.

    Args:
        splits: rows by split; exemplars must not be rows of any split but the training ones.
        renderer: counts tokens with its tokenizer against its length; None counts nothing.
        reasoning: row id → ŷ_β, for the counts; rows without are counted without.
    """
    errors = [*_fields(instructions, task, splits), *_labels(instructions, task)]
    if instructions.reasoning_side and instructions.reasoning_side.exemplars.resolved and not errors:
        errors += _leaks(instructions, task, splits, training_splits)
        errors += _completions(instructions)
    warnings = list(_slots(instructions, task))
    lengths: list[Lengths] = []
    if renderer is not None and not errors:
        errors += _same_words(instructions, renderer)
        warnings += _lost_text(instructions, renderer.tokenizer)
        lengths, unfit, unspelt = _count(renderer, task, splits, reasoning or {})
        errors += unfit
        warnings += unspelt
    findings = [Finding("error", text) for text in errors] + [Finding("warning", text) for text in warnings]
    return LintReport(tuple(findings), tuple(lengths))


def _fields(instructions: Instructions, task: TaskLike, splits: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    for name in instructions.fields:
        for split, rows in splits.items():
            if rows and name not in rows[0]:
                hint = did_you_mean(name, rows[0])
                yield f"unknown field {name!r}: the rows of {task.name} ({split}) have {', '.join(rows[0])}.{hint}"
                break
        if name == task.answer_field:
            yield f"field {name!r} is the answer of {task.name}; an input must not show it"


def _labels(instructions: Instructions, task: TaskLike) -> Iterator[str]:
    if not instructions.labels:
        return
    for label in task.labels:
        if label not in instructions.labels:
            yield f"labels has no words for {label!r}.{did_you_mean(label, instructions.labels)}"
    for label in instructions.labels:
        if label not in task.labels:
            yield f"labels has {label!r}, which is no label of {task.name}.{did_you_mean(label, task.labels)}"


def _slots(instructions: Instructions, task: TaskLike) -> Iterator[str]:
    answer = instructions.answer_side.template
    if "reasoning" not in answer.slots:
        yield "answer.template has no slot {reasoning}: the tuned model will not see the large model's reasoning"
    shown = {"answer.template": answer.slots}
    if instructions.reasoning_side:
        shown["reasoning.example"] = instructions.reasoning_side.request.slots
    else:
        yield "there is no `reasoning` part: a large model cannot be asked, only imported reasoning can be used"
    for place, slots in shown.items():
        for name in dict.fromkeys([*task.fields, *instructions.fields]):
            if name not in slots:
                yield f"{place} has no slot {{{name}}}"


def _leaks(
    instructions: Instructions, task: TaskLike, splits: Mapping[str, Sequence[Row]], training_splits: Collection[str]
) -> Iterator[str]:
    def content(row: Row) -> tuple[str, ...]:
        return tuple(instructions.field(row, name) for name in instructions.fields)

    exemplars = [e for chosen in instructions.reasoning.exemplars.sets.values() for e in chosen]
    by_content = {content(e.row): e.id for e in exemplars if e.row is not None}
    for split, rows in splits.items():
        if split in training_splits:
            continue
        for row in rows:
            row_id = row[task.id_field]
            if row_id in instructions.exemplar_ids:
                yield f"the exemplar {row_id!r} is a row of the evaluation split {split!r}; choose another"
            elif content(row) in by_content:
                name = by_content[content(row)] or "written in the file"
                yield f"the exemplar {name!r} has the content of row {row_id!r} of the evaluation split {split!r}"


def _completions(instructions: Instructions) -> Iterator[str]:
    for chosen in instructions.reasoning.exemplars.sets.values():
        for exemplar in chosen:
            completion = instructions.completion(exemplar)
            for stop in instructions.reasoning.stop:
                if stop in completion:
                    yield f"the stop string {stop!r} occurs in the completion of the exemplar {exemplar.id!r}"
            found = instructions.extract(completion).answer
            if found != exemplar.answer:
                yield (
                    f"reasoning.extract finds {found!r} in the completion of the exemplar {exemplar.id!r}, "
                    f"whose answer is {exemplar.answer!r}"
                )


def _same_words(instructions: Instructions, renderer: Renderer) -> Iterator[str]:
    seen: dict[bytes, str] = {}
    for label, ids in zip(instructions.labels, renderer.candidates(instructions.labels), strict=True):
        other = seen.setdefault(ids.tobytes(), label)
        if other != label:
            yield f"the labels {other!r} and {label!r} have the same tokens, so that no model can tell them apart"


def _lost_text(instructions: Instructions, tokenizer: Tokenizer) -> Iterator[str]:
    side = instructions.answer_side
    texts = [side.instructions, *(part.text for part in side.template.parts), *instructions.labels.values()]
    for text in texts:
        back = tokenizer.decode(tokenizer.encode(text))
        if back.strip(" ") != text.strip(" "):
            yield f"the tokenizer cannot spell {text!r}; it reads back as {back!r}"


def _count(
    renderer: Renderer, task: TaskLike, splits: Mapping[str, Sequence[Row]], reasoning: Mapping[str, Reasoning]
) -> tuple[list[Lengths], list[str], list[str]]:
    """Return counts by language, what is wrong with rows, and which of them hold characters that become unknown."""
    totals: dict[str, list[int]] = defaultdict(list)
    cuts: dict[str, list[int]] = defaultdict(list)
    unfit: dict[str, list[str]] = defaultdict(list)
    unspelt: dict[str, list[str]] = defaultdict(list)
    unknown = renderer.tokenizer.unknown_id
    for row in (row for rows in splits.values() for row in rows):
        language = task.language(row)
        try:
            reserve = max(map(len, renderer.candidates(task.candidates(row))), default=0)
            target = row.get(task.answer_field)
            rendered = renderer.answer(row, reasoning.get(row[task.id_field]), target, reserve=reserve)
        except UserError as error:
            unfit[language].append(str(error))
            continue
        totals[language].append(len(rendered.inputs) + max(len(rendered.target), reserve))
        cuts[language].append(sum(rendered.dropped.values()))
        if unknown is not None and unknown in [*rendered.inputs, *rendered.target]:
            unspelt[language].append(str(row[task.id_field]))
    lengths = [_lengths(name, totals[name], cuts[name], unfit[name]) for name in sorted({*totals, *unfit})]
    errors = [f"{len(texts)} rows of language {name!r}: {texts[0]}" for name, texts in unfit.items() if texts]
    unknowns = [
        f"{len(ids)} rows of language {name!r} hold characters that the tokenizer cannot spell and reads as "
        f"{renderer.tokenizer.token(unknown or 0)!r}, such as row {ids[0]!r}"
        for name, ids in unspelt.items()
    ]
    return lengths, errors, unknowns


def _lengths(language: str, totals: Sequence[int], cuts: Iterable[int], unfit: Sequence[str]) -> Lengths:
    cut = [tokens for tokens in cuts if tokens]
    mean = float(np.mean(totals)) if totals else 0.0
    return Lengths(language, len(totals) + len(unfit), mean, max(totals, default=0), len(cut), sum(cut), len(unfit))
