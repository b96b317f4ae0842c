"""What several processes of one run need: start-up, who writes, and waiting for each other."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from fiat_jax.errors import UserError


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
