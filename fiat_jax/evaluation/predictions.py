"""The predictions file: one JSON line for each row, from which every figure of results.json can be recomputed."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from fiat_jax.errors import UserError


@dataclass(frozen=True)
class Prediction:
    """A row's answer by one system.

    `gold` is None where the row came without an answer, `prediction` where no answer could be extracted. `scores` are
    the candidates' log-likelihoods (None where text was generated), `completion` is the text before extraction (None
    where candidates were ranked), and `values` are the row's values in 0..1 of the metrics that are means over rows.
    """

    id: str
    language: str
    gold: str | None
    prediction: str | None
    scores: Mapping[str, float] | None = None
    completion: str | None = None
    values: Mapping[str, float] = field(default_factory=dict)


def write_predictions(path: str | Path, predictions: Iterable[Prediction]) -> str:
    """Write one JSON line for each prediction, all or nothing, and return the sha256 of the file in hex."""
    lines = [json.dumps(asdict(one), ensure_ascii=False, allow_nan=False) + "\n" for one in predictions]
    content = "".join(lines).encode()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_bytes(content)
    unfinished.replace(path)
    return hashlib.sha256(content).hexdigest()


def read_predictions(path: str | Path) -> list[Prediction]:
    """Read what `write_predictions` wrote; a line that is not such a row is an error naming the file and the line."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such predictions file; `fiat evaluate` writes it")
    lines = path.read_bytes().split(b"\n")  # str.splitlines would also split at U+2028 inside a text
    return [_parsed(line, f"{path} line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


class StoredPredictions(Sequence[Prediction]):
    """The predictions of a file, read when they are first asked for."""

    def __init__(self, path: str | Path):
        self._path = path

    @cached_property
    def _all(self) -> list[Prediction]:
        return read_predictions(self._path)

    def __getitem__(self, index: Any) -> Any:
        return self._all[index]

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


def _parsed(line: bytes, where: str) -> Prediction:
    try:
        record = json.loads(line)
    except ValueError as error:  # broken JSON or UTF-8
        raise UserError(f"{where}: not a line of JSON ({error}); write the predictions again") from error
    names = {known.name for known in fields(Prediction)}
    if not isinstance(record, dict) or set(record) != names:
        raise UserError(f"{where}: a prediction has the fields {', '.join(sorted(names))}; write the predictions again")
    return Prediction(**record)
