"""A server's life: it listens at once, loads its models, answers, and drains when it is asked to stop."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fiat_jax.errors import UserError
from fiat_jax.inference.driver import Driver
from fiat_jax.serving.app import make_app
from fiat_jax.serving.config import Serve
from fiat_jax.serving.gate import Gate
from fiat_jax.serving.metrics import Metrics
from fiat_jax.serving.service import Served, Service
from fiat_jax.serving.text import TextModel

LOOK_SECONDS = 0.5  # between two looks at whether the engines still live
SILENT_SECONDS = 15.0  # between two looks at whether a connection has asked for anything
Load = Callable[[Gate], Mapping[str, Served]]


def listen(serve: Serve) -> socket.socket:
    """Return a socket on the server's address.

    Raises:
        UserError: the address is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in serve.host else socket.AF_INET
    # only where it is said to be TCP does asyncio send small pieces at once; others wait 40 ms to be acknowledged
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((serve.host, serve.port))
    except OSError as error:
        listening.close()
        where = f"{serve.host}:{serve.port}"
        raise UserError(f"{where} cannot be listened on ({error.strerror}); give another --gin.Serve.port") from None
    return listening


def run(serve: Serve, key: str | None, load: Load, driver: Driver, *, slots: int, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    `load` is called once, in a thread, and returns the models by name, whose engines the driver then drives; `slots` is
    how many sequences they answer at once. What is wrong with them ends the server.

    Raises:
        UserError: the address cannot be had, no key protects one that others reach, or what `load` raises.
    """
    if key is None and not serve.local:
        raise UserError(
            f"Serve.host={serve.host} can be reached from elsewhere: set a key in the environment variable "
            f"{serve.key_variable}, or listen on 127.0.0.1"
        )
    listening = listen(serve)
    life = _Life(serve, key, load, driver, slots, say)
    try:
        asyncio.run(life.run(listening))
    finally:
        listening.close()
    if not life.loaded.done():  # a thread in XLA's compiler can neither be told to end nor outlive the interpreter
        sys.stdout.flush()
        os._exit(0)


class _Life:
    def __init__(
        self, serve: Serve, key: str | None, load: Load, driver: Driver, slots: int, say: Callable[[str], None]
    ):
        self._serve, self._load, self._driver, self._say = serve, load, driver, say
        self._service = Service(serve, Gate(slots + serve.queue), Metrics())
        self.loaded: Future[Mapping[str, Served]] = Future()
        app = make_app(self._service, key)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=_Connection,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=5,
            )
        )
        self._server.capture_signals = contextlib.nullcontext  # pyright: ignore  # we drain first

    async def run(self, listening: socket.socket) -> None:
        host, port = listening.getsockname()[:2]
        self._say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}, loading")
        stop = asyncio.Event()
        with _signals(stop):
            serving = asyncio.create_task(self._server.serve([listening]))
            living = asyncio.create_task(self._live())
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait({serving, living, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                await self._drain(stop)
            self._server.should_exit = True
            for task in (stopped, living):
                task.cancel()
            results = await asyncio.gather(serving, living, stopped, return_exceptions=True)
            if self._driver.alive:
                await asyncio.to_thread(self._driver.close)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _live(self) -> None:
        """Load the models, let requests in, and end when an engine has failed."""
        self.loaded.set_running_or_notify_cancel()
        threading.Thread(target=self._load_all, name="load", daemon=True).start()
        models = await asyncio.wrap_future(self.loaded)
        self._driver.start()
        self._service.open(models)
        for name, model in models.items():
            if isinstance(model, TextModel):
                self._say(f"{name}: attention: {model.worker.engine.model.build.kernel}")
        self._say(f"ready: {', '.join(models)}")
        while self._driver.alive:
            await asyncio.sleep(LOOK_SECONDS)
        raise RuntimeError("an engine has failed; its error stands above")

    def _load_all(self) -> None:
        try:
            self.loaded.set_result(self._load(self._service.gate))
        except BaseException as error:  # raised where it is waited for
            self.loaded.set_exception(error)

    async def _drain(self, stop: asyncio.Event) -> None:
        """Wait for those under way; a second signal does not."""
        gate, seconds = self._service.gate, self._serve.drain_seconds
        self._say(f"draining: {gate.inside} sequences are under way, for up to {seconds:g} s")
        stop.clear()
        draining, again = asyncio.create_task(gate.drain(seconds)), asyncio.create_task(stop.wait())
        await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
        for task in (draining, again):
            task.cancel()
        self._say("drained" if not gate.inside else f"{gate.inside} sequences were dropped")


class _Connection(H11Protocol):
    """A connection that is closed when it has asked for nothing for a while, however slowly it sends."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._look = self.loop.call_later(SILENT_SECONDS, self._close_if_silent, None)

    def _close_if_silent(self, before: Any) -> None:
        if self.cycle is before and (before is None or before.response_complete):
            self.transport.close()
        else:
            self._look = self.loop.call_later(SILENT_SECONDS, self._close_if_silent, self.cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._look.cancel()
        super().connection_lost(exc)


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    """SIGINT and SIGTERM set `stop`; the earlier handlers come back at the end."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])
