"""Engines to which requests may come from anywhere and at any time: futures, streams, calls between two blocks."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from fiat_jax.inference.driver import Answer, Command, Driver, EngineClosed
from fiat_jax.inference.engine import Engine
from fiat_jax.inference.requests import Completion, Progress, Request, TextScore
from fiat_jax.inference.scheduler import Sequence as Queued


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
