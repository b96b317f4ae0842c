"""What several processes of one run need: start-up, who writes, and waiting for each other."""

import contextlib
import ctypes
import os
import pickle
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from fiat_jax.errors import LOST, UserError

HEARTBEAT = 45  # seconds after which JAX ends who has lost another process
WORDS = "fiat/watch"  # the directory of the board's words
SHARED_AFTER = 10.0  # seconds that a network file system may take to show what another host wrote
HEADER = np.dtype("<u4")
FIRST_BYTES = 1 << 12  # of what process 0 says that are sent at once; what is longer takes a second message


def initialize(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Join the run's other processes. Who they are says the first of these that is there:

    - the arguments, or FIAT_COORDINATOR (host:port) with FIAT_NUM_PROCESSES and FIAT_PROCESS_ID; in an indexed job of
      Kubernetes, JobSet's too, the last one may be absent: it is JOB_COMPLETION_INDEX;
    - a step of Slurm (srun) or Open MPI (mpirun) with several tasks, or FIAT_DISTRIBUTED=auto, which is for TPU pods:
      JAX finds out from the scheduler or the TPU's metadata.

    Without any of them it is a run of one process, and nothing is done. The others are waited for five minutes, or
    FIAT_JOIN_SECONDS, where machines are made one by one; who waited in vain ends with status 69. A process that dies
    later is noticed by the others after `HEARTBEAT` seconds at the latest.

    Raises:
        UserError: a part is missing or no number; the processes do not find each other.
    """
    given = coordinator or os.environ.get("FIAT_COORDINATOR", "")
    where = f"coordinator {given}" if given else "no FIAT_COORDINATOR; JAX was to find out from the scheduler"
    alone = f"this process cannot join the others of its run ({where})"
    try:
        if given:
            count, index = _count_and_index(given, num_processes, process_id)
            with on_abort(lambda: _give_up(f"{alone}, of which it is process {index} of {count}")):
                jax.distributed.initialize(given, num_processes=count, process_id=index, **_patience())
        elif _in_scheduled_step():
            with on_abort(lambda: _give_up(alone)):
                jax.distributed.initialize(**_patience())
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{alone}: {error}") from error


def _give_up(why: str) -> None:
    """End the process, which JAX would abort without saying why."""
    sys.stderr.write(f"{why}: one of them did not come, or is lost. Start all of them again.\n")
    sys.stderr.flush()
    os._exit(LOST)


@contextlib.contextmanager
def on_abort(call: Callable[[], None]) -> Iterator[None]:
    """While in context, call this where the process is about to abort.

    JAX's client aborts as soon as its coordination service is gone, and where others do not join. Python's own handlers
    run in the main thread alone, which may be inside a collective; this one runs in the thread that aborts, which may
    be one of JAX's.
    """
    install = ctypes.CDLL(None).signal
    install.argtypes, install.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: call())
    before = install(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        install(signal.SIGABRT, before)


def _patience() -> dict[str, Any]:
    """For how long processes are waited for: options of jax.distributed.initialize."""
    seconds = os.environ.get("FIAT_JOIN_SECONDS", "")
    if seconds and not seconds.isdigit():
        raise UserError(f"FIAT_JOIN_SECONDS is {seconds!r}; it is a whole number of seconds")
    joining = {"initialization_timeout": int(seconds)} if seconds else {}
    return {"heartbeat_timeout_seconds": HEARTBEAT, **joining}


def _count_and_index(coordinator: str, num_processes: int, process_id: int) -> tuple[int, int]:
    env = os.environ
    try:
        count = num_processes or int(env["FIAT_NUM_PROCESSES"])
        index = process_id if process_id >= 0 else int(env.get("FIAT_PROCESS_ID") or env["JOB_COMPLETION_INDEX"])
    except (KeyError, ValueError) as error:
        raise UserError(
            f"a coordinator ({coordinator}) needs FIAT_NUM_PROCESSES, and FIAT_PROCESS_ID or (in an indexed job of "
            f"Kubernetes) JOB_COMPLETION_INDEX, as numbers: {error}"
        ) from None
    if not 0 <= index < count:
        raise UserError(f"process {index} of {count}: processes are counted from 0; correct FIAT_PROCESS_ID")
    return count, index


def _in_scheduled_step() -> bool:
    """Whether a scheduler started this process as one of several, or the user says that something did."""
    asked = os.environ.get("FIAT_DISTRIBUTED", "")
    if asked not in ("", "auto", "off"):
        raise UserError(f"FIAT_DISTRIBUTED is {asked!r}; it is auto or off, or not set")
    tasks = (os.environ.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return asked == "auto" or (asked != "off" and any(many.isdigit() and int(many) > 1 for many in tasks))


def joins_as_another() -> bool:
    """Whether the environment says, before anything is joined, that this process is not the first of its run."""
    env = os.environ
    if env.get("FIAT_COORDINATOR"):
        index = env.get("FIAT_PROCESS_ID") or env.get("JOB_COMPLETION_INDEX", "")
    else:
        index = (env.get("SLURM_PROCID") or env.get("OMPI_COMM_WORLD_RANK", "")) if _in_scheduled_step() else ""
    return index.isdigit() and int(index) > 0


class Board(Protocol):
    """Where each process of a run has one word, which all can read."""

    def say(self, word: str) -> None: ...
    def read(self) -> Mapping[int, str]: ...


def board() -> Board | None:
    """Return the board of this run's processes; None where there is but one."""
    return _CoordinatorBoard() if place()[1] > 1 else None


class _CoordinatorBoard:
    """A board in the key-value store of JAX's coordination service, which process 0 keeps."""

    def __init__(self):
        from jax._src.distributed import global_state  # there is no public name; Orbax and others take this one

        assert global_state.client is not None  # there are several processes, so there is a service
        self._client, self._mine = global_state.client, f"{WORDS}/{place()[0]}"

    def say(self, word: str) -> None:
        """Say a word in place of the last one; ConnectionError where the service is gone."""
        with _as_connection_error():
            self._client.key_value_set(self._mine, word, allow_overwrite=True)

    def read(self) -> dict[int, str]:
        """Return the last word of each process that has said any."""
        with _as_connection_error():
            found = self._client.key_value_dir_get(WORDS)
        return {int(name.rpartition("/")[2]): word for name, word in found}


@contextlib.contextmanager
def _as_connection_error() -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        raise ConnectionError(str(error)) from error


def place() -> tuple[int, int]:
    """Return which process this is and of how many; unlike JAX's own functions it asks for no device."""
    from jax._src.distributed import global_state

    return global_state.process_id or 0, global_state.num_processes or 1


def told_by_all(topic: str, word: str, seconds: float = 60.0) -> list[str]:
    """Return what each process says on a topic, in their order; no device takes part, and none need be sound.

    Every process says a word, and of a topic once.

    Raises:
        UserError: naming the process that said nothing for so long.
    """
    from jax._src.distributed import global_state

    client, (index, count) = global_state.client, place()
    if client is None:
        return [word]
    key, told = f"fiat/told/{topic}", []
    client.key_value_set(f"{key}/{index}", word)
    for process in range(count):
        try:
            told.append(client.blocking_key_value_get(f"{key}/{process}", int(seconds * 1000)))
        except jax.errors.JaxRuntimeError as error:
            raise UserError(f"process {process} of {count} said nothing of its {topic}: {error}") from error
    return told


def is_main() -> bool:
    """Whether this process writes what the run writes once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process of the run has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether the flag is up in any process of the run; all must ask, and wait for each other."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def check_shared(directory: Path) -> None:
    """Refuse, in every process, a directory that is not one and the same to all of them.

    Raises:
        UserError: naming the processes that do not see what process 0 writes there.
    """
    if jax.process_count() == 1:
        return
    sign = directory / from_main(f".shared-{uuid.uuid4().hex}" if is_main() else None)
    if is_main():
        directory.mkdir(parents=True, exist_ok=True)
        sign.touch()
    barrier("a sign of process 0")
    until = time.monotonic() + SHARED_AFTER
    while not (seen := sign.exists()) and time.monotonic() < until:
        time.sleep(0.2)
    blind = np.flatnonzero(~np.asarray(multihost_utils.process_allgather(np.array(seen))).ravel())
    if is_main():
        sign.unlink()
    if len(blind):
        raise UserError(
            f"{directory} is not one directory to all hosts: process {', '.join(map(str, blind))} does not see what "
            "process 0 writes in it; give one on a file system that all of them share"
        )


def from_main(value: Any) -> Any:
    """Return what process 0 has, anything that pickles; all processes must ask, and wait for each other."""
    if jax.process_count() == 1:
        return value
    said = pickle.dumps(value) if is_main() else b""
    first = np.zeros(FIRST_BYTES, np.uint8)
    head = np.array([len(said)], HEADER).tobytes() + said
    first[: len(head)] = np.frombuffer(head[:FIRST_BYTES], np.uint8)
    got = _broadcast(first)
    length = int(got[: HEADER.itemsize].view(HEADER)[0])
    rest = HEADER.itemsize + length - FIRST_BYTES
    if rest > 0:
        second = np.zeros(1 << (rest - 1).bit_length(), np.uint8)  # so that few lengths are compiled
        if is_main():
            second[:rest] = np.frombuffer(head[FIRST_BYTES:], np.uint8)
        got = np.concatenate([got, _broadcast(second)])
    return pickle.loads(got[HEADER.itemsize : HEADER.itemsize + length].tobytes())


def _broadcast(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(multihost_utils.broadcast_one_to_all(array))
