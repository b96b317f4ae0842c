"""Which sequence is in which slot: plain Python, no arrays, no clock of its own."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Literal

from fiat_jax.inference.requests import Completion, End, FinishReason, Progress, Request

Order = Literal["longest", "arrival"]
PATIENCE = 4  # times the number of slots: so many may overtake the first in line while another group is at work


@dataclasses.dataclass
class Sequence:
    """One sample of a request on its way."""

    request: Request
    request_id: int
    sample: int
    expires: float | None = None
    slot: int | None = None
    tokens: list[int] = dataclasses.field(default_factory=list)
    log_probs: list[float] = dataclasses.field(default_factory=list)
    alternatives: list[dict[int, float]] = dataclasses.field(default_factory=list)
    finish_reason: FinishReason | None = None
    end: End | None = None

    @property
    def weight(self) -> int:
        """How many tokens it may come to."""
        return len(self.request.tokens) + self.request.max_new_tokens

    @property
    def progress(self) -> Progress:
        """What it has come to so far: its own lists, which grow."""
        return Progress(self.sample, self.tokens, self.log_probs, self.alternatives, self.finish_reason, self.end)

    @property
    def completion(self) -> Completion:
        """What it has come to, once it is over."""
        assert self.finish_reason is not None
        return Completion(tuple(self.tokens), tuple(self.log_probs), self.finish_reason, tuple(self.alternatives))


class Scheduler:
    """Puts waiting sequences into free slots, those of one group (adapter and prefix) at a time.

    `order`: "longest" first keeps slots busy to the end of bulk work; "arrival" is fair to those who wait: those of the
    group at work may overtake others, but not for ever.
    """

    def __init__(self, num_slots: int, order: Order = "longest"):
        self.order: Order = order
        self.group = ("", "")
        self.running: dict[int, Sequence] = {}
        self._free = list(range(num_slots))[::-1]
        self._waiting: list[Sequence] = []
        self._patience, self._overtaken = PATIENCE * num_slots, 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.running or self._waiting)

    @property
    def waiting(self) -> int:
        """How many have no slot yet."""
        return len(self._waiting)

    def any(self, of: Callable[[Sequence], bool]) -> bool:
        """Whether there is such a one, running or waiting."""
        return any(map(of, (*self.running.values(), *self._waiting)))

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Let sequences wait for a slot."""
        self._waiting.extend(sequences)
        if self.order == "longest":
            self._waiting.sort(key=lambda one: -one.weight)

    def admit(self, most: int) -> list[Sequence]:
        """Give slots to at most so many waiting sequences of the group at work, or of another one when all are out."""
        if not self._waiting:
            return []
        first = self._waiting[0]
        if not self.running:
            self.group = first.request.group
        if first.request.group == self.group:
            self._overtaken = 0
        elif self.order == "arrival" and self._overtaken >= self._patience:
            return []
        chosen = [one for one in self._waiting if one.request.group == self.group][: min(most, len(self._free))]
        self._overtaken += len(chosen) if first.request.group != self.group else 0
        for one in chosen:
            one.slot = self._free.pop()
            self.running[one.slot] = one
        taken = set(map(id, chosen))
        self._waiting = [one for one in self._waiting if id(one) not in taken]
        return chosen

    def release(self, sequence: Sequence, reason: FinishReason) -> None:
        """Take a sequence out of its slot, which is free from then on."""
        sequence.finish_reason = reason
        if sequence.slot is not None:
            del self.running[sequence.slot]
            self._free.append(sequence.slot)
        else:
            self._waiting = [one for one in self._waiting if one is not sequence]

    def end(self, over: Callable[[Sequence], bool], reason: FinishReason) -> list[Sequence]:
        """Release all running and waiting sequences that are over; return them."""
        ended = [one for one in (*self.running.values(), *self._waiting) if over(one)]
        for one in ended:
            self.release(one, reason)
        return ended
