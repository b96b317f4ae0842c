"""Processes of one run watch each other: who is silent or stuck is named, and the others end instead of hanging.

A collective waits for all processes, so the loss of one leaves the others waiting, for minutes or for ever. Here a
thread of each process says on a common board, every few seconds, how far it has come, and reads what the others say.
"""

import contextlib
import ctypes
import faulthandler
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

import jax

from fiat_jax.distributed import Board, board
from fiat_jax.errors import LOST, UserError

log = logging.getLogger(__name__)

EVERY = 3.0  # seconds between two words of a process
SILENT = 20.0  # seconds without a word after which a process counts as lost
STUCK = 600.0  # seconds that a step may take; compilation, evaluation and saving are not counted
LEFT = "left"
STUCK_VARIABLE = "FIAT_STUCK_SECONDS"


class Watch:
    """While in context, the processes of a run watch each other; one process alone watches only its own steps.

    Where another process is silent for `silent` seconds, or a step of this one takes longer than `stuck` seconds, it is
    told on stderr which, on which host, and at which step, all threads' stacks are dumped, and the process ends with
    status 69: not through an exception, because its main thread may be inside a collective that never returns. Who
    leaves the context without an exception is not missed by the others.
    """

    def __init__(
        self,
        what: str,
        *,
        common: Board | None = None,
        every: float = EVERY,
        silent: float = SILENT,
        stuck: float | None = None,
        end: Callable[[int], None] = os._exit,
    ):
        self._what, self._board = what, common if common is not None else board()
        self._every, self._silent, self._end = every, silent, end
        self._stuck = float(os.environ.get(STUCK_VARIABLE, STUCK)) if stuck is None else stuck
        self._step, self._moved = -1, math.inf
        self._over = threading.Event()
        self._aborts = contextlib.ExitStack()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def reached(self, step: int) -> None:
        """Note that this process has come to a step, and has begun the next one."""
        self._step, self._moved = step, time.monotonic()

    def rest(self) -> None:
        """Note that something else than a step is done now, which takes as long as it takes."""
        self._moved = math.inf

    def __enter__(self) -> "Watch":
        if self._board is not None:
            self._aborts.enter_context(_on_abort(self._aborted))
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if (
            isinstance(error, (RuntimeError, ValueError))
            and not isinstance(error, UserError)
            and self._board is not None
        ):
            # A collective that failed: most likely another process is lost. The thread finds out which, and ends us.
            log.error("%s: step %d failed: %s", self._what, self._step, error)
            self._thread.join(2 * self._silent)
        self._over.set()
        self._thread.join()
        if error is None and self._board is not None:
            with contextlib.suppress(ConnectionError):
                self._board.say(LEFT)
        self._aborts.close()

    def _aborted(self) -> None:
        self._lose("process 0 is lost, which keeps JAX's coordination service, or that service says that another is")

    def _run(self) -> None:
        """Say and read until the context is left."""
        heard: dict[int, tuple[str, float]] = {}  # process → its last word, and when that was first read
        count = 0
        while not self._over.wait(self._every if count else 0):
            count += 1
            now = time.monotonic()
            if self._board is not None:
                try:
                    self._board.say(f"{count} {self._step} {socket.gethostname()}")
                    words = self._board.read()
                except ConnectionError as error:
                    return self._lose(f"process 0 is lost, whose board nobody can read any more ({error})")
                for process, word in words.items():
                    if word == LEFT:
                        heard.pop(process, None)
                    elif process not in heard or heard[process][0] != word:
                        heard[process] = word, now
                silent = {process: word for process, (word, since) in heard.items() if now - since > self._silent}
                if silent and not self._over.is_set():
                    return self._lose(
                        "; ".join(_told(process, word) for process, word in silent.items()) + " is silent"
                    )
            if now - self._moved > self._stuck and not self._over.is_set():
                where = "; ".join(_told(process, word) for process, (word, _) in sorted(heard.items()))
                return self._lose(f"no step for {now - self._moved:.0f} s{': ' if where else ''}{where}")

    def _lose(self, why: str) -> None:
        told = f"{self._what}, step {self._step}, process {jax.process_index()} on {socket.gethostname()}: {why}."
        sys.stderr.write(
            f"{told} This process ends; start all of them again, and they go on from the last checkpoint.\n"
        )
        sys.stderr.flush()
        faulthandler.dump_traceback(file=sys.stderr)
        self._end(LOST)


@contextlib.contextmanager
def _on_abort(call: Callable[[], None]) -> Iterator[None]:
    """While in context, call this where the process is about to abort.

    JAX's client aborts as soon as its coordination service is gone. Python's own handlers run in the main thread alone,
    which may be inside a collective; this one runs in the thread that aborts, which is one of JAX's.
    """
    install = ctypes.CDLL(None).signal
    install.argtypes, install.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: call())
    before = install(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        install(signal.SIGABRT, before)


def _told(process: int, word: str) -> str:
    _, step, host = word.split(" ", 2)
    return f"process {process} on {host}, last heard of at step {step},"
