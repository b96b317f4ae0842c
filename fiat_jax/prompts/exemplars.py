"""Few-shot exemplars: written in the instruction file, or named by the id of the row they are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.prompts.fields import Row, label_text, place
from fiat_jax.prompts.schema import Section

RowsById = Mapping[str, Row] | Callable[[str], Mapping[str, Row]]
FALLBACK = "default"
UNREVIEWED = "unreviewed"  # marks an exemplar that a model drafted


@dataclass(frozen=True)
class Exemplar:
    """One worked example; `row` is None where the file names it by id and no rows were given to resolve it."""

    id: str | None
    row: Row | None
    rationale: str = ""
    answer: str = ""


@dataclass(frozen=True)
class ExemplarSets:
    """One list of exemplars for all rows (`by` is None), or one for each value of the field `by`.

    `split` is where rows named by id are looked up.
    """

    sets: Mapping[str, tuple[Exemplar, ...]]
    by: str | None = None
    split: str = "train"

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(e.id for exemplars in self.sets.values() for e in exemplars if e.id is not None)

    @property
    def resolved(self) -> bool:
        return all(e.row is not None for exemplars in self.sets.values() for e in exemplars)

    def choose(self, row: Row) -> str:
        """Return the name of the set that `row` gets."""
        if self.by is None:
            return FALLBACK
        value = label_text(row.get(self.by, FALLBACK))
        if value in self.sets:
            return value
        if FALLBACK in self.sets:
            return FALLBACK
        known = ", ".join(self.sets)
        raise UserError(
            f"{place(row)}: no exemplars for {self.by} {value!r}; sets exist for {known}. "
            f"Add a set {value!r}, or one named {FALLBACK!r}"
        )


def read_exemplars(parent: Section, rows_by_id: RowsById | None) -> ExemplarSets:
    """Read the key `exemplars` of `parent`.

    It is a list, or a mapping with `ids` (such a list) or with `by` and `sets` (a list for each value, and `default`).
    An item of a list is a row id, or a mapping of fields with `rationale` and `answer`. The mapping may name the
    `split` of the rows and the fields that hold their `rationale` and `answer`.

    Raises:
        UserError: an unknown id, or a row without rationale or answer.
    """
    if not parent.has("exemplars"):
        return ExemplarSets({FALLBACK: ()})
    content = parent.content["exemplars"]
    where = f"{parent.where}.exemplars"
    section = Section({"ids": content} if isinstance(content, list) else content, where)
    split = section.text("split", "train")
    fields = (section.text("rationale", "rationale"), section.text("answer", "answer"))
    by = section.text("by") if section.has("by") else None
    lists = section.section("sets") if by else section
    sets = {str(name): lists.items(name) for name in (lists.content if by else ("ids",))}
    section.done()

    rows = rows_by_id(split) if callable(rows_by_id) and _names_rows(sets) else rows_by_id
    resolved = {
        name if by else FALLBACK: tuple(_exemplar(item, rows, fields, f"{where} ({split} split)") for item in items)
        for name, items in sets.items()
    }
    return ExemplarSets(resolved, by, split)


def _names_rows(sets: Mapping[str, list[Any]]) -> bool:
    return any(not isinstance(item, dict) for items in sets.values() for item in items)


def _exemplar(item: Any, rows: Any, fields: tuple[str, str], where: str) -> Exemplar:
    if isinstance(item, dict):
        if item.get(UNREVIEWED):
            raise UserError(
                f"{where}: the exemplar {item.get('id', dict(item))!r} was drafted by a model and nobody has reviewed "
                f"it; read and mend its rationale, then delete its line `{UNREVIEWED}: true`"
            )
        row_id = label_text(item["id"]) if "id" in item else None
        return _from_row(row_id, item, ("rationale", "answer"), where)
    row_id = label_text(item)
    if rows is None:
        return Exemplar(row_id, None)
    if row_id not in rows:
        raise UserError(f"{where}: there is no row with id {row_id!r}.{did_you_mean(row_id, rows)}")
    return _from_row(row_id, rows[row_id], fields, where)


def _from_row(row_id: str | None, row: Row, fields: tuple[str, str], where: str) -> Exemplar:
    for name, field in zip(("rationale", "answer"), fields, strict=True):
        if row.get(field) in (None, ""):
            raise UserError(
                f"{where}: the exemplar {row_id or dict(row)!r} has no field {field!r}; it holds an exemplar's {name}. "
                f"Name the field that does: `exemplars: {{{name}: FIELD, ...}}`"
            )
    return Exemplar(row_id, row, str(row[fields[0]]).strip(), label_text(row[fields[1]]))
