"""results.json and the table: what a verb found, in one stable form."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fiat_jax.experiments.files import ALL, SCHEMA, file_hash, write_json
from fiat_jax.experiments.runtime import hardware, versions
from fiat_jax.tasks.readers import files_of


def source_of(source: str) -> dict[str, Any]:
    """Return a data source's name, and the hash of its content where that is of files."""
    hashes = [file_hash(path) for path in files_of(source)]
    joined = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return {"path": source, "sha256": joined if hashes else None}


def write_results(
    workdir: Path,
    verb: str,
    *,
    inputs: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Mapping[str, Any]] = (),
    statistics: Mapping[str, Any] | None = None,
    seconds: float,
    details: Mapping[str, Any] | None = None,
) -> Path:
    """Write WORKDIR/results.json."""
    path = workdir / "results.json"
    write_json(
        path,
        {
            "schema": SCHEMA,
            "verb": verb,
            "inputs": dict(inputs),
            "versions": versions(),
            "hardware": hardware(),
            "seconds": round(seconds, 3),
            "rows": list(rows),
            "comparisons": list(comparisons),
            **({"statistics": dict(statistics)} if statistics else {}),
            **({"details": dict(details)} if details else {}),
        },
    )
    return path


def with_interval(row: Mapping[str, Any], key: str = "value") -> str:
    """Return "73.5 [71.0, 75.9]"."""
    low, high = row["ci95"]
    sign = "+" if key == "difference" else ""
    return f"{row[key]:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def table_of_scores(rows: Sequence[Mapping[str, Any]], metric: str, title: str) -> Table:
    """Return paradigms down, training sizes across, one seed a line."""
    sizes = sorted({row["size"] for row in rows if row["size"]})
    table = Table(title=title)
    table.add_column("paradigm", overflow="fold")
    if len({row["seed"] for row in rows}) > 1:
        table.add_column("seed", justify="right")
    for size in sizes or [0]:
        table.add_column(f"{size:,} rows" if size else "not trained", justify="right")
    shown = [row for row in rows if row["language"] == ALL and row["metric"] == metric]
    for paradigm, seed in dict.fromkeys((row["paradigm"], row["seed"]) for row in shown):
        cells = {row["size"]: with_interval(row) for row in shown if (row["paradigm"], row["seed"]) == (paradigm, seed)}
        seed_cell = [str(seed)] if len({row["seed"] for row in rows}) > 1 else []
        table.add_row(paradigm, *seed_cell, *(cells.get(size, cells.get(0, "")) for size in sizes or [0]))
    return table


def table_of_comparisons(comparisons: Sequence[Mapping[str, Any]], metric: str, title: str) -> Table:
    """Return one line a pair: difference, paired interval, p."""
    table = Table(title=title)
    for name, justify in (
        ("difference", "left"),
        ("rows", "right"),
        ("points", "right"),
        ("p", "right"),
        ("test", "left"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # pyright: ignore
    for row in comparisons:
        if row["language"] == ALL and row["metric"] == metric:
            pair = f"{row['a']} − {row['b']}"
            table.add_row(pair, f"{row['size']:,}", with_interval(row, "difference"), f"{row['p']:.3g}", row["test"])
    return table


def table_by_language(rows: Sequence[Mapping[str, Any]], metric: str) -> Table | None:
    """Return one line a language, where there is more than one."""
    languages = [row["language"] for row in rows if row["metric"] == metric and row["language"] != ALL]
    if len(set(languages)) < 2:
        return None
    table = Table(title=f"{metric} by language")
    table.add_column("cell")
    for language in dict.fromkeys(languages):
        table.add_column(language, justify="right")
    for cell in dict.fromkeys(row["cell"] for row in rows):
        found = {r["language"]: f"{r['value']:.1f}" for r in rows if r["cell"] == cell and r["metric"] == metric}
        table.add_row(cell, *(found.get(language, "") for language in dict.fromkeys(languages)))
    return table


def print_tables(console: Console, *tables: Table | None) -> None:
    """Print the tables there are."""
    for table in tables:
        if table is not None and table.row_count:
            console.print(table)
