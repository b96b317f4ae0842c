"""Existing reasoning, brought into the store with where it came from."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.prompts.fields import SourceRow, label_text, place
from fiat_jax.store import Provenance, ReasoningStore, Record
from fiat_jax.tasks.readers import read_source
from fiat_jax.tasks.task import Row, Task, row_key

MAPPED = ("rationale", "answer", "id")


@dataclass(frozen=True)
class Imported:
    """What an import did, in rows of the task.

    `before` were stored already; `same_content` share their input fields with an earlier row, and so its reasoning;
    `without_reasoning` are the ids for which the file has none; `without_answer` counts reasoning that came without the
    large model's answer; `unknown` counts entries of the file that belong to no row.
    """

    set_key: str
    written: int
    before: int
    same_content: int
    without_reasoning: tuple[str, ...]
    without_answer: int
    foreign_answers: int
    unknown: int


def import_reasoning(
    task: Task,
    rows: Sequence[Row],
    file: str | os.PathLike[str],
    store: ReasoningStore,
    *,
    mapping: Mapping[str, str],
    model: str,
    revision: str | None = None,
) -> Imported:
    """Store the reasoning that a file (of any kind a task reads) has for `rows`, joined by id.

    Args:
        mapping: which field of the file is the `rationale`, the large model's `answer` (optional) and the `id` (the
            task's id field unless given). It is part of the set's name, with `model` and `revision`.

    Raises:
        UserError: a field that the file lacks, an entry whose input fields are not the row's, two entries that differ
            for one id, or a row that is stored with other reasoning; nothing is stored then.
    """
    _check_mapping(mapping)
    provenance = Provenance({"name": model, "revision": revision or ""}, source="imported", mapping=dict(mapping))
    entries = _read_entries(task, os.fspath(file), mapping)
    keys = {row[task.id_field]: row_key(task, row) for row in rows}
    found: dict[str, Record] = {}
    for row in rows:
        entry = entries.pop(row[task.id_field], None)
        if entry is not None and str(entry.get(mapping["rationale"]) or "").strip():
            _check_content(task, row, entry)
            found.setdefault(keys[row[task.id_field]], _to_record(task, row, entry, mapping, provenance))
    stored = store.lookup(provenance.set_key)
    _check_stored(stored, found.values(), provenance)
    new = [record for record in found.values() if record.key not in stored]
    with store.open_set(provenance) as writer:
        writer.append(*new)
    return Imported(
        set_key=provenance.set_key,
        written=len(new),
        before=len(found) - len(new),
        same_content=len(keys) - len(set(keys.values())),
        without_reasoning=tuple(row_id for row_id, key in keys.items() if key not in found),
        without_answer=sum(record.answer is None for record in found.values()),
        foreign_answers=sum(record.answer is not None and record.answer not in task.labels for record in found.values())
        if task.kind == "label"
        else 0,
        unknown=len(entries),
    )


def _check_mapping(mapping: Mapping[str, str]) -> None:
    for name in mapping:
        if name not in MAPPED:
            hint = did_you_mean(name, MAPPED)
            raise UserError(f"the mapping of an import names {name!r}; it maps {', '.join(MAPPED)}.{hint}")
    if "rationale" not in mapping:
        raise UserError("the mapping of an import does not say which field is the rationale")


def _read_entries(task: Task, file: str, mapping: Mapping[str, str]) -> dict[str, SourceRow]:
    id_field = mapping.get("id", task.id_field)
    needed = [id_field, mapping["rationale"], *([mapping["answer"]] if "answer" in mapping else [])]
    entries: dict[str, SourceRow] = {}
    for entry in read_source(file):
        for name in needed:
            if name not in entry:
                hint = did_you_mean(name, entry)
                raise UserError(
                    f"{entry.where}: field {name!r} is missing; the import needs {', '.join(needed)}.{hint}"
                )
        entry_id = label_text(entry[id_field])
        known = entries.setdefault(entry_id, entry)
        if any(known[name] != entry[name] for name in needed):
            raise UserError(f"{entry.where}: the id {entry_id!r} is also that of {known.where}, with other reasoning")
    return entries


def _check_content(task: Task, row: Row, entry: SourceRow) -> None:
    for name in task.fields:
        theirs, ours = entry.get(name), row[name]
        if theirs is not None and theirs != ours and label_text(theirs) != label_text(ours):
            raise UserError(
                f"{entry.where}: {name!r} is {theirs!r}, but {ours!r} in {place(row)} of the same id; "
                "this reasoning is of other rows"
            )


def _to_record(task: Task, row: Row, entry: SourceRow, mapping: Mapping[str, str], provenance: Provenance) -> Record:
    rationale, answer = entry[mapping["rationale"]], entry.get(mapping.get("answer", ""))
    if not isinstance(rationale, str):
        raise UserError(f"{entry.where}: field {mapping['rationale']!r} is {rationale!r}; reasoning is text")
    return Record(
        set=provenance.set_key,
        row=row_key(task, row),
        sample=0,
        row_id=row[task.id_field],
        text=rationale,
        rationale=rationale.strip(),
        answer=None if answer is None else label_text(answer).strip() or None,
        finish_reason="imported",
    )


def _check_stored(stored: Mapping[tuple[str, int], Record], found: Iterable[Record], provenance: Provenance) -> None:
    for record in found:
        known = stored.get(record.key, record)
        if known.row_id != record.row_id:
            continue  # another row of the same content, whose reasoning this one shares
        if (known.rationale, known.answer) != (record.rationale, record.answer):
            raise UserError(
                f"row {record.row_id!r} is stored in set {provenance.set_key} with other reasoning of "
                f"{dict(provenance.model)}; import it under another revision"
            )
