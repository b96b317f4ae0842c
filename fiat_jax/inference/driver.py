"""One thread for some engines: it does what their workers ask between two blocks, in every process of a run."""

import collections
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from fiat_jax.distributed import from_main
from fiat_jax.errors import UserError
from fiat_jax.inference.engine import Engine
from fiat_jax.inference.requests import Request
from fiat_jax.inference.scheduler import Sequence as Queued

IDLE_SECONDS = 2.0  # after which processes that have nothing to do hear from each other
WAIT_FOR_ONE, WAIT_FOR_ALL = 0.03, 0.2  # of a step's time: what the first request waits for others


class EngineClosed(UserError):
    """The engine is closed, or was before the request was answered."""


class Command(NamedTuple):
    """What one of the engines is to do: a method of its `_Hand` or of the engine, and what it is given."""

    engine: int
    name: str
    arguments: tuple
    keywords: dict[str, Any]


Answer = Callable[[Any, BaseException | None], None]  # what came of a command, or why nothing did


class Client(Protocol):
    """Who hears of an engine what became of its requests: a `Worker`."""

    engine: Engine

    def take(self, ended: Sequence[tuple[int, Queued]], running: Sequence[tuple[int, Queued]]) -> None: ...

    def fail(self, error: BaseException) -> None: ...


class Driver:
    """One thread for some engines: it carries out what their workers ask, and steps those that are at work.

    In a run of several processes each has the same engines, made in the same order; the first one drives, and tells the
    others once a block what it is about to do, while they `follow`.
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._told: list[tuple[Command, Answer]] = []
        self._calls = collections.deque[tuple[Command, Answer]]()
        self._doing = collections.deque[tuple[Command, Answer]]()
        self._closed = False
        self._step_seconds = 0.0  # of late
        self._hands: list[_Hand] = []
        self._workers: list[Client] = []
        self._thread = threading.Thread(target=self._run, name="engines", daemon=True)

    def add(self, worker: Client) -> int:
        """Take on a worker's engine, before the start; return its number."""
        self._hands.append(_Hand(worker.engine))
        self._workers.append(worker)
        return len(self._hands) - 1

    def start(self) -> None:
        """Begin to drive, in the first process of a run."""
        self._thread.start()

    def follow(self) -> None:
        """Do what the first process does, until it ends; in all others."""
        while (commands := from_main(None)) is not None:
            for command in commands:
                with contextlib.suppress(Exception):  # the first process says so to whom it concerns
                    self._hands[command.engine].obey(command)
            for hand in self._hands:
                hand.step()

    @property
    def alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive()

    def tell(self, command: Command, answer: Answer, *, computes: bool = False) -> None:
        """Have a command carried out between two blocks; `answer` is called from the driver's thread.

        Of commands that compute something there is one between two blocks, so that the others go on.

        Raises:
            EngineClosed: it never will be.
        """
        with self._changed:
            if self._closed:
                raise EngineClosed("the engine is closed")
            (self._calls if computes else self._told).append((command, answer))
            self._changed.notify()

    def close(self) -> None:
        """Cancel what is under way and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        error: BaseException = EngineClosed("the engine was closed before this request was answered")
        try:
            while (told := self._next()) is not None:
                self._doing = told
                from_main([command for command, _ in told])
                while told:  # one by one: where one fails, those behind it hear of it
                    self._obey(*told.popleft())
                begun = time.monotonic()
                for hand, worker in zip(self._hands, self._workers, strict=True):
                    worker.take(hand.step(), hand.progress())
                self._step_seconds = max(time.monotonic() - begun, self._step_seconds / 2)
            from_main(None)
        except BaseException as raised:  # whoever waits must hear of it
            error = raised
            raise
        finally:
            self._fail(error)

    def _next(self) -> "collections.deque[tuple[Command, Answer]] | None":
        """Return what is to be done, waiting where there is nothing; None when all is over."""
        with self._changed:
            while not (self._told or self._calls or self._closed or any(hand.busy for hand in self._hands)):
                if not self._changed.wait(IDLE_SECONDS if jax.process_count() > 1 else None):
                    break
                self._gather()
            if self._closed:
                return None
            told = collections.deque(self._told)
            self._told.clear()
            if self._calls:
                told.append(self._calls.popleft())
            return told

    def _gather(self) -> None:
        """Wait while others come: clients often ask together, and the first alone would cost what all of them do."""
        before, until = 0, time.monotonic() + WAIT_FOR_ALL * self._step_seconds
        while before < len(self._told) and not self._closed and time.monotonic() < until:
            before = len(self._told)
            self._changed.wait(WAIT_FOR_ONE * self._step_seconds)

    def _obey(self, command: Command, answer: Answer) -> None:
        try:
            value = self._hands[command.engine].obey(command)
        except Exception as error:  # of who asked, and waits in another thread
            answer(None, error)
        else:
            answer(value, None)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._closed = True
        for _, answer in (*self._doing, *self._told, *self._calls):
            with contextlib.suppress(Exception):  # an engine that has failed may fail in this, too
                answer(None, error)
        for hand, worker in zip(self._hands, self._workers, strict=True):
            worker.fail(error)
            with contextlib.suppress(Exception):
                hand.end_all()


class _Hand:
    """Carries out commands on one engine, the same in every process of a run; requests go by their tickets."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._numbers: dict[int, int] = {}
        self._tickets: dict[int, int] = {}
        self._left: dict[int, int] = {}

    @property
    def busy(self) -> bool:
        """Whether there are requests under way."""
        return bool(self._numbers)

    def obey(self, command: Command) -> Any:
        """Carry out a command, and return what comes of it."""
        method = getattr(self, command.name, None) or getattr(self._engine, command.name)
        return method(*command.arguments, **command.keywords)

    def submit(self, ticket: int, request: Request) -> None:
        """Let a request wait for slots."""
        number = self._engine.submit(request)
        self._numbers[ticket], self._tickets[number], self._left[ticket] = number, ticket, request.samples

    def end(self, ticket: int, sample: int | None = None) -> None:
        """End a sample of a request, or all of them."""
        if ticket in self._numbers:
            self._engine.cancel(self._numbers[ticket], sample)

    def end_all(self) -> None:
        """End every request, and forget it."""
        for number in self._numbers.values():
            self._engine.cancel(number)
        self._numbers, self._tickets, self._left = {}, {}, {}

    def step(self) -> list[tuple[int, Queued]]:
        """Decode a block if there is anything to do; return the sequences that ended, with their tickets."""
        if not self.busy:
            return []
        # those of a driver before this one have no ticket
        ended = [(self._tickets[one.request_id], one) for one in self._engine.step() if one.request_id in self._tickets]
        for ticket, one in ended:
            self._left[ticket] -= 1
            if not self._left[ticket]:
                del self._left[ticket], self._numbers[ticket], self._tickets[one.request_id]
        return ended

    def progress(self) -> list[tuple[int, Queued]]:
        """Return the sequences that have a slot, with their tickets."""
        running = self._engine.progress() if self.busy else []
        return [(self._tickets[one.request_id], one) for one in running if one.request_id in self._tickets]
