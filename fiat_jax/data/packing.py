"""Which examples share a packed row.

Rows are filled from shuffled examples towards an exact fit: an example joins a row only where the room that it leaves
can be filled by lengths that are still there (subset sums, kept as the bits of one integer). Lengths are proposed as
often as they occur, so the last rows meet the same mixture as the first. On e-SNLI as one prompt rendered it (93 to 255
tokens), rows of 400 tokens are 98.9% full and rows of 1,024 are 99.1%; best fit, longest first: 92.5 and 96.4%.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from fiat_jax.data.order import LENGTHS, ROWS, order
from fiat_jax.data.ragged import offsets_of

_PROPOSALS = 8  # lengths proposed for a place before the longest suitable one takes it
_STALE = 1 / 20  # sums are found anew when this part of the distinct lengths has run out since


@dataclass(frozen=True)
class Plan:
    """Packed rows of one epoch: row r holds `examples[starts[r]:starts[r + 1]]`, and every example is in one row."""

    examples: np.ndarray
    starts: np.ndarray

    @property
    def num_rows(self) -> int:
        """How many packed rows the epoch has."""
        return len(self.starts) - 1

    def row(self, index: int) -> np.ndarray:
        """The examples in one row, int64."""
        return self.examples[self.starts[index] : self.starts[index + 1]]


def plan(sizes_NR: np.ndarray, capacity: Sequence[int], seed: int, epoch: int) -> Plan:
    """Pack N examples whole into rows, and shuffle the rows: a pure function of its arguments, equal on every host.

    `sizes_NR[i, r]` is what example i takes of resource r (tokens first; then, say, targets), and no row takes more
    than `capacity[r]`. Raises ValueError where an example alone exceeds the capacity or has no tokens.
    """
    sizes_NR = np.asarray(sizes_NR)
    wrong = (sizes_NR > np.asarray(capacity)).any(axis=1) | (sizes_NR[:, 0] < 1)
    if wrong.any():
        example = int(np.argmax(wrong))
        raise ValueError(f"example {example} takes {sizes_NR[example].tolist()} of rows of {list(capacity)}")
    shuffled = order(len(sizes_NR), seed, epoch)
    proposals = sizes_NR[order(len(sizes_NR), seed, epoch, LENGTHS), 0]
    rows = list(_fill_rows(sizes_NR[shuffled].tolist(), list(capacity), proposals.tolist()))
    rows = [rows[index] for index in order(len(rows), seed, epoch, ROWS)]
    packed = np.array([example for row in rows for example in row], np.int64)
    return Plan(shuffled[packed], offsets_of(np.array([len(row) for row in rows], np.int64)))


def _fill_rows(sizes: list[list[int]], capacity: list[int], proposals: list[int]) -> Iterator[list[int]]:
    """Yield rows until every example is in one."""
    waiting: dict[int, list[int]] = {}
    for example, (length, *_) in enumerate(sizes):
        waiting.setdefault(length, []).append(example)
    lengths = sum(1 << length for length in waiting)  # bit n: an example of n tokens waits
    fillable, known = _fillable(lengths, capacity[0]), len(waiting)
    proposed = cycle(proposals)
    while lengths:
        if known - len(waiting) > known * _STALE:
            fillable, known = _fillable(lengths, capacity[0]), len(waiting)
        row, room, left, unfit = [], capacity[0], capacity[1:], 0
        while candidates := lengths & ~unfit & ((2 << room) - 1):
            length = _choose(candidates, fillable >> (capacity[0] - room), room, proposed)
            example = waiting[length][-1]
            after = [have - need for have, need in zip(left, sizes[example][1:], strict=True)]
            if min(after, default=0) < 0:
                unfit |= 1 << length
                continue
            row.append(waiting[length].pop())
            room, left = room - length, after
            if not waiting[length]:
                del waiting[length]
                lengths ^= 1 << length
        yield row


def _choose(candidates: int, fillable: int, room: int, proposed: Iterator[int]) -> int:
    """One of the candidate lengths (bits); where possible one after which the room can be filled as far as it can be.

    Bit n of `fillable` is set where all but n of the room can be filled.
    """
    spare = (fillable & -fillable).bit_length() - 1
    fitting = candidates & (fillable >> spare) & ((2 << (room - spare)) - 1) or candidates
    for _ in range(_PROPOSALS):
        length = next(proposed)
        if fitting >> length & 1:
            return length
    return fitting.bit_length() - 1


def _fillable(lengths: int, capacity: int) -> int:
    """Bit n is set where capacity - n is a sum of the given lengths (bits), each used any number of times."""
    sums, everything = 1, (2 << capacity) - 1
    while lengths:
        length = (lengths & -lengths).bit_length() - 1
        lengths &= lengths - 1
        if sums >> length & 1:
            continue  # already a sum of shorter ones, so it adds none
        step = length
        while step <= capacity:
            sums |= sums << step & everything
            step *= 2
    return int(f"{sums:0{capacity + 1}b}"[::-1], 2)
