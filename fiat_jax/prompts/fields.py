"""How the values of a row become text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fiat_jax.errors import UserError

Row = Mapping[str, Any]


class SourceRow(dict[str, Any]):
    """A row that remembers where it was read: `where` is, for example, "esnli/train.jsonl line 17"."""

    def __init__(self, content: Mapping[str, Any], where: str):
        super().__init__(content)
        self.where = where


def place(row: Row) -> str:
    """Return where a row comes from, for error messages."""
    return getattr(row, "where", None) or f"row {row.get('id', '(without id)')!r}"


def label_text(value: object) -> str:
    """Return a label or answer as JSON writes it, without quotes: True is "true", 11 is "11", 11.0 is "11"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def field_text(row: Row, field: str, kind: str, *, source: str, needs: Sequence[str]) -> str:
    """Return the text of one field of the kind that the instruction file declares.

    Raises:
        UserError: the field is missing, or its value is of another kind; names the row and the instruction file.
    """
    value = row.get(field)
    if value is None:
        raise UserError(f"{place(row)}: field {field!r} is missing; {source} needs {', '.join(needs)}")
    accepts, write = FIELD_KINDS[kind]
    if not accepts(value):
        raise UserError(f"{place(row)}: field {field!r} is {value!r}, but {source} declares it as {kind}")
    return write(value)


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return False
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0


def _letters(values: Sequence[object]) -> str:
    letters = (chr(ord("a") + n) if n < 26 else str(n + 1) for n in range(len(values)))
    return " ".join(f"({letter}) {label_text(value)}" for letter, value in zip(letters, values, strict=False))


FIELD_KINDS: dict[str, tuple[Callable[[Any], bool], Callable[[Any], str]]] = {
    "text": (lambda value: isinstance(value, str), str),
    "number": (_is_number, label_text),
    "list": (_is_list, lambda values: ", ".join(map(label_text, values))),
    "letters": (_is_list, _letters),
}
