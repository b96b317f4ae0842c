"""Splits of rows: stratified, grouped, deterministic."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.prompts.fields import Row, label_text, place

SLACK = 0.01  # how far above its share a part may grow for the sake of its strata


def divide(
    rows: Sequence[Row],
    shares: Mapping[str, float],
    seed: int,
    *,
    stratify: Sequence[str] = (),
    group_field: str | None = None,
) -> dict[str, list[Row]]:
    """Divide rows into named parts of the given shares; each part keeps the order of `rows`.

    Args:
        shares: part → its share; they are taken relative to their sum.
        stratify: fields (language, label) whose combinations have the same shares in every part, as far as groups let.
        group_field: rows that agree in it (a passage, a premise) stay together.

    Raises:
        UserError: a row lacks one of the fields, or a part stays empty.
    """
    if not shares or min(shares.values()) <= 0:
        raise UserError(f"every share must be above 0, not {dict(shares)}")
    groups = _groups(rows, stratify, group_field)
    totals = sum((strata for _, strata in groups), Counter())
    scale = sum(shares.values())
    parts: dict[str, list[int]] = {name: [] for name in shares}
    filled: dict[str, Counter[Any]] = {name: Counter() for name in shares}

    def fill(name: str, strata: Counter[Any]) -> float:
        """How full a part would be, seen from the rows that are to be placed; 1 is its share."""
        share, n = shares[name] / scale, strata.total()
        of_strata = sum(n * (filled[name][s] + n) / (totals[s] * share) for s, n in strata.items())
        return of_strata + n * (filled[name].total() + n) / (totals.total() * share)

    order = np.random.default_rng(seed).permutation(len(groups))
    for g in sorted(order, key=lambda g: -len(groups[g][0])):  # small groups last, to even out what large ones upset
        members, strata = groups[g]
        # Parts with room first: strata of few rows, each rounded alike, would leave a small part empty.
        room = {name: (1 + SLACK) * len(rows) * share / scale + 1 for name, share in shares.items()}
        with_room = [name for name in shares if filled[name].total() + len(members) <= room[name]]
        name = min(with_room or shares, key=lambda name: fill(name, strata))
        parts[name] += members
        filled[name] += strata
    for name, members in parts.items():
        if not members:
            raise UserError(
                f"part {name!r} gets no rows: {len(rows)} rows in {len(groups)} groups are too few to divide; give "
                "more rows, or a larger share (of what is held out: Data.selection)"
            )
    return {name: [rows[i] for i in sorted(members)] for name, members in parts.items()}


def holdout(
    rows: Sequence[Row], fraction: float, seed: int, *, stratify: Sequence[str] = (), group_field: str | None = None
) -> tuple[list[Row], list[Row]]:
    """Return (kept, held out), with `fraction` of the rows held out."""
    if not 0 < fraction < 1:
        raise UserError(f"the share held out (Data.selection) must lie between 0 and 1, not {fraction}")
    shares = {"kept": 1 - fraction, "held": fraction}
    parts = divide(rows, shares, seed, stratify=stratify, group_field=group_field)
    return parts["kept"], parts["held"]


def folds(
    rows: Sequence[Row], k: int, seed: int, *, stratify: Sequence[str] = (), group_field: str | None = None
) -> list[tuple[list[Row], list[Row]]]:
    """Return k pairs (training rows, held-out rows); every row is held out once."""
    if k < 2:
        raise UserError(f"there must be at least 2 folds, not {k}")
    shares = {str(n): 1.0 for n in range(k)}
    held = list(divide(rows, shares, seed, stratify=stratify, group_field=group_field).values())
    pairs = []
    for part in held:
        taken = set(map(id, part))
        pairs.append(([row for row in rows if id(row) not in taken], part))
    return pairs


def nested_subsets(
    rows: Sequence[Row], sizes: Sequence[int], seed: int, *, stratify: Sequence[str] = ()
) -> dict[int, list[Row]]:
    """Return size → subset, stratified, where the rows of every subset are among those of each larger one.

    A subset keeps the order of `rows`. Each stratum is shuffled and its rows take evenly spaced ranks between 0 and 1;
    a subset is the rows of the lowest ranks.
    """
    for size in sizes:
        if not 0 < size <= len(rows):
            raise UserError(f"a training subset of {size} rows cannot be taken from {len(rows)} rows")
    generator = np.random.default_rng(seed)
    strata: dict[Any, list[int]] = defaultdict(list)
    for i in generator.permutation(len(rows)):
        strata[_values(rows[i], stratify)].append(int(i))
    ranks = {i: (n + generator.random()) / len(members) for members in strata.values() for n, i in enumerate(members)}
    order = sorted(ranks, key=ranks.__getitem__)
    return {size: [rows[i] for i in sorted(order[:size])] for size in sizes}


def write_splits(parts: Mapping[str, Sequence[Row]], directory: str | Path) -> dict[str, Path]:
    """Write each part as DIRECTORY/PART.jsonl and return the paths; a file that is there and differs is not touched.

    Raises:
        UserError: a file exists with other rows.
    """
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    texts = {name: "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in part) for name, part in parts.items()}
    paths = {name: root / f"{name}.jsonl" for name in parts}
    for name, path in paths.items():
        if path.exists() and path.read_bytes() != texts[name].encode():
            raise UserError(f"{path} exists and holds other rows; remove it or write to another folder")
    for name, path in paths.items():
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(texts[name].encode())
        os.replace(temporary, path)
    return paths


def _groups(
    rows: Sequence[Row], stratify: Sequence[str], group_field: str | None
) -> list[tuple[list[int], Counter[Any]]]:
    """Return (row indices, rows by stratum) of every group."""
    members: dict[Any, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        members[i if group_field is None else _values(row, (group_field,))].append(i)
    return [(indices, Counter(_values(rows[i], stratify) for i in indices)) for indices in members.values()]


def _values(row: Row, names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if row.get(name) is None:
            raise UserError(
                f"{place(row)}: field {name!r} is missing, by which rows are split.{did_you_mean(name, row)}"
            )
    return tuple(label_text(row[name]) for name in names)
