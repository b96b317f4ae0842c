"""Engines driven by a thread of their own, so that requests may come from anywhere and at any time."""

import asyncio
import collections
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

import jax

from fiat_jax.distributed import from_main
from fiat_jax.errors import UserError
from fiat_jax.inference.engine import Engine
from fiat_jax.inference.requests import Completion, Progress, Request, TextScore
from fiat_jax.inference.scheduler import Sequence as Queued

T = TypeVar("T")
IDLE_SECONDS = 2.0  # after which processes that have nothing to do hear from each other
GAP, MOST = 0.03, 0.2  # of a step's time: how long the first request waits for each further one, and for all of them


class EngineClosed(UserError):
    """The engine is closed, or was before the request was answered."""


class Command(NamedTuple):
    """What one of the engines is to do: a method of its `_Hand` or of the engine, and what it is given."""

    engine: int
    name: str
    arguments: tuple
    keywords: dict[str, Any]


Answer = Callable[[Any, BaseException | None], None]  # what came of a command, or why nothing did


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
        self._seconds = 0.0  # that a step takes: the last one
        self._hands: list[_Hand] = []
        self._workers: list[Worker] = []
        self._thread = threading.Thread(target=self._run, name="engines", daemon=True)

    def add(self, worker: "Worker") -> int:
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
                self._seconds = max(time.monotonic() - begun, self._seconds / 2)
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
        before, until = 0, time.monotonic() + MOST * self._seconds
        while before < len(self._told) and not self._closed and time.monotonic() < until:
            before = len(self._told)
            self._changed.wait(GAP * self._seconds)

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


class Pending(Future[list[Completion]]):
    """The future of a request's completions, and the ticket that its worker knows it by."""

    def __init__(self, ticket: int):
        super().__init__()
        self.ticket = ticket


class Worker:
    """Hands requests to an engine, and what happens to each to its future; with a driver of its own if none is given.

    As a context manager it ends its driver; requests that are under way are cancelled.
    """

    def __init__(self, engine: Engine, driver: Driver | None = None):
        self.engine = engine
        self._driver, self._tickets = driver or Driver(), itertools.count()
        self._under_way: dict[int, _Asked] = {}
        self._index = self._driver.add(self)
        if driver is None:
            self._driver.start()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def submit(self, request: Request, watch: Callable[[Progress], None] | None = None) -> Pending:
        """Return the future of the request's completions, one a sample; a UserError where it cannot be answered.

        `watch` is called from the driver's thread whenever a sample has more tokens, and when it has ended. Cancelling
        the future frees the request's slots.
        """
        ticket = next(self._tickets)
        asked = _Asked(request, watch, Pending(ticket))

        def begun(_: Any, error: BaseException | None) -> None:
            if error is None:
                self._under_way[ticket] = asked
            else:
                asked.fail(error)

        self._tell("submit", begun, ticket, request)
        asked.future.add_done_callback(self._when_done)
        return asked.future

    def stream(self, request: Request) -> "Stream":
        """Submit a request and return what is new of it, as it comes; called within an event loop."""
        return Stream(self, request)

    def end(self, future: "Pending", sample: int | None = None) -> None:
        """End a sample of a request, or all of them: its completion is what there is."""
        with contextlib.suppress(EngineClosed):
            self._tell("end", _ended, future.ticket, sample)

    def add_prefix(self, tokens: Sequence[int], **where: Any) -> "Future[str]":
        """Read a prefix between two blocks; see `Engine.add_prefix`."""
        return self._call("add_prefix", tokens, **where)

    def drop_prefix(self, key: str) -> "Future[None]":
        """Forget a prefix; see `Engine.drop_prefix`."""
        return self._call("drop_prefix", key)

    def score(self, texts: Sequence[Sequence[int]], **how: Any) -> "Future[list[TextScore]]":
        """Score texts between two blocks; see `Engine.score`."""
        return self._call("score", texts, **how)

    def rank(
        self, text: Sequence[int], answers: Sequence[Sequence[int]], **how: Any
    ) -> "Future[list[tuple[float, ...]]]":
        """Score answers to a text between two blocks; see `Engine.rank`."""
        return self._call("rank", text, answers, **how)

    def close(self) -> None:
        """Cancel what is under way and end the driver."""
        self._driver.close()

    def take(self, ended: Sequence[tuple[int, Queued]], running: Sequence[tuple[int, Queued]]) -> None:
        """Hand on what is new; called by the driver."""
        for ticket, one in ended:
            asked = self._under_way[ticket]
            asked.done[one.sample] = one.completion
            asked.tell(one.progress)
            if len(asked.done) == asked.request.samples:
                del self._under_way[ticket]
                asked.finish()
        for ticket, one in running:
            if self._under_way[ticket].watch is not None:
                self._under_way[ticket].tell(one.progress)

    def fail(self, error: BaseException) -> None:
        """Tell all who wait that nothing will come; called by the driver."""
        for asked in self._under_way.values():
            asked.fail(error)
        self._under_way.clear()

    def _call(self, name: str, *arguments: Any, **keywords: Any) -> Future:
        result: Future = Future()

        def done(value: Any, error: BaseException | None) -> None:
            if result.set_running_or_notify_cancel():
                result.set_result(value) if error is None else result.set_exception(error)

        self._driver.tell(Command(self._index, name, arguments, keywords), done, computes=True)
        return result

    def _tell(self, name: str, answer: Answer, *arguments: Any) -> None:
        self._driver.tell(Command(self._index, name, arguments, {}), answer)

    def _when_done(self, future: Future) -> None:
        if future.cancelled() and isinstance(future, Pending):
            self.end(future)


def _ended(value: Any, error: BaseException | None) -> None:
    """Nobody waits for the end of a request; an engine that fails in it has failed."""
    if error is not None:
        raise error


class Stream:
    """What is new of each sample of a request, as it comes, its end last; an asynchronous iterator and context.

    Leaving the context frees the request's slots.

    Raises:
        UserError: what is wrong with the request, from `__anext__`.
    """

    def __init__(self, worker: Worker, request: Request):
        self._worker, self._loop = worker, asyncio.get_running_loop()
        self._news: asyncio.Queue[Progress | None] = asyncio.Queue()
        self.future = worker.submit(request, self._tell)
        self.future.add_done_callback(lambda _: self._tell(None))

    def _tell(self, progress: Progress | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._news.put_nowait, progress)

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(self, *exc_info) -> None:
        self.future.cancel()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Progress:
        progress = await self._news.get()
        if progress is None:
            await asyncio.wrap_future(self.future)
            raise StopAsyncIteration
        return progress

    def end(self, sample: int) -> None:
        """Let one sample write no more."""
        self._worker.end(self.future, sample)


class _Asked:
    """A request on its way."""

    def __init__(self, request: Request, watch: Callable[[Progress], None] | None, future: Pending):
        self.request, self.watch, self.future = request, watch, future
        self.done: dict[int, Completion] = {}
        self._seen: dict[int, int] = {}

    def tell(self, progress: Progress) -> None:
        """Hand on what is new."""
        seen = self._seen.get(progress.sample, 0)
        if self.watch is not None and (len(progress.tokens) > seen or progress.finish_reason):
            self._seen[progress.sample] = len(progress.tokens)
            self.watch(progress.after(seen))

    def finish(self) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_result([self.done[sample] for sample in range(self.request.samples)])

    def fail(self, error: BaseException) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)
