"""Tokenised rows: one example, many of them in flat arrays, and their cache on disk."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fiat_jax.data.ragged import Ragged
from fiat_jax.errors import UserError


@dataclass(frozen=True)
class Example:
    """One row of a task as int32 token ids: what the model reads and what it should answer (empty where none is asked).

    `dropped` counts the tokens that the length budget cut from each kind of segment.
    """

    row_id: str
    language: str
    inputs: np.ndarray
    target: np.ndarray
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Examples:
    """Many examples, token ids in flat arrays that may be memory-mapped; `dropped` has the truncated ones by index.

    `weights` (float32 [N]) is what each target token of an example counts in the loss; None: 1.
    """

    row_ids: list[str]
    languages: list[str]
    inputs: Ragged
    targets: Ragged
    dropped: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    weights: np.ndarray | None = None

    @classmethod
    def of(cls, examples: Iterable[Example]) -> "Examples":
        """Collect examples, say from `seqio_tasks.tokenise`."""
        examples = list(examples)
        return cls(
            row_ids=[example.row_id for example in examples],
            languages=[example.language for example in examples],
            inputs=Ragged.of(example.inputs for example in examples),
            targets=Ragged.of(example.target for example in examples),
            dropped={
                index: dict(example.dropped) for index, example in enumerate(examples) if any(example.dropped.values())
            },
        )

    def __len__(self) -> int:
        return len(self.row_ids)

    def __getitem__(self, index: int) -> Example:
        inputs, target = self.inputs[index], self.targets[index]
        return Example(self.row_ids[index], self.languages[index], inputs, target, self.dropped.get(index, {}))

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def take(self, indices: Iterable[int]) -> "Examples":
        """The examples named by `indices`, in that order."""
        chosen = np.array(list(indices), np.int64)
        return Examples(
            row_ids=[self.row_ids[index] for index in chosen],
            languages=[self.languages[index] for index in chosen],
            inputs=self.inputs.take(chosen),
            targets=self.targets.take(chosen),
            dropped={new: self.dropped[old] for new, old in enumerate(chosen.tolist()) if old in self.dropped},
            weights=None if self.weights is None else self.weights[chosen],
        )

    def weighted(self, weight: float) -> "Examples":
        """The same examples, each target token of which counts `weight` in the loss."""
        return replace(self, weights=np.full(len(self), weight, np.float32))

    def joined(self, others: "Examples") -> "Examples":
        """These examples and then the others; a row may be among both."""
        weights = [np.ones(len(one), np.float32) if one.weights is None else one.weights for one in (self, others)]
        return Examples(
            row_ids=[*self.row_ids, *others.row_ids],
            languages=[*self.languages, *others.languages],
            inputs=self.inputs.joined(others.inputs),
            targets=self.targets.joined(others.targets),
            dropped={**self.dropped, **{len(self) + index: kinds for index, kinds in others.dropped.items()}},
            weights=None if self.weights is None and others.weights is None else np.concatenate(weights),
        )

    def truncations(self) -> dict[str, dict[str, dict[str, int]]]:
        """What the length budget cut: language → kind of segment → {"rows": rows cut, "tokens": tokens cut}."""
        counts: dict[str, dict[str, dict[str, int]]] = {}
        for index, dropped in self.dropped.items():
            kinds = counts.setdefault(self.languages[index], {})
            for kind, tokens in dropped.items():
                count = kinds.setdefault(kind, {"rows": 0, "tokens": 0})
                count["rows"] += tokens > 0
                count["tokens"] += tokens
        return counts


def content_key(*parts: object) -> str:
    """The sha256 of all that token ids depend on, as JSON: rows, reasoning, instructions, tokenizer, length budget."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


class ExampleCache:
    """Tokenised examples in a local directory, one memory-mapped entry for each content key.

    An entry is written under another name and renamed, so it is there whole or not at all, whoever builds it.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        if "://" in str(directory):
            raise UserError(f"the cache of examples is memory-mapped: {directory} must be a local directory")
        self.directory = Path(directory)

    def get(self, key: str, build: Callable[[], Iterable[Example]]) -> Examples:
        """The examples stored under `key`; where there are none, those that `build` makes, after storing them."""
        if not (self.directory / key).is_dir():
            self._store(key, Examples.of(build()))
        return self._load(key)

    def _store(self, key: str, examples: Examples) -> None:
        scratch = self.directory / f".{key[:16]}-{uuid.uuid4().hex}"
        scratch.mkdir(parents=True)
        try:
            for name, ragged in (("inputs", examples.inputs), ("targets", examples.targets)):
                np.save(scratch / f"{name}.npy", ragged.values)
                np.save(scratch / f"{name}_offsets.npy", ragged.offsets)
            dropped = {str(index): kinds for index, kinds in examples.dropped.items()}
            about = {"row_ids": examples.row_ids, "languages": examples.languages, "dropped": dropped}
            (scratch / "rows.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
            os.replace(scratch, self.directory / key)
        except OSError:
            if not (self.directory / key).is_dir():  # else another process stored the same entry first
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _load(self, key: str) -> Examples:
        entry = self.directory / key
        try:
            about = json.loads((entry / "rows.json").read_text(encoding="utf-8"))
            inputs, targets = (
                Ragged(np.load(entry / f"{name}.npy", mmap_mode="r"), np.load(entry / f"{name}_offsets.npy"))
                for name in ("inputs", "targets")
            )
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"the cached examples in {entry} are damaged ({error}); delete that directory") from error
        dropped = {int(index): kinds for index, kinds in about["dropped"].items()}
        return Examples(about["row_ids"], about["languages"], inputs, targets, dropped)
