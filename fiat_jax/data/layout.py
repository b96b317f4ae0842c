"""How examples become the arrays that a model reads: the only file of `data` that knows kinds of models."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from fiat_jax.data.examples import Examples
from fiat_jax.data.packing import Plan
from fiat_jax.data.ragged import Ragged, offsets_of, running, spans, within
from fiat_jax.errors import UserError

Batch = dict[str, np.ndarray]

_TARGET_SLACK = 1.25  # room for targets in a row, against what a full row of average examples has
_TARGET_MULTIPLE = 8


@dataclass(frozen=True)
class Passages:
    """N examples, each an input and the answers that may follow it: one target in training, candidates in scoring.

    The answers of example i are `answers[first[i]]` … `answers[first[i + 1] - 1]`. `weights` (float32 [N]) is what a
    token of an example's answers counts; None: 1.
    """

    row_ids: Sequence[str]
    inputs: Ragged
    answers: Ragged
    first: np.ndarray
    weights: np.ndarray | None = None

    @classmethod
    def of(cls, examples: Examples, candidates: Sequence[Sequence[np.ndarray]]) -> "Passages":
        """Examples with the answers, as token ids, that each may have; their own targets are ignored."""
        if len(candidates) != len(examples):
            raise ValueError(f"expected candidates for {len(examples)} examples, got them for {len(candidates)}")
        first = offsets_of(np.array([len(answers) for answers in candidates], np.int64))
        answers = Ragged.of(answer for answers in candidates for answer in answers)
        return cls(examples.row_ids, examples.inputs, answers, first)


class Layout(Protocol):
    """What packing and batches ask of a kind of model."""

    def sizes(self, passages: Passages) -> np.ndarray:
        """What each example takes of each resource of a row, tokens first: int64 [N, R]. UserError if too much."""
        ...

    def capacity(self, sizes_NR: np.ndarray) -> tuple[int, ...]:
        """What a row has of each resource; it depends on the sizes alone, so that all epochs have the same shapes."""
        ...

    def assemble(self, passages: Passages, plan: Plan, rows: range, num_rows: int, capacity: Sequence[int]) -> Batch:
        """The arrays of these rows of the plan, followed by empty rows up to `num_rows`."""
        ...


@dataclass(frozen=True)
class DecoderLayout:
    """Rows of `row_length` tokens (T) for a decoder, with M targets each.

    int32 [rows, T]: `tokens`; `positions`, from 0 in each example; `segments`, 0 for padding, else 1, 2, … for the
    examples of a row; `branches`, 0 for what all answers of an example share, c + 1 for answer c (0 if the only one);
    where no example has more than one answer there is no such array.
    int32 [rows, M]: `target_positions`, the place in the row whose output predicts a target; `targets`; `examples` and
    `candidates`, which example and which of its answers the target belongs to, -1 for padding.
    float32 [rows, M]: `weights`, 0 for padding, else what a target counts.

    A query sees the keys at or before it in its segment whose branch is 0 or its own, so an input is read once for all
    its answers.
    """

    row_length: int

    def sizes(self, passages: Passages) -> np.ndarray:
        """Tokens and targets of each example; the last token of an answer is predicted and never read."""
        _check(passages)
        answers_N, answer_tokens_N = np.diff(passages.first), np.diff(passages.answers.offsets[passages.first])
        sizes_NR = np.stack([passages.inputs.lengths + answer_tokens_N - answers_N, answer_tokens_N], axis=1)
        _check_fit(passages, sizes_NR[:, 0], self.row_length)
        return sizes_NR

    def capacity(self, sizes_NR: np.ndarray) -> tuple[int, ...]:
        """T, and an M that an average mixture of examples leaves a fifth of free, unless no row can need as much."""
        return self.row_length, _room(sizes_NR[:, 1], sizes_NR[:, 0], self.row_length)

    def assemble(self, passages: Passages, plan: Plan, rows: range, num_rows: int, capacity: Sequence[int]) -> Batch:
        """See the class; every array is made by whole-array NumPy operations."""
        places = _place(passages, plan, rows)
        num_targets = capacity[1]
        return {
            **_tokens(passages, places, num_rows, self.row_length),
            **_targets(passages, places, num_rows, num_targets),
        }


@dataclass(frozen=True)
class EncoderDecoderLayout:
    """Rows of `row_length` tokens (S) for an encoder, with T tokens for the decoder and M targets each.

    int32 [rows, S]: `tokens` and `segments`, as `DecoderLayout` has them. The decoder's own arrays are those of a
    `DecoderLayout` whose inputs are `start_id` alone, so the answers of an example share what the encoder read:
    int32 [rows, T]: `decoder_tokens`, `decoder_positions`, `decoder_segments`, `decoder_branches`; [rows, M]: all of
    its arrays of targets.
    """

    row_length: int
    start_id: int

    def sizes(self, passages: Passages) -> np.ndarray:
        """Tokens of the encoder, tokens of the decoder, and targets of each example."""
        _check(passages)
        answers_N, answer_tokens_N = np.diff(passages.first), np.diff(passages.answers.offsets[passages.first])
        _check_fit(passages, passages.inputs.lengths, self.row_length)
        return np.stack([passages.inputs.lengths, 1 + answer_tokens_N - answers_N, answer_tokens_N], axis=1)

    def capacity(self, sizes_NR: np.ndarray) -> tuple[int, ...]:
        """S, and a T and an M that an average mixture of examples leaves a fifth of free."""
        read_N = sizes_NR[:, 0]
        return self.row_length, *(_room(sizes_NR[:, r], read_N, self.row_length) for r in (1, 2))

    def assemble(self, passages: Passages, plan: Plan, rows: range, num_rows: int, capacity: Sequence[int]) -> Batch:
        """See the class."""
        N = len(passages.row_ids)
        empty = Ragged(np.zeros(0, np.int32), np.zeros(1, np.int64))
        read = replace(passages, answers=empty, first=np.zeros(N + 1, np.int64))
        encoder = _tokens(read, _place(read, plan, rows), num_rows, self.row_length)
        starts = Ragged(np.full(N, self.start_id, np.int32), np.arange(N + 1))
        written = replace(passages, inputs=starts)
        places = _place(written, plan, rows)
        decoder = _tokens(written, places, num_rows, capacity[1])
        return {
            **{name: encoder[name] for name in ("tokens", "segments")},
            **{f"decoder_{name}": array for name, array in decoder.items()},
            **_targets(written, places, num_rows, capacity[2]),
        }


def _check(passages: Passages) -> None:
    """Refuse examples from which nothing could be learnt or scored."""
    answers_N = np.diff(passages.first)
    owner = np.repeat(np.arange(len(answers_N)), answers_N)
    nothing_read = np.flatnonzero(passages.inputs.lengths == 0)
    _refuse(passages, nothing_read, "has no input tokens, so nothing can predict its target")
    _refuse(passages, np.flatnonzero(answers_N == 0), "has no candidates to score")
    nothing_asked = owner[passages.answers.lengths == 0]
    _refuse(passages, nothing_asked, "has no target tokens, so nothing would be learnt or scored")


def _check_fit(passages: Passages, lengths_N: np.ndarray, row_length: int) -> None:
    remedy = f"raise row_length to the longest, {lengths_N.max()}, or lower the length budget of the renderer"
    too_long = np.flatnonzero(lengths_N > row_length)
    _refuse(passages, too_long, f"does not fit a packed row of {row_length} tokens; {remedy}")


def _room(needs_N: np.ndarray, tokens_N: np.ndarray, row_length: int) -> int:
    """How much a row has of what examples need besides its tokens: a fifth more than an average row needs."""
    wanted = _TARGET_SLACK * row_length * needs_N.sum() / tokens_N.sum()
    wanted = min(wanted, row_length * (needs_N / tokens_N).max(), needs_N.sum())
    return int(np.ceil(max(wanted, needs_N.max()) / _TARGET_MULTIPLE)) * _TARGET_MULTIPLE


@dataclass(frozen=True)
class _Places:
    """Where the E examples of some rows, and their C answers, lie."""

    example_E: np.ndarray
    row_E: np.ndarray
    segment_E: np.ndarray
    begin_E: np.ndarray  # the example's first token in its row
    input_length_E: np.ndarray
    answers_E: np.ndarray  # how many answers it has
    answer_C: np.ndarray
    owner_C: np.ndarray  # the example, 0 … E - 1, that the answer belongs to
    length_C: np.ndarray
    tail_C: np.ndarray  # the answer's first token in its row; its last token is not read
    first_target_C: np.ndarray  # the answer's first target among the row's targets


def _place(passages: Passages, plan: Plan, rows: range) -> _Places:
    per_row = np.diff(plan.starts[rows.start : rows.stop + 1])
    example_E = plan.examples[plan.starts[rows.start] : plan.starts[rows.stop]]
    answers_E = passages.first[example_E + 1] - passages.first[example_E]
    input_length_E = passages.inputs.lengths_of(example_E)
    answer_C = spans(passages.first[example_E], answers_E)
    owner_C = np.repeat(np.arange(len(example_E)), answers_E)
    length_C = passages.answers.lengths_of(answer_C)
    targets_E = np.diff(offsets_of(length_C)[offsets_of(answers_E)])
    begin_E = running(input_length_E + targets_E - answers_E, per_row)
    return _Places(
        example_E=example_E,
        row_E=np.repeat(np.arange(len(rows)), per_row),
        segment_E=within(per_row) + 1,
        begin_E=begin_E,
        input_length_E=input_length_E,
        answers_E=answers_E,
        answer_C=answer_C,
        owner_C=owner_C,
        length_C=length_C,
        tail_C=(begin_E + input_length_E)[owner_C] + running(length_C - 1, answers_E),
        first_target_C=running(targets_E, per_row)[owner_C] + running(length_C, answers_E),
    )


def _tokens(passages: Passages, places: _Places, num_rows: int, row_length: int) -> Batch:
    p, owner_C, tail_length_C = places, places.owner_C, places.length_C - 1
    batch = {
        name: np.zeros(num_rows * row_length, np.int32) for name in ("tokens", "positions", "segments", "branches")
    }
    at = spans(p.row_E * row_length + p.begin_E, p.input_length_E)
    batch["tokens"][at] = passages.inputs.values[spans(passages.inputs.offsets[p.example_E], p.input_length_E)]
    batch["positions"][at] = within(p.input_length_E)
    batch["segments"][at] = np.repeat(p.segment_E, p.input_length_E)
    at = spans(p.row_E[owner_C] * row_length + p.tail_C, tail_length_C)
    branch_C = np.where(p.answers_E[owner_C] == 1, 0, within(p.answers_E) + 1)
    batch["tokens"][at] = passages.answers.values[spans(passages.answers.offsets[p.answer_C], tail_length_C)]
    batch["positions"][at] = np.repeat(p.input_length_E[owner_C], tail_length_C) + within(tail_length_C)
    batch["segments"][at] = np.repeat(p.segment_E[owner_C], tail_length_C)
    batch["branches"][at] = np.repeat(branch_C, tail_length_C)
    if not (np.diff(passages.first) > 1).any():  # of all examples, so that all batches of a run are alike
        del batch["branches"]
    return {name: flat.reshape(num_rows, row_length) for name, flat in batch.items()}


def _targets(passages: Passages, places: _Places, num_rows: int, num_targets: int) -> Batch:
    p, owner_C, length_C = places, places.owner_C, places.length_C
    batch = {
        "target_positions": np.zeros(num_rows * num_targets, np.int32),
        "targets": np.zeros(num_rows * num_targets, np.int32),
        "weights": np.zeros(num_rows * num_targets, np.float32),
        "examples": np.full(num_rows * num_targets, -1, np.int32),
        "candidates": np.full(num_rows * num_targets, -1, np.int32),
    }
    at = spans(p.row_E[owner_C] * num_targets + p.first_target_C, length_C)
    step = within(length_C)
    last_input_C = (p.begin_E + p.input_length_E - 1)[owner_C]
    after_answer = np.repeat(p.tail_C, length_C) + step - 1
    batch["target_positions"][at] = np.where(step == 0, np.repeat(last_input_C, length_C), after_answer)
    batch["targets"][at] = passages.answers.values[spans(passages.answers.offsets[p.answer_C], length_C)]
    batch["weights"][at] = (
        1 if passages.weights is None else np.repeat(passages.weights[p.example_E[owner_C]], length_C)
    )
    batch["examples"][at] = np.repeat(p.example_E[owner_C], length_C)
    batch["candidates"][at] = np.repeat(within(p.answers_E), length_C)
    return {name: flat.reshape(num_rows, num_targets) for name, flat in batch.items()}


def _refuse(passages: Passages, examples: np.ndarray, why: str) -> None:
    if len(examples):
        others = f" (and {len(examples) - 1} others)" if len(examples) > 1 else ""
        raise UserError(f"row {passages.row_ids[examples[0]]!r}{others} {why}")
