"""What a report consists of, whatever it is written as."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

DASH = "–"


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells are text as it is shown; the first column names the row. `records` are the same with numbers, for JSON."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    records: Sequence[Mapping[str, Any]] = ()
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plot as SVG, what it shows in words, and its numbers as a table."""

    name: str
    title: str
    description: str
    svg: str
    table: Table | None = None


@dataclasses.dataclass(frozen=True)
class Browser:
    """Rows to look at one by one; `kinds` are what they can be filtered by, besides language and text."""

    rows: Sequence[Mapping[str, Any]]
    kinds: Sequence[str]
    of: int


@dataclasses.dataclass(frozen=True)
class Text:
    """A long text that is unfolded on demand."""

    title: str
    text: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading, what it says in a sentence or two, and its parts in order."""

    name: str
    title: str
    text: str
    parts: Sequence[Table | Figure | Browser | Text]

    @property
    def tables(self) -> list[Table]:
        """All tables, those of figures included."""
        return [p.table if isinstance(p, Figure) else p for p in self.parts if isinstance(p, Table)
                or (isinstance(p, Figure) and p.table)]  # pyright: ignore  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A section whose data is not there, and what would bring it."""

    title: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Report:
    """All of it, in order."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    left_out: Sequence[LeftOut]


def number(value: float | None, digits: int = 1) -> str:
    """Return 12.3, or a dash for what is not known."""
    return DASH if value is None else f"{value:,.{digits}f}"


def signed(value: float | None, digits: int = 1) -> str:
    """Return +12.3 or −12.3."""
    return DASH if value is None else f"{value:+,.{digits}f}".replace("-", "−")


def count(value: float | None) -> str:
    """Return 12,300."""
    return DASH if value is None else f"{value:,.0f}"


def interval(row: Mapping[str, Any] | None, key: str = "value") -> str:
    """Return "73.5 [71.0, 75.9]", with signs for a difference."""
    if row is None:
        return DASH
    show = number if key == "value" else signed
    low, high = row["ci95"]
    return f"{show(row[key])} [{show(low)}, {show(high)}]"


def p_value(p: float | None) -> str:
    """Return p as it is printed."""
    return DASH if p is None else f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"


def sized(size: int | None) -> str:
    """Return the name of a training size."""
    return f"{size:,} rows" if size else "not trained"
