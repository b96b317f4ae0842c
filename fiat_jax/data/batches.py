"""Global batches of packed rows, each a pure function of its position."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fiat_jax.data.examples import Examples
from fiat_jax.data.layout import Batch, DecoderLayout, Layout, Passages
from fiat_jax.data.order import BARE, order
from fiat_jax.data.packing import Plan, plan
from fiat_jax.errors import UserError

LENGTHS = 128  # kernels of attention take rows of a multiple of it


class TrainBatches:
    """The batches of a training run: `batch(step)` depends on the examples, the seed and the step, and on nothing else.

    An epoch reads every example once. Its packed rows are dealt evenly to as few batches of `batch_rows` rows as hold
    them, so that no step rests on a handful of examples; rows of weight 0 fill the batches up to one shape.

    `bare` are the same examples rendered otherwise (without ŷ_β): each epoch reads the share `bare_share` of its
    examples so, chosen anew.
    """

    def __init__(
        self,
        examples: Examples,
        row_length: int,
        batch_rows: int,
        seed: int,
        layout: Callable[[int], Layout] = DecoderLayout,
        bare: Examples | None = None,
        bare_share: float = 0.0,
    ):
        assert bare is None or bare.row_ids == examples.row_ids
        self._num_examples, self._bare_share = len(examples), bare_share if bare is not None else 0.0
        held = examples if bare is None else examples.joined(bare)
        passages = Passages(held.row_ids, held.inputs, held.targets, np.arange(len(held) + 1), held.weights)
        self._packer = _Packer.of(passages, layout(row_length), batch_rows)
        self._seed = seed
        self._num_batches: dict[int, int] = {}
        self._plans: dict[int, Plan] = {}

    def num_batches(self, epoch: int) -> int:
        """How many batches this epoch has; epochs may differ by a few, since each is packed anew."""
        if epoch not in self._num_batches:
            self._num_batches[epoch] = self._packer.num_batches(self._plan(epoch).num_rows)
        return self._num_batches[epoch]

    def num_steps(self, epochs: int) -> int:
        """How many batches the first `epochs` epochs have together."""
        return sum(self.num_batches(epoch) for epoch in range(epochs))

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch of a step, and the batch within it."""
        epoch = 0
        while step >= self.num_batches(epoch):
            step -= self.num_batches(epoch)
            epoch += 1
        return epoch, step

    def batch(self, step: int) -> Batch:
        """The whole batch of a step; `DecoderLayout` says what is in it."""
        epoch, index = self.locate(step)
        return self._packer.cut(self._plan(epoch), index)

    def row_ids(self, step: int) -> list[str]:
        """The ids of the examples in the batch of a step."""
        epoch, index = self.locate(step)
        return self._packer.row_ids(self._plan(epoch), index)

    def _plan(self, epoch: int) -> Plan:
        found = self._plans.get(epoch)
        if found is None:
            read = self._read(epoch)
            found = plan(self._packer.sizes_NR[read], self._packer.capacity, self._seed, epoch)
            found = Plan(read[found.examples], found.starts)
            # Two, because a prefetching reader crosses into the next epoch while the last one is still asked for.
            self._plans = {**dict(list(self._plans.items())[-1:]), epoch: found}
        return found

    def _read(self, epoch: int) -> np.ndarray:
        """Return which of the passages an epoch reads, in the order of the examples: int64 [num_examples]."""
        every = np.arange(self._num_examples)
        if not self._bare_share:
            return every
        count = round(self._bare_share * len(every))
        bare = order(len(every), self._seed, epoch, BARE)[:count]
        every[bare] += len(every)
        return every


class ScoringBatches:
    """Batches in which every answer of every example is scored once; an input is read once for all its answers.

    `candidates[i]` are the possible answers of example i as token ids. Targets of the examples, if any, are ignored.
    Rows have `row_length` tokens, or as many more as an example takes with all its answers.
    """

    def __init__(
        self,
        examples: Examples,
        candidates: Sequence[Sequence[np.ndarray]],
        row_length: int,
        batch_rows: int,
        layout: Callable[[int], Layout] = DecoderLayout,
    ):
        passages = Passages.of(examples, candidates)
        self._first = passages.first
        longest = int(layout(sys.maxsize).sizes(passages)[:, 0].max(initial=0))
        if longest > row_length:
            row_length = -(-longest // LENGTHS) * LENGTHS
        self._packer = _Packer.of(passages, layout(row_length), batch_rows)
        self._plan = plan(self._packer.sizes_NR, self._packer.capacity, seed=0, epoch=0)

    def __len__(self) -> int:
        return self._packer.num_batches(self._plan.num_rows)

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch(index) for index in range(len(self)))

    def batch(self, index: int) -> Batch:
        """One whole batch; `DecoderLayout` says what is in it."""
        return self._packer.cut(self._plan, index)

    def gather(self, scores: Iterable[np.ndarray]) -> list[np.ndarray]:
        """The scores of each example's candidates, float64, summed over their tokens.

        `scores` holds, for each batch in order, what the model gives to its targets: [batch_rows, M].
        """
        totals = np.zeros(self._first[-1], np.float64)
        for batch, scores_BM in zip(self, scores, strict=True):
            real = batch["weights"] > 0
            np.add.at(
                totals, self._first[batch["examples"][real]] + batch["candidates"][real], np.asarray(scores_BM)[real]
            )
        return np.split(totals, self._first[1:-1])


@dataclass(frozen=True)
class _Packer:
    """What the batches of training and of scoring have in common."""

    passages: Passages
    layout: Layout
    sizes_NR: np.ndarray
    capacity: tuple[int, ...]
    batch_rows: int

    @classmethod
    def of(cls, passages: Passages, layout: Layout, batch_rows: int) -> "_Packer":
        if not passages.row_ids:
            raise UserError("there are no examples to make batches of; check the split and what it was filtered by")
        sizes_NR = layout.sizes(passages)
        return cls(passages, layout, sizes_NR, layout.capacity(sizes_NR), batch_rows)

    def num_batches(self, num_rows: int) -> int:
        return -(-num_rows // self.batch_rows)

    def bounds(self, rows: Plan, index: int) -> tuple[int, int]:
        """The packed rows of one batch of a plan: from where, and to where."""
        num_batches = self.num_batches(rows.num_rows)
        if not 0 <= index < num_batches:
            raise IndexError(f"batch {index} of {num_batches}")
        return index * rows.num_rows // num_batches, (index + 1) * rows.num_rows // num_batches

    def row_ids(self, rows: Plan, index: int) -> list[str]:
        """The ids of the examples in one batch of a plan."""
        start, stop = self.bounds(rows, index)
        return [
            self.passages.row_ids[int(example)] for example in rows.examples[rows.starts[start] : rows.starts[stop]]
        ]

    def cut(self, rows: Plan, index: int) -> Batch:
        """One batch of a plan."""
        return self.layout.assemble(
            self.passages, rows, range(*self.bounds(rows, index)), self.batch_rows, self.capacity
        )
