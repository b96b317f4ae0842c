"""An engine driven by a thread of its own, so that requests may come from anywhere and at any time."""

import asyncio
import collections
import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from fiat_jax.errors import UserError
from fiat_jax.inference.engine import Engine
from fiat_jax.inference.requests import Completion, Progress, Request, TextScore

T = TypeVar("T")


class EngineClosed(UserError):
    """The engine is closed, or was before the request was answered."""


class Worker:
    """Submits, cancels and steps in one thread; what happens to a request reaches its future.

    As a context manager it ends the thread; requests that are under way are cancelled.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self._changed = threading.Condition()
        self._commands = collections.deque[Callable[[], None]]()
        self._calls = collections.deque[tuple[Future, Callable[[], Any]]]()
        self._closed = False
        self._under_way: dict[int, _Asked] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def submit(self, request: Request, watch: Callable[[Progress], None] | None = None) -> "Future[list[Completion]]":
        """Return the future of the request's completions, one a sample; a UserError where it cannot be answered.

        `watch` is called from the engine's thread whenever a sample has more tokens, and when it has ended. Cancelling
        the future frees the request's slots.
        """
        asked = _Asked(request, watch)
        self._tell(lambda: self._begin(asked))
        asked.future.add_done_callback(lambda future: self._when_done(future, asked))
        return asked.future

    def stream(self, request: Request) -> "Stream":
        """Submit a request and return what is new of it, as it comes; called within an event loop."""
        return Stream(self, request)

    def end(self, future: Future, sample: int | None = None) -> None:
        """End a sample of a request, or all of them: its completion is what there is."""

        def end() -> None:
            for number, asked in self._under_way.items():
                if asked.future is future:
                    self.engine.cancel(number, sample)

        if not future.done():
            self._tell(end)

    def add_prefix(self, tokens: Sequence[int], **where: Any) -> "Future[str]":
        """Read a prefix between two blocks; see `Engine.add_prefix`."""
        return self._call(lambda: self.engine.add_prefix(tokens, **where))

    def drop_prefix(self, key: str) -> "Future[None]":
        """Forget a prefix; see `Engine.drop_prefix`."""
        return self._call(lambda: self.engine.drop_prefix(key))

    def score(self, texts: Sequence[Sequence[int]], **how: Any) -> "Future[list[TextScore]]":
        """Score texts between two blocks; see `Engine.score`."""
        return self._call(lambda: self.engine.score(texts, **how))

    def rank(
        self, text: Sequence[int], answers: Sequence[Sequence[int]], **how: Any
    ) -> "Future[list[tuple[float, ...]]]":
        """Score answers to a text between two blocks; see `Engine.rank`."""
        return self._call(lambda: self.engine.rank(text, answers, **how))

    def _call(self, function: Callable[[], T]) -> "Future[T]":
        """Let the engine's thread call a function between two blocks: one of them, so that blocks go on."""
        result: Future[T] = Future()
        self._put(self._calls, (result, function))
        return result

    @property
    def alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Cancel what is under way and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _tell(self, command: Callable[[], None]) -> None:
        self._put(self._commands, command)

    def _put(self, queue: "collections.deque[T]", what: T) -> None:
        with self._changed:
            if self._closed:
                raise EngineClosed("the engine is closed")
            queue.append(what)
            self._changed.notify()

    def _when_done(self, future: Future, asked: "_Asked") -> None:
        if future.cancelled():
            with contextlib.suppress(EngineClosed):
                self._tell(lambda: self._cancel(asked))

    def _begin(self, asked: "_Asked") -> None:
        if asked.future.cancelled():
            return
        try:
            asked.number = self.engine.submit(asked.request)
        except Exception as error:  # of this request; nothing was computed yet
            asked.fail(error)
        else:
            self._under_way[asked.number] = asked

    def _cancel(self, asked: "_Asked") -> None:
        if asked.number is not None and asked.number in self._under_way:
            self.engine.cancel(asked.number)

    def _run(self) -> None:
        try:
            while self._obey():
                self._step()
        except BaseException as error:  # whoever waits must hear of it
            self._fail(error)
            raise
        self._fail(EngineClosed("the engine was closed before this request was answered"))

    def _obey(self) -> bool:
        """Carry out what was asked, waiting where there is nothing to do; False when all is over."""
        with self._changed:
            while not (self._commands or self._calls or self._under_way or self._closed):
                self._changed.wait()
            if self._closed:
                return False
        for _ in range(len(self._commands)):  # one by one: where one fails, those behind it are not lost
            self._commands.popleft()()
        if self._calls:
            result, function = self._calls.popleft()
            if result.set_running_or_notify_cancel():
                try:
                    result.set_result(function())
                except Exception as error:  # of the caller, who is waiting in another thread
                    result.set_exception(error)
        return True

    def _step(self) -> None:
        if not self._under_way:
            return
        for one in self.engine.step():
            asked = self._under_way.get(one.request_id)
            if asked is None:
                continue  # of a worker before this one
            asked.done[one.sample] = one.completion
            asked.tell(one.progress)
            if len(asked.done) == asked.request.samples:
                del self._under_way[one.request_id]
                asked.finish()
        for one in self.engine.progress():
            asked = self._under_way.get(one.request_id)
            if asked is not None and asked.watch is not None:
                asked.tell(one.progress)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._closed = True
        for command in self._commands:
            with contextlib.suppress(Exception):  # an engine that has failed may fail in this, too
                command()  # what was still to begin is under way now, and fails with the rest
        for result, _ in self._calls:
            if result.set_running_or_notify_cancel():
                result.set_exception(error)
        for number, asked in self._under_way.items():
            asked.fail(error)
            with contextlib.suppress(Exception):
                self.engine.cancel(number)
        self._under_way.clear()


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

    def __init__(self, request: Request, watch: Callable[[Progress], None] | None):
        self.request, self.watch = request, watch
        self.future: Future[list[Completion]] = Future()
        self.number: int | None = None
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
