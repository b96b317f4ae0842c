"""Lists of integer arrays of different lengths, kept in one flat array."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """N integer arrays end to end: array i is `values[offsets[i]:offsets[i + 1]]`; both may be memory-mapped."""

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, arrays: Iterable[np.ndarray]) -> "Ragged":
        """Copy arrays of token ids into one int32 array."""
        arrays = [np.asarray(array, np.int32) for array in arrays]
        values = np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
        return cls(values, offsets_of(np.array([len(array) for array in arrays], np.int64)))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"array {index} of {len(self)}")
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """The length of each array, int64 [N]."""
        return np.diff(self.offsets)

    def lengths_of(self, indices: np.ndarray) -> np.ndarray:
        """The lengths of the arrays named by `indices`, int64; reads no others."""
        return self.offsets[indices + 1] - self.offsets[indices]

    def take(self, indices: np.ndarray) -> "Ragged":
        """The arrays named by `indices`, in that order, copied."""
        lengths = self.lengths_of(indices)
        return Ragged(self.values[spans(self.offsets[indices], lengths)], offsets_of(lengths))

    def joined(self, others: "Ragged") -> "Ragged":
        """These arrays and then the others, copied."""
        values = np.concatenate([self.values, others.values])
        return Ragged(values, np.concatenate([self.offsets, others.offsets[1:] + self.offsets[-1]]))


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Where N arrays of these lengths begin when they lie end to end, and where the last one ends: int64 [N + 1]."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The indices starts[0], starts[0] + 1, … for lengths[0] of them, then those of starts[1], and so on; int64."""
    return np.repeat(starts, lengths) + within(lengths)


def running(lengths: np.ndarray, per_group: np.ndarray) -> np.ndarray:
    """Where each array begins in its group, when groups of `per_group` arrays lie end to end; int64."""
    offsets = offsets_of(lengths)
    return offsets[:-1] - np.repeat(offsets[offsets_of(per_group)[:-1]], per_group)


def within(lengths: np.ndarray) -> np.ndarray:
    """0 … lengths[0] - 1, then 0 … lengths[1] - 1, and so on; int64."""
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
