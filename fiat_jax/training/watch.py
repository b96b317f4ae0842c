"""Processes of one run watch each other: who is silent or stuck is named, and the others end instead of hanging.

A collective waits for all processes, so the loss of one leaves the others waiting, for minutes or for ever. Here a
thread of each process says on a common board, every few seconds, how far it has come, and reads what the others say.
"""

import contextlib
import faulthandler
import logging
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from fiat_jax.distributed import Board, board, on_abort, place
from fiat_jax.errors import LOST, UserError

log = logging.getLogger(__name__)

EVERY = 3.0  # seconds between two words of a process
SILENT = 20.0  # seconds without a word after which a process counts as lost
PATIENT = 40.0  # the same outside steps: an import or a parser may hold Python's lock for long
STUCK = 600.0  # seconds that a step may take; compilation, evaluation and saving are not counted
LEFT = "left"
STUCK_VARIABLE = "FIAT_STUCK_SECONDS"

_running: "Watch | None" = None  # the watch that lasts as long as the process's work


class Watch:
    """While in context, the processes of a run watch each other; one process alone watches only its own steps.

    Where another process is silent for `silent` seconds, or a step of this one takes longer than `stuck` seconds, it is
    told on stderr which, on which host, and at which step, all threads' stacks are dumped, and the process ends with
    status 69: not through an exception, because its main thread may be inside a collective that never returns. Who
    leaves the context without an exception is not missed by the others.

    Time in which this thread itself could not run (Python's lock was held, the process was stopped) counts for nothing.
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
        self.what, self.silent = what, silent
        self._board = common if common is not None else board()
        self._every, self._end = every, end
        self._stuck = float(os.environ.get(STUCK_VARIABLE, STUCK)) if stuck is None else stuck
        self._step, self._moved = -1, math.inf
        self._over = threading.Event()
        self._heard: dict[int, tuple[str, float]] = {}  # process → its last word, and when that was first read
        self._awake = 0.0  # seconds in which this watch's thread ran
        self._asked = False  # whether a failure was already waited for
        self._aborts = contextlib.ExitStack()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def begin(self, step: int) -> None:
        """Note from which step a run goes on; the time until the first one is not counted."""
        self._step, self._moved = step, math.inf

    def reached(self, step: int) -> None:
        """Note that this process has come to a step, and has begun the next one."""
        self._step, self._moved = step, self._awake

    def rest(self) -> None:
        """Note that something else than a step is done now, which takes as long as it takes."""
        self._moved = math.inf

    def __enter__(self) -> "Watch":
        if self._board is not None:
            self._aborts.enter_context(on_abort(self._aborted))
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.failed(error)
        self._over.set()
        self._thread.join()
        if error is None and self._board is not None:
            with contextlib.suppress(ConnectionError):
                self._board.say(LEFT)
        self._aborts.close()

    def failed(self, error: BaseException | None) -> None:
        """Where a collective failed, most likely another process is lost: let the thread find out which, and end us."""
        if not isinstance(error, (RuntimeError, ValueError)) or isinstance(error, UserError):
            return
        if self._board is not None and not self._asked:
            self._asked = True
            log.error("%s failed: %s", self._where(), error)
            self._thread.join(2 * self.silent)

    def _aborted(self) -> None:
        late = [f"{told} {ago:.0f} s ago" for told, ago in self._ago() if ago > 2 * self._every]
        why = "process 0 is lost, which keeps JAX's coordination service, or that service says that another is"
        self._lose(f"{why} ({'; '.join(late)})" if late else why)

    def _ago(self) -> list[tuple[str, float]]:
        """Return what was last heard of each process, and how many seconds ago."""
        heard = sorted(self._heard.items())
        return [(_told(process, word), self._awake - since) for process, (word, since) in heard]

    def _run(self) -> None:
        """Say and read until the context is left."""
        count, last = 0, time.monotonic()
        while not self._over.wait(self._every if count else 0):
            count += 1
            now = time.monotonic()
            self._awake, last = self._awake + min(now - last, 2 * self._every), now
            if self._board is not None:
                try:
                    self._board.say(f"{count} {self._step} {socket.gethostname()}")
                    words = self._board.read()
                except ConnectionError as error:
                    return self._lose(f"process 0 is lost, whose board nobody can read any more ({error})")
                for process, word in words.items():
                    if word == LEFT:
                        self._heard.pop(process, None)
                    elif process not in self._heard or self._heard[process][0] != word:
                        self._heard[process] = word, self._awake
                silent = [told for told, ago in self._ago() if ago > self.silent]
                if silent and not self._over.is_set():
                    return self._lose("; ".join(silent) + " is silent")
            if self._awake - self._moved > self._stuck and not self._over.is_set():
                all_said = "; ".join(told for told, _ in self._ago())
                return self._lose(f"no step for {self._awake - self._moved:.0f} s{': ' if all_said else ''}{all_said}")

    def _where(self) -> str:
        return f"{self.what}, {f'step {self._step}' if self._step >= 0 else 'outside steps'}"

    def _lose(self, why: str) -> None:
        told = f"{self._where()}, process {place()[0]} on {socket.gethostname()}: {why}."
        sys.stderr.write(
            f"{told} This process ends; start all of them again, and they go on from the last checkpoint.\n"
        )
        sys.stderr.flush()
        faulthandler.dump_traceback(file=sys.stderr)
        self._end(LOST)


@contextlib.contextmanager
def watched(what: str) -> Iterator[None]:
    """Let the processes of a run watch each other as long as all that they do in context; nothing where there is one.

    Raises whatever is raised in context, after the others had the time to be found lost.
    """
    global _running
    if place()[1] == 1:
        yield
        return
    with Watch(what, silent=PATIENT) as _running:
        try:
            yield
        finally:
            _running = None


@contextlib.contextmanager
def stepping(what: str) -> Iterator[Watch]:
    """Yield the watch to tell of steps: that of the whole process, which has less patience meanwhile, or a new one."""
    if _running is None:
        with Watch(what) as watch:
            yield watch
        return
    watch, before = _running, (_running.what, _running.silent)
    watch.what, watch.silent = what, SILENT
    try:
        yield watch
    except BaseException as error:  # its step and name are kept for what is told of it
        watch.failed(error)
        raise
    watch.what, watch.silent = before
    watch.begin(-1)


def _told(process: int, word: str) -> str:
    _, step, host = word.split(" ", 2)
    return f"process {process} on {host}, last heard of {f'at step {step}' if int(step) >= 0 else 'outside steps'},"
