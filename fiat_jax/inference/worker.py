"""An engine driven by a thread of its own, so that requests may come from anywhere and at any time."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from fiat_jax.errors import UserError
from fiat_jax.inference.engine import Engine
from fiat_jax.inference.requests import Completion, Request

# new tokens of a sample, all of them so far → whether it goes on
Watch = Callable[[int, Sequence[int]], bool]


def _go_on(sample: int, tokens: Sequence[int]) -> bool:
    return True


class Worker:
    """Submits, cancels and steps in one thread; what happens to a request reaches its future.

    As a context manager it ends the thread; requests that are under way are cancelled.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self._changed = threading.Condition()
        self._commands: list[Callable[[], None]] = []
        self._closed = False
        self._under_way: dict[int, _Asked] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def submit(self, request: Request, watch: Watch = _go_on) -> "Future[list[Completion]]":
        """Return the future of the request's completions, one a sample; a UserError where it cannot be answered.

        `watch` is called from the engine's thread with the tokens of a sample whenever there are more; False ends the
        request, whose completions are then what there is. Cancelling the future frees the request's slots.
        """
        asked = _Asked(request, watch)
        self._tell(lambda: self._begin(asked))
        asked.future.add_done_callback(lambda future: self._when_done(future, asked))
        return asked.future

    def add_prefix(self, tokens: Sequence[int], **where: Any) -> str:
        """Read a prefix between two blocks, and return its key; see `Engine.add_prefix`."""
        key: Future[str] = Future()

        def add() -> None:
            try:
                key.set_result(self.engine.add_prefix(tokens, **where))
            except Exception as error:  # of the caller, who is waiting in another thread
                key.set_exception(error)

        self._tell(add)
        return key.result()

    def close(self) -> None:
        """Cancel what is under way and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _tell(self, command: Callable[[], None]) -> None:
        with self._changed:
            if self._closed:
                raise UserError("the engine is closed")
            self._commands.append(command)
            self._changed.notify()

    def _when_done(self, future: Future, asked: "_Asked") -> None:
        if future.cancelled() and not self._closed:
            self._tell(lambda: self._cancel(asked))

    def _begin(self, asked: "_Asked") -> None:
        if asked.future.cancelled():
            return
        try:
            asked.number = self.engine.submit(asked.request)
        except UserError as error:
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
        self._fail(UserError("the engine was closed before this request was answered"))

    def _obey(self) -> bool:
        """Carry out what was asked, waiting where there is nothing to do; False when all is over."""
        with self._changed:
            while not self._commands and not self._under_way and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            commands, self._commands = self._commands, []
        for command in commands:
            command()
        return True

    def _step(self) -> None:
        if not self._under_way:
            return
        for one in self.engine.step():
            asked = self._under_way.get(one.request_id)
            if asked is None:
                continue  # of a worker before this one
            asked.done[one.sample] = one.completion
            if len(asked.done) == asked.request.samples:
                del self._under_way[one.request_id]
                asked.finish()
        for number, sample, tokens in self.engine.progress():
            asked = self._under_way.get(number)
            if asked is not None and len(tokens) > asked.seen.get(sample, 0):
                asked.seen[sample] = len(tokens)
                if not asked.watch(sample, tokens):
                    self.engine.cancel(number)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._closed = True
            commands, self._commands = self._commands, []
        for command in commands:
            command()  # what was still to begin is under way now, and fails with the rest
        for number, asked in self._under_way.items():
            self.engine.cancel(number)
            asked.fail(error)
        self._under_way.clear()


class _Asked:
    """A request on its way."""

    def __init__(self, request: Request, watch: Watch):
        self.request, self.watch = request, watch
        self.future: Future[list[Completion]] = Future()
        self.number: int | None = None
        self.done: dict[int, Completion] = {}
        self.seen: dict[int, int] = {}

    def finish(self) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_result([self.done[sample] for sample in range(self.request.samples)])

    def fail(self, error: BaseException) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)
