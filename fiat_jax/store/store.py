"""The content-addressed store of reasoning: sets of records, each set made by one provenance."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fiat_jax.errors import UserError
from fiat_jax.store.local import LocalShelf
from fiat_jax.store.record import Provenance, Record, decode_line

PROVENANCE, BACKEND = "provenance.json", "backend.json"
logger = logging.getLogger(__name__)


class SetWriter(Protocol):
    """Adds records to one set; several writers, in any number of processes, may work on the same set at once."""

    def append(self, *records: Record) -> None:
        """Store the records: durable on return in a directory, within seconds in an object store."""
        ...

    def seal(self) -> None:
        """Turn what was appended into a part. Leaving the context does it too."""
        ...

    def __enter__(self) -> "SetWriter": ...

    def __exit__(self, *exc_info) -> None: ...


@dataclass(frozen=True)
class Problem:
    """Something wrong in the store: `file` within it, `line` from 1 (0 where it concerns the whole file).

    `damage` is False for a line that a killed writer left, or a living one writes: it was never stored.
    """

    file: str
    line: int
    message: str
    damage: bool = True

    def __str__(self):
        return f"{self.file}{f' line {self.line}' if self.line else ''}: {self.message}"


@dataclass(frozen=True)
class Contents:
    """What a set holds, and what in its files could not be read."""

    records: Mapping[tuple[str, int], Record]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Inspected:
    """What was read of one set; `provenance` is None where it is lost or damaged."""

    set_key: str
    provenance: Provenance | None
    files: int
    records: int
    problems: tuple[Problem, ...]


class ReasoningStore:
    """Reasoning under a path: a local directory, or gs://, s3:// and whatever else fsspec knows."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        self._shelf = _open_shelf(self.path)

    def open_set(self, provenance: Provenance) -> SetWriter:
        """A writer to the set of `provenance`, which is made where it does not exist; use it as a context manager.

        Journals that killed writers of this host left are sealed first.
        """
        key = provenance.set_key
        self._shelf.write_once(f"{key}/{PROVENANCE}", provenance.to_json())
        adopted = self._shelf.adopt(key)
        if adopted:
            logger.info("%s: sealed %d journal(s) of interrupted runs", self.path, adopted)
        return self._shelf.writer(key)

    def sets(self) -> dict[str, Provenance]:
        """Every set by its key."""
        return {key: self.provenance(key) for key in self._shelf.sets()}

    def provenance(self, set_key: str) -> Provenance:
        """What produced a set; UserError where there is no such set."""
        try:
            data = self._shelf.read(f"{set_key}/{PROVENANCE}")
        except FileNotFoundError:
            raise UserError(f"{self.path}: no set {set_key!r}.{self._known()}") from None
        try:
            return Provenance.from_json(data)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self.path}/{set_key}/{PROVENANCE} is damaged: {error}") from None

    def backend(self, set_key: str) -> dict[str, Any] | None:
        """How the θ_β of a set was last asked, as `note_backend` was told; None where nobody did."""
        try:
            found = json.loads(self._shelf.read(f"{set_key}/{BACKEND}"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{self.path}/{set_key}/{BACKEND} is damaged ({error}); remove it") from None
        return found

    def note_backend(self, set_key: str, about: Mapping[str, object]) -> None:
        """Keep beside a set how its θ_β is asked; it is no part of what names the set, and the last one counts."""
        self._shelf.write(f"{set_key}/{BACKEND}", json.dumps(about, sort_keys=True, indent=1).encode() + b"\n")

    def resolve(self, name: str = "") -> str:
        """The one set whose key begins with `name`; UserError lists the sets where none or several do."""
        found = [key for key in self._shelf.sets() if key.startswith(name)]
        if len(found) != 1:
            which = f"{len(found)} sets begin with {name!r}" if name else f"{len(found)} sets, and none is named"
            raise UserError(f"{self.path}: {which}; name one with --gin.Reasoning.set=KEY.{self._known()}")
        return found[0]

    def records(self, set_key: str, problems: list[Problem] | None = None) -> Iterator[Record]:
        """Yield the whole records of a set, none where there is no such set; a later one of the same key counts.

        Only hashes are held in memory. Where two writers stored the same key, which of their records comes last depends
        on the records alone, not on files or order. Lines that are torn or damaged are left out: named in `problems`,
        or logged.
        """
        found: list[Problem] = []
        seen: dict[int, int] = {}
        differ = set()
        for record, _ in self._lines(set_key, found):
            if seen.setdefault(hash(record.key), hash(record)) != hash(record):
                differ.add(record.key)
            yield record
        if differ:
            twice = [(line, record) for record, line in self._lines(set_key, []) if record.key in differ]
            yield from (record for _, record in sorted(twice, key=lambda pair: pair[0], reverse=True))
        if problems is None:
            for problem in found:
                logger.warning("%s: %s", self.path, problem)
        else:
            problems += found

    def contents(self, set_key: str) -> Contents:
        """Every whole record of a set by (row, sample), and what could not be read."""
        problems: list[Problem] = []
        records = {record.key: record for record in self.records(set_key, problems)}
        return Contents(records, tuple(problems))

    def lookup(self, set_key: str) -> Mapping[tuple[str, int], Record]:
        """The records of a set by (row, sample), empty where there is no such set; what is unreadable is logged."""
        return {record.key: record for record in self.records(set_key)}

    def missing(self, set_key: str, rows: Sequence[str], samples: int = 1) -> list[tuple[str, int]]:
        """The (row, sample) keys that are not stored, in the order of `rows`, each once."""
        wanted = dict.fromkeys((row, sample) for row in rows for sample in range(samples))
        for record in self.records(set_key):
            wanted.pop(record.key, None)
        return list(wanted)

    def verify(self) -> list[Problem]:
        """Return all that `inspect` finds wrong."""
        return [problem for one in self.inspect() for problem in one.problems]

    def inspect(self) -> Iterator[Inspected]:
        """Read everything: names against contents, checksums, provenance against keys, records that disagree."""
        for key in sorted({*self._shelf.sets(), *self._shelf.folders()}):
            yield self._inspect_set(key)

    def _inspect_set(self, key: str) -> Inspected:
        provenance, problems = None, []
        try:
            provenance = self.provenance(key)
            if provenance.set_key != key:
                problems.append(Problem(f"{key}/{PROVENANCE}", 0, "does not hash to the name of its set"))
        except UserError as error:
            problems.append(Problem(f"{key}/{PROVENANCE}", 0, str(error)))
        seen: dict[int, int] = {}
        files = 0
        for name, file in self._shelf.contents(key):
            files += 1
            digest, torn = hashlib.sha256(), []
            for record, _ in _decode(name, _hashed(file, digest), torn):
                if record.set != key:
                    problems.append(Problem(name, 0, f"row {record.row_id} belongs to set {record.set}"))
                if seen.setdefault(hash(record.key), hash(record)) != hash(record):
                    what = f"row {record.row_id} sample {record.sample} is stored twice and differs"
                    problems.append(Problem(name, 0, what))
            if "/parts/" in name and digest.hexdigest() != Path(name).stem:
                problems.append(Problem(name, 0, "does not hash to its name"))
            problems += torn
        return Inspected(key, provenance, files, len(seen), tuple(problems))

    def _lines(self, set_key: str, problems: list[Problem]) -> Iterator[tuple[Record, bytes]]:
        for name, file in self._shelf.contents(set_key):
            yield from _decode(name, file, problems)

    def _known(self) -> str:
        lines = [
            f"\n  {key}  {provenance.source} by {dict(provenance.model)}" for key, provenance in self.sets().items()
        ]
        return " It holds:" + "".join(lines) if lines else " It holds no set."


def _open_shelf(path: str):
    if "://" not in path:
        return LocalShelf(Path(path).expanduser())
    from fiat_jax.store.objects import ObjectShelf  # fsspec costs 0.1 s that a local store need not pay

    return ObjectShelf(path.rstrip("/"))


def _hashed(lines: Iterable[bytes], digest: "hashlib._Hash") -> Iterator[bytes]:
    for line in lines:
        digest.update(line)
        yield line


def _decode(name: str, lines: Iterable[bytes], problems: list[Problem]) -> Iterator[tuple[Record, bytes]]:
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            why = "left out: the line is incomplete (its writer was killed, or writes now)"
            problems.append(Problem(name, number, why, damage="/parts/" in name))
            return
        try:
            yield decode_line(line[:-1]), line
        except ValueError as error:
            problems.append(Problem(name, number, f"left out: {error}"))
