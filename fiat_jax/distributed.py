"""What several processes of one run need: start-up, who writes, and waiting for each other."""

import os
import pickle
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fiat_jax.errors import UserError

HEADER = np.dtype("<u4")
FIRST_BYTES = 1 << 12  # of what process 0 says that are sent at once; what is longer takes a second message


def initialize(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Join the run's other processes, by the arguments or FIAT_COORDINATOR, FIAT_NUM_PROCESSES, FIAT_PROCESS_ID.

    Without either it is a run of one process, and nothing is done.
    """
    coordinator = coordinator or os.environ.get("FIAT_COORDINATOR", "")
    if not coordinator:
        return
    try:
        count = num_processes or int(os.environ["FIAT_NUM_PROCESSES"])
        index = process_id if process_id >= 0 else int(os.environ["FIAT_PROCESS_ID"])
    except (KeyError, ValueError) as error:
        raise UserError(
            f"a coordinator ({coordinator}) needs FIAT_NUM_PROCESSES and FIAT_PROCESS_ID as well: {error}"
        ) from None
    jax.distributed.initialize(coordinator, num_processes=count, process_id=index)


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
